"""Which of many problems: lazy subsets, what fits, and what is held out. Positions are int64 arrays."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from opsd_jax.config import ConfigError, require
from opsd_jax.records import Problem


@dataclasses.dataclass(frozen=True, eq=False)
class Subset(Sequence[Problem]):
  """Some of the problems, each made when it is asked for.

  Attributes:
    problems: anything that has a problem for an int, such as a `grain.MapDataset`.
    positions: int64 [N], which of them, in this order.
  """

  problems: Sequence[Problem]
  positions: np.ndarray

  def __len__(self) -> int:
    return len(self.positions)

  @overload
  def __getitem__(self, index: int) -> Problem: ...

  @overload
  def __getitem__(self, index: slice) -> list[Problem]: ...

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self.problems[int(p)] for p in self.positions[index]]
    return self.problems[int(self.positions[index])]

  def __iter__(self) -> Iterator[Problem]:
    return (self.problems[int(p)] for p in self.positions)


def take(problems: Sequence[Problem], positions: np.ndarray) -> Subset:
  """The problems at `positions`, int [N], which keep their order."""
  if isinstance(problems, Subset):
    return Subset(problems.problems, problems.positions[positions])
  return Subset(problems, np.asarray(positions, np.int64))


@dataclasses.dataclass(frozen=True)
class Selection:
  """The problems that fit, and how many did not for which reason."""

  problems: Sequence[Problem]
  dropped: Mapping[str, int]


def select(
  problems: Sequence[Problem], misfit: Callable[[Problem], str | None], too_long: str, what: str
) -> Selection:
  """The problems that fit, found in one pass; `problems` itself where all do.

  Args:
    problems: a split.
    misfit: why a problem does not fit, or None; the same words for the same cause, so that they count.
    too_long: `drop` leaves such a problem out, `error` does not.
    what: the split, for messages: 'train problems', 'test problems', ...

  Raises:
    ConfigError: a problem does not fit and `too_long` is `error`, or none is left.
  """
  kept: list[int] = []
  dropped: collections.Counter[str] = collections.Counter()
  for position, problem in enumerate(problems):
    reason = misfit(problem)
    if reason is None:
      kept.append(position)
      continue
    require(
      too_long == 'drop',
      f'{what}: {problem.id!r} does not fit: {reason}. Make room for it, or set data.too_long=drop.',
    )
    dropped[reason] += 1
  causes = '; '.join(f'{count} because: {reason}' for reason, count in dropped.most_common())
  require(bool(kept), f'none of the {len(problems)} {what} fits: {causes}. Make room for them.')
  fitting = take(problems, np.array(kept)) if dropped else problems
  return Selection(fitting, dict(dropped))


def fingerprints(problems: Sequence[Problem]) -> list[bytes]:
  """16 bytes for every problem, equal where the texts are; reads every problem once.

  Raises:
    ConfigError: two problems have one id, or a problem cannot be read.
  """
  marks, ids = [], set()
  for problem in problems:
    if problem.id in ids:
      raise ConfigError(
        f'two problems have the id {problem.id!r}; give each its own, or number them: data.fields.id=none.'
      )
    ids.add(problem.id)
    marks.append(hashlib.blake2b(problem.problem.encode(), digest_size=16).digest())
  return marks


def hold_out(
  marks: Sequence[bytes], count: int, seed: Sequence[int], setting: str
) -> tuple[np.ndarray, np.ndarray]:
  """Positions of `count` distinct texts, and of the rest, which shares no text with them.

  Of a text that stands several times one copy is held out, and the others are left out altogether.

  Args:
    marks: `fingerprints` of the problems.
    count: how many.
    seed: of the draw.
    setting: what asks for them, for messages.

  Raises:
    ConfigError: nothing would be left.
  """
  first = {mark: position for position, mark in reversed(list(enumerate(marks)))}
  distinct = sorted(first.values())
  require(
    count < len(distinct),
    f'{setting} is {count}, to be held out of {len(distinct)} different problems; hold out fewer.',
  )
  held = np.sort(np.array(distinct)[np.random.default_rng(seed).permutation(len(distinct))[:count]])
  texts = {marks[position] for position in held}
  rest = np.array([position for position, mark in enumerate(marks) if mark not in texts])
  return held, rest


def sample(size: int, count: int | None, seed: Sequence[int]) -> np.ndarray:
  """At most `count` of `size` positions, in their order; all of them for None."""
  if count is None or count >= size:
    return np.arange(size)
  return np.sort(np.random.default_rng(seed).permutation(size)[:count])
