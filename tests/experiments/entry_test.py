"""How an entry point ends: codes, and one line where an error was expected."""

import contextlib
import errno
import sys

import jax
import pytest

from experiments import entry, processes
from opsd_jax.checkpoint.errors import CheckpointError
from opsd_jax.config import ConfigError
from opsd_jax.rollout.engine.http import EngineError
from opsd_jax.train.loop import TrainingStopped
from opsd_jax.train.stopping import Stopped


@pytest.mark.parametrize(
  ('error', 'code', 'said'),
  [
    (KeyboardInterrupt(), 130, '\nstopped\n'),
    (ConfigError('--x is 0.'), 2, 'error: --x is 0.\n'),
    (Stopped('[opsd] stopped'), 143, '[opsd] stopped\n'),
    (EngineError('the server has gone.'), 1, 'error: the server has gone.\n'),
    (OSError(errno.ENOSPC, 'No space left on device'), 1, 'error: the disk is full: OSError: [Errno 28] No'),
  ],
)
def test_how_it_ends(monkeypatch, capsys, error, code, said):
  def main():
    raise error

  codes = []
  monkeypatch.setattr(sys.modules['__main__'], '__doc__', None)
  monkeypatch.setattr(entry.app, 'run', lambda guarded: codes.append(guarded(['program'])))
  entry.run(main, 'What it does.')
  assert codes == [code] and capsys.readouterr().err.startswith(said)


def test_the_remedy_is_that_of_the_command():
  error = OSError(errno.ENOSPC, 'No space left on device')
  assert '--workdir' in entry.explain(error)
  error.add_note('Remedy: free space.')
  assert entry.explain(error).endswith('No space left on device. Remedy: free space.')
  assert entry.explain(OSError(errno.EPERM, 'x')) is None


def because(error, cause):
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  ('error', 'left'),
  [
    (ConfigError('x'), [(2, False)]),
    (TrainingStopped('x'), []),  # all have come to it, and end in order
    (Stopped('x'), []),
    (ValueError('x'), [(1, False)]),
    (jax.errors.JaxRuntimeError('x'), [(1, True)]),
    (because(CheckpointError('x'), jax.errors.JaxRuntimeError('a barrier')), [(1, True)]),
    (KeyboardInterrupt(), [(130, False)]),
  ],
)
def test_one_of_several_does_not_keep_the_others(monkeypatch, capsys, error, left):
  def main():
    raise error

  found = []
  monkeypatch.setattr(processes, 'joined', lambda: True)
  monkeypatch.setattr(
    processes, 'leave', lambda code, perhaps_a_peer=False: found.append((code, perhaps_a_peer))
  )
  monkeypatch.setattr(entry.app, 'run', lambda guarded: guarded(['program']))
  with contextlib.suppress(ValueError, jax.errors.JaxRuntimeError):
    entry.run(main, 'What it does.')
  assert found == left and capsys.readouterr().err
