"""Whether processes have ended."""

import time

from experiments import footprint


def gone(processes, seconds=10.0):
  """Whether all of the processes end in time; a zombie has ended."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    if not any(footprint.alive(process) for process in processes):
      return True
    time.sleep(0.02)
  return False
