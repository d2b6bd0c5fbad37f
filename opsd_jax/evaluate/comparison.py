"""Two evaluations of the same problems against each other: who gained, who lost, and whether it is luck.

Axis letters: X problems, n and m samples of each in the first and the second evaluation.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from opsd_jax.config import require
from opsd_jax.evaluate.grid import Grid
from opsd_jax.evaluate.scores import powers
from opsd_jax.evaluate.statistics import Estimate, bootstrap, mean_accuracy, pass_at_k


@dataclasses.dataclass(frozen=True)
class Flips:
  """Problems that changed from the first evaluation to the second: bool [X] each.

  Attributes:
    gained: its mean accuracy rose.
    lost: its mean accuracy fell.
    gained_majority: at most half of its samples were right, now more than half are.
    lost_majority: more than half of its samples were right, now at most half are.
  """

  gained: np.ndarray
  lost: np.ndarray
  gained_majority: np.ndarray
  lost_majority: np.ndarray


@dataclasses.dataclass(frozen=True)
class Paired:
  """The second evaluation less the first.

  Attributes:
    difference: of the mean accuracies, with the paired 95 % bootstrap interval over problems.
    p_value: of `sign_flip_p`, two-sided.
  """

  difference: Estimate
  p_value: float


def flips(first: ArrayLike, second: ArrayLike) -> Flips:
  """Which problems changed between `first` bool [X, n] and `second` bool [X, m]."""
  change = _changes(first, second)
  before, after = (_mostly_right(correct) for correct in (first, second))
  return Flips(change > 0, change < 0, ~before & after, before & ~after)


def _mostly_right(correct: ArrayLike) -> np.ndarray:
  correct = np.asarray(correct, bool)
  return 2 * correct.sum(axis=1) > correct.shape[1]


def paired(first: ArrayLike, second: ArrayLike, repeats: int = 10_000, seed: int = 0) -> Paired:
  """Compares `first` bool [X, n] with `second` bool [X, m], problem by problem."""
  changes = _changes(first, second)
  differences = np.mean(second, axis=1) - np.mean(first, axis=1)
  return Paired(bootstrap(differences, repeats, seed), sign_flip_p(changes))


def _changes(first: ArrayLike, second: ArrayLike) -> np.ndarray:
  """int64 [X], the change of each problem's mean accuracy in units of 1 / (n · m): whole, so exact."""
  first, second = (np.asarray(x, bool) for x in (first, second))
  if len(first) != len(second):
    raise ValueError(f'{len(first)} problems cannot be compared with {len(second)} one by one.')
  n, m = first.shape[1], second.shape[1]
  return second.sum(axis=1).astype(np.int64) * n - first.sum(axis=1).astype(np.int64) * m


def sign_flip_p(changes: ArrayLike) -> float:
  """Exact two-sided p-value of whole `changes` int [X] whose signs would be coin tosses.

  If the two models were alike, exchanging their samples of any one problem would be as likely as not. The
  p-value is the share of the 2^X ways to do so whose sum is at least as far from 0 as the one seen. It
  is counted and not sampled: the distribution of the sum is built up problem by problem (Pagano and
  Tritchler 1983). With one sample a problem it is McNemar's exact test. Below 1e-300 it may come out as 0.
  """
  sizes = np.abs(np.asarray(changes, np.int64))
  sizes = sizes[sizes > 0]
  if not len(sizes):
    return 1.0
  sizes = sizes // math.gcd(*map(int, sizes))
  total = int(sizes.sum())
  share = np.zeros(total + 1)  # of the ways so far whose positive changes sum to the index
  share[0], reached = 1.0, 0
  for size in map(int, sizes):
    longer = share[: reached + size + 1] / 2
    longer[size:] += share[: reached + 1] / 2
    reached += size
    share[: reached + 1] = longer
  seen = abs(int(np.sum(changes))) // math.gcd(*map(int, np.abs(changes)))
  sums = 2 * np.arange(total + 1) - total
  return float(min(1.0, share[np.abs(sums) >= seen].sum()))


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One benchmark in two evaluations, A and B.

  Attributes:
    problems: how many.
    samples: of each problem, in A and in B.
    rules: that the verdicts are of.
    first: avg@n of A, with Wilson's interval.
    second: avg@m of B.
    difference: B less A, with the paired 95 % bootstrap interval over problems.
    p_value: exact, of `sign_flip_p`.
    gained: ids of the problems whose mean accuracy rose from A to B.
    lost: of those whose mean accuracy fell.
    gained_majority: of those whose samples are mostly right in B and were not in A.
    lost_majority: the other way round.
    pass_at: k -> pass@k of A and of B, for the k that both have samples for.
    truncated: share of samples that the token budget cut off, in A and in B.
    mean_length: sampled tokens, in A and in B.
  """

  problems: int
  samples: tuple[int, int]
  rules: str
  first: Estimate
  second: Estimate
  difference: Estimate
  p_value: float
  gained: tuple[str, ...]
  lost: tuple[str, ...]
  gained_majority: tuple[str, ...]
  lost_majority: tuple[str, ...]
  pass_at: dict[int, tuple[float, float]]
  truncated: tuple[float, float]
  mean_length: tuple[float, float]


def compare(first: Grid, second: Grid, rules: str, *, seed: int = 0) -> Comparison:
  """Compares two evaluations of the same problems, in the same order.

  Raises:
    ConfigError: the problems differ, or one was not marked by these rules.
  """
  require(first.problems == second.problems, 'the two evaluations are not of the same problems.')
  a, b = first.correct(rules), second.correct(rules)
  tested, changed = paired(a, b, seed=seed), flips(a, b)
  ids = {
    field.name: tuple(id for id, true in zip(first.problems, getattr(changed, field.name)) if true)
    for field in dataclasses.fields(changed)
  }
  return Comparison(
    problems=len(first.problems),
    samples=(first.samples, second.samples),
    rules=rules,
    first=mean_accuracy(a),
    second=mean_accuracy(b),
    difference=tested.difference,
    p_value=tested.p_value,
    pass_at={k: (pass_at_k(a, k), pass_at_k(b, k)) for k in powers(min(first.samples, second.samples))},
    truncated=(float(1 - first.stopped.mean()), float(1 - second.stopped.mean())),
    mean_length=(float(first.length.mean()), float(second.length.mean())),
    **ids,
  )
