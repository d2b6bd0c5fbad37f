"""One process that grades, as `pool.py` sees it: its task, its answer, and whether it has had its time."""

import dataclasses
import json
import os
import socket
import time
from typing import Any

from opsd_jax.grade.server import PATIENCE

TASKS = 2000  # gradings after which a worker is replaced: what sympy remembers grows
TIMEOUT, DIED = object(), object()  # in the place of a result
_LEAST = 0.02  # seconds that an overdue task gets at least, if it gets any
_TICKS = os.sysconf('SC_CLK_TCK')


@dataclasses.dataclass
class Worker:
  """A process that grades; `wire` is None until it is needed, and after it was killed.

  Attributes:
    process: its id.
    wire: where it is given tasks.
    tasks: how many it was given.
    task: number of the one that it works on.
    began: clock at the task's beginning.
    due: clock at which to see whether the task has had its time.
    used: seconds of processor time that the process had had when the task began; None: not known.
    heard: of the answer, so far.
  """

  process: int = 0
  wire: socket.socket | None = None
  tasks: int = 0
  task: int = -1
  began: float = 0.0
  due: float = 0.0
  used: float | None = None
  heard: bytes = b''


def begin(worker: Worker, task: int, seconds: float) -> None:
  """Notes that a task begins now, and when its time is up at the earliest."""
  worker.task, worker.began, worker.heard = task, time.monotonic(), b''
  worker.due, worker.used = worker.began + seconds, processor_seconds(worker.process)


def overdue(worker: Worker, seconds: float) -> bool:
  """Whether its task has had its time; one that waited for a processor gets what it lacks."""
  now = time.monotonic()
  if now < worker.due:
    return False
  used, last = processor_seconds(worker.process), worker.began + PATIENCE * seconds
  lacks = 0.0 if None in (used, worker.used) else seconds - (used - worker.used)
  worker.due = min(now + max(lacks, _LEAST), last)
  return lacks <= 0 or now >= last


def receive(worker: Worker) -> Any:
  """The result, `DIED`, or None while the line is not complete."""
  try:
    heard = worker.wire.recv(65536)
  except OSError:
    return DIED
  worker.heard += heard
  if not heard:
    return DIED
  if not worker.heard.endswith(b'\n'):
    return None
  try:
    result, grown = json.loads(worker.heard)
  except (TypeError, ValueError):
    return DIED
  worker.tasks += TASKS * bool(grown)
  return result


def processor_seconds(process: int) -> float | None:
  """What a process has had of the processors; None where the system does not say, or it is gone."""
  try:
    with open(f'/proc/{process}/stat', 'rb') as file:
      said = file.read().rpartition(b')')[2].split()
  except OSError:
    return None
  return (int(said[11]) + int(said[12])) / _TICKS
