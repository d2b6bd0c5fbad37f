"""From a row of a benchmark's file to a `Problem`: fields as they stand, and the forms that need more."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping

from opsd_jax.config import ConfigError, nearest
from opsd_jax.data import fields
from opsd_jax.data.config import FieldsConfig
from opsd_jax.data.rows import Row
from opsd_jax.evaluate.benchmark import Benchmark, Schema
from opsd_jax.grade import exact
from opsd_jax.records import Problem

LETTERS = 'ABCD'
SHUFFLE = 0  # of the options of multiple choice; another number would be another benchmark
_SETTING = re.compile(r' \(data\.fields\.\w+\)')
_WRONG = tuple(f'Incorrect Answer {i}' for i in (1, 2, 3))


def choose(benchmark: Benchmark, row: Row, place: str) -> Schema:
  """The first schema of the benchmark whose fields the row has.

  Raises:
    ConfigError: none fits; names what was looked for, and the nearest of the names that are there.
  """
  present = set(fields.names(row))
  for schema in benchmark.schemas:
    if present.issuperset(schema.needs):
      return schema
  closest = min(benchmark.schemas, key=lambda s: len(set(s.needs) - present))
  missing = next(name for name in closest.needs if name not in present)
  known = '; '.join(', '.join(schema.needs) for schema in benchmark.schemas)
  raise ConfigError(
    f'{place} has no field {missing!r} of {benchmark.title}.{_near(missing, present)} Known sets of fields: '
    f'{known}.'
  )


def require_fields(schema: Schema, row: Row, place: str) -> None:
  """Raises `ConfigError` where a row lacks a field that the first row has."""
  present = set(fields.names(row))
  for name in schema.needs:
    if name not in present:
      raise ConfigError(f'{place} has no field {name!r}, which the first row has.{_near(name, present)}')


def _near(name: str, present: set[str]) -> str:
  """The nearest of the names that are there, and all that there are."""
  close = nearest(name, present)
  listed = ', '.join(sorted(present)) or 'none'
  return close if 'Valid names' in close else f'{close} It has {listed}.'


@dataclasses.dataclass(frozen=True)
class Found:
  """What a row says: texts, its own id if it has one, and of multiple choice the wrong options.

  `meta` are the further texts that were asked for.
  """

  problem: str
  answer: str
  solution: str = ''
  id: str | None = None
  wrong: tuple[str, ...] = ()
  meta: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read(benchmark: Benchmark, schema: Schema, number: int, row: Row, place: str) -> Problem | None:
  """The problem of row `number`, from 0; None for a row that is not part of the benchmark.

  Ids are `<benchmark>/<id>` with the id of the row, or else its number: wherever the file lies.

  Raises:
    ConfigError: names the row and the field that cannot be read.
  """
  try:
    found = READERS[schema.reads](schema.fields, row, place)
  except ConfigError as error:  # a benchmark has no settings for the names of fields
    raise ConfigError(_SETTING.sub('', str(error))) from error
  if found is None:
    return None
  id = f'{benchmark.name}/{number if found.id is None else found.id}'
  text, answer = _with_options(found, id) if found.wrong else (found.problem, found.answer)
  if benchmark.integers and answer.isdecimal():
    answer = str(int(answer))
  return Problem(id, text, found.solution, answer, benchmark.name, found.meta)


def _fields(names: FieldsConfig, row: Row, place: str) -> Found:
  found = fields.reader(names, '', '', lambda _: place)(0, row)
  id = found.id if names.id else None
  return Found(found.problem, found.answer, found.solution, id, meta=found.meta)


def _boxed(names: FieldsConfig, row: Row, place: str) -> Found:
  """The answer stands in the last box of the worked solution."""
  solution = _text(row, 'solution', place)
  answer = exact.in_box(solution)
  if answer is None:
    raise ConfigError(
      f"{place}: the field 'solution' has no closed \\boxed{{}} with the answer; mend the row."
    )
  return Found(_text(row, 'problem', place), answer, solution)


def _svamp(names: FieldsConfig, row: Row, place: str) -> Found:
  """The story and the question are two fields; the story may lack its full stop."""
  body = _text(row, 'Body', place).strip()
  body = body if body.endswith(('.', '?', '!', ',')) else f'{body}.'
  question, answer = _text(row, 'Question', place), _text(row, 'Answer', place)
  return Found(f'{body} {question}', answer, id=_text(row, 'ID', place))


def _olympiad(names: FieldsConfig, row: Row, place: str) -> Found | None:
  """Open answers to questions in text, of mathematics; several answers stand in one list."""
  wanted = {'modality': 'Text-only', 'question_type': 'Open-ended', 'subject': 'Math', 'language': 'English'}
  if any(row.get(name) not in (None, value) for name, value in wanted.items()):
    return None
  answers = row['final_answer']
  if not answers:  # a theorem to prove
    return None
  answers = [answers] if isinstance(answers, str | int | float) else answers
  texts = [_text({'final_answer': a}, 'final_answer', place).strip() for a in answers]
  solution = row.get('solution')
  worked = '\n'.join(map(str, solution)) if isinstance(solution, list | tuple) else str(solution or '')
  return Found(_text(row, 'question', place), ', '.join(map(_undollared, texts)), worked)


def _undollared(text: str) -> str:
  """`$x$` as x; a text with mathematics in several places stays as it is."""
  inner = text.strip('$').strip()
  return text if not inner or '$' in inner else inner


def _choice(names: FieldsConfig, row: Row, place: str) -> Found:
  """A question, its answer and three that are wrong."""
  id = row.get('Record ID')
  return Found(
    _text(row, 'Question', place).strip(),
    _text(row, 'Correct Answer', place).strip(),
    solution='' if row.get('Explanation') is None else str(row['Explanation']).strip(),
    id=None if id is None else str(id).strip(),
    wrong=tuple(_text(row, name, place).strip() for name in _WRONG),
  )


def _text(row: Row, name: str, place: str) -> str:
  """A field's text, which must not be blank."""
  found = fields.text(row, name, name, place)
  if not found.strip():
    raise ConfigError(f'{place}: the field {name!r} is blank; mend the row.')
  return found


