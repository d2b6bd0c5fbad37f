"""Shares of tests that programs pass, counted by running the same programs here, without the sandbox."""

import ast
import builtins
import dataclasses
import io
import json
import runpy
import sys

import numpy as np
import pytest

from opsd_jax import jsonlines
from opsd_jax.config import ConfigError
from opsd_jax.data import fields
from opsd_jax.data.schemas import FieldsConfig
from opsd_jax.grade import config as grade_room
from opsd_jax.grade import grading
from opsd_jax.grade.config import GradeConfig
from opsd_jax.grade.programs import extract, given, rewards, sandbox
from opsd_jax.grade.programs.config import ProgramsConfig
from opsd_jax.records import Problem, Verdict

LIMITS = ProgramsConfig(seconds=20.0, call_seconds=10.0, memory_gib=1.0, disk_mib=8)
CONFIG = GradeConfig(rules='programs', programs=LIMITS)
C, W, T = Verdict.CORRECT, Verdict.WRONG, Verdict.TIMEOUT

DOUBLED = json.dumps(
  {'inputs': ['1', '2\n', '3', '4', '5', '6'], 'outputs': ['2', '4', '6\n', '8', '10', '-']}
)
# Programs that read a number, and print its double for some.
PRINTS = [
  'print(2 * int(input()))',
  'n = int(input())\nprint(2 * n if n % 2 else n)',
  'n = int(input())\nprint(2 * n if n > 3 else 0)',
  'n = int(input())\nprint(2 * n if n > 2 else 0)',
  'n = int(input())\nprint(2 * n if n in (3, 5) else 0)',  # three failures, and not in a row
  'print(2.0 * int(input()))',  # the same number, and another text
  'print("", 2 * int(input()), "\\n")',
  'print("The double is", 2 * int(input()))',
  'n = int(input())\nprint(2 * n)\nassert n < 3',
  'import sys\nprint(2 * int(sys.stdin.read()))\nsys.exit(0)',
  'n = input()\nprint(n and 4)',
]


def fenced(program):
  return f'It doubles.\n```python\n{program}\n```\nDone.'


def printed(program, text, folder, monkeypatch):
  """What the program prints, run here; None where it fails."""
  path = folder / 'program.py'
  path.write_text(program)
  out = io.StringIO()
  with monkeypatch.context() as patch:
    patch.setattr(sys, 'stdin', io.StringIO(text))
    patch.setattr(sys, 'stdout', out)
    try:
      runpy.run_path(str(path), run_name='__main__')
    except SystemExit as end:
      return out.getvalue() if not end.code else None
    except Exception:
      return None
  return out.getvalue()


def counted(rights, failures):
  """How many of the tests are passed, where so many failures in a row end it."""
  passed = row = 0
  for right in rights:
    passed, row = passed + right, 0 if right else row + 1
    if row == failures:
      break
  return passed


@pytest.mark.parametrize(('tests', 'failures'), [(5, 3), pytest.param(6, 2, marks=pytest.mark.slow)])
def test_shares_are_counted(tests, failures, tmp_path, monkeypatch):
  known = json.loads(DOUBLED)
  pairs = list(zip(known['inputs'], known['outputs']))[:tests]
  expected = []
  for program in PRINTS:
    found = [printed(program, text, tmp_path, monkeypatch) for text, _ in pairs]
    rights = [f is not None and f.strip() == p.strip() for f, (_, p) in zip(found, pairs)]
    expected.append(counted(rights, failures) / tests)
  config = dataclasses.replace(CONFIG, tests=tests, failures=failures)
  graded = grading.grade([fenced(p) for p in PRINTS], [DOUBLED] * len(PRINTS), config)
  assert graded.reward.tolist() == expected and len(set(expected)) > 2
  assert graded.correct.tolist() == [share == 1 for share in expected]
  assert graded.reward.dtype == np.float64


def test_what_hangs_or_never_stops_to_print_fails_its_own_test_alone():
  programs = [
    'n = int(input())\nwhile n == 2: pass\nprint(2 * n)',
    'n = int(input())\nwhile n == 3: print(n)\nprint(2 * n)',
    'n = int(input())\nif n == 4: bytes(2 << 30)\nprint(2 * n)',
  ]
  short = dataclasses.replace(CONFIG, programs=dataclasses.replace(LIMITS, call_seconds=1.0))
  graded = grading.grade([fenced(p) for p in programs], [DOUBLED] * 3, short)
  assert graded.reward.tolist() == [0.8] * 3
  assert graded.verdicts[0] == T and not graded.correct.any()


