"""The tests of a training problem, read from the text that stands in the place of its answer.

The text is JSON, in one of the forms that collections of programming problems have:

- `{"inputs": [...], "outputs": [...]}`, as APPS, TACO and OpenThoughts: texts for standard input and what is
  printed then, where a list of texts is a text's lines; with `"fn_name": "f"`, lists of arguments of the
  function `f` and its results, each of which may stand in a list of its own;
- `[{"input": "...", "output": "..."}, ...]`: standard input and output, pair by pair;
- `["assert f(1) == 2", ...]`, as MBPP: `f` is the function that most of the tests call, the first of equals.
  A name of Python's own, as `sum`, is `f` where no other is called and every test calls it. The tests know
  `f` and Python's own names alone: no name that a program defines beside it, and no code to be run before.

Each test becomes a `Task` of its own, so that every one is run and judged by itself.
"""

import ast
import builtins
import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

from opsd_jax.grade.programs import values
from opsd_jax.grade.programs.extract import parsed
from opsd_jax.grade.programs.task import Calls, Script, Streams, Task, Tests, encoded_calls


def read(text: str) -> tuple[Task, ...]:
  """A task for each test, in their order.

  Raises:
    ValueError: the text holds no tests; says why.
  """
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'no JSON ({error})') from error
  try:
    tests, entry = _tests(content)
  except RecursionError as error:
    raise ValueError('tests whose lists stand too deep in each other') from error
  if not tests:
    raise ValueError('not one test')
  return tuple(Task(str(place), '', entry, '', test) for place, test in enumerate(tests))


def _tests(content: Any) -> tuple[list[Tests], str]:
  """The tests, and the name of the function that they call, or ''."""
  if isinstance(content, dict):
    return _columns(content)
  if isinstance(content, list) and all(isinstance(test, str) for test in content):
    return _asserts(content)
  if isinstance(content, list) and all(isinstance(test, dict) for test in content):
    return _pairs(content)
  raise ValueError('neither inputs and outputs nor a list of tests')


def _columns(content: Mapping[str, Any]) -> tuple[list[Tests], str]:
  inputs, outputs, entry = (content.get(name) for name in ('inputs', 'outputs', 'fn_name'))
  if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
    raise ValueError('no lists `inputs` and `outputs` of one length')
  if entry:
    return [_call(*pair) for pair in zip(inputs, outputs)], str(entry)
  return [_stream(*pair) for pair in zip(inputs, outputs)], ''


def _pairs(content: Sequence[Mapping[str, Any]]) -> tuple[list[Tests], str]:
  if any(test.get('fn_name') for test in content):
    raise ValueError('tests one by one are of standard input; write `inputs`, `outputs` and `fn_name`')
  if not all({'input', 'output'} <= test.keys() for test in content):
    raise ValueError('a test has no `input` and `output`')
  return [_stream(test['input'], test['output']) for test in content], ''


def _stream(typed: Any, printed: Any) -> Streams:
  return Streams((_lines(typed),), (_lines(printed),), exact=True)


def _lines(value: Any) -> str:
  if isinstance(value, list):
    return '\n'.join(map(_lines, value))
  if not isinstance(value, str):
    raise ValueError(f'standard input or output that is {value!r}, no text')
  return value


def _call(arguments: Any, result: Any) -> Calls:
  if not isinstance(arguments, list):
    raise ValueError(f'arguments that are {arguments!r}, no list')
  return Calls(encoded_calls([arguments]), 'boxed', expected=(values.encode(result).decode(),))


def _asserts(content: Sequence[str]) -> tuple[list[Tests], str]:
  try:
    called = [_called(test) for test in content]
  except (SyntaxError, RecursionError, MemoryError) as error:
    raise ValueError(f'a test that is no Python ({error})') from error
  tests_of = collections.Counter(name for names in called for name in names)  # in the order of first calls
  own = [name for name in tests_of if not hasattr(builtins, name)]
  names = own or [name for name, count in tests_of.items() if count == len(content)]
  if content and not names:
    raise ValueError('tests that call no function')
  return [Script((test,)) for test in content], max(names, key=tests_of.__getitem__, default='')


def _called(test: str) -> Sequence[str]:
  """The names that a test calls, each once, in the order in which they stand: of `f(g(1))` `f` first."""
  calls = [n.func for n in ast.walk(parsed(test)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
  return list(dict.fromkeys(c.id for c in sorted(calls, key=lambda c: (c.lineno, c.col_offset))))
