import base64
import json
import os
import pickle
import warnings
import zlib

import pytest

from opsd_jax.config import ConfigError
from opsd_jax.grade.programs import evalplus, extract, judge, schemas, values
from opsd_jax.grade.programs.config import ProgramsConfig
from opsd_jax.grade.programs.task import Script

HEAD = 'def next_number(x):\n  """The next."""\n'
BODY = '  return x + 1\n'
HUMANEVAL = {
  'task_id': 'HumanEval/0',
  'prompt': HEAD,
  'entry_point': 'next_number',
  'canonical_solution': BODY,
  'test': 'def check(candidate):\n  assert candidate(1) == 2\n',
}
HUMANEVAL_PLUS = HUMANEVAL | {'base_input': [[1]], 'plus_input': [[2], [2.5]], 'atol': 0, 'contract': ''}
MBPP = {
  'task_id': 11,
  'text': 'Write a function.',
  'code': 'def helper(x):\r\n  return x\r\ndef next_number(x):\r\n  return helper(x) + 1',
  'test_list': ['assert next_number(helper(1)) == 2', 'assert next_number(4) == 5'],
  'test_setup_code': '',
  'challenge_test_list': [],
}
MBPP_TEST = {
  'task_id': 11,
  'prompt': 'Write a function.',
  'code': 'def next_number(x):\n  return x + 1',
  'test': ['assert next_number(1) == 2'],
}
MBPP_PLUS = {
  'task_id': 'Mbpp/3',
  'prompt': '"""\nWrite a function.\n"""\n',
  'entry_point': 'next_number',
  'canonical_solution': '\ndef next_number(x):\n  return x + 1\n',
  'base_input': [[1]],
  'plus_input': [[7]],
  'atol': 0,
  'assertion': 'assert next_number(1) == 2',
  'contract': '',
}
STDIN = [
  {'input': '1\n', 'output': '2\n', 'testtype': 'stdin'},
  {'input': '5', 'output': '6', 'testtype': 'stdin'},
]
FUNCTIONAL = [{'input': '[1, 2]\n3', 'output': '[4, 5]', 'testtype': 'functional'}]


def packed(value) -> str:
  return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def livecodebench(public, private, entry: str | None = None) -> dict:
  return {
    'question_id': 'abc301_a',
    'question_content': 'Write a program.',
    'starter_code': 'class Solution:\n' if entry else '',
    'public_test_cases': json.dumps(public),
    'private_test_cases': private,
    'metadata': json.dumps({'func_name': entry} if entry else {}),
  }


ROWS = {
  'humaneval': (HUMANEVAL, HEAD + BODY, HEAD + '  return x\n'),
  'humaneval_plus': (HUMANEVAL_PLUS, HEAD + BODY, HEAD + '  return x\n'),
  'mbpp': (MBPP, MBPP['code'], 'def next_number(x):\n  return x\n'),
  'mbpp test': (MBPP_TEST, MBPP_TEST['code'], 'def next_number(x):\n  return x\n'),
  'mbpp_plus': (MBPP_PLUS, MBPP_PLUS['canonical_solution'], 'def next_number(x):\n  return 2\n'),
  'livecodebench': (
    livecodebench(STDIN[:1], packed(json.dumps(STDIN[1:]))),
    'print(int(input()) + 1)',
    'print(2)',
  ),
  'livecodebench json': (
    livecodebench(STDIN[:1], json.dumps(STDIN[1:])),
    'print(int(input()) + 1)',
    'print(2)',
  ),
  'livecodebench functional': (
    livecodebench([], packed(json.dumps(FUNCTIONAL)), 'add'),
    'def depth(n): return n and 1 + depth(n - 1)\n'
    'class Solution:\n  def add(self, l: List[int], n):\n'
    '    return tuple(pow(v, 1) + n for v in l) if depth(5000) == 5000 else None\n',
    'class Solution:\n  def add(self, l, n):\n    return l\n',
  ),
}


@pytest.mark.parametrize('plus', (False, True))
def test_rows_become_tasks_that_judge(plus):
  names = [name for name in ROWS if name.endswith('_plus') == plus]
  given = [schemas.read(name.split()[0], ROWS[name][0], 'rows.jsonl, line 1') for name in names]
  programs = [ROWS[name][1] for name in names] + [ROWS[name][2] for name in names]
  found = judge.judge(programs, given * 2, ProgramsConfig(memory_gib=1.0))
  assert list(found) == ['base', 'plus'] if plus else ['base']
  for graded in found.values():
    assert dict(zip(names, graded.verdicts)) == dict.fromkeys(names, 'correct')
  assert dict(zip(names, graded.verdicts[len(names) :])) == dict.fromkeys(names, 'wrong')


