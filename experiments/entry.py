"""How an entry point starts and ends: quiet logs, documentation as help, expected errors as one line."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from experiments import processes
from opsd_jax.checkpoint.errors import CheckpointError, chain, describe, is_full
from opsd_jax.config import ConfigError
from opsd_jax.rollout.engine.http import EngineError
from opsd_jax.train.loop import TrainingStopped
from opsd_jax.train.stopping import Stopped

_EXPECTED = (ConfigError, CheckpointError, TrainingStopped, EngineError)
# What launchers take for a process that was ended from outside, and start again (xpk: 42, or from 127 on).
STOPPED = 128 + signal.SIGTERM


def run(
  main: Callable[..., int | None],
  documentation: str | None,
  words: str = 'see --help',
  operands: Sequence[str] = (),
) -> None:
  """Runs `main`: `--help` shows the documentation, and an expected error is one clear line.

  `words` is the advice for a word that is no flag. `operands` names the words that the command takes, in
  order: all must be there, and `main` is called with them. Ends with code 2 for a setting that cannot work,
  1 for a run that had to stop, `STOPPED` for one that was asked to, else with `main`'s.
  """
  sys.modules['__main__'].__doc__ = documentation

  def guarded(arguments: list[str]) -> int:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # absl's default shows every step of every checkpoint
    try:
      code = main(*taken(arguments[1:], operands, words)) or 0
      sys.stdout.flush()
      return code
    except KeyboardInterrupt:
      print('\nstopped', file=sys.stderr)
      processes.leave(128 + signal.SIGINT)
      return 128 + signal.SIGINT
    except BrokenPipeError:  # who read our output, such as `| head`, has seen enough
      _discard_output()
      processes.leave(128 + signal.SIGPIPE)
      return 128 + signal.SIGPIPE
    except Stopped as error:
      print(error, file=sys.stderr)
      return STOPPED
    except (*_EXPECTED, OSError) as error:
      message = explain(error)
      if message is None:
        _fail_among_others(error)
        raise
      print(f'error: {message}', file=sys.stderr)
      code = 2 if isinstance(error, ConfigError) else 1
      if not isinstance(error, TrainingStopped):  # which all have come to
        processes.leave(code, perhaps_a_peer=_perhaps_a_peer(error))
      return code
    except Exception as error:
      _fail_among_others(error)
      raise

  app.run(guarded)


def _fail_among_others(error: Exception) -> None:
  """Where other processes wait for this one, says what happened and ends it."""
  if processes.joined():
    traceback.print_exc()
    processes.leave(1, perhaps_a_peer=_perhaps_a_peer(error))


def _perhaps_a_peer(error: Exception) -> bool:
  """JAX's own errors are also those of a collective that a peer did not come to."""
  return any(type(each).__name__ == 'JaxRuntimeError' for each in chain(error))


def taken(given: Sequence[str], operands: Sequence[str], words: str) -> Sequence[str]:
  """The words for `operands`.

  Raises:
    ConfigError: one is missing, or there is one more.
  """
  if len(given) > len(operands):
    raise ConfigError(f'{given[len(operands)]!r} is not a flag; {words}.')
  if len(given) < len(operands):
    raise ConfigError(f'{" ".join(operands[len(given) :])} is missing; {words}.')
  return given


def _discard_output() -> None:
  """Sends what is still to be printed nowhere, else the flush at the end would fail once more."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for stream in (sys.stdout, sys.stderr):
    os.dup2(nowhere, stream.fileno())


def explain(error: BaseException) -> str | None:
  """One line for the user, or None for an error that nobody expected.

  A full disk can fail a checkpoint and then the closing of the metrics: the checkpoint's error knows more.
  """
  expected = next((e for e in chain(error) if isinstance(e, _EXPECTED)), None)
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
