"""The server of workers (`server.py`) as the process that grades sees it: started, asked, ended."""

import fcntl
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

from opsd_jax.config import ConfigError, require

_BOOT = (
  'import sys, json; sys.path[:] = json.loads(sys.argv[1]); '
  'from opsd_jax.grade import server; server.main(sys.argv[2:])'
)
_START = 120.0  # seconds that the imports may take, on a slow disk
_END = 10.0  # seconds that its end may take
_REMEDY = 'Rules opsd and strict need math-verify: pip install -r requirements.txt; or set grade.rules=text.'


class Server:
  """Starts with the first worker. Any thread may ask; the server answers one after another."""

  def __init__(self, function: str, seconds: float, memory: int):
    self._arguments = (str(os.getpid()), str(seconds), str(memory), function)
    self._owner = os.getpid()
    self._lock = threading.Lock()
    self._process: subprocess.Popen | None = None
    self._control: socket.socket | None = None

  def fork(self) -> tuple[int, socket.socket]:
    """A new worker: its process id, and the socket on which it is given tasks.

    Raises:
      ConfigError: the function cannot be imported.
      OSError: the server is gone, or cannot fork.
    """
    with self._lock:
      if self._process is None:
        self._start()
      self._control.sendall(b'fork\n')
      line, descriptors, _, _ = socket.recv_fds(self._control, 64, 1)
      if not descriptors:
        raise ConnectionError('the server of the workers is gone')
      os.set_inheritable(descriptors[0], False)
      return int(line), socket.socket(fileno=descriptors[0])

  def kill(self, worker: int) -> None:
    """Kills a worker and waits until it is gone; without a server it is gone, or ends by itself."""
    with self._lock:
      try:
        if self._control is not None:
          self._control.sendall(b'kill %d\n' % worker)
          self._control.recv(64)
      except OSError:
        pass

  def died(self) -> bool:
    """Whether the server ended without having been asked to."""
    with self._lock:
      return self._process is not None and self._process.poll() is not None

  def close(self) -> None:
    """Ends the server and all workers; the next `fork` starts it again."""
    with self._lock:
      self._close()

  def _start(self) -> None:
    require(
      bool(sys.executable),
      'sys.executable is empty, so that no processes that grade can be started; run a program of Python, or '
      'set grade.rules=text.',
    )
    self._control, theirs = (_above_standard(end) for end in socket.socketpair())
    with theirs:
      self._process = subprocess.Popen(
        [
          sys.executable,
          '-P',
          '-W',
          'ignore',
          '-c',
          _BOOT,
          json.dumps(_paths()),
          str(theirs.fileno()),
          *self._arguments,
        ],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {'PYTHONHASHSEED': '0'},  # else the order of sets differs from run to run
      )
    said = self._first_line()
    if said != 'ready':
      self._process.kill()
      self._close()
      raise ConfigError(f'the processes that grade do not start: {said}. {_REMEDY}')

  def _first_line(self) -> str:
    self._control.settimeout(_START)
    try:
      with self._control.makefile('r') as lines:
        return lines.readline().strip() or 'no word from them'
    except OSError:
      return f'no sign of life within {_START:.0f} seconds'
    finally:
      self._control.settimeout(None)

  def _close(self) -> None:
    if self._control is not None:
      self._control.close()
    if self._process is not None and os.getpid() == self._owner:
      try:
        self._process.wait(_END)  # it ends, and its workers with it, since its socket is closed
      except subprocess.TimeoutExpired:
        self._process.kill()
        self._process.wait()
    self._process = self._control = None


def _paths() -> list[str]:
  """Where the server finds modules: here as well, but the working directory shadows none of Python's own."""
  try:
    here = os.getcwd()
  except OSError:  # it was removed
    here = ''
  found = sorted(sys.path, key=lambda path: path in ('', here))
  return [*found, str(pathlib.Path(__file__).resolve().parents[2])]


def _above_standard(end: socket.socket) -> socket.socket:
  """The socket under a number above 2: a process without standard input hands out 0, which Popen replaces."""
  with end:
    return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
