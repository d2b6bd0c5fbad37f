"""Programs that do what a grader must survive. None of them may count as right.

As a command, it judges them all and prints the verdicts as JSON: for runs as another user.
"""

import dataclasses
import json
import os
import pathlib
import sys

from opsd_jax.grade.programs.config import ProgramsConfig
from opsd_jax.grade.programs.judge import judge
from tests.grade.programs import hostile_answers, hostile_machine, tasks

SLEEP, STRAY = hostile_machine.SLEEP, hostile_machine.STRAY
PROGRAMS = hostile_machine.PROGRAMS | hostile_answers.PROGRAMS

# Another way through a wall that one of the others tries too.
ALIKE = (
  'fork bomb while loading',
  'claims an endless answer',
  'one large file',
  'a tower of folders',
  'memory bomb',
  'numbers without end',
  'an answer that takes long to read',
  'stops its parent',
)

# Only where other processes are out of reach or belong to others: it would end the test itself.
KILLER = 'import os\ndef next_number(x):\n  os.kill(-1, 9)\n  return x\n'

LIMITS = ProgramsConfig(seconds=2.0, call_seconds=1.5, memory_gib=0.5, disk_mib=8, output_mib=8)


def running(*words: str) -> list[str]:
  """Command lines of the processes in whose command line one of these words stands."""
  found = []
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      command = pathlib.Path('/proc', name, 'cmdline').read_bytes().replace(b'\0', b' ').decode()
    except OSError:
      continue
    if any(word in command for word in words):
      found.append(command)
  return found


def verdicts(namespaces: str, python: str = '') -> dict[str, list[str]]:
  """By program: its verdicts under calls (base, plus) and under a script."""
  config = dataclasses.replace(LIMITS, namespaces=namespaces, python=python)
  names, programs = list(PROGRAMS), list(PROGRAMS.values())
  by_calls = judge(programs, [tasks.calls()] * len(programs), config)
  by_script = judge(programs, [tasks.script()] * len(programs), config)['base']
  rows = zip(names, by_calls['base'].verdicts, by_calls['plus'].verdicts, by_script.verdicts)
  return {name: [str(v) for v in row] for name, *row in rows}


if __name__ == '__main__':
  print(json.dumps(verdicts(*sys.argv[1:])))