def test_what_programs_of_livecodebench_are_given(monkeypatch):
  import datetime
  import math
  import sys

  names, limits = {}, []
  monkeypatch.setattr(sys, 'setrecursionlimit', limits.append)
  exec(schemas.read('livecodebench', ROWS['livecodebench'][0], 'row').prelude, names)
  assert limits == [50_000]
  assert (names['math'], names['datetime'], names['gcd']) == (math, datetime, math.gcd)
  assert {'deepcopy', 'ascii_lowercase', 'List', 'defaultdict', 'lru_cache', 'median', 'heappush'} <= set(
    names
  )
  assert (names['pow'], names['open'], names['abs']) == (pow, open, abs)  # not those of math, io and operator


def test_a_completion_of_the_prompt_is_a_program():
  task = schemas.read('humaneval', HUMANEVAL, 'row')
  assert task.prompt == HEAD
  assert extract.program(BODY, task) == f'{HEAD}\n{BODY}'


def test_mbpp_shows_its_tests_and_finds_the_function():
  task = schemas.read('mbpp', MBPP, 'row')
  assert task.entry_point == 'next_number'
  assert all(test in task.prompt for test in MBPP['test_list'])
  assert isinstance(task.base, Script)
  assert '\r' not in task.solution


def test_reading_warns_of_nothing():
  row = MBPP_TEST | {'code': "def next_number(x):\n  '\\d'\n  return x + 1"}
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    schemas.read('mbpp', row, 'row')


class Attack:
  def __reduce__(self):
    return os.system, ('touch /tmp/unpickled-by-a-test',)


@pytest.mark.parametrize(
  ('schema', 'row', 'message'),
  [
    ('mpbb', MBPP, "Did you mean 'mbpp'"),
    ('mbpp', [1], 'row is no JSON object'),
    ('humaneval', MBPP, "no field 'test'"),
    ('humaneval_plus', HUMANEVAL, 'no field'),
    ('mbpp', MBPP | {'code': 'def f(:'}, 'no task of mbpp: SyntaxError'),
    ('mbpp', MBPP | {'test_list': ['assert other(1)']}, 'call no function that the code defines'),
    ('mbpp_plus', MBPP_PLUS | {'task_id': 'Mbpp/x'}, 'no task of mbpp_plus'),
    ('livecodebench', livecodebench([], packed(Attack())), 'names (posix|nt).system'),
    ('livecodebench', livecodebench([], packed([1])), 'holds a list'),
    ('livecodebench', livecodebench([], 'no base64!'), 'no task of livecodebench'),
    ('livecodebench', livecodebench([], base64.b64encode(b'x').decode()), 'do not unpack'),
    ('livecodebench', livecodebench(FUNCTIONAL, '[]'), 'the function name'),
    ('livecodebench', livecodebench([], '[]', 'add'), 'tests of the kinds'),
  ],
  ids=range(13),
)
def test_other_rows_are_refused(schema, row, message):
  with pytest.raises(ConfigError, match=message):
    schemas.read(schema, row, 'row')
  assert not os.path.exists('/tmp/unpickled-by-a-test')


def test_private_tests_do_not_unpack_without_end(monkeypatch):
  monkeypatch.setattr(schemas, '_UNPACKED', 1000)
  with pytest.raises(ConfigError, match='more than 1000 bytes'):
    schemas.read('livecodebench', livecodebench([], packed('[' + ' ' * 2000 + ']')), 'row')


# The first call of a task of each shape, as its row has it and as the task's statement writes it.
@pytest.mark.parametrize(
  ('number', 'row', 'meant'),
  [
    (2, [[3, 4], [5]], [(3, 4), (5,)]),
    (63, [[[3, 5], [1, 7]]], [[(3, 5), (1, 7)]]),
    (75, [[[6, 24], [7, 9]], 6], [[(6, 24), (7, 9)], 6]),
    (106, [[5, 6], [9, 10]], [[5, 6], (9, 10)]),
    (115, [[[1, 2], [], {}]], [[{1, 2}, {}, {}]]),
    (124, ['0', '1j'], [0.0, 1j]),
    (250, [[10, 8], 4], [(10, 8), 4]),
    (252, ['(1+2j)'], [1 + 2j]),
    (259, [[[1, 3], [4, 5]], [[6, 7], [3, 9]]], [((1, 3), (4, 5)), ((6, 7), (3, 9))]),
    (278, [[1, 5, [4, 6], 10]], [(1, 5, (4, 6), 10)]),
    (307, [['HELLO', 5, [], True], 2, 50], [('HELLO', 5, [], True), 2, 50]),
    (580, [[4, [7, [2]], []]], [(4, (7, (2,)), ())]),
    (722, [{'a': [6.2, 70]}, 6.0, 70], [{'a': (6.2, 70)}, 6.0, 70]),
    (3, [[1], 2], [[1], 2]),
  ],
)
def test_types_that_json_lost(number, row, meant):
  found = evalplus.mbpp_arguments(number, row)
  assert values.encode(found) == values.encode(meant)
