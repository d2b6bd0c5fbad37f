"""How an entry point starts and ends: quiet logs, documentation as help, expected errors as one line."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from opsd_jax.checkpoint.errors import CheckpointError, chain, describe, is_full
from opsd_jax.config import ConfigError
from opsd_jax.train.loop import TrainingStopped


def run(main: Callable[[], int | None], documentation: str | None) -> None:
  """Runs `main`: `--help` shows the documentation, and an expected error is one clear line.

  Ends with code 2 for a setting that cannot work, 1 for a run that had to stop, else with `main`'s.
  """
  sys.modules['__main__'].__doc__ = documentation

  def guarded(arguments: list[str]) -> int:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # absl's default shows every step of every checkpoint
    try:
      if len(arguments) > 1:
        raise ConfigError(f'{arguments[1]!r} is not a flag; write --set=field=value for a setting.')
      return main() or 0
    except (ConfigError, CheckpointError, TrainingStopped, OSError) as error:
      message = explain(error)
      if message is None:
        raise
      print(f'error: {message}', file=sys.stderr)
      return 2 if isinstance(error, ConfigError) else 1

  app.run(guarded)


def explain(error: BaseException) -> str | None:
  """One line for the user, or None for an error that nobody expected.

  A full disk can fail a checkpoint and then the closing of the metrics: the checkpoint's error knows more.
  """
  known = (ConfigError, CheckpointError, TrainingStopped)
  expected = next((e for e in chain(error) if isinstance(e, known)), None)
  if expected is not None:
    return str(expected)
  if not is_full(error):
    return None
  notes = getattr(error, '__notes__', [])  # of a checkpoint that failed for the same cause
  remedy = (
    'Remedy: free space or choose another --workdir, then run the same command: it continues from the '
    'last checkpoint.'
  )
  return ' '.join([f'the disk is full: {describe(error)}.', *(notes or [remedy])])
