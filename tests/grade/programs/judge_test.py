import dataclasses
import sys
from collections.abc import Sequence

import pytest

from opsd_jax.config import ConfigError
from opsd_jax.grade.programs import judge, values
from opsd_jax.grade.programs.config import ProgramsConfig
from opsd_jax.grade.programs.task import Calls, Script, Streams, encoded_calls
from opsd_jax.records import Verdict
from tests.grade.programs import tasks

CONFIG = ProgramsConfig(seconds=20.0, call_seconds=10.0, memory_gib=1.0, disk_mib=8)
C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNFORMATTED


def base(program: str | None, task, config: ProgramsConfig = CONFIG) -> Verdict:
  return bases([program], task, config)[0]


def bases(programs: Sequence[str | None], task, config: ProgramsConfig = CONFIG) -> tuple[Verdict, ...]:
  return judge.judge(programs, [task] * len(programs), config)['base'].verdicts


def test_verdicts_keep_the_order():
  partly = 'def next_number(x):\n  return int(x) + 1\n'
  programs = [tasks.RIGHT, None, tasks.WRONG, 'def next_number(x)', 'x = 1', partly, tasks.RIGHT]
  found = judge.judge(programs, [tasks.calls()] * 7, CONFIG)
  assert found['base'].verdicts == (C, U, W, W, W, C, C)
  assert found['plus'].verdicts == (C, U, W, W, W, W, C)


def test_plus_needs_the_base_too():
  task = tasks.calls(plus=Calls(encoded_calls([(10,)])))
  program = 'def next_number(x):\n  return 11\n'
  found = judge.judge([program], [task], CONFIG)
  assert (found['base'].verdicts, found['plus'].verdicts) == ((W,), (W,))


def test_kinds_of_tests_side_by_side():
  kinds = [tasks.calls(), tasks.script(), tasks.check(), tasks.streams()]
  wrong = [tasks.WRONG] * 3 + ['print(2)']
  found = judge.judge([t.solution for t in kinds] + wrong, kinds * 2, CONFIG)
  assert list(found) == ['base']  # not every task has further tests
  assert found['base'].verdicts == (C,) * 4 + (W,) * 4


def test_nothing_to_judge():
  assert judge.judge([], [], CONFIG)['base'].verdicts == ()


def test_the_canonical_solution_runs_once_for_all_samples():
  # What it gives differs from run to run, so that only results of one run can agree with each other.
  solution = 'import os\nKEY = os.urandom(8)\ndef next_number(x):\n  return KEY\n'
  assert bases([solution] * 3, tasks.calls(solution=solution)) == (W,) * 3
  counted = "def next_number(x):\n  return (x, 'seen')\n"
  again = tasks.calls(solution=counted)
  assert judge.judge([counted] * 3, [again] * 3, CONFIG)['plus'].verdicts == (C,) * 3


def test_a_broken_canonical_solution_is_no_fault_of_the_program():
  broken = ('def next_number(x):\n  raise ValueError\n', 'def next_number(', 'def other(x):\n  return 1\n')
  given = [tasks.calls(solution=solution) for solution in broken]
  found = judge.judge([*[tasks.RIGHT] * 3, None], [*given, given[0]], CONFIG)
  assert found['base'].verdicts == found['plus'].verdicts == (*[Verdict.GOLD_UNPARSABLE] * 3, U)


def test_check_golds():
  good, bad = tasks.calls(), tasks.script(solution=tasks.WRONG)
  assert judge.check_golds([good, bad], CONFIG)['base'].verdicts == (C, W)


def test_known_results_need_no_canonical_solution():
  known = Calls(encoded_calls([(1,)]), 'json', expected=(values.encode([2]).decode(),))
  task = tasks.calls(solution='', base=known, plus=None)
  assert bases(
    ['def next_number(x):\n  return (x + 1,)\n', 'def next_number(x):\n  return (x,)\n'], task
  ) == (C, W)


def test_methods_of_a_solution():
  program = 'class Solution:\n  def next_number(self, x):\n    return x + 1\n'
  assert base(program, tasks.calls()) == C


def test_the_prelude_is_there():
  program = 'def next_number(x: List[int]):\n  return gcd(x + 1, 0)\n'
  task = tasks.calls(plus=None, prelude='from typing import *\nfrom math import gcd\n')
  assert judge.judge([program] * 2, [task, tasks.calls()], CONFIG)['base'].verdicts == (C, W)


def test_arguments_that_a_program_changes_change_no_comparison():
  calls = Calls(encoded_calls([([3, 1, 2],)]))
  task = tasks.calls(base=calls, plus=None, solution='def next_number(x):\n  return sorted(x)\n')
  assert base('def next_number(x):\n  x.sort()\n  return x\n', task) == C


def test_scripts_may_pass_objects_of_the_program():
  node = 'class Node:\n  def __init__(self, v):\n    self.v, self.next = v, None\n'
  solution = f'{node}def next_number(n):\n  return n.v + (n.next.v if n.next else 0)\n'
  script = Script(('n = Node(1)\nn.next = Node(2)\n', 'assert next_number(n) == 3'))
  task = tasks.script(solution=solution, base=script)
  without_node = 'def next_number(n):\n  return n.v + n.next.v\n'
  assert bases([solution, solution.replace('+', '-'), without_node], task) == (C, W, W)