def test_three_failures_in_a_row_end_it(monkeypatch):
  ran, plain = [], rewards.judge.run

  def run(test, program, *rest):
    if test.id != 'probe':
      ran.append(test.id)
    return plain(test, program, *rest)

  monkeypatch.setattr(rewards.judge, 'run', run)
  (tests,) = [given.read(DOUBLED)[:5]]
  program = 'n = int(input())\nprint(2 * n if n in (1, 5) else n)'
  assert rewards.passed([program, None], [tests, tests], LIMITS, 3) == [(C, W, W, W), ()]
  assert ran == ['0', '1', '2', '3'], 'the fifth, which it would pass, is not run'
  assert rewards.passed([program], [tests], LIMITS, 4) == [(C, W, W, W, C)]


def test_the_machine_is_tried_once_for_a_config(monkeypatch):
  tried, plain = [], rewards.judge.find_walls

  def find(folder, config):
    tried.append(config)
    return plain(folder, config)

  monkeypatch.setattr(rewards.judge, 'find_walls', find)
  grading.require_machine(CONFIG)
  for program in PRINTS[:2]:
    grading.grade([fenced(program)], [DOUBLED], dataclasses.replace(CONFIG, tests=1))
  assert tried == [LIMITS]
  other = dataclasses.replace(LIMITS, workers=1)
  grading.grade([fenced(PRINTS[0])], [DOUBLED], dataclasses.replace(CONFIG, tests=1, programs=other))
  assert tried == [LIMITS, other]


def test_a_test_may_take_its_call_whatever_the_limit_of_a_program():
  slow = fenced('import time\nn = int(input())\ntime.sleep(1)\nprint(2 * n)')
  short = dataclasses.replace(LIMITS, seconds=0.5)
  graded = grading.grade([slow], [DOUBLED], dataclasses.replace(CONFIG, tests=1, programs=short))
  assert graded.verdicts == (C,)


FAILED, RIGHT, FALSE = (
  sandbox.Outcome(verdicts, end)
  for verdicts, end in (({}, 'failed'), ({'base': C}, 'done'), ({'base': W}, 'done'))
)


@pytest.mark.parametrize(
  ('outcomes', 'verdict', 'share'),
  [
    ([FAILED, RIGHT, RIGHT], C, 1.0),
    ([FAILED, FALSE, RIGHT], W, 0.5),
    ([FAILED, FAILED, RIGHT], Verdict.ERROR, 0.5),
    ([FALSE, FAILED, FAILED], Verdict.ERROR, 0.0),  # not hidden by the wrong result before it
  ],
)
def test_what_the_sandbox_itself_fails_is_tried_once_more(outcomes, verdict, share, monkeypatch):
  rewards.require_machine(LIMITS)
  left = iter(outcomes)
  monkeypatch.setattr(rewards.judge, 'run', lambda *_: next(left))
  graded = grading.grade([fenced(PRINTS[0])], [DOUBLED], dataclasses.replace(CONFIG, tests=2))
  assert graded.verdicts == (verdict,) and graded.reward.tolist() == [share]
  assert not list(left)


def test_functions_with_known_results():
  answer = json.dumps(
    {'fn_name': 'pair', 'inputs': [[1, 2], ['a', 'b'], [[1], []]], 'outputs': [[[1, 2]], ['a', 'b'], 0]}
  )
  method = 'class Solution:\n  def pair(self, a, b):\n    return (a, b)'
  graded = grading.grade([fenced('def pair(a, b):\n  return [a, b]'), fenced(method)], [answer] * 2, CONFIG)
  np.testing.assert_allclose(graded.reward, [2 / 3] * 2)


def test_asserts_are_told_apart():
  answer = json.dumps(['assert half(4) == 2', 'assert max(half(3), 0) == 1', 'assert half(-2) == -1'])
  programs = ['def half(n):\n  return n // 2', 'def half(n):\n  return abs(n) // 2', 'def other(n): pass']
  graded = grading.grade([fenced(p) for p in programs], [answer] * 3, CONFIG)
  np.testing.assert_allclose(graded.reward, [1, 2 / 3, 0])
  assert graded.verdicts == (C, W, W)


def test_no_program_and_no_tests():
  graded = grading.grade(['I do not know.', fenced(PRINTS[0])], [DOUBLED, '42'], CONFIG)
  assert graded.verdicts == (Verdict.UNFORMATTED, Verdict.GOLD_UNPARSABLE)
  assert graded.reward.tolist() == [0, 0] and graded.answered.tolist() == [False, True]


