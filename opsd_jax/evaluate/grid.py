"""Samples of a benchmark as arrays: a row a problem, a column a sample.

Axis letters: X problems, n samples of each.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from opsd_jax.config import ConfigError, nearest, require
from opsd_jax.evaluate.samples import Sample
from opsd_jax.records import Graded, Verdict


@dataclasses.dataclass(frozen=True)
class Grid:
  """All samples of a benchmark.

  Attributes:
    problems: X ids.
    verdicts: rules -> X tuples of n verdicts.
    answers: X tuples of n final answers, None where none could be read.
    stopped: bool [X, n], False where the token budget cut the sample off.
    length: int [X, n], sampled tokens.
    prompt_tokens: int [X].
  """

  problems: tuple[str, ...]
  verdicts: Mapping[str, tuple[tuple[Verdict, ...], ...]]
  answers: tuple[tuple[str | None, ...], ...]
  stopped: np.ndarray
  length: np.ndarray
  prompt_tokens: np.ndarray

  @property
  def samples(self) -> int:
    """n."""
    return self.stopped.shape[1]

  @property
  def rules(self) -> tuple[str, ...]:
    """Names of the rules that were applied."""
    return tuple(self.verdicts)

  def correct(self, rules: str) -> np.ndarray:
    """bool [X, n].

    Raises:
      ConfigError: these rules were not applied.
    """
    return np.array([Graded(row).correct for row in self._of(rules)])

  def answered(self, rules: str) -> np.ndarray:
    """bool [X, n], False where these rules could read no final answer."""
    return np.array([Graded(row).answered for row in self._of(rules)])

  def _of(self, rules: str) -> tuple[tuple[Verdict, ...], ...]:
    require(
      rules in self.verdicts, f'the samples were not marked by {rules!r}.{nearest(rules, self.verdicts)}'
    )
    return self.verdicts[rules]


def grid(
  samples: Sequence[Sample], problems: Sequence[str] | None = None, where: str = 'the evaluation'
) -> Grid:
  """The samples in order.

  Args:
    samples: in any order.
    problems: ids in the order of the rows; None for the sorted ids of the samples.
    where: whose the samples are, for messages.

  Raises:
    ConfigError: a sample is missing or there twice, or samples were marked by different rules.
  """
  require(bool(samples), f'{where} has no samples.')
  by_place = {(s.problem, s.sample): s for s in samples}
  require(len(by_place) == len(samples), f'{where} has {len(samples) - len(by_place)} samples twice.')
  problems = sorted({s.problem for s in samples}) if problems is None else list(problems)
  count = 1 + max(s.sample for s in samples)
  rows = [[by_place.pop((problem, i), None) for i in range(count)] for problem in problems]
  missing = [f'{p!r} sample {i}' for p, row in zip(problems, rows) for i, s in enumerate(row) if s is None]
  require(
    not missing,
    f'{where} lacks {len(missing)} samples, such as {", ".join(missing[:1])}; let it go on to its end first.',
  )
  for problem, _ in by_place:
    raise ConfigError(f'{where} has samples of {problem!r}, which is not among its problems.')
  return _made(problems, rows, where)


def _made(problems: Sequence[str], rows: Sequence[Sequence[Sample]], where: str) -> Grid:
  rules = tuple(rows[0][0].verdicts)
  for sample in (s for row in rows for s in row):
    require(
      set(sample.verdicts) == set(rules),
      f'{where}: sample {sample.sample} of {sample.problem!r} was marked by {", ".join(sample.verdicts)}, '
      f'others by {", ".join(rules)}.',
    )
  return Grid(
    problems=tuple(problems),
    verdicts={name: tuple(tuple(s.verdicts[name] for s in row) for row in rows) for name in rules},
    answers=tuple(tuple(s.answer for s in row) for row in rows),
    stopped=np.array([[s.stopped for s in row] for row in rows], bool),
    length=np.array([[len(s.ids) for s in row] for row in rows], np.int64),
    prompt_tokens=np.array([row[0].prompt_tokens for row in rows], np.int64),
  )
