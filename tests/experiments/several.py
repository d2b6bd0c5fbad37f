"""Commands started as several processes that are one run, told apart by variables alone."""

import socket
import subprocess
from typing import NamedTuple

from tests.experiments import tiny


class Ended(NamedTuple):
  """How a process ended, and what it said."""

  code: int
  said: str


def start(arguments: list[str], processes: int, devices: int) -> list[subprocess.Popen]:
  """As many processes of as many CPU devices each."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  shared = tiny.environment() | {'JAX_NUM_CPU_DEVICES': str(devices)}
  if processes > 1:
    shared |= {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}', 'JAX_NUM_PROCESSES': str(processes)}
  return [
    subprocess.Popen(
      arguments,
      cwd=tiny.REPOSITORY,
      env=shared | {'JAX_PROCESS_ID': str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(processes)
  ]


def ended(started: list[subprocess.Popen], seconds: float = 900) -> list[Ended]:
  """Waits for all of them."""
  said = [process.communicate(timeout=seconds)[0] for process in started]
  return [Ended(process.returncode, words) for process, words in zip(started, said, strict=True)]


def run(arguments: list[str], processes: int, devices: int) -> None:
  """Runs to the end, which must be a good one."""
  found = ended(start(arguments, processes, devices))
  assert [each.code for each in found] == [0] * processes, [each.said[-4000:] for each in found]
