"""Runs an experiment once a seed, and tabulates the seeds and their means.

  python -m experiments.seeds --experiment=quickstart --seeds=0,1,2,3,4 --workdir=runs/quickstart-seeds
  python -m experiments.seeds --experiment=misconceptions --vary_data --workdir=runs/recipes

Each seed has a folder of its own and continues if it was stopped; results.json holds them all, report.html
shows their means with curves. A seed in --set is replaced by those of --seeds.
"""

import os

from absl import flags

from experiments import common, study
from opsd_jax.analyze import across, across_report, table
from opsd_jax.analyze.report import write_report
from opsd_jax.config import require
from opsd_jax.experiment import Experiment, build
from opsd_jax.files import write_json

flags.adopt_module_key_flags(common)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of all seeds; made if absent, continued if not.')
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2', '3', '4'], 'Seeds, separated by commas.')
_VARY_DATA = flags.DEFINE_bool(
  'vary_data', False, 'Every seed has problems of its own, for training and for the final table.'
)
_TARGET = flags.DEFINE_float('target', 0.8, 'Validation accuracy whose cost in tokens and FLOPs is told.')


def main(experiment: Experiment) -> None:
  """Runs every seed, then prints the tables."""
  _require_problems_that_vary(experiment)
  named = [common.with_settings(experiment, _settings(seed)) for seed in _SEEDS.value]
  seeded = list({each.seed: each for each in named}.values())
  require(bool(seeded), '--seeds is empty; name some, such as --seeds=0,1,2.')
  require(0 < _TARGET.value <= 1, f'--target is {_TARGET.value}; it must lie in (0, 1].')
  setups = [build(each) for each in seeded]  # what fails here fails before any of them is trained
  study.check_sampler(experiment)
  root = common.claim_workdir(_WORKDIR.value, common.with_settings(experiment, _settings('0')))
  folders = [
    common.claim_workdir(os.path.join(root, f'seed_{each.seed}'), each, setup.origin)
    for each, setup in zip(seeded, setups, strict=True)
  ]
  results = []
  for each, setup, folder in zip(seeded, setups, folders, strict=True):
    results.append(study.run(each, setup, folder))
    write_report(folder)
  found = across.read(folders)
  summary = across.summarise(found, _TARGET.value)
  means = {'target': _TARGET.value, 'mean': across_report.plain(summary)}
  write_json(os.path.join(root, 'results.json'), {'experiment': experiment.name, 'seeds': results} | means)
  report = across_report.write(root, found, summary, _TARGET.value)
  print(table.markdown_seeds_table(results))
  for rows in (across.cells(summary, _TARGET.value), across.level_cells(summary)):
    if rows:
      print('\n' + table.markdown(rows))
  print(f'\nReport: {os.path.relpath(report)}')


def _require_problems_that_vary(experiment: Experiment) -> None:
  data = experiment.data
  fixed = data.source != 'chains' and data.test is not None and data.test_problems is None
  require(
    not (_VARY_DATA.value and fixed),
    f'--vary_data is set, but the final table has all problems of data.test={data.test}, whatever the seed; '
    'draw some with data.test_problems, hold them out of the training problems with data.test=none, or leave '
    '--vary_data out.',
  )


def _settings(seed: str) -> list[str]:
  data = (f'data.seed={seed}', f'data.chains.seed={seed}') if _VARY_DATA.value else ()
  return [f'seed={seed}', *data]


if __name__ == '__main__':
  common.run(main, __doc__)
