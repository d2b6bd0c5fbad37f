"""Small tasks for tests, one of each kind: the successor of a number."""

from opsd_jax.grade.programs.task import Calls, Script, Streams, Task, encoded_calls

RIGHT = 'def next_number(x):\n  return x + 1\n'
WRONG = 'def next_number(x):\n  return x\n'


def _task(given: dict, changes: dict) -> Task:
  common = {'prompt': '', 'entry_point': 'next_number', 'solution': RIGHT}
  return Task(**(common | given | changes))


def calls(**changes) -> Task:
  base, plus = Calls(encoded_calls([(1,), (2,)])), Calls(encoded_calls([(2.5,), (10**30,)]))
  return _task({'id': 'calls', 'base': base, 'plus': plus}, changes)


def script(**changes) -> Task:
  asserts = Script(('', 'assert next_number(1) == 2', 'assert next_number(5) == 6'))
  return _task({'id': 'script', 'base': asserts}, changes)


def check(**changes) -> Task:
  text = 'def check(candidate):\n  assert candidate(1) == 2\n  assert candidate(x=5) == next_number(5) == 6\n'
  return _task({'id': 'check', 'base': Script((text,), check='check')}, changes)


def streams(**changes) -> Task:
  base = Streams(('1\n', '41\n'), ('2\n', '42\n'))
  given = {'id': 'streams', 'entry_point': '', 'solution': 'print(int(input()) + 1)', 'base': base}
  return _task(given, changes)
