"""Which problems a run works on, and how a row of somebody's data becomes one."""

import dataclasses
from typing import Literal

from opsd_jax.config import ConfigError, nearest, require, require_choice
from opsd_jax.data import chains as digit_chains

SOURCES = ('chains', 'files', 'tfds')
_TEXTS = ('problem', 'solution', 'answer')  # what a view shows of every problem


@dataclasses.dataclass(frozen=True)
class FieldsConfig:
  """The names that a row's fields have.

  A dot reaches into a nested field: `reward_model.ground_truth`, and `prompt.0.content` for the first of
  a list.

  Attributes:
    problem: the question.
    solution: the worked solution; none where the data has no solutions, and the text is then empty.
    answer: the final answer, a text or a number; not read where there is an `answer_marker`.
    id: a name that no other row has; none: `<split>/<row>`, counted from 0.
    answer_marker: the answer is what follows the last such text in the solution field, and the solution
      is what stands before it; GSM8K has `####`. Of such an answer the separators of thousands are
      left out, `1,080` is 1080, because a model that writes 1080 is right.
    meta: further text fields for views, which show them under the last part of their name.
  """

  problem: str = 'problem'
  solution: str | None = 'solution'
  answer: str = 'answer'
  id: str | None = None
  answer_marker: str | None = None
  meta: tuple[str, ...] = ()

  @staticmethod
  def named(name: str) -> 'FieldsConfig':
    """The fields of a well-known schema.

    Raises:
      ConfigError: there is no such schema.
    """
    if name not in NAMED:
      raise ConfigError(f'fields {name!r} are unknown.{nearest(name, NAMED)}')
    return NAMED[name]

  def columns(self) -> tuple[str, ...]:
    """The top-level fields that are read."""
    answer = None if self.answer_marker else self.answer
    named = [self.problem, self.solution, answer, self.id, *self.meta]
    return tuple(dict.fromkeys(part for n in named if n is not None for part in (n, n.split('.')[0])))


NAMED = {
  'default': FieldsConfig(),
  'gsm8k': FieldsConfig(problem='question', solution='answer', answer_marker='####'),
  'math': FieldsConfig(),
  'openthoughts': FieldsConfig(answer='Answer', meta=('COT_Reason',)),
  'verl': FieldsConfig(problem='prompt.0.content', solution=None, answer='reward_model.ground_truth'),
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which problems.

  Attributes:
    source: `chains`: synthetic digit chains; `files`: JSON lines, Parquet or Arrow files; `tfds`: a data
      set that TFDS prepared in a format with random access.
    chains: settings of that source.
    path: files: a file, or a folder with the files of the splits; tfds: the folder of the prepared data
      sets (TFDS's `data_dir`), or the version folder of one.
    tfds: name of a prepared data set, as `opsd_problems/gsm8k` or `name/config:1.0.0`; none: `path` is
      its version folder.
    train: split to train on; with files, a file name or a pattern of one also does.
    test: split of the final table; none: its problems are held out of `train`.
    validation_problems: problems for choosing checkpoints and for curves, held out of `train`.
    test_problems: at most so many of the test split, drawn with `seed`; none: all of it.
    fields: names of a row's fields; data sets of `experiments.data` are read as they were written.
    too_long: what happens to a problem that does not fit its width: `drop` counts it, `error` ends the run.
    seed: which problems are held out; the same for every run, so that runs share their test set.
  """

  source: Literal['chains', 'files', 'tfds'] = 'chains'
  chains: digit_chains.ChainsConfig = digit_chains.ChainsConfig()
  path: str | None = None
  tfds: str | None = None
  train: str = 'train'
  test: str | None = 'test'
  validation_problems: int = 200
  test_problems: int | None = None
  fields: FieldsConfig = FieldsConfig()
  too_long: Literal['drop', 'error'] = 'error'
  seed: int = 0


def validate(config: DataConfig) -> None:
  """Raises `ConfigError` for settings that cannot work; reads no data."""
  require_choice('data.source', config.source, SOURCES)
  require_choice('data.too_long', config.too_long, ('drop', 'error'))
  if config.source == 'chains':
    digit_chains.validate(config.chains)
    return
  _validate_place(config)
  _validate_splits(config)
  validate_fields(config.fields)


def _validate_place(config: DataConfig) -> None:
  if config.source == 'files':
    require(
      bool(config.path),
      'data.path is none; name a file, or a folder with files such as train.jsonl and test.jsonl.',
    )
  else:
    require(
      bool(config.path or config.tfds),
      'data.tfds and data.path are none; name a prepared data set, as opsd_problems/gsm8k, and in data.path '
      'the folder it was prepared in; or in data.path alone the version folder of one.',
    )


def _validate_splits(config: DataConfig) -> None:
  require(bool(config.train), 'data.train is empty; name the split to train on.')
  require(
    config.validation_problems > 0,
    f'data.validation_problems is {config.validation_problems}; it must be positive.',
  )
  require(
    config.test_problems is None or config.test_problems > 0,
    f'data.test_problems is {config.test_problems}; it must be positive, or none for all of them.',
  )
  require(
    config.test is not None or config.test_problems is not None,
    'data.test is none, so the test problems are held out of the training split; say how many in '
    'data.test_problems.',
  )
  require(
    config.test != config.train,
    f'data.train and data.test are both {config.train!r}; to hold the test problems out of it, set '
    'data.test=none and data.test_problems.',
  )


def validate_fields(fields: FieldsConfig) -> None:
  """Raises `ConfigError` where the fields do not make a problem."""
  require(bool(fields.problem), 'data.fields.problem is empty; name the field of the question.')
  require(
    bool(fields.answer_marker or fields.answer),
    'data.fields.answer is empty; name the field of the final answer, or set data.fields.answer_marker.',
  )
  require(
    not fields.answer_marker or fields.solution is not None,
    f'data.fields.answer_marker is {fields.answer_marker!r}, but data.fields.solution, where it would '
    'stand, is none; name that field.',
  )
  shown = [name.split('.')[-1] for name in fields.meta]
  for name in shown:
    require(
      name and name not in _TEXTS and shown.count(name) == 1,
      f'data.fields.meta would show two texts as {name!r}; the last parts of its names must differ from '
      f'each other and from {", ".join(_TEXTS)}.',
    )
