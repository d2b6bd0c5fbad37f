"""A run that is asked to stop: the update under way is finished and saved.

Machines are taken away, queues have time limits; what takes them says so by SIGTERM, and waits (Kubernetes
30 s, unless told otherwise) before it ends the process.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(RuntimeError):
  """The run was asked to stop and did, after a checkpoint. The same command continues it."""


@contextlib.contextmanager
def heard() -> Iterator[Callable[[], bool]]:
  """Notes SIGTERM within the block instead of obeying at once; yields what says whether it came.

  A second one ends the process as it would have. In another thread than the main one nothing is noted:
  signals are not told there.
  """
  came = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield came.is_set
    return
  before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # None: somebody's who is not Python

  def note(*_) -> None:
    came.set()
    signal.signal(signal.SIGTERM, before)

  signal.signal(signal.SIGTERM, note)
  try:
    yield came.is_set
  finally:
    signal.signal(signal.SIGTERM, before)