# Whole programs, and whether each is right for both of its inputs.
WHOLE = {
  'import sys\ntext = sys.stdin.read()\nif text[0] == "1": open("seen", "w")\nprint(int(text) + 1)\n': C,
  'import os\nprint(2 if os.read(0, 1) == b"1" else 42)': C,
  'n = int(input())\nprint(n + 1)\nexit()': C,
  'n = int(input())\nprint(n + 1)\nexit(3)': W,
  'n = int(input())\nprint(n + 1)\n1 / 0': W,
  'if __name__ == "__main__":\n  print(int(input()) + 1)': C,
  'import sys\nsys.stdout.buffer.write(b"%d" % (int(sys.stdin.buffer.readline()) + 1))': C,
  'import sys\nprint(int(input()) + 1)\nsys.stdout.close()': C,
  'import sys\nprint(int(input()) + 2, file=sys.stderr)': W,
  'import threading, time\ndef main():\n  time.sleep(0.1)\n  print(int(input()) + 1)\n'
  'threading.stack_size(2**26)\nthreading.Thread(target=main).start()': C,
  'import atexit, io, sys\nheld = sys.stdout = io.StringIO()\n'
  'atexit.register(lambda: sys.__stdout__.write(held.getvalue()))\nprint(int(input()) + 1)': C,
}


def test_each_input_meets_a_new_program_that_runs_to_its_end():
  assert dict(zip(WHOLE, bases(list(WHOLE), tasks.streams()))) == WHOLE


def test_what_is_printed_is_bounded():
  task = tasks.streams(base=Streams(('',), ('x' * (3 << 20),)))
  small = dataclasses.replace(CONFIG, output_mib=2)
  assert base('print("x" * (3 << 20))', task) == C
  assert base('print("x" * (3 << 20))', task, small) == W


def test_slow_calls_and_slow_programs():
  sleepy = 'import time\ndef next_number(x):\n  time.sleep(0.5)\n  return x + 1\n'
  task = tasks.calls(plus=None)
  short = dataclasses.replace(CONFIG, call_seconds=0.3)
  late = dataclasses.replace(CONFIG, seconds=0.7)
  assert [base(sleepy, task, c) for c in (CONFIG, short, late)] == [C, Verdict.TIMEOUT, Verdict.TIMEOUT]


def test_many_known_results_may_take_longer():
  typed = tuple(f'{number}\n' for number in range(6))
  task = tasks.streams(base=Streams(typed, tuple(f'{number + 1}\n' for number in range(6))))
  sleepy = 'import time\ntime.sleep(0.2)\nprint(int(input()) + 1)'
  short = dataclasses.replace(CONFIG, seconds=0.6)
  assert base(sleepy, task, short) == C
  assert base(sleepy, task, dataclasses.replace(short, call_seconds=0.4)) == Verdict.TIMEOUT


def test_what_the_base_tests_decided_stays_when_time_runs_out():
  program = 'import time\ndef next_number(x):\n  if x > 2: time.sleep(9)\n  return x + 1\n'
  config = dataclasses.replace(CONFIG, seconds=1.5)
  found = judge.judge([program], [tasks.calls()], config)
  assert (found['base'].verdicts, found['plus'].verdicts) == ((C,), (Verdict.TIMEOUT,))


def test_one_failure_of_the_sandbox_is_the_verdict_on_one_program(monkeypatch):
  run = judge.sandbox.run

  def fails(program, *rest):
    if 'failing' in program['program']:
      raise OSError('no more files')
    return run(program, *rest)

  monkeypatch.setattr(judge.sandbox, 'run', fails)
  given = [tasks.calls(), tasks.calls(), tasks.calls(solution=f'# failing\n{tasks.RIGHT}')]
  found = judge.judge([f'# failing\n{tasks.RIGHT}', tasks.RIGHT, tasks.RIGHT], given, CONFIG)
  assert found['base'].verdicts == found['plus'].verdicts == (Verdict.ERROR, C, Verdict.ERROR)


def test_short_limits_take_no_wall_down():
  with judge.process.code_folder() as folder:
    short = dataclasses.replace(CONFIG, seconds=1e-6, call_seconds=1e-6)
    assert judge.find_walls(folder, short) == judge.find_walls(folder, CONFIG)


def test_other_machines_are_refused(monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(judge.os.path, 'exists', lambda path: False)
    with pytest.raises(ConfigError, match='mount the file system /proc'):
      judge.find_walls('', CONFIG)
  monkeypatch.setattr(sys, 'platform', 'darwin')
  with pytest.raises(ConfigError, match='on Linux alone, not on darwin'):
    judge.find_walls('', CONFIG)


def test_a_wrapper_comes_before_each_process():
  assert base(tasks.RIGHT, tasks.calls(), dataclasses.replace(CONFIG, wrapper=('nice', '-n', '5'))) == C
  with pytest.raises(ConfigError, match='no-such-program'):
    base(tasks.RIGHT, tasks.calls(), dataclasses.replace(CONFIG, wrapper=('no-such-program',)))


@pytest.mark.parametrize(
  'changes',
  (
    {'workers': 0},
    {'seconds': 0.0},
    {'call_seconds': -1.0},
    {'memory_gib': 0.01},
    {'namespaces': 'yes'},
    {'python': '/bin/false'},
    {'python': '/no/such/python'},
  ),
  ids=lambda changes: next(iter(changes)),
)
def test_settings_that_cannot_work(changes):
  with pytest.raises(ConfigError, match=f'programs.{next(iter(changes))}'):
    base(tasks.RIGHT, tasks.calls(), dataclasses.replace(CONFIG, **changes))


def test_lists_of_different_lengths():
  with pytest.raises(ConfigError, match='2 programs and 1 tasks'):
    judge.judge([None, None], [tasks.calls()], CONFIG)
