"""Whether commands and their settings are sound, asked of the Python that has what a run needs.

The launcher needs no JAX: it runs this file (`python -m experiments.launching.check`) once, before anything
is started. Standard input has `{"module": ..., "runs": [[word, ...], ...]}`; an error is one line, code 2.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence

from opsd_jax.config import ConfigError, require

_REMEDY = (
  'Name a Python that has requirements.txt by --check_with, or leave the check to the runs: --nocheck.'
)


def ask(python: str, module: str, runs: Sequence[Sequence[str]]) -> None:
  """Raises ConfigError if a run of `module` with one of these words would refuse its flags or settings."""
  asked = json.dumps({'module': module, 'runs': [list(words) for words in runs]})
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  command = [python, '-m', 'experiments.launching.check']
  try:
    done = subprocess.run(command, input=asked, env=environment, text=True, capture_output=True)
  except OSError as error:
    raise ConfigError(f'{python} cannot be started: {error.strerror}. {_REMEDY}') from error
  if done.returncode == 2:
    raise ConfigError(done.stderr.strip().removeprefix('error: '))
  last = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
  require(done.returncode == 0, f'{python} could not check the settings: {last}. {_REMEDY}')


def sound(module: str, runs: Sequence[Sequence[str]]) -> None:
  """Raises ConfigError, or absl's own error, for the first run that would be refused for its words."""
  from absl import flags
  from absl.testing import flagsaver

  from experiments import common

  importlib.import_module(module)
  experimental = any(f.name == 'experiment' for f in flags.FLAGS.get_key_flags_for_module(module))
  for words in runs:
    with flagsaver.flagsaver():
      left = flags.FLAGS([module, *words])[1:]
      require(not left, f'{" ".join(left)} is no flag of {module}; write --set=field=value for a setting.')
      if experimental:
        common.experiment_from_flags()


def main() -> int:
  """Reads the question, and answers by the code."""
  from absl import flags

  asked = json.load(sys.stdin)
  try:
    sound(asked['module'], asked['runs'])
  except (ConfigError, flags.Error) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
