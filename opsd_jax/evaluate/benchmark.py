"""What is known of a benchmark before it is read, and the forms that files of mathematics have."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from opsd_jax.data.config import FieldsConfig

Kind = Literal['maths', 'choice', 'programs']


@dataclasses.dataclass(frozen=True)
class Schema:
  """What one distribution of a benchmark calls its fields.

  Attributes:
    name: whose it is, for messages.
    needs: dotted fields that every row must have.
    reads: how a row is read, a name of `benchmark_rows.READERS`; `fields`: as `fields` says.
    fields: names of the fields, where `reads` is `fields`; of any other reading, only its `id`.
  """

  name: str
  needs: tuple[str, ...]
  reads: str = 'fields'
  fields: FieldsConfig = FieldsConfig(solution=None)


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """What is known of a benchmark before it is read.

  Attributes:
    name: how it is asked for.
    title: how a table calls it.
    kind: how its answers are judged.
    expected: how many problems it has; None where its releases differ.
    schemas: what its distributions call their fields; the first that fits the first row is used.
    folders: what its folder in a folder of data sets may be called.
    names: files inside of such a folder, as patterns; the first with a match is taken.
    hub: data sets of the Hugging Face hub that hold it, `org/name`.
    licence: whose the problems are, in a line.
    known: sha256 of files whose content was looked at -> what they are.
    variants: sha256 of those among them that are not what is usually measured -> in what they differ.
    remarks: what somebody should know who compares numbers.
    integers: whether every answer is an integer that is not negative: 025 and 25 are then one answer.
    aliases: further names.
  """

  name: str
  title: str
  kind: Kind
  expected: int | None
  schemas: tuple[Schema, ...]
  folders: tuple[str, ...]
  names: tuple[str, ...]
  hub: tuple[str, ...]
  licence: str
  known: Mapping[str, str] = dataclasses.field(default_factory=dict)
  variants: Mapping[str, str] = dataclasses.field(default_factory=dict)
  remarks: tuple[str, ...] = ()
  integers: bool = False
  aliases: tuple[str, ...] = ()


def plain(problem: str, answer: str, solution: str | None = None, id: str | None = None) -> Schema:
  """A schema of one field each; rows without an `id` are numbered."""
  fields = FieldsConfig(problem=problem, answer=answer, solution=solution, id=id)
  needs = tuple(name for name in (problem, answer, solution, id) if name)
  return Schema(f'{problem}, {answer}', needs, fields=fields)


SOLVED = plain('problem', 'answer', solution='solution')
PLAIN = plain('problem', 'answer')
QUESTION = plain('question', 'answer')
BOXED = Schema('problem, answer in the box of the solution', ('problem', 'solution'), 'boxed')
VERL = Schema(
  'verl',
  ('prompt.0.content', 'reward_model.ground_truth'),
  fields=dataclasses.replace(FieldsConfig.named('verl')),
)
CAPITALS = plain('Problem', 'Answer', solution='Solution')
MATHS = (SOLVED, PLAIN, QUESTION, CAPITALS, VERL, BOXED)  # the order matters: a row may fit several

# Files of a split, as patterns.
TEST = (
  'test.jsonl',
  'test.json',
  'test.parquet',
  'test-*.parquet',
  'data/test-*.parquet',
  'val_test.parquet',
)
TRAIN = ('train.jsonl', 'train.parquet', 'train-*.parquet', 'data/train-*.parquet', 'default/train/*.parquet')