def _options(names: FieldsConfig, row: Row, place: str) -> Found:
  """A question whose options have their order already; `answer_index` counts from 0."""
  choices, index = row['choices'], row['answer_index']
  if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
    raise ConfigError(f"{place}: the field 'choices' must list two to {len(LETTERS)} options.")
  if not isinstance(index, int) or not 0 <= index < len(choices):
    raise ConfigError(f"{place}: the field 'answer_index' is {index!r}; it must be 0 to {len(choices) - 1}.")
  return Found(written(_text(row, 'question', place).strip(), list(map(str, choices))), LETTERS[index])


def _with_options(found: Found, id: str) -> tuple[str, str]:
  """The question with its options in the order that its id gives, and the letter of the right one."""
  options = [found.answer, *found.wrong]
  order = sorted(range(len(options)), key=lambda i: _drawn(f'{SHUFFLE}\n{id}\n{i}'))
  return written(found.problem, [options[i] for i in order]), LETTERS[order.index(0)]


def _drawn(text: str) -> bytes:
  """A number that the text alone decides, on every machine and in every version."""
  return hashlib.sha256(text.encode()).digest()


def written(question: str, options: list[str]) -> str:
  """The question, a blank line, and a line `(A) ...` for each option."""
  lines = [f'({letter}) {option}' for letter, option in zip(LETTERS, options)]
  return '\n'.join([question, '', *lines])


READERS: Mapping[str, Callable[[FieldsConfig, Row, str], Found | None]] = {
  'fields': _fields,
  'boxed': _boxed,
  'svamp': _svamp,
  'olympiad': _olympiad,
  'choice': _choice,
  'options': _options,
}
