"""Two evaluations against each other: exact tests against enumeration and SciPy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from opsd_jax.config import ConfigError
from opsd_jax.evaluate.comparison import compare, flips, paired, sign_flip_p
from opsd_jax.evaluate.grid import Grid
from opsd_jax.evaluate.statistics import mean_accuracy
from opsd_jax.records import Verdict


def counted(counts, samples):
  """bool [X, n] with that many right answers of each problem."""
  return np.array([[i < count for i in range(samples)] for count in counts])


def enumerated(changes):
  """The share of all signs whose sum is as far from 0 as that of `changes`."""
  seen = abs(sum(changes))
  sums = [
    sum(s * c for s, c in zip(signs, changes)) for signs in itertools.product((1, -1), repeat=len(changes))
  ]
  return np.mean([abs(s) >= seen for s in sums])


@given(st.lists(st.integers(-12, 12), min_size=1, max_size=10))
def test_the_p_value_counts_all_signs(changes):
  assert sign_flip_p(changes) == pytest.approx(enumerated(changes), abs=1e-12)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 50), st.integers(1, 9))
def test_with_one_sample_it_is_mcnemars_exact_test(gained, lost, same, size):
  found = sign_flip_p([size] * gained + [-size] * lost + [0] * same)
  wanted = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
  assert found == pytest.approx(wanted, rel=1e-9)


def test_the_p_value_agrees_with_scipys_permutation_test():
  rng = np.random.default_rng(0)
  first, second = rng.binomial(8, 0.4, 60), rng.binomial(8, 0.45, 60)

  def mean_difference(x, y, axis=-1):
    return np.mean(y - x, axis=axis)

  wanted = stats.permutation_test(
    (first, second),
    mean_difference,
    permutation_type='samples',
    n_resamples=20_000,
    rng=np.random.default_rng(1),
  ).pvalue
  found = sign_flip_p(second - first)
  assert 0.001 < found < 0.5
  assert found == pytest.approx(wanted, abs=5 * np.sqrt(found / 20_000))


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=60), st.integers(1, 7))
def test_the_p_value_depends_on_no_order_sign_or_unit(changes, unit):
  found = sign_flip_p(changes)
  assert 0 < found <= 1
  for other in (changes[::-1], [-c for c in changes], [unit * c for c in changes], [*changes, 0, 0]):
    assert sign_flip_p(other) == pytest.approx(found, rel=1e-9)


def test_many_problems_of_uneven_samples_are_counted_as_well():
  rng = np.random.default_rng(0)
  first, second = rng.random((1319, 12)) < 0.5, rng.random((1319, 8)) < 0.5
  found = paired(first, second, repeats=500)
  differences = second.mean(axis=1) - first.mean(axis=1)
  normal = 2 * stats.norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum()))
  assert found.p_value == pytest.approx(normal, abs=0.01)


@pytest.mark.parametrize('repeats', [400])
def test_alike_models_are_seldom_told_apart(repeats):
  """Under the null hypothesis at most 5 % of the p-values are below 0.05."""
  rng = np.random.default_rng(1)
  rate = rng.beta(0.5, 0.5, (30, 1))
  low = [
    sign_flip_p((rng.random((30, 4)) < rate).sum(axis=1) - (rng.random((30, 4)) < rate).sum(axis=1)) < 0.05
    for _ in range(repeats)
  ]
  assert 0.01 < np.mean(low) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / repeats)


def test_the_interval_is_paired():
  """A gain on every problem is certain, however much the problems differ."""
  first, second = counted([0, 1, 2, 3, 4, 5], 8), counted([2, 3, 4, 5, 6, 7], 8)
  found = paired(first, second)
  assert (found.difference.value, found.difference.low, found.difference.high) == (0.25, 0.25, 0.25)
  assert found.p_value == 2 / 2**6


@given(st.data(), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_flips_are_what_changed(data, problems, n, m):
  first, second = (
    [[data.draw(st.booleans()) for _ in range(size)] for _ in range(problems)] for size in (n, m)
  )
  found = flips(first, second)
  for i, (a, b) in enumerate(zip(first, second)):
    assert found.gained[i] == (sum(b) * n > sum(a) * m)
    assert found.lost[i] == (sum(b) * n < sum(a) * m)
    before, after = sum(a) > n / 2, sum(b) > m / 2
    assert found.gained_majority[i] == (after and not before)
    assert found.lost_majority[i] == (before and not after)
  back = flips(second, first)
  assert (back.gained == found.lost).all() and (back.lost_majority == found.gained_majority).all()


def test_other_numbers_of_problems_are_no_pairs():
  with pytest.raises(ValueError, match='3 problems cannot be compared with 2'):
    paired(counted([1, 1, 1], 2), counted([1, 1], 2))


def of(correct, problems, stopped=True):
  """A grid with verdicts like `correct` bool [X, n]."""
  names = {True: Verdict.CORRECT, False: Verdict.WRONG}
  shape = correct.shape
  return Grid(
    problems=tuple(problems),
    verdicts={'strict': tuple(tuple(names[bool(c)] for c in row) for row in correct)},
    answers=tuple((None,) * shape[1] for _ in range(shape[0])),
    stopped=np.full(shape, stopped),
    length=np.full(shape, 10 if stopped else 20),
    prompt_tokens=np.full(shape[0], 5),
  )


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=6))
def test_a_comparison_names_the_problems_that_changed(rows):
  a, b = counted([r[0] for r in rows], 4), counted([r[1] for r in rows], 3)
  ids = [f'p{i}' for i in range(len(rows))]
  found = compare(of(a, ids), of(b, ids, stopped=False), 'strict')
  assert found.first == mean_accuracy(a) and found.second == mean_accuracy(b)
  assert found.difference.value == pytest.approx(b.mean() - a.mean())
  assert found.gained == tuple(i for i, (x, y) in zip(ids, rows) if y / 3 > x / 4)
  assert found.lost == tuple(i for i, (x, y) in zip(ids, rows) if y / 3 < x / 4)
  assert found.gained_majority == tuple(i for i, (x, y) in zip(ids, rows) if y >= 2 and x <= 2)
  assert list(found.pass_at) == [1, 2, 3] and found.samples == (4, 3)
  assert found.pass_at[1] == pytest.approx((a.mean(), b.mean()))
  assert found.truncated == (0.0, 1.0) and found.mean_length == (10.0, 20.0)


def test_other_problems_are_refused():
  correct = counted([1, 2], 2)
  with pytest.raises(ConfigError, match='not of the same problems'):
    compare(of(correct, 'ab'), of(correct, 'ba'), 'strict')
