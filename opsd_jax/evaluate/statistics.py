"""Averages over samples and problems, with intervals that say what they are of.

Axis letters: X problems, n samples of each.
"""

import dataclasses
import math
import statistics

import numpy as np


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