def test_pairs_and_lines_are_the_same_tests():
  pairs = [
    {'input': '1\n2', 'output': '3', 'type': 'stdin_stdout'},
    {'input': ['3', '4'], 'output': ['7', '8']},
  ]
  columns = {'inputs': ['1\n2', '3\n4'], 'outputs': ['3', '7\n8'], 'fn_name': None}
  assert given.read(json.dumps(pairs)) == given.read(json.dumps(columns))


def nested(depth, name):
  """A test whose input is a list in a list in a list."""
  deep = '[' * depth + '"1"' + ']' * depth
  return f'{{"inputs": [{deep}], "outputs": ["1"], "fn_name": {name}}}'


@pytest.mark.parametrize(
  ('answer', 'word'),
  [
    ('', 'no JSON'),
    ('1,080', 'no JSON'),
    ('[' * 100_000, 'no JSON'),
    ('42', 'neither inputs and outputs nor a list of tests'),
    ('[1, 2]', 'neither'),
    ('[]', 'not one test'),
    ('{"inputs": [], "outputs": []}', 'not one test'),
    ('{"inputs": ["1"], "outputs": []}', 'of one length'),
    ('{"input": "1"}', 'no lists `inputs` and `outputs`'),
    ('{"inputs": [1], "outputs": ["1"]}', 'that is 1, no text'),
    ('{"inputs": [1], "outputs": [1], "fn_name": "f"}', 'arguments that are 1, no list'),
    ('[{"input": "1"}]', 'no `input` and `output`'),
    ('[{"input": "1", "output": "2", "fn_name": "f"}]', 'write `inputs`'),
    ('["assert f(1) =="]', 'no Python'),
    ('["assert 1 == 1"]', 'call no function'),
    ('["assert sum([1]) == 1", "assert len([1]) == 1"]', 'call no function'),
    *((nested(depth, name), 'too deep') for depth in (500, 900) for name in ('"f"', 'null')),
  ],
)
def test_what_is_no_tests(answer, word):
  with pytest.raises(ValueError, match=word):
    given.read(answer)
  with pytest.raises(ConfigError, match="problem 'train/7' has no tests.*data.fields.tests"):
    grading.require_known(Problem('train/7', 'p', '', answer, 's'), CONFIG)
  grading.require_known(Problem('train/7', 'p', '', answer, 's'), GradeConfig())


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(tests=0), 'grade.tests is 0'),
    (dict(failures=0), 'grade.failures is 0'),
    (dict(programs=ProgramsConfig(workers=0)), 'grade.programs.workers is 0'),
    (dict(programs=ProgramsConfig(memory_gib=0.01)), 'grade.programs.memory_gib is 0.01'),
  ],
)
def test_settings_that_cannot_work(changes, words):
  with pytest.raises(ConfigError, match=words):
    grade_room.validate(dataclasses.replace(CONFIG, **changes))


def test_a_machine_without_a_sandbox_is_found_before_anything_else(monkeypatch):
  grading.require_machine(CONFIG)
  monkeypatch.setattr(sys, 'platform', 'darwin')
  grading.require_machine(GradeConfig())
  with pytest.raises(ConfigError, match='on Linux alone'):
    grading.require_machine(CONFIG)


# Rows of data sets.


def problem_of(row, config):
  return fields.reader(config, 'train', 'ours', lambda i: f'line {i}')(0, row)


OPENTHOUGHTS = FieldsConfig.named('openthoughts_114k_code')


def test_tests_take_the_place_of_the_answer():
  row = {'problem': 'Double.', 'deepseek_solution': fenced(PRINTS[0]), 'test_cases': DOUBLED}
  row |= {'ground_truth_solution': None, 'starter_code': None}
  found = problem_of(row, OPENTHOUGHTS)
  assert (found.problem, found.solution, found.answer) == ('Double.', fenced(PRINTS[0]), DOUBLED)
  assert {'test_cases', 'starter_code'} <= set(OPENTHOUGHTS.columns())
  nested = dataclasses.replace(OPENTHOUGHTS, tests='test_cases.all')
  grouped = row | {'test_cases': {'all': json.loads(DOUBLED)}}
  assert given.read(problem_of(grouped, nested).answer) == given.read(DOUBLED)
  for blank in (None, ' '):
    with pytest.raises(ConfigError, match='test_cases.*data.fields.tests.*leave the row out'):
      problem_of(row | {'test_cases': blank}, OPENTHOUGHTS)


@pytest.mark.parametrize(
  ('tests', 'word'),
  [
    ('{"inputs": [], "outputs": []}', 'not one test'),
    ({'inputs': [], 'outputs': []}, 'not one test'),
    ('42', 'neither inputs and outputs'),
    ('1 2', 'no JSON'),
    ([b'1'], 'not JSON'),
    (json.loads(nested(500, 'null')), 'too deep'),
  ],
)
def test_tests_that_cannot_be_read_are_found_with_their_row(tests, word):
  row = {'problem': 'p', 'solution': '', 'tests': tests}
  config = FieldsConfig(tests='tests')
  with pytest.raises(
    ConfigError, match=f"^line 0: the field 'tests' .data.fields.tests. .*{word}.*leave it out"
  ):
    problem_of(row, config)


