"""Rows of the code benchmarks' files as tasks.

- `humaneval`: https://github.com/openai/human-eval, HumanEval.jsonl.gz;
- `humaneval_plus` and `mbpp_plus`: https://github.com/evalplus/evalplus,
  HumanEvalPlus.jsonl.gz and MbppPlus.jsonl.gz;
- `mbpp`: https://github.com/google-research/google-research/tree/master/mbpp, mbpp.jsonl, and the same with
  the fields prompt, test and code, as other collections have it;
- `livecodebench`: https://github.com/LiveCodeBench/LiveCodeBench, the rows of code_generation_lite.
"""

import ast
import base64
import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opsd_jax.config import ConfigError, require, require_choice
from opsd_jax.grade.programs import evalplus, values
from opsd_jax.grade.programs.extract import parsed
from opsd_jax.grade.programs.task import Calls, Script, Streams, Task, encoded_calls

_UNPACKED = 1 << 30  # bytes of one problem's private tests, at most

# What LiveCodeBench's programs may take for granted, in the order in which its own grader imports it:
# a later module's names hide an earlier one's.
_GIVEN = (
  'string re datetime collections heapq bisect copy math random statistics itertools functools operator io '
  'sys json'
).split()
_USUAL = '\n'.join(
  [
    *(f'from {name} import *' for name in [*_GIVEN, 'builtins', 'typing']),
    f'import {", ".join(_GIVEN)}',
    'sys.setrecursionlimit(50_000)\n',
  ]
)


def read(schema: str, row: Any, where: str) -> Task:
  """The task of a parsed row.

  Args:
    schema: a name from `SCHEMAS`.
    row: a JSON object.
    where: file and line, for messages.

  Raises:
    ConfigError: an unknown schema, or a row of another kind.
  """
  require_choice('schema', schema, tuple(SCHEMAS))
  require(isinstance(row, dict), f'{where} is no JSON object; {schema} wants one a line.')
  try:
    return SCHEMAS[schema](row)
  except KeyError as error:
    raise ConfigError(f'{where} has no field {error}, which {schema} needs; name another schema.') from error
  except (
    TypeError,
    ValueError,
    IndexError,
    SyntaxError,
    AttributeError,
    RecursionError,
    MemoryError,
  ) as error:
    raise ConfigError(f'{where} is no task of {schema}: {type(error).__name__}: {error}.') from error
  except (zlib.error, EOFError, pickle.UnpicklingError) as error:
    raise ConfigError(f'{where} is no task of {schema}: its private tests do not unpack: {error}.') from error


def _humaneval(row: Mapping[str, Any]) -> Task:
  base = Script((row['test'],), check='check')
  return _completion(row, base)


def _humaneval_plus(row: Mapping[str, Any]) -> Task:
  rule = evalplus.HUMANEVAL_RULES.get(row['entry_point'], 'close')
  base, plus = (Calls(encoded_calls(row[k]), rule, float(row['atol'])) for k in ('base_input', 'plus_input'))
  return _completion(row, base, plus)


def _completion(row: Mapping[str, Any], base: Script | Calls, plus: Calls | None = None) -> Task:
  """A task whose prompt is the head of the function."""
  whole = row['prompt'] + row['canonical_solution']
  return Task(row['task_id'], row['prompt'], row['entry_point'], whole, base, plus, starter=row['prompt'])


def _mbpp(row: Mapping[str, Any]) -> Task:
  """The name of the function is the one that the tests call and the solution defines."""
  tests = tuple(row['test_list'] if 'test_list' in row else row['test'])
  text, code = row['text'] if 'text' in row else row['prompt'], row['code'].replace('\r\n', '\n')
  setup = row.get('test_setup_code', '').replace('\r\n', '\n')
  prompt = '\n'.join([text, 'These tests must pass:', *tests])
  entry = _called(tests, code)
  return Task(str(row['task_id']), prompt, entry, code, Script((setup, *tests)))


def _called(tests: Sequence[str], code: str) -> str:
  defined = {node.name for node in parsed(code).body if isinstance(node, ast.FunctionDef)}
  calls = [n.func for t in tests for n in ast.walk(parsed(t)) if isinstance(n, ast.Call)]
  names = [c.id for c in calls if isinstance(c, ast.Name) and c.id in defined]
  if not names:
    raise ValueError('the tests call no function that the code defines')
  return max(dict.fromkeys(names), key=names.count)


def _mbpp_plus(row: Mapping[str, Any]) -> Task:
  number = int(row['task_id'].rpartition('/')[2])
  rule = evalplus.MBPP_RULES.get(row['entry_point'], 'close')
  base, plus = (
    Calls(encoded_calls(evalplus.mbpp_arguments(number, call) for call in calls), rule, float(row['atol']))
    for calls in (row['base_input'], row['plus_input'] or [])
  )
  whole = row['prompt'] + row['canonical_solution']
  return Task(row['task_id'], row['prompt'], row['entry_point'], whole, base, plus)


def _livecodebench(row: Mapping[str, Any]) -> Task:
  """Base and all tests are the same: the public and the private ones."""
  cases = json.loads(row['public_test_cases']) + _private(row['private_test_cases'])
  metadata = row['metadata']
  metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
  entry = metadata.get('func_name', '')
  kinds = {case['testtype'] for case in cases}
  if kinds != ({'functional'} if entry else {'stdin'}):
    raise ValueError(f'tests of the kinds {sorted(kinds)} with the function name {entry!r}')
  base = _functional(cases) if entry else _streams(cases)
  prompt = row['question_content'] + (f'\n\n{row["starter_code"]}' if row['starter_code'] else '')
  return Task(str(row['question_id']), prompt, entry, '', base, prelude=_USUAL)


def _functional(cases: Sequence[Mapping[str, str]]) -> Calls:
  calls = encoded_calls([json.loads(line) for line in case['input'].split('\n')] for case in cases)
  expected = tuple(values.encode(json.loads(case['output'])).decode() for case in cases)
  return Calls(calls, 'json', expected=expected)


def _streams(cases: Sequence[Mapping[str, str]]) -> Streams:
  return Streams(tuple(case['input'] for case in cases), tuple(case['output'] for case in cases))


def _private(text: str) -> list[dict[str, str]]:
  """Tests as JSON, or as base64 of compressed, pickled JSON."""
  if text.lstrip().startswith('['):
    return json.loads(text)
  unpack = zlib.decompressobj()
  packed = unpack.decompress(base64.b64decode(text, validate=True), _UNPACKED)
  require(not unpack.unconsumed_tail, f'private tests of more than {_UNPACKED} bytes; remove the row.')
  return json.loads(_unpickled_text(packed))


class _TextAlone(pickle.Unpickler):
  """Builds nothing but Python's own plain values: a pickle that names any class or function is refused."""

  def find_class(self, module: str, name: str) -> Any:
    raise pickle.UnpicklingError(f'it names {module}.{name}')


def _unpickled_text(packed: bytes) -> str:
  text = _TextAlone(io.BytesIO(packed)).load()
  if not isinstance(text, str):
    raise pickle.UnpicklingError(f'it holds a {type(text).__name__}, not text')
  return text


SCHEMAS: Mapping[str, Callable[[Mapping[str, Any]], Task]] = {
  'humaneval': _humaneval,
  'humaneval_plus': _humaneval_plus,
  'mbpp': _mbpp,
  'mbpp_plus': _mbpp_plus,
  'livecodebench': _livecodebench,
}
