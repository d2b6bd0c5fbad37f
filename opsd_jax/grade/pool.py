"""Gradings in processes that can be killed: limits of time and memory that hold from any thread.

A grading that overruns its time loses its process and nothing else: the others go on meanwhile, and a new
worker is forked from the server in milliseconds. No signal is used in the calling process. The time is that
of the processor, so that a busy machine makes no answer late; what waits for something else is killed when
the clock says `server.PATIENCE` times as much.
"""

import atexit
import contextlib
import functools
import json
import os
import queue
import selectors
import threading
import time
from collections.abc import Sequence
from typing import Any

from opsd_jax.grade import worker as processes
from opsd_jax.grade.starting import Server
from opsd_jax.grade.worker import DIED, TIMEOUT, Worker

_GLANCE = 0.02  # seconds between looks for a worker that another thread gave back
_MAKING = threading.Lock()

Task = Sequence[Any]


class Pool:
  """Calls `function`, 'module:name', in worker processes, from any thread; the first call starts them.

  A module with a function `prepare` has it called once, before workers are forked. Arguments and results
  are what JSON can say.
  """

  def __init__(self, function: str, seconds: float, memory_gib: float, workers: int):
    self._seconds = seconds
    self._server = Server(function, seconds, int(memory_gib * 2**30))
    self._workers = [Worker() for _ in range(workers)]
    self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in self._workers:
      self._idle.put(worker)

  def run(self, tasks: Sequence[Task]) -> list[Any]:
    """The results in the order of the tasks, with `TIMEOUT` or `DIED` where there is none.

    Raises:
      ConfigError: the module cannot be imported by the workers' server.
    """
    results: list[Any] = [DIED] * len(tasks)
    todo = list(range(len(tasks)))[::-1]
    again: set[int] = set()
    busy: dict[int, Worker] = {}
    with selectors.DefaultSelector() as selector:
      try:
        while todo or busy:
          self._hand_out(tasks, todo, busy, selector)
          for task, result in self._hear(busy, selector, bool(todo)):
            if result is DIED and task not in again and self._server.died():
              again.add(task)  # its worker may have ended for that alone
              todo.append(task)
            results[task] = result
      finally:  # of which there are some only when this was interrupted
        for worker in busy.values():
          self._drop(worker)
          self._idle.put(worker)
    return results

  def close(self) -> None:
    """Ends all processes. A later call starts them again; none may run meanwhile."""
    self._server.close()
    for worker in self._workers:
      if worker.wire is not None:
        worker.wire.close()
        worker.wire = None

  def rest(self) -> None:
    """Ends all processes if no call is using them; a later call starts them again."""
    taken: list[Worker] = []
    with contextlib.suppress(queue.Empty):
      while True:
        taken.append(self._idle.get_nowait())  # a call that begins now waits for them
    if len(taken) == len(self._workers):
      self.close()
    for worker in taken:
      self._idle.put(worker)

  def _hand_out(
    self, tasks: Sequence[Task], todo: list[int], busy: dict[int, Worker], selector: selectors.BaseSelector
  ) -> None:
    """Gives tasks to workers as long as there are any of both; waits for a worker if this call has none."""
    while todo:
      try:
        worker = self._idle.get(block=not busy)
      except queue.Empty:
        return
      try:
        self._send(worker, tasks[todo[-1]])
      except BaseException:
        self._drop(worker)
        self._idle.put(worker)
        raise
      processes.begin(worker, todo.pop(), self._seconds)
      busy[worker.task] = worker
      selector.register(worker.wire, selectors.EVENT_READ, worker)

  def _send(self, worker: Worker, task: Task) -> None:
    """Gives a worker its task; one that died while it was idle is replaced first."""
    line = json.dumps(list(task)).encode() + b'\n'
    if worker.tasks >= processes.TASKS:
      self._drop(worker)
    for attempt in range(3):
      try:
        if worker.wire is None:
          worker.process, worker.wire = self._server.fork()
          worker.tasks = 0
        worker.wire.sendall(line)
        worker.tasks += 1
        return
      except OSError:
        self._drop(worker)
        if attempt == 1 or self._server.died():
          self._server.close()
    raise RuntimeError('the processes that grade cannot be started; see whether the machine has any left.')

  def _hear(
    self, busy: dict[int, Worker], selector: selectors.BaseSelector, more: bool
  ) -> list[tuple[int, Any]]:
    """Results, once a worker is done or overdue; none when it is time to look for an idle one."""
    wait = max(0.0, min(worker.due for worker in busy.values()) - time.monotonic())
    glance = more and len(busy) < len(self._workers)
    ready = [key.data for key, _ in selector.select(min(wait, _GLANCE) if glance else wait)]
    found = [(worker, result) for worker in ready if (result := processes.receive(worker)) is not None]
    done = {worker.task for worker, _ in found}
    found += [
      (worker, TIMEOUT)
      for task, worker in busy.items()
      if task not in done and processes.overdue(worker, self._seconds)
    ]
    results = [(worker.task, result) for worker, result in found]  # before others may have the worker
    for worker, result in found:
      selector.unregister(worker.wire)
      del busy[worker.task]
      if result is TIMEOUT or result is DIED:
        self._drop(worker)
      self._idle.put(worker)
    return results

  def _drop(self, worker: Worker) -> None:
    """Kills a worker's process and waits until it is gone."""
    if worker.wire is not None:
      worker.wire.close()
      worker.wire = None
      self._server.kill(worker.process)


def shared(function: str, seconds: float, memory_gib: float, workers: int) -> Pool:
  """The pool of this process with these limits, ended with the process; a fork gets one of its own.

  A new pool sends those to rest that nobody uses at the moment: processes of other limits do not pile up.
  """
  limits, process = (function, seconds, memory_gib, workers), os.getpid()
  with _MAKING:  # else two threads might make two
    pools = _pools(process)
    if limits not in pools:
      for other in pools.values():
        other.rest()
      pools[limits] = Pool(*limits)
      atexit.register(_close_own, pools[limits], process)
    return pools[limits]


@functools.cache
def _pools(process: int) -> dict[tuple, Pool]:
  """Those of a process, by their limits."""
  del process
  return {}


def _close_own(pool: Pool, process: int) -> None:
  if os.getpid() == process:
    pool.close()