CALLED = json.dumps({'fn_name': 'pair', 'inputs': [[1, 2]], 'outputs': [[1, 2]]})


@pytest.mark.parametrize(
  ('question', 'starter', 'tests', 'shown'),
  [
    ('Pair.', 'def pair(a, b):\n', CALLED, 'Pair.\n\ndef pair(a, b):\n'),
    ('Write `pair`.', None, CALLED, 'Write `pair`.'),
    ('Write `pair`.', ' ', CALLED, 'Write `pair`.'),
    ('Write a program.', 'def main():', DOUBLED, 'Write a program.'),  # which the tests do not call
    ('Write pairs.', '', CALLED, None),
    ('Write it.', 'class Solution:\n  def other(self):', CALLED, None),
  ],
)
def test_a_function_is_named_under_the_question_or_the_row_is_refused(question, starter, tests, shown):
  row = {'problem': question, 'deepseek_solution': '', 'test_cases': tests, 'starter_code': starter}
  if shown is not None:
    assert problem_of(row, OPENTHOUGHTS).problem == shown
    return
  with pytest.raises(ConfigError, match="line 0: the tests call 'pair'.*'starter_code'.*leave the row out"):
    problem_of(row, OPENTHOUGHTS)
  assert problem_of(row, dataclasses.replace(OPENTHOUGHTS, starter=None)).problem == question


@pytest.mark.parametrize(
  ('tests', 'entry'),
  [
    (['assert sum(10, 15) == 6', 'assert sum(4, 6) == 3'], 'sum'),
    (['assert chain([Pair(5, 24), Pair(15, 25)], 4) == 3', 'assert chain([Pair(1, 2)], 1) == 1'], 'chain'),
    (['assert near(half(4), 2)', 'assert half(2) == 1'], 'half'),
    (['assert set(both([1], [2])) == set([1, 2])'], 'both'),
    (['assert len(f(1)) == len(g(1)) + g(2)'], 'f'),
    (['assert sum(len(x) for x in [[1]]) == 1'], 'sum'),
  ],
)
def test_the_function_that_asserts_are_about(tests, entry):
  assert {task.entry_point for task in given.read(json.dumps(tests))} == {entry}


@pytest.fixture(scope='module')
def mbpp(data_root):
  """Every row of the file, and its problem."""
  rows = list(jsonlines.read(data_root / 'mbpp' / 'mbpp.jsonl'))
  return rows, [problem_of(row, FieldsConfig.named('mbpp')) for row in rows]


def loose(test, entry):
  """The names that a test wants beside the function, Python's own and those that it makes itself."""
  nodes = list(ast.walk(extract.parsed(test)))
  names = [node for node in nodes if isinstance(node, ast.Name)]
  made = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
  made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
  return {node.id for node in names} - made - {entry} - set(dir(builtins))


def test_every_row_of_mbpp_can_be_trained_on(mbpp):
  unknown = {}
  for row, problem in zip(*mbpp, strict=True):
    tasks = given.read(problem.answer)
    (entry,) = {task.entry_point for task in tasks}
    body = extract.parsed(row['code'].replace('\r\n', '\n')).body
    assert entry in {node.name for node in body if isinstance(node, ast.FunctionDef)}, row['task_id']
    assert len(tasks) == len(row['test_list'])
    for name in set().union(*(loose(test, entry) for test in row['test_list'])):
      unknown.setdefault(row['task_id'], set()).add(name)
  roots = {'root', 'root1', 'root2'}
  assert unknown == {367: roots, 596: {'sys'}, 601: {'Pair'}, 927: roots}, 'as schemas.py says'
  assert len(mbpp[0]) == 974


def test_mbpp_is_graded_by_its_own_tests(mbpp):
  rows, problems = mbpp
  chosen = [problems[i] for i, row in enumerate(rows) if row['task_id'] in (1, 2, 126, 500, 974)]
  answers = [p.answer for p in chosen]
  right = grading.grade([fenced(p.solution) for p in chosen], answers, CONFIG)
  assert right.correct.all() and right.reward.tolist() == [1.0] * 5
  shifted = grading.grade([fenced(p.solution) for p in chosen[1:3]], answers[:2], CONFIG)
  assert not shifted.correct.any() and shifted.reward.tolist() == [0.0] * 2
