"""Where a run's problems come from, and which of them belong to an update."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from opsd_jax.config import ConfigError, require, require_choice
from opsd_jax.data import chains as digit_chains
from opsd_jax.records import Example, Problem


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which problems.

  Attributes:
    source: `chains`: synthetic digit chains.
    chains: settings of that source.
  """

  source: Literal['chains'] = 'chains'
  chains: digit_chains.ChainsConfig = digit_chains.ChainsConfig()


@dataclasses.dataclass(frozen=True)
class Splits:
  """Problems for training, for choosing checkpoints, and for the final table."""

  train: tuple[Problem, ...]
  validation: tuple[Problem, ...]
  test: tuple[Problem, ...]


def validate(config: DataConfig) -> None:
  """Raises `ConfigError` for data that cannot be made."""
  require_choice('data.source', config.source, ('chains',))
  digit_chains.validate(config.chains)


def load(config: DataConfig) -> Splits:
  """The problems of every split, checked to be disjoint.

  Raises:
    ConfigError: a problem stands in two splits.
  """
  problems = digit_chains.draw_problems(config.chains)
  test, rest = problems[: config.chains.test], problems[config.chains.test :]
  validation, train = rest[: config.chains.validation], rest[config.chains.validation :]
  splits = Splits(tuple(train), tuple(validation), tuple(test))
  check_disjoint(splits)
  return splits


def check_disjoint(splits: Splits) -> None:
  """Raises `ConfigError` if the text of a held-out problem is also trained on or in another split."""
  names = [f.name for f in dataclasses.fields(splits)]
  for i, first in enumerate(names):
    for second in names[i + 1 :]:
      shared = _texts(getattr(splits, first)) & _texts(getattr(splits, second))
      if shared:
        raise ConfigError(
          f'{len(shared)} problems stand in both {first} and {second}, such as '
          f'{min(shared)!r}; remove them from one.'
        )


def _texts(problems: Sequence[Problem]) -> set[str]:
  return {p.problem for p in problems}


def problems_of_update(problems: Sequence[Problem], count: int, seed: int, step: int) -> list[Problem]:
  """The `count` problems of update `step`: a function of (seed, step) alone, so that a run resumes anywhere.

  Each epoch is a fresh permutation and begins with an update, so that no update holds a problem twice;
  the fewer than `count` problems left at its end wait for another epoch.

  Raises:
    ConfigError: there are fewer than `count` problems.
  """
  require(
    len(problems) >= count,
    f'an update takes {count} problems, but there are {len(problems)} to train on; take fewer '
    '(rollout.questions, cold_start.batch), or give more.',
  )
  epoch, part = divmod(step, len(problems) // count)
  order = _order(len(problems), seed, epoch)
  return [problems[i] for i in order[part * count : (part + 1) * count]]


@functools.lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
  """The permutation of an epoch; kept, because every update of the epoch asks for it."""
  return np.random.default_rng([seed, epoch]).permutation(size)


def cold_start_examples(
  config: DataConfig, problems: Sequence[Problem], batch: int, teacher_rows: int, seed: int, step: int
) -> list[Example]:
  """Supervised rows of cold-start update `step`, the first `teacher_rows` under the teacher's view."""
  rows = problems_of_update(problems, batch, seed, step)
  return digit_chains.cold_start_examples(
    rows, teacher_rows, config.chains, np.random.default_rng([seed, step, 1])
  )
