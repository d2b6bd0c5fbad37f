import ast
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from opsd_jax.grade.programs.extract import program
from tests.grade.programs import tasks

STARTER = 'import math\n\ndef next_number(x):\n  """Return the next number."""\n'
BODY = '  return x + 1\n'
RIGHT = tasks.RIGHT
TASK = tasks.calls()
COMPLETION = tasks.calls(starter=STARTER)


def fenced(text: str, mark: str = 'python', fence: str = '```') -> str:
  return f'{fence}{mark}\n{text}{fence}\n'


@pytest.mark.parametrize(
  'text',
  [
    fenced(RIGHT),
    fenced(RIGHT, 'py'),
    fenced(RIGHT, 'Python3'),
    fenced(RIGHT, fence='~~~'),
    fenced(RIGHT, ''),
    fenced(RIGHT).removesuffix('```\n'),
    fenced(RIGHT).replace('\n', '\r\n'),
    f'First\n{fenced(tasks.WRONG)}but better\n{fenced(RIGHT)}',
    f'{fenced(RIGHT)}Use it so:\n{fenced("print(next_number(1))" + chr(10))}',
    f'{fenced("pip install x" + chr(10), "bash")}{fenced(RIGHT)}{fenced("2" + chr(10), "")}',
    f'<think>\n{fenced(tasks.WRONG)}</think>\n{fenced(RIGHT)}',
    f'thinking\n{fenced(tasks.WRONG)}</think>{RIGHT}',
    RIGHT,
    f'{RIGHT}\nThis returns the next number.\n',
    f'{RIGHT}\n' + 'This is not Python.\n' * 1000,
    fenced(RIGHT, ' python '),
    fenced(RIGHT, 'python title="next.py"'),
    fenced(RIGHT, '{.python .numberLines}'),
    fenced(RIGHT, 'python:next.py'),
    fenced(RIGHT).replace('\n```\n', '```\nThat is all.\n'),
    fenced(RIGHT).replace('\n```\n', '\n`````\nThat is all.\n'),
    '1. So:\n\n' + ''.join(f'   {line}\n' for line in fenced(RIGHT).splitlines()) + '\n2. Done.\n',
    '\t' + fenced(RIGHT).replace('\n', '\n\t'),
    f'{fenced(RIGHT, "")}Use it so:\n{fenced("print(next_number(1))" + chr(10))}',
    f'{fenced(RIGHT)}It gives:\n{fenced(">>> next_number = 1" + chr(10), "python-repl")}',
    f'{fenced(RIGHT)}In C:\n{fenced("int next_number = 1" + chr(10), "c")}',
  ],
)
def test_finds_the_program(text):
  assert program(text, TASK).strip() == RIGHT.strip()


@pytest.mark.parametrize('text', ['', 'I do not know.', 'Yes', '<think>hm</think>', fenced('\n'), 'x = 1\n'])
def test_finds_none(text):
  assert program(text, TASK) is None


@pytest.mark.parametrize(
  'text', [BODY, f'{BODY}\n\nprint(next_number(\n', fenced(BODY), f'{BODY}\nThat is all, folks.\n']
)
def test_a_body_continues_the_starter(text):
  found = program(text, COMPLETION)
  assert found.startswith(STARTER)
  names = {}
  exec(found, names)
  assert names['next_number'](3) == 4


@pytest.mark.parametrize(
  'text',
  [
    '```' + ' ' * 10**5 + '`',
    '`' * 10**5 + 'x',
    '~' * 10**5 + '`',
    'x = 1\n' * 10**4,
    '-' * 10**5,
    '(' * 10**5,
  ],
  ids=range(6),
)
def test_no_text_takes_long(text):
  begin = time.process_time()
  assert program(text, TASK) is None
  program(f'```\n{text}x\n', COMPLETION)
  assert time.process_time() - begin < 5


LINES = (
  'def next_number(x):',
  '  return x + 1',
  'x = [',
  '  1]',
  '"""',
  'if x:',
  '',
  'try:',
  '@x',
  'y = \\',
  'No way.',
)


@hypothesis.given(st.lists(st.sampled_from(LINES)), st.booleans())
def test_without_a_fence_the_longest_start_that_is_python_counts(lines, starter):
  starts = ['\n'.join(lines[:end]) for end in range(len(lines), 0, -1)]
  body = starter and '\n'.join(lines).strip('\n')[:1] == ' '
  longest = next((s for s in starts if s.strip() and is_python(f'{STARTER}\n{s}' if body else s)), None)
  found = program('\n'.join(lines), COMPLETION if starter else TASK)
  if longest is None or not body and LINES[0] not in longest.split('\n'):
    assert found is None
  else:
    assert found.removeprefix(f'{STARTER}\n') == longest


def is_python(text: str) -> bool:
  try:
    return bool(ast.parse(text))
  except SyntaxError:
    return False


def test_a_whole_function_stands_alone():
  assert program(fenced(RIGHT), COMPLETION) == RIGHT
  assert program(RIGHT, COMPLETION).strip() == RIGHT.strip()


def test_a_fenced_program_that_is_no_python_is_kept():
  assert program(fenced('def next_number(x) return\n'), TASK) == 'def next_number(x) return\n'


@pytest.mark.parametrize(
  'text', ['next_number = lambda x: x + 1\n', 'class Solution:\n  def next_number(self, x):\n    return 0\n']
)
def test_other_definitions_count(text):
  assert program(f'{fenced(text)}{fenced("next_number == 1" + chr(10))}', COMPLETION) == text


def test_whole_programs():
  assert program(fenced('print(1)\n'), tasks.streams()) == 'print(1)\n'
  assert program('print(int(input()) + 1)', tasks.streams()) == 'print(int(input()) + 1)'
  assert program('No', tasks.streams()) is None


@hypothesis.given(st.text(alphabet='`\n \tpython<>/thinkdef(:)=x1'), st.booleans())
def test_any_text_gives_a_program_or_none(text, starter):
  found = program(text, COMPLETION if starter else TASK)
  assert found is None or found.strip()


def test_a_program_without_a_fence_is_python():
  found = program(f'{RIGHT}\nand so on (\n', TASK)
  assert isinstance(ast.parse(found), ast.Module)
