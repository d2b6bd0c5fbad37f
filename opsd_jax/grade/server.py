"""The processes that grade: a small server that imports math-verify once and forks workers.

Runs in a process of its own, started by `pool.py`, that has neither JAX nor threads, so that forking is
safe and costs milliseconds. The server alone starts, kills and reaps workers, so that a process id is never
mistaken for another's. Everything ends with the process that grades: its end of the sockets closes, even
when it is killed; a worker in the middle of a computation is killed by the server, or else by its own alarm.

The protocol, on the server's socket: `fork` is answered by a line with the worker's id and a socket to it;
`kill ID` by `done`. On a worker's socket: a line of JSON with the arguments, answered by a line of JSON with
the result and whether the worker has grown so much that it should be replaced.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

PATIENCE = 10  # times the limit of processor time: the limit of the time on the clock
_ALARM = 2.0  # seconds after its limit at which a worker ends itself, should nobody be left to do it
_WATCH = 1.0  # seconds between looks at whether the parent is still there
_GROWTH = 256 * 2**20  # bytes that a worker may have grown by, at its largest


def main(arguments: list[str]) -> None:
  """Serves until the parent's end of the socket closes; `arguments` are those that `pool.py` gives."""
  descriptor, parent, seconds, memory, function = arguments
  for number in (signal.SIGINT, signal.SIGTERM):  # these are for the parent, whose end ends this
    signal.signal(number, signal.SIG_IGN)
  control = socket.socket(fileno=int(descriptor))
  try:
    work = _load(function)
  except Exception as error:
    _say(control, f'failed: {type(error).__name__}: {error}')
    return
  gc.freeze()  # so that a collection in a worker does not copy the pages that all of them share
  _say(control, 'ready')
  _serve(control, int(parent), lambda own: _work(own, work, float(seconds), int(memory)))


def _load(function: str) -> Callable[..., Any]:
  module, _, name = function.partition(':')
  loaded = importlib.import_module(module)
  if hasattr(loaded, 'prepare'):
    loaded.prepare()
  return getattr(loaded, name)


def _say(to: socket.socket, line: str) -> None:
  to.sendall(f'{line}\n'.encode('ascii', 'backslashreplace'))


def _serve(control: socket.socket, parent: int, work: Callable[[socket.socket], None]) -> None:
  workers: set[int] = set()
  try:
    while command := _next(control, parent):
      if command[0] == 'fork':
        workers.add(_fork(control, work))
      else:
        _end(workers, int(command[1]))
        _say(control, 'done')
  except OSError:
    pass  # the parent is gone
  finally:
    for worker in list(workers):
      _end(workers, worker)


def _next(control: socket.socket, parent: int) -> list[str] | None:
  """The next command; None when the parent is gone, even if a fork of it holds the socket open."""
  line = b''
  while not line.endswith(b'\n'):
    while not select.select([control], [], [], _WATCH)[0]:
      if os.getppid() != parent:
        return None
    byte = control.recv(1)
    if not byte:
      return None
    line += byte
  return line.decode().split()


def _fork(control: socket.socket, work: Callable[[socket.socket], None]) -> int:
  theirs, own = socket.socketpair()
  worker = os.fork()
  if worker == 0:
    try:
      control.close()
      theirs.close()
      work(own)
    finally:
      os._exit(1)
  own.close()
  with theirs:
    socket.send_fds(control, [f'{worker}\n'.encode()], [theirs.fileno()])
  return worker


def _end(workers: set[int], worker: int) -> None:
  if worker in workers:
    os.kill(worker, signal.SIGKILL)  # not reaped yet, so that the id is still this worker's
    os.waitpid(worker, 0)
    workers.remove(worker)


def _work(own: socket.socket, work: Callable[..., Any], seconds: float, memory: int) -> None:
  """Answers one line after another, until the other end closes."""
  server = os.getppid()
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  with contextlib.suppress(ValueError, OSError, OverflowError):  # there is a lower limit, or none as high
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  for alarm in (signal.SIGALRM, signal.SIGPROF):
    signal.signal(alarm, signal.SIG_DFL)
  allowed = _peak() + _GROWTH
  lines = own.makefile('rb')
  while _waits(own, server):
    line = lines.readline()
    if not line:
      return
    _set_alarms(seconds + _ALARM, PATIENCE * seconds + _ALARM)
    result = work(*json.loads(line))
    _set_alarms(0, 0)
    own.sendall(json.dumps([result, _peak() > allowed]).encode() + b'\n')


def _set_alarms(processor: float, clock: float) -> None:
  """Seconds until this process ends itself; 0: it does not."""
  signal.setitimer(signal.ITIMER_PROF, processor)
  signal.setitimer(signal.ITIMER_REAL, clock)


def _waits(own: socket.socket, server: int) -> bool:
  """True once there is something to read, False when the server is gone."""
  while not select.select([own], [], [], _WATCH)[0]:
    if os.getppid() != server:
      return False
  return True


def _peak() -> int:
  """Bytes of memory held at the most."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
