"""Launches a command through xmanager: on this machine, on a TPU VM's hosts, or on GKE; one run or a sweep.

  python -m experiments.launch_xm -- experiments.train --experiment=quickstart --workdir=runs/mine
  python -m experiments.launch_xm --sweep=seed=0,1 -- experiments.train --experiment=quickstart \
    --workdir=runs/seeds
  python -m experiments.launch_xm --platform=tpu_vm --tpu=NAME --zone=ZONE -- experiments.train ...
  python -m experiments.launch_xm --platform=gke --cluster=NAME --zone=ZONE --tpu_type=v5litepod-16 \
    --image=IMAGE -- experiments.train ...
  python -m experiments.launch_xm --print ... -- experiments.train ...

What stands after -- is the command, as one types it after `python -m`. Its settings are checked before
anything is started. A sweep is every combination of its values; each run has a folder of its own in
--workdir, and runs follow each other. --print shows the commands, for a shell, and nothing else.
docs/launching.md says more.
"""

import os
import signal
import sys

from absl import app, flags, logging

from experiments.launching import check, command, platforms, start
from experiments.launching.plan import flag_words, lines
from opsd_jax.config import ConfigError

_PLATFORM = flags.DEFINE_string('platform', 'local', 'local, tpu_vm or gke.')
_SWEEP = flags.DEFINE_multi_string(
  'sweep', [], 'A setting and its values, as --sweep=seed=0,1. May be repeated.'
)
_PRINT = flags.DEFINE_bool('print', False, 'Print the commands, start nothing.')
_CHECK = flags.DEFINE_bool('check', True, 'Check flags and settings before anything is started.')
_CHECK_WITH = flags.DEFINE_string('check_with', None, 'The Python that checks, if not that of local runs.')
_PYTHON = flags.DEFINE_string(
  'python', '', 'The Python of the runs; left out: .venv/bin/python if there (local, tpu_vm), else this one.'
)
_TPU = flags.DEFINE_string('tpu', '', 'tpu_vm: its name.')
_ZONE = flags.DEFINE_string('zone', '', 'tpu_vm, gke: its zone.')
_PROJECT = flags.DEFINE_string('project', '', "tpu_vm, gke: its project; left out: gcloud's.")
_FOLDER = flags.DEFINE_string(
  'folder', 'opsd-jax', 'tpu_vm: the repository on its hosts, from the home folder.'
)
_PREPARE = flags.DEFINE_bool('prepare', False, 'tpu_vm: first copy the last commit to all hosts and install.')
_CLUSTER = flags.DEFINE_string('cluster', '', 'gke: its name.')
_TPU_TYPE = flags.DEFINE_string('tpu_type', '', 'gke: the slice, as v5litepod-16.')
_IMAGE = flags.DEFINE_string('image', '', 'gke: a container image with this repository.')
_TITLE = flags.DEFINE_string('title', 'opsd', 'What xmanager and GKE call it.')
_EXTRA = flags.DEFINE_multi_string('extra', [], 'A word more for gcloud or xpk, as --extra=--spot.')


def main(arguments: list[str]) -> int:
  """Checks, then prints or starts; 2 for what cannot be launched, 1 if a run failed."""
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # else xmanager's data base tells of its tables
  try:
    return _launch(command.parse(arguments[1:]))
  except ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('\nstopped', file=sys.stderr)
    return 128 + signal.SIGINT


def _launch(launched: command.Command) -> int:
  plan = platforms.build(_where(), launched, _SWEEP.value)
  if not _PRINT.value:
    plan = start.require_startable(plan)
  if _CHECK.value:
    shared, runs = command.expand(launched, _SWEEP.value)
    python = _CHECK_WITH.value or (_PLATFORM.value == 'local' and _PYTHON.value) or _python()
    check.ask(python, launched.module, [[*shared, *flag_words(run.flags)] for run in runs])
  if _PRINT.value:
    print('\n'.join(lines(plan)))
    return 0
  failed = start.start(plan, _TITLE.value)
  if failed:
    print(f'error: failed: {", ".join(failed)}; the same command continues them.', file=sys.stderr)
  return 1 if failed else 0


def _where() -> platforms.Where:
  local = _PLATFORM.value == 'local'
  return platforms.Where(
    platform=_PLATFORM.value,
    python=_PYTHON.value or (_python() if local else ''),
    tpu=_TPU.value,
    zone=_ZONE.value,
    project=_PROJECT.value,
    folder=_FOLDER.value,
    cluster=_CLUSTER.value,
    tpu_type=_TPU_TYPE.value,
    image=_IMAGE.value,
    title=_TITLE.value,
    extra=tuple(_EXTRA.value),
    prepare=_PREPARE.value,
  )


def _python() -> str:
  """The Python of runs on this machine."""
  made = os.path.join('.venv', 'bin', 'python')
  return os.path.abspath(made) if os.path.exists(made) else sys.executable


if __name__ == '__main__':
  sys.modules['__main__'].__doc__ = __doc__
  app.run(main)
