"""Runs an experiment once a seed and tabulates the seeds.

  python -m experiments.seeds --experiment=quickstart --seeds=0,1,2,3,4 --workdir=runs/quickstart-seeds

Each seed has a folder of its own and continues if it was stopped; results.json holds them all. A seed
in --set is replaced by those of --seeds.
"""

import dataclasses
import os

from absl import flags

from experiments import common, study
from opsd_jax.analyze.report import write_report
from opsd_jax.analyze.table import markdown_seeds_table
from opsd_jax.config import require
from opsd_jax.experiment import Experiment, build
from opsd_jax.files import write_json

flags.adopt_module_key_flags(common)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of all seeds; made if absent, continued if not.')
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2', '3', '4'], 'Seeds, separated by commas.')


def main(experiment: Experiment) -> None:
  """Runs every seed, then prints the table."""
  seeded = [common.with_settings(experiment, [f'seed={seed}']) for seed in dict.fromkeys(_SEEDS.value)]
  require(bool(seeded), '--seeds is empty; name some, such as --seeds=0,1,2.')
  setups = [build(each) for each in seeded]
  study.check_sampler(experiment)
  root = common.claim_workdir(_WORKDIR.value, dataclasses.replace(experiment, seed=0))
  results = []
  for each, setup in zip(seeded, setups, strict=True):
    workdir = common.claim_workdir(os.path.join(root, f'seed_{each.seed}'), each)
    results.append(study.run(each, setup, workdir))
    write_report(workdir)
  write_json(os.path.join(root, 'results.json'), {'experiment': experiment.name, 'seeds': results})
  print(markdown_seeds_table(results))


if __name__ == '__main__':
  common.run(main, __doc__)
