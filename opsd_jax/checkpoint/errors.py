"""What is said when a checkpoint cannot be written or read: the cause and the remedy."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

_T = TypeVar('_T')

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_FULL_WORDS = tuple(os.strerror(code) for code in _FULL)


class CheckpointError(RuntimeError):
  """A checkpoint that could not be written or read. The message names the folder and the remedy."""


def reading(where: str, load: Callable[[], _T]) -> _T:
  """What `load` returns; `where` says in the error what it read.

  Raises:
    CheckpointError: `load` failed.
  """
  try:
    return load()
  except Exception as error:
    raise CheckpointError(
      # The root says what does not fit; what is raised over it lists Orbax's handlers.
      f'Loading {where} failed: {describe(list(chain(error))[-1])}. Remedy: use the model and '
      'optimizer settings it was saved with, or choose another --workdir.'
    ) from error


def is_full(error: BaseException) -> bool:
  """Whether a full disk, or a limit that acts like one, is what caused the error."""
  # The array writer reports the operating system's message in a ValueError, without its number.
  return any(
    getattr(e, 'errno', None) in _FULL or any(word in str(e) for word in _FULL_WORDS) for e in chain(error)
  )


def describe(error: BaseException) -> str:
  """The error's type and message on one line of bounded length."""
  message = ' '.join(str(error).split()).rstrip('.')
  return f'{type(error).__name__}: {message[:400]}' if message else type(error).__name__


def silence_background_tracebacks() -> None:
  """Silences Orbax's own error log, once.

  A failed background save prints the same traceback from each of its threads, hundreds of lines
  that bury the `CheckpointError` which carries the same cause.
  """
  logger = logging.getLogger('absl')
  if _is_not_orbax_error not in logger.filters:
    logger.addFilter(_is_not_orbax_error)


def _is_not_orbax_error(record: logging.LogRecord) -> bool:
  in_orbax = f'{os.sep}orbax{os.sep}' in record.pathname
  return not (in_orbax and record.levelno == logging.ERROR)


def chain(error: BaseException | None) -> Iterator[BaseException]:
  """The error, the members of a group, and what caused them; the root comes last."""
  while error is not None:
    yield error
    for member in getattr(error, 'exceptions', ()):
      yield from chain(member)
    error = error.__cause__ or error.__context__
