"""One command at a time for a place that commands write to and go on from."""

import contextlib
import os
import sys
from collections.abc import Iterator

from opsd_jax.config import ConfigError


@contextlib.contextmanager
def alone(path: str, named: str) -> Iterator[None]:
  """Holds a file against other processes until the block ends, or the process does, whatever ends it.

  Where the file system has no locks, a line says so and nothing is held.

  Args:
    path: the file; made if absent, otherwise left as it is.
    named: what messages call the place.

  Raises:
    ConfigError: another process holds it, or it cannot be written.
  """
  try:
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    file = open(path, 'ab')  # noqa: SIM115, the lock ends where the file is closed
  except OSError as error:
    raise ConfigError(f'{named} cannot be written: {error.strerror or error}.') from error
  with file:
    _lock(file.fileno(), named)
    yield


def _lock(descriptor: int, named: str) -> None:
  import fcntl  # not on every system

  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise ConfigError(
      f'{named} is being written by another command; wait for its end, or name another.'
    ) from error
  except OSError as error:
    print(f'{named} cannot be locked ({error.strerror}): start no second command on it', file=sys.stderr)
