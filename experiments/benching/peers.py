"""Runs what is timed, each in a process of its own: ours, and other programs in environments of their own.

A peer that cannot be run is a row that says why; it never ends the others.
"""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_REPOSITORY = os.path.dirname(os.path.dirname(_HERE))


@dataclasses.dataclass(frozen=True)
class Program:
  """What is run: the environment's Python, and the arguments before the workload's and the result's path."""

  name: str
  python: str
  arguments: tuple[str, ...]


def _peer(name: str, environment: str, file: str) -> Program:
  return Program(name, os.path.join('.venv', environment, 'bin', 'python'), (os.path.join(_HERE, file),))


TUNIX, TRANSFORMERS, TORCH = 'google-tunix', 'transformers', 'PyTorch'
PEERS = {
  'tunix': _peer(TUNIX, 'peers', 'peer_tunix.py'),
  'transformers': _peer(TRANSFORMERS, 'peers-torch', 'peer_transformers.py'),
  'torch': _peer(TORCH, 'peers-torch', 'torch_step.py'),
}
OWN = {
  what: Program('ours', sys.executable, ('-m', 'experiments.benching.own', what))
  for what in ('rollouts', 'step')
}


def run(program: Program, workload: str, out: str, python: str | None = None) -> dict[str, Any]:
  """What the program reports, or {'missing': why it is not measured}.

  Args:
    program: what to run.
    workload: path of the `workload.json` that it reads.
    out: path that it writes.
    python: instead of the program's own, from anywhere; none for that one, below the working directory.
  """
  python = python or program.python
  if not os.path.exists(python):
    return {'missing': f'{python} is not there'}
  command = [os.path.abspath(python), *program.arguments, os.path.abspath(workload), os.path.abspath(out)]
  everywhere = os.environ | {'JAX_PLATFORMS': 'cpu'}  # the peers have no more
  done = subprocess.run(
    command, cwd=_REPOSITORY, env=everywhere, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no message'])[-1]
    return {'missing': f'ended with code {done.returncode}: {last}'}
  with open(out) as file:
    return json.load(file)
