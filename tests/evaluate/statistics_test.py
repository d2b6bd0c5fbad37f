"""Intervals and pass@k: against enumeration, SciPy, quadratic equations and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from opsd_jax.evaluate.statistics import Estimate, mean_accuracy, pass_at_k, wilson

Z = 1.959963984540054


def interval(estimate):
  return estimate.low, estimate.high


def wilson_roots(share, size):
  """Both shares at which `share` is exactly Z standard errors away."""
  s = Z * Z / size
  return np.sort(np.roots([1 + s, -(2 * share + s), share * share]).real)


def with_counts(counts, samples):
  """bool [X, n] with that many right answers of each problem."""
  return np.array([[i < count for i in range(samples)] for count in counts])


# --- pass@k.


@settings(max_examples=40)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(1, 5))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(correct, k):
  shares = [np.mean([any(chosen) for chosen in itertools.combinations(row, k)]) for row in correct]
  assert pass_at_k(np.array(correct), k) == pytest.approx(np.mean(shares), abs=1e-12)


def test_pass_at_1_is_the_mean_and_at_n_any():
  correct = with_counts([0, 1, 4], 4)
  assert pass_at_k(correct, 1) == pytest.approx(5 / 12)
  assert pass_at_k(correct, 4) == pytest.approx(2 / 3)


def test_pass_at_k_of_many_samples():
  # 1 - C(990, 100) / C(1000, 100), by the product of 100 ratios.
  missed = np.prod([(990 - i) / (1000 - i) for i in range(100)])
  assert pass_at_k(with_counts([10], 1000), 100) == pytest.approx(1 - missed, rel=1e-9)


@pytest.mark.parametrize('k', [0, -1, 5])
def test_pass_at_k_needs_k_samples(k):
  with pytest.raises(ValueError, match=f'pass@{k} needs {k} samples a problem, there are 4'):
    pass_at_k(with_counts([1], 4), k)


# --- Accuracy.


@pytest.mark.parametrize(('right', 'total'), [(0, 7), (1, 7), (30, 99), (98, 99), (40, 40), (1, 1)])
def test_one_sample_a_problem_is_wilsons_interval(right, total):
  found = mean_accuracy(with_counts([1] * right + [0] * (total - right), 1))
  wanted = stats.binomtest(right, total).proportion_ci(method='wilson')
  assert found.value == pytest.approx(right / total)
  assert interval(found) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@settings(max_examples=25)
@given(st.floats(0, 1), st.floats(1, 1e4))
def test_wilson_solves_its_equation(share, size):
  assert wilson(share, size) == pytest.approx(wilson_roots(share, size), abs=1e-7)


@pytest.mark.parametrize('counts', [[0, 4, 1, 3, 4, 2], [1, 0, 0, 0, 0], [4, 4, 4, 3]])
def test_several_samples_count_as_their_effective_number(counts):
  samples, problems = 4, len(counts)
  means = [c / samples for c in counts]
  value = sum(means) / problems
  variance = sum((m - value) ** 2 for m in means) / (problems - 1)
  effective = value * (1 - value) / (variance / problems)
  effective = min(max(effective, problems), problems * samples)
  found = mean_accuracy(with_counts(counts, samples))
  assert found.value == pytest.approx(value)
  assert interval(found) == pytest.approx(wilson_roots(value, effective), abs=1e-9)


def test_samples_that_all_agree_are_worth_one():
  counts = [8] * 12 + [0] * 18
  wanted = stats.binomtest(12, 30).proportion_ci(method='wilson')
  found = mean_accuracy(with_counts(counts, 8))
  assert interval(found) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_no_more_is_claimed_than_independent_samples_tell():
  found = mean_accuracy(with_counts([2] * 20 + [1, 3], 4))  # More even than chance would be.
  wanted = stats.binomtest(44, 88).proportion_ci(method='wilson')
  assert interval(found) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize('samples', [1, 8])
@pytest.mark.parametrize('right', [True, False])
def test_all_right_or_all_wrong_is_not_certainty(samples, right):
  found = mean_accuracy(np.full((20, samples), right))
  assert found.value == float(right)
  assert found.low == pytest.approx(20 / (20 + Z * Z) if right else 0.0, abs=1e-12)
  assert found.high == pytest.approx(1.0 if right else Z * Z / (20 + Z * Z), abs=1e-12)


def test_one_problem_says_little():
  found = mean_accuracy(with_counts([3], 4))
  assert found.value == 0.75 and interval(found) == pytest.approx(wilson_roots(0.75, 1))


@pytest.mark.parametrize('samples', [3, 10])
def test_problems_of_equal_means_are_treated_alike_whatever_the_rounding(samples):
  widths = [
    np.ptp(interval(mean_accuracy(with_counts([1] * problems, samples)))) for problems in range(5, 40)
  ]
  assert widths == sorted(widths, reverse=True)  # More problems, a narrower interval.


def coverage(alpha, beta, problems=60, samples=8, repeats=1200):
  """How often the interval, and Wilson's of independent samples, hold the true mean."""
  rng, truth = np.random.default_rng(0), alpha / (alpha + beta)
  hits = np.zeros(2)
  for _ in range(repeats):
    rate = rng.beta(alpha, beta, size=(problems, 1))
    correct = rng.random((problems, samples)) < rate
    naive = Estimate(0.0, *wilson(correct.mean(), correct.size))
    hits += [e.low <= truth <= e.high for e in (mean_accuracy(correct), naive)]
  return hits / repeats


@pytest.mark.parametrize(('alpha', 'beta'), [(2.0, 2.0), (0.3, 0.3), (0.5, 2.0), (200.0, 100.0)])
def test_the_interval_holds_the_truth_95_times_in_100(alpha, beta):
  # Standard error of a coverage: 0.6 %.
  found, naive = coverage(alpha, beta)
  assert 0.93 <= found <= 0.97
  if alpha + beta < 100:  # Correlated samples: taking them for independent would not do.
    assert naive < 0.9
