"""Trains an experiment: cold start, distillation, controls, evaluation, report.

  python -m experiments.train --experiment=quickstart --workdir=runs/quickstart
  python -m experiments.train --experiment=quickstart --workdir=runs/slow --set=optimizer.learning_rate=1e-4
  python -m experiments.train --experiment=quickstart --workdir=runs/short --budget=tokens:100000
  python -m experiments.train --experiment=quickstart --workdir=runs/slow --profile_steps=10:13
  python -m experiments.train --list

The same command continues a run that was stopped or killed. The folder then holds config.json (every
setting), metrics.jsonl, checkpoints/, results.json, curves.png and report.html.

--profile_steps=10:13 writes a profile of the main run's updates 10, 11 and 12 into profile/ (not of the cold
start, a warm start or the controls); `xprof --logdir=WORKDIR/profile` shows it, after `pip install xprof`.
"""

import os

import jax
from absl import flags

from experiments import common, study
from opsd_jax.analyze.report import write_report
from opsd_jax.analyze.table import format_table
from opsd_jax.experiment import Experiment, build
from opsd_jax.train import profiling
from opsd_jax.train.config import parse_budget

flags.adopt_module_key_flags(common)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; made if absent, continued if not.')
_PROFILE = flags.DEFINE_string(
  'profile_steps', None, 'Updates of the main run to profile, as FIRST:STOP; STOP is not among them.'
)


def main(experiment: Experiment) -> None:
  """Runs the experiment in its folder."""
  window = profiling.parse_window(_PROFILE.value, parse_budget(experiment.loop))
  setup = build(experiment)  # before the folder is claimed: what fails here leaves no trace
  study.check_sampler(experiment)
  workdir = common.claim_workdir(_WORKDIR.value, experiment, setup.origin)
  results = study.run(experiment, setup, workdir, window)
  if jax.process_index() != 0:
    return
  report = write_report(workdir)
  print(format_table(results))
  print(f'\nReport: {os.path.relpath(report)}')


if __name__ == '__main__':
  common.run(main, __doc__)
