"""Times and memory of this process; needs the standard library alone, as it runs in every environment."""

import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
  """What `run` returns, and its wall and CPU seconds with the machine's load before it."""
  load, began, spent = os.getloadavg()[0], time.perf_counter(), time.process_time()
  result = run()
  seconds = {'seconds': time.perf_counter() - began, 'cpu_seconds': time.process_time() - spent}
  return result, seconds | {'load': load}


def peak_mib() -> float:
  """The most memory that this process has held."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read(path: str) -> dict[str, Any]:
  """A JSON file."""
  with open(path) as file:
    return json.load(file)


def report(path: str, result: dict[str, Any]) -> None:
  """Writes a result as JSON, with the peak of memory."""
  with open(path, 'w') as file:
    json.dump(result | {'peak_mib': peak_mib()}, file, indent=2)
