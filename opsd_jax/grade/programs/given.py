"""The tests of a training problem, read from the text that stands in the place of its answer.

The text is JSON, in one of the forms that collections of programming problems have:

- `{"inputs": [...], "outputs": [...]}`, as APPS, TACO and OpenThoughts: texts for standard input and what is
  printed then, where a list of texts is a text's lines; with `"fn_name": "f"`, lists of arguments of the
  function `f` and its results, each of which may stand in a list of its own;
- `[{"input": "...", "output": "..."}, ...]`: standard input and output, pair by pair;
- `["assert f(1) == 2", ...]`, as MBPP: `f` is the function that the tests call most often.

Each test becomes a `Task` of its own, so that every one is run and judged by itself.
"""

import ast
import builtins
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
  if isinstance(content, dict):
    tests, entry = _columns(content)
  elif isinstance(content, list) and all(isinstance(test, str) for test in content):
    tests, entry = _asserts(content)
  elif isinstance(content, list) and all(isinstance(test, dict) for test in content):
    tests, entry = _pairs(content)
  else:
    raise ValueError('neither inputs and outputs nor a list of tests')
  if not tests:
    raise ValueError('not one test')
  return tuple(Task(str(place), '', entry, '', test) for place, test in enumerate(tests))


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
    calls = [n.func for t in content for n in ast.walk(parsed(t)) if isinstance(n, ast.Call)]
  except (SyntaxError, RecursionError, MemoryError) as error:
    raise ValueError(f'a test that is no Python ({error})') from error
  names = [c.id for c in calls if isinstance(c, ast.Name) and not hasattr(builtins, c.id)]
  if content and not names:
    raise ValueError('tests that call no function')
  return [Script((test,)) for test in content], max(dict.fromkeys(names), key=names.count, default='')
