"""Where a run's problems come from, and which of them belong to an update."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np

from opsd_jax.config import ConfigError, require
from opsd_jax.data import chains as digit_chains
from opsd_jax.data import config as settings
from opsd_jax.data import fields, files, index, layout, prepared
from opsd_jax.data.config import DataConfig
from opsd_jax.records import Example, Problem

validate = settings.validate


@dataclasses.dataclass(frozen=True)
class Splits:
  """Problems for training, for choosing checkpoints, and for the final table."""

  train: Sequence[Problem]
  validation: Sequence[Problem]
  test: Sequence[Problem]


def load(config: DataConfig) -> Splits:
  """The problems of every split, which share no text. Those of files are read again when asked for.

  Raises:
    ConfigError: a problem stands in two splits, data are missing, or a row is not a problem.
  """
  return _chains(config.chains) if config.source == 'chains' else _users(config)


def _chains(config: digit_chains.ChainsConfig) -> Splits:
  problems = digit_chains.draw_problems(config)
  test, rest = problems[: config.test], problems[config.test :]
  validation, train = rest[: config.validation], rest[config.validation :]
  splits = Splits(tuple(train), tuple(validation), tuple(test))
  check_disjoint(splits)
  return splits


def _users(config: DataConfig) -> Splits:
  """Splits of files or of a prepared data set; one pass over each finds bad rows and equal texts."""
  train = open_problems(config, config.train)
  marks = index.fingerprints(train)
  if config.test is None:
    held, rest = index.hold_out(marks, config.test_problems, (config.seed, 1), 'data.test_problems')
    test, train, marks = index.take(train, held), index.take(train, rest), [marks[i] for i in rest]
  else:
    _require_folder(config)
    test = open_problems(config, config.test)
    test = index.take(test, index.sample(len(test), config.test_problems, (config.seed, 1)))
    _require_apart('train', train, marks, 'test', index.fingerprints(test))
  held, rest = index.hold_out(marks, config.validation_problems, (config.seed, 0), 'data.validation_problems')
  return Splits(index.take(train, rest), index.take(train, held), test)


def _require_folder(config: DataConfig) -> None:
  """A single file has no test split beside it."""
  require(
    config.source != 'files' or not os.path.isfile(os.path.expanduser(config.path)),
    f'data.path={config.path} is one file, and data.test is {config.test!r}; name its folder, or hold the '
    'test problems out of it with data.test=none and data.test_problems.',
  )


def other_task(config: DataConfig, problems: Sequence[Problem]) -> dict[str, tuple[Problem, ...]]:
  """Problems of what a cold start on these data also teaches, by its name; empty where that is nothing."""
  if config.source != 'chains' or not config.chains.dialect:
    return {}
  return {'dialect': tuple(map(digit_chains.in_dialect, problems))}


def level(config: DataConfig, problem: Problem) -> str | None:
  """How hard a problem is said to be: its field `level`, or the number of operations of a digit chain."""
  return digit_chains.level(problem) if config.source == 'chains' else problem.meta.get('level')


def open_problems(config: DataConfig, split: str) -> index.Subset:
  """All problems of one split of files or of a prepared data set, each read when it is asked for.

  Raises:
    ConfigError: the split is not there, is empty, or cannot be read; when read, a row that is no problem.
  """
  import grain

  if config.source == 'files':
    rows = files.open_split(config.path, split, config.fields.columns())
    read = fields.reader(config.fields, split, layout.source_name(config.path), rows.where)
  else:
    rows = prepared.open_split(config.tfds, split, config.path)
    name = rows.name.rsplit('/', 1)[0]  # without the version
    ours = prepared.is_ours(rows)
    read = prepared.decoder(rows.where) if ours else fields.reader(config.fields, split, name, rows.where)
  problems = grain.MapDataset.source(rows).map_with_index(read)
  return index.Subset(problems, np.arange(len(rows)))


def check_disjoint(splits: Splits) -> None:
  """Raises `ConfigError` if the text of a held-out problem is also trained on or in another split."""
  names = [f.name for f in dataclasses.fields(splits)]
  marks = {name: [p.problem for p in getattr(splits, name)] for name in names}
  for i, first in enumerate(names):
    for second in names[i + 1 :]:
      _require_apart(first, getattr(splits, first), marks[first], second, marks[second])


def _require_apart(
  first: str, problems: Sequence[Problem], marks: Sequence, second: str, others: Sequence
) -> None:
  """Raises `ConfigError` if a mark of `problems` of split `first` is among the `others` of `second`."""
  shared = set(marks) & set(others)
  if shared:
    such = next(problem for problem, mark in zip(problems, marks) if mark in shared)
    raise ConfigError(
      f'{len(shared)} problems stand in both {first} and {second}, such as {such.problem!r}; remove them '
      'from one.'
    )


def problems_of_update(
  problems: Sequence[Problem], count: int, seed: int, step: int, host: int = 0, hosts: int = 1
) -> list[Problem]:
  """The problems of update `step` for one host: a function of (seed, step), so that a run resumes anywhere.

  Each epoch is a fresh permutation and begins with an update, so that no update holds a problem twice;
  the fewer than `count` problems left at its end wait for another epoch. Hosts take equal runs of one
  order, which is the same for any number of them.

  Args:
    problems: what is trained on.
    count: problems of the update, over all hosts.
    seed: of the order.
    step: number of the update, from 0.
    host: which of the `hosts` asks.
    hosts: processes that share the update.

  Raises:
    ConfigError: there are fewer than `count` problems, or they do not divide over the hosts.
  """
  require(
    len(problems) >= count,
    f'an update takes {count} problems, but there are {len(problems)} to train on; take fewer '
    '(rollout.questions, cold_start.batch), or give more.',
  )
  require(
    0 <= host < hosts and count % hosts == 0,
    f'an update takes {count} problems, which do not divide over {hosts} hosts (this one is {host}); make '
    f'rollout.questions and cold_start.batch multiples of {hosts}.',
  )
  epoch, part = divmod(step, len(problems) // count)
  mine = count // hosts
  first = part * count + host * mine
  return [problems[i] for i in _order(len(problems), seed, epoch)[first : first + mine]]


@functools.lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
  """The permutation of an epoch; kept, because every update of the epoch asks for it."""
  return np.random.default_rng([seed, epoch]).permutation(size)


def cold_start_examples(
  config: DataConfig,
  problems: Sequence[Problem],
  batch: int,
  teacher_rows: int,
  seed: int,
  step: int,
  clean: bool = False,
) -> list[Example]:
  """Supervised rows of cold-start update `step`, the first `teacher_rows` under the teacher's view.

  Digit chains give the student's rows their misconception, unless they are to be `clean`; other data their
  worked solutions.

  Raises:
    ConfigError: a problem has no worked solution.
  """
  rows = problems_of_update(problems, batch, seed, step)
  if config.source == 'chains' and not clean:
    rng = np.random.default_rng([seed, step, 1])
    return digit_chains.cold_start_examples(rows, teacher_rows, config.chains, rng)
  for p in rows:
    require(
      bool(p.solution.strip()),
      f'problem {p.id!r} has no worked solution to start from; name its field in data.fields.solution, or '
      'set cold_start.updates=0.',
    )
  return [
    Example(p, 'teacher' if row < teacher_rows else 'student', p.solution) for row, p in enumerate(rows)
  ]
