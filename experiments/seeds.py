"""Runs an experiment once a seed and tabulates the seeds.

  python -m experiments.seeds --experiment=quickstart --seeds=0,1,2,3,4 --workdir=runs/quickstart-seeds

Each seed has a folder of its own and continues if it was stopped; results.json holds them all.
"""

import dataclasses
import os

from absl import flags

from experiments import common, study
from opsd_jax.analyze.report import write_report
from opsd_jax.analyze.table import markdown_seeds_table
from opsd_jax.files import write_json

flags.adopt_module_key_flags(common)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of all seeds; made if absent, continued if not.')
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2', '3', '4'], 'Seeds, separated by commas.')


def main() -> None:
  """Runs every seed, then prints the table."""
  experiment = common.experiment_from_flags()
  root = common.claim_workdir(_WORKDIR.value, dataclasses.replace(experiment, seed=-1))
  results = []
  for seed in _SEEDS.value:
    seeded = common.with_settings(experiment, [f'seed={seed}'])
    workdir = common.claim_workdir(os.path.join(root, f'seed_{seed}'), seeded)
    results.append(study.run(seeded, workdir))
    write_report(workdir)
  write_json(os.path.join(root, 'results.json'), {'experiment': experiment.name, 'seeds': results})
  print(markdown_seeds_table(results))


if __name__ == '__main__':
  common.run(main, __doc__)
