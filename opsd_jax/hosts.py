"""What the processes of one run do apart, and what they must agree on.

A run on several hosts is one program: what decides its next step must be the same everywhere, else some wait
for others that never come. Clocks, signals, files and time-outs differ from host to host; what they say goes
through here first. A process that is alone pays nothing. Every process must make the same calls.
"""

import jax
import numpy as np


def share(rows: int, process: int | None = None, processes: int | None = None) -> slice:
  """The rows of a host's batch that are this process's to work on: as many for each, the last ones fewer.

  Args:
    rows: how many there are.
    process: whose; None for this one.
    processes: how many share them; None for all of the run.
  """
  process = jax.process_index() if process is None else process
  each = _each(rows, jax.process_count() if processes is None else processes)
  return slice(min(process * each, rows), min((process + 1) * each, rows))


def gather(mine: np.ndarray, rows: int) -> np.ndarray:
  """All [rows, ...] of which every process has its `share` [share, ...], bit by bit, whatever the type."""
  if jax.process_count() == 1:
    return mine
  from jax.experimental import multihost_utils

  each = _each(rows, jax.process_count())
  padded = np.zeros((each, *mine.shape[1:]), mine.dtype)
  padded[: len(mine)] = mine
  # As bytes: on the way through devices float64 would become float32.
  sent = np.frombuffer(padded.tobytes(), np.uint8)
  received = np.ascontiguousarray(multihost_utils.process_allgather(sent))
  return received.view(mine.dtype).reshape(-1, *mine.shape[1:])[:rows]


def told(*values: float) -> np.ndarray:
  """float64 [processes, values]: what each process says."""
  return gather(np.float64([values]), jax.process_count())


def _each(rows: int, processes: int) -> int:
  return -(-rows // processes)
