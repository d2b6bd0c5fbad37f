"""From a row of somebody's data to a `Problem`."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from opsd_jax.config import ConfigError, nearest
from opsd_jax.data.schemas import FieldsConfig
from opsd_jax.grade.programs import given
from opsd_jax.records import Problem

_MISSING = object()
_THOUSANDS = re.compile(r'(?<=\d),(?=\d{3}(?!\d))')
_BOXED = '\\boxed'
_SHOWN = 200  # characters of a question in a message
_DEPTH = 16  # levels of a row that are named


def reader(
  fields: FieldsConfig, split: str, source: str, where: Callable[[int], str]
) -> Callable[[int, Mapping[str, Any]], Problem]:
  """The function (row number, row) -> `Problem` of a split.

  Args:
    fields: what the row's fields are called.
    split: begins the ids of rows that have none.
    source: name of the data set, kept in every problem.
    where: the place of a row, for messages.
  """

  def read(number: int, row: Mapping[str, Any]) -> Problem:
    place, number = where(number), int(number)
    problem = _bare(fields, _filled(row, fields.problem, 'problem', place), place)
    solution, answer = _solution_and_answer(fields, row, place)
    if fields.starter:
      problem = _begun(fields, row, problem, answer, place)
    return Problem(
      id=f'{split}/{number}' if fields.id is None else _filled(row, fields.id, 'id', place).strip(),
      problem=problem,
      solution=solution,
      answer=answer,
      source=source,
      meta={name.split('.')[-1]: text(row, name, 'meta', place) for name in fields.meta},
    )

  return read


def _bare(fields: FieldsConfig, question: str, place: str) -> str:
  """The question without the instruction around it."""
  if fields.prefix is None and fields.suffix is None:
    return question
  bare = question.strip()
  for name in ('prefix', 'suffix'):
    given = (getattr(fields, name) or '').strip()
    if not (bare.startswith(given) if name == 'prefix' else bare.endswith(given)):
      raise ConfigError(
        f'{place}: the question does not {"begin" if name == "prefix" else "end"} with '
        f'data.fields.{name}={given!r}; name the schema of this file, or set it to none. It is '
        f'{_cut(bare)!r}.'
      )
    bare = (bare.removeprefix(given) if name == 'prefix' else bare.removesuffix(given)).strip()
  if not bare:
    raise ConfigError(
      f'{place}: nothing but the instruction stands in {fields.problem!r}; leave the row out.'
    )
  return bare


def _cut(text: str) -> str:
  return text if len(text) <= _SHOWN else f'{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}'


def _solution_and_answer(fields: FieldsConfig, row: Mapping[str, Any], place: str) -> tuple[str, str]:
  marker = fields.answer_marker
  solution = '' if fields.solution is None else text(row, fields.solution, 'solution', place)
  if fields.tests:
    return solution, _tests(row, fields.tests, place)
  if not marker:
    return solution, _filled(row, fields.answer, 'answer', place).strip()
  if marker == _BOXED:
    return solution, _boxed(fields, solution, place)
  before, found, answer = solution.rpartition(marker)
  if not found or not answer.strip():
    raise ConfigError(
      f'{place}: the field {fields.solution!r} has no answer after {marker!r} (data.fields.answer_marker); '
      'mend the row or leave it out.'
    )
  return before.strip(), _THOUSANDS.sub('', answer.strip())


def _tests(row: Mapping[str, Any], name: str, place: str) -> str:
  """The field of the tests as a text: what is a list or a group becomes JSON."""
  value = _look_up(row, name)
  if isinstance(value, np.ndarray):
    value = value.tolist()
  nested = isinstance(value, Mapping | list | tuple)
  found = '' if nested else _filled(row, name, 'tests', place).strip()
  try:
    found = _whole(json.dumps(value, ensure_ascii=False)) if nested else found
    given.read(found)
  except (TypeError, ValueError, RecursionError) as error:
    raise ConfigError(
      f'{place}: the field {name!r} (data.fields.tests) holds no tests: {error}. Mend the row or leave it '
      'out.'
    ) from error
  return found


def _begun(fields: FieldsConfig, row: Mapping[str, Any], question: str, tests: str, place: str) -> str:
  """The question of a row whose tests call a function, with the beginning of the program under it."""
  name = given.read(tests)[0].entry_point
  if not name:
    return question
  value = _look_up(row, fields.starter)
  starter = '' if value is None else text(row, fields.starter, 'starter', place)
  shown = f'{question}\n\n{starter}' if starter.strip() else question
  if not re.search(rf'\b{re.escape(name)}\b', shown):
    raise ConfigError(
      f'{place}: the tests call {name!r}, which neither the question nor the field {fields.starter!r} '
      '(data.fields.starter) names; leave the row out.'
    )
  return shown


def _boxed(fields: FieldsConfig, solution: str, place: str) -> str:
  """What the last \\boxed{...} of a solution holds; braces inside of it are paired."""
  _, found, rest = solution.rpartition(_BOXED)
  rest, depth = rest.lstrip(), 0
  for end, letter in enumerate(rest if found and rest.startswith('{') else ''):
    depth += (letter == '{') - (letter == '}')
    if depth == 0 and rest[1:end].strip():
      return rest[1:end].strip()
    if depth == 0:
      break
  raise ConfigError(
    f'{place}: the field {fields.solution!r} has no answer in a last {_BOXED}{{...}} '
    '(data.fields.answer_marker); mend the row or leave it out.'
  )


def _filled(row: Mapping[str, Any], name: str, role: str, place: str) -> str:
  """A text that must not be blank."""
  found = text(row, name, role, place)
  if not found.strip():
    raise ConfigError(f'{place}: the field {name!r} (data.fields.{role}) is blank; leave the row out.')
  return found


def text(row: Mapping[str, Any], name: str, role: str, place: str) -> str:
  """The field `name` of a row as text; `27.0` is '27'.

  Raises:
    ConfigError: the row lacks the field, or it is neither a text nor a number.
  """
  value = _look_up(row, name)
  setting = f'data.fields.{role}'
  if value is _MISSING:
    raise ConfigError(f'{place} has no field {name!r} ({setting}).{_others(name, row)}')
  if value is None:
    raise ConfigError(f'{place}: the field {name!r} ({setting}) is null; leave the row out.')
  if isinstance(value, Mapping):
    inside = ', '.join(f'{name}.{key}' for key in value)
    raise ConfigError(f'{place}: the field {name!r} ({setting}) is a group of fields; name one: {inside}.')
  if isinstance(value, list | tuple | np.ndarray):
    raise ConfigError(
      f'{place}: the field {name!r} ({setting}) is a list of {len(value)}; name one of its items, such as '
      f'{name}.0, or make it a text.'
    )
  try:
    return _as_text(value)
  except ValueError as error:
    raise ConfigError(f'{place}: the field {name!r} ({setting}) is {error}.') from error


def _others(name: str, row: Mapping[str, Any]) -> str:
  """The nearest name, and all that there are."""
  present = sorted(names(row))
  close = nearest(name, present)
  return close if 'Valid names' in close else f'{close} It has {", ".join(present)}.'


def _as_text(value: Any) -> str:
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, bytes):
    return value.decode()  # UnicodeDecodeError is a ValueError
  if isinstance(value, bool):
    return 'true' if value else 'false'
  if isinstance(value, float):
    if not math.isfinite(value):
      raise ValueError(f'{value}, not a finite number')
    return str(int(value)) if value.is_integer() else repr(value)
  return _whole(str(value))


def _whole(value: str) -> str:
  """`value` itself; JSON's \\ud800 makes a text that no encoding takes."""
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise ValueError('a text that holds half a character, which has no bytes; mend it') from error
  return value


def _look_up(row: Any, name: str) -> Any:
  """The value under a dotted name, or `_MISSING`; a field whose own name has dots is found as well."""
  if isinstance(row, Mapping) and name in row:
    return row[name]
  first, dot, rest = name.partition('.')
  if isinstance(row, Mapping):
    value = row.get(first, _MISSING)
  elif isinstance(row, list | tuple | np.ndarray) and first.isdecimal() and int(first) < len(row):
    value = row[int(first)]
  else:
    return _MISSING
  return _look_up(value, rest) if dot else value


def names(row: Any, prefix: str = '') -> Iterator[str]:
  """Dotted names of everything in a row, as deep as anybody names it; of a list, the first item's."""
  for name in _names(row, prefix, _DEPTH):
    yield name.encode(errors='backslashreplace').decode()  # half a character cannot be printed


def _names(row: Any, prefix: str, depth: int) -> Iterator[str]:
  if isinstance(row, Mapping):
    items = row.items()
  else:
    items = [('0', row[0])] if isinstance(row, list | tuple) and row else []
  for key, value in items:
    yield f'{prefix}{key}'
    if depth > 1:
      yield from _names(value, f'{prefix}{key}.', depth - 1)
