"""Intervals, pass@k and maj@n: against enumeration, SciPy, quadratic equations and simulation."""

import collections
import fractions
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from opsd_jax.evaluate.statistics import (
  Estimate,
  bootstrap,
  gap_recovery,
  majority,
  mean_accuracy,
  pass_at_k,
  resampled,
  wilson,
)

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


@pytest.mark.parametrize(('samples', 'k'), [(5000, 1), (5000, 64), (5000, 4999), (20_000, 8)])
def test_pass_at_k_of_very_many_samples(samples, k):
  right = 3
  # 1 - C(n - c, k) / C(n, k) = 1 - C(n - k, c) / C(n, c): a product of c ratios.
  missed = np.prod([(samples - k - i) / (samples - i) for i in range(right)])
  assert pass_at_k(with_counts([right], samples), k) == pytest.approx(1 - missed, rel=1e-9)


# --- The bootstrap over problems.


def resample_distribution(values):
  """The exact distribution of the mean of a resample: mean -> probability."""
  size = len(values)
  found = {}
  for chosen in itertools.product(values, repeat=size):
    mean = round(sum(chosen) / size, 12)
    found[mean] = found.get(mean, 0) + size**-size
  return dict(sorted(found.items()))


@pytest.mark.parametrize('values', [[0.0, 1.0, 1.0], [0.25, 0.5, 1.0, 0.0], [0.1, 0.2, 0.9, 0.9, 0.4]])
def test_resamples_are_drawn_with_replacement_and_evenly(values):
  exact = resample_distribution(values)
  drawn = np.round(resampled(np.array(values), 20_000), 12)
  seen = {mean: np.mean(drawn == mean) for mean in np.unique(drawn)}
  assert set(seen) <= set(exact)
  statistic = sum(20_000 * (seen.get(m, 0) - p) ** 2 / p for m, p in exact.items())
  assert statistic < stats.chi2.ppf(0.9999, len(exact) - 1)


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=5))
def test_the_bootstrap_interval_is_that_of_the_exact_distribution(values):
  exact = resample_distribution(values)
  found = bootstrap(np.array(values), repeats=4000)
  assert found.value == pytest.approx(np.mean(values))
  means, below = list(exact), np.cumsum(list(exact.values()))
  for place, end in ((0.025, found.low), (0.975, found.high)):
    # The quantile of 4000 draws lies between the exact ones 0.01 (4 standard errors) to either side.
    low = means[int(np.searchsorted(below, place - 0.01))]
    high = means[min(int(np.searchsorted(below, place + 0.01)), len(means) - 1)]
    assert low - 1e-9 <= end <= high + 1e-9


def test_the_bootstrap_agrees_with_scipy():
  values = np.random.default_rng(3).beta(0.5, 0.7, 200)
  found = bootstrap(values)
  wanted = stats.bootstrap(
    (values,), np.mean, n_resamples=10_000, method='percentile', rng=np.random.default_rng(4)
  ).confidence_interval
  error = values.std() / np.sqrt(200)
  assert interval(found) == pytest.approx((wanted.low, wanted.high), abs=0.1 * error)


def test_the_bootstrap_is_repeatable_and_its_seed_matters():
  values = np.linspace(0, 1, 37)
  assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)
  assert len(resampled(values, 2500)) == 2500
  assert interval(bootstrap(np.full(9, 0.5))) == (0.5, 0.5)


# --- maj@n.


def drawn_majority(labels, correct):
  """Every way to break a tie and to pick a sample of the answer, counted."""
  counts = collections.Counter(label for label in labels if label >= 0)
  if not counts:
    return fractions.Fraction(0)
  top = [label for label, count in counts.items() if count == max(counts.values())]
  ways = [[right for other, right in zip(labels, correct) if other == label] for label in top]
  return sum(fractions.Fraction(sum(way), len(way)) for way in ways) / len(ways)


_problems = st.integers(1, 6).flatmap(
  lambda n: st.lists(
    st.tuples(
      st.lists(st.integers(-1, 3), min_size=n, max_size=n), st.lists(st.booleans(), min_size=n, max_size=n)
    ),
    min_size=1,
    max_size=4,
  )
)


@given(_problems)
def test_majority_is_the_expectation_over_ways_to_break_ties(rows):
  labels, correct = zip(*rows)
  wanted = sum(drawn_majority(*row) for row in rows) / len(rows)
  assert majority(np.array(labels), np.array(correct)) == pytest.approx(float(wanted), abs=1e-12)


@pytest.mark.parametrize(
  ('labels', 'correct', 'wanted'),
  [
    ([0, 0, 1], [1, 1, 0], 1.0),
    ([0, 1, 1], [1, 0, 0], 0.0),
    ([0, 0, 1, 1], [1, 1, 0, 0], 0.5),
    ([0, 1, 2, 3], [0, 0, 1, 0], 0.25),
    ([-1, -1, 0], [0, 0, 1], 1.0),  # without an answer there is no vote
    ([-1, -1, -1], [0, 0, 0], 0.0),
  ],
)
def test_majority_of_one_problem(labels, correct, wanted):
  assert majority([labels], [np.array(correct, bool)]) == wanted


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_majority_of_two_answers_is_the_vote(correct):
  """Where all wrong samples agree, the most common answer is right where most samples are."""
  correct = np.array(correct)
  assert majority(correct.astype(int), correct) == pytest.approx(np.mean(correct.sum(axis=1) >= 2))


# The gap to a teacher.


@pytest.mark.parametrize(
  ('before', 'after', 'teacher', 'share'),
  [(0.2, 0.5, 0.6, 0.75), (0.2, 0.2, 0.6, 0.0), (0.5, 0.4, 0.6, -1.0), (0.5, 0.7, 0.6, 2.0)],
)
def test_the_share_of_the_gap_to_a_teacher(before, after, teacher, share):
  assert gap_recovery(before, after, teacher) == pytest.approx(share)


@pytest.mark.parametrize('teacher', [0.5, 0.3])
def test_there_is_no_gap_to_a_teacher_that_is_no_better(teacher):
  assert gap_recovery(0.5, 0.4, teacher) is None
