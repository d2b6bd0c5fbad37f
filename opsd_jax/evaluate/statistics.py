"""Averages over samples and problems, with intervals that say what they are of.

Axis letters: X problems, n samples of each, R resamples.
"""

import dataclasses
import math
import statistics

import numpy as np

_ROWS = 1000


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A share in 0..1 and its 95 % interval."""

  value: float
  low: float
  high: float


def mean_accuracy(correct: np.ndarray) -> Estimate:
  """avg@n of `correct` bool [X, n], with Wilson's 95 % interval at the effective sample size.

  Samples of one problem are not independent. The effective size is p(1 - p) / SE², with the
  standard error SE taken over the problems' own means; it lies between X (samples of a problem all
  agree) and X·n (independent). With n = 1 this is Wilson's interval itself.
  """
  correct = np.asarray(correct, float)
  problems, samples = correct.shape
  means = correct.mean(axis=1)
  value = float(means.mean())
  error = float(means.std(ddof=1)) / math.sqrt(problems) if problems > 1 else 0.0
  effective = value * (1 - value) / error**2 if error > 1e-9 else problems
  return Estimate(value, *wilson(value, min(max(effective, problems), problems * samples)))


def wilson(share: float, size: float) -> tuple[float, float]:
  """Wilson's 95 % score interval of a `share` seen in `size` trials, which need not be whole."""
  z = statistics.NormalDist().inv_cdf(0.975)
  centre = (share + z * z / (2 * size)) / (1 + z * z / size)
  width = z * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size)) / (1 + z * z / size)
  return max(0.0, centre - width), min(1.0, centre + width)


def gap_recovery(before: float, after: float, teacher: float) -> float | None:
  """Share of the way from `before` to the `teacher`'s accuracy that `after` has come.

  (after - before) / (teacher - before) ("Rethinking On-Policy Distillation", section 3.2); None where the
  teacher is no better than the student was before.
  """
  return (after - before) / (teacher - before) if teacher > before else None


def pass_at_k(correct: np.ndarray, k: int) -> float:
  """Unbiased probability that one of k samples is right: mean of 1 - C(n-c, k) / C(n, k).

  Args:
    correct: bool [X, n].
    k: 1..n.

  Raises:
    ValueError: k is not within 1..n.
  """
  correct = np.asarray(correct, bool)
  samples = correct.shape[1]
  if not 1 <= k <= samples:
    raise ValueError(f'pass@{k} needs {k} samples a problem, there are {samples}.')
  misses = samples - correct.sum(axis=1)
  return float(np.mean([1 - math.comb(int(m), k) / math.comb(samples, k) for m in misses]))


def resampled(values: np.ndarray, repeats: int = 10_000, seed: int = 0) -> np.ndarray:
  """Means of `values` float [X] over problems drawn with replacement, [R]; equal seeds draw equally."""
  values = np.asarray(values, float)
  rng = np.random.default_rng(seed)
  parts = []
  for start in range(0, repeats, _ROWS):  # in parts, which bounds the memory
    rows = min(_ROWS, repeats - start)
    parts.append(values[rng.integers(len(values), size=(rows, len(values)))].mean(axis=1))
  return np.concatenate(parts)


def bootstrap(values: np.ndarray, repeats: int = 10_000, seed: int = 0) -> Estimate:
  """The mean of `values` float [X], with the 95 % percentile interval of the bootstrap over problems.

  For accuracies, give the problems' own means. It says how the number would move with other problems of
  the kind; where all problems agree it has no width, unlike `mean_accuracy`'s.
  """
  low, high = np.quantile(resampled(values, repeats, seed), [0.025, 0.975])
  return Estimate(float(np.mean(values)), float(low), float(high))


def majority(labels: np.ndarray, correct: np.ndarray) -> float:
  """maj@n: the probability that the most common answer of a problem is right.

  Where several answers are the most common, one of them is drawn at random: the value is the expectation
  over that draw, and over which of an answer's samples is graded, where the grader does not treat them
  alike. A problem without any answer counts as wrong.

  Args:
    labels: int [X, n], equal within a problem for samples that give the same answer, -1 for those without.
    correct: bool [X, n].
  """
  pairs = zip(np.asarray(labels), np.asarray(correct, float), strict=True)
  return float(np.mean([_majority_of_one(row, right) for row, right in pairs]))


def _majority_of_one(labels: np.ndarray, correct: np.ndarray) -> float:
  answers, counts = np.unique(labels[labels >= 0], return_counts=True)
  if not len(answers):
    return 0.0
  return float(np.mean([correct[labels == a].mean() for a in answers[counts == counts.max()]]))
