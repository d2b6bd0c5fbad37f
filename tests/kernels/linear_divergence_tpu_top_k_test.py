"""The TPU kernels in simulation, against float64: upper bounds by certificate, and the top-k from bins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_divergence import tpu_bins, tpu_clip, tpu_columns, tpu_forward, tpu_rank
from kernels.linear_divergence.api import DivergenceSpec
from tests.kernels.simulated import (
  assert_close,
  blocks_of,
  check_against_float64,
  exact,
  make_inputs,
  run,
  simulated,
)


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Blocks of 16 rows by 128 entries, so that small arrays have several."""
  with blocks_of(16, 128):
    yield


@pytest.mark.parametrize(
  'bound, looked_at_again, gradients',
  [
    pytest.param(0.5, 0, (0, 1, 2, 3), marks=pytest.mark.slow),
    pytest.param(0.05, 1, (0, 1, 2, 3), marks=pytest.mark.slow),
    pytest.param(0.01, 10, (0, 1, 2, 3), marks=pytest.mark.slow),
    (0.05, 1, (0,)),
    pytest.param(0.5, 0, (0,), marks=pytest.mark.slow),
    pytest.param(0.01, 10, (0,), marks=pytest.mark.slow),
  ],
)
def test_an_upper_clip_on_rows_with_and_without_a_certificate(bound, looked_at_again, gradients):
  # At most as many rows as this in a group of those looked at again, so that there are several.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tpu_clip, 'ROWS', 4)
    settings = dict(student_softcap=2.0, student_temperature=0.7) if len(gradients) == 1 else {}
    spec, arguments = (
      DivergenceSpec(entry_clip_max=bound, valid_vocab=297, **settings),
      make_inputs(3, 2, 9, 300, valid=297),
    )
    actual = run(arguments, spec, gradients=gradients)
  expected = exact(arguments, spec)
  assert_close(actual, (expected[0], expected[1][: len(gradients)]))
  assert settings or actual[0].clip_fallback.sum() == looked_at_again
  assert np.any(actual[0].clip_fraction > 0)


@pytest.mark.slow
def test_rows_of_more_bounded_entries_than_a_gradient_on_the_way_allows_for():
  spec, arguments = DivergenceSpec(entry_clip_max=0.1), make_inputs(3, 2, 9, 256)
  expected = exact(arguments, spec)
  bounded = np.round(expected[0].clip_fraction * 256)
  assert np.any(bounded > 6) and np.any((bounded > 0) & (bounded <= 6))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tpu_clip, 'KEPT', 6)
    actual = run(arguments, spec, gradients=(0,))
  assert_close(actual, (expected[0], expected[1][:1]))
  np.testing.assert_array_equal(actual[0].clip_fallback, bounded > 6)


def test_narrow_gradients_where_nearly_all_probability_is_bounded():
  # What is left are the few others' small weights: (1 - M)·q, where two sums of the head's rows cancel.
  rng = np.random.default_rng(0)
  head = 0.3 * rng.normal(size=(300, 32))
  ids = rng.integers(0, 300, (1, 18))
  student, teacher = (scale * head[ids] + 0.1 * rng.normal(size=(1, 18, 32)) for scale in (3.0, 4.0))
  student, teacher, head = (jnp.asarray(x, jnp.bfloat16) for x in (student, teacher, head))
  spec = DivergenceSpec(entry_clip_max=0.02)
  rounded = [np.asarray(x, np.float32) for x in (student, head, teacher, head)]
  expected = exact((*rounded, ids.astype(np.int32)), spec)
  bounded = expected[0].clip_fraction > 0
  assert bounded.mean() > 0.5 and np.median(np.exp(expected[0].teacher_logp[bounded])) > 0.9
  actual = run((student, head, teacher, head, ids.astype(np.int32)), spec, gradients=(0,))
  assert not np.any(actual[0].clip_fallback)
  np.testing.assert_allclose(actual[0].loss, expected[0].loss, atol=3e-6)
  # Of each row by itself: the large gradients of others set no scale.
  right = expected[1][0][0]
  error = np.abs(np.float32(actual[1][0][0]) - right).max(1) / np.abs(right).max(1)
  np.testing.assert_array_less(error, 0.01)


@pytest.mark.parametrize(
  'settings',
  [
    dict(kind='reverse_kl', support='teacher_topk', k=9, tail='bucket'),
    pytest.param(dict(support='teacher_topk', k=9, entry_clip_max=0.05), marks=pytest.mark.slow),
    pytest.param(
      dict(kind='jsd', support='student_topk', k=9, tail='bucket', entry_clip_min=0.0, entry_clip_max=0.05),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      dict(kind='forward_kl', support='student_topk', k=2, student_softcap=15.0, teacher_temperature=1.3),
      marks=pytest.mark.slow,
    ),
    pytest.param(dict(kind='jsd', support='teacher_topk', k=1, tail='bucket'), marks=pytest.mark.slow),
  ],
)
def test_a_top_k_over_several_tiles(settings):
  # A seed whose buckets hold a few percent: 1 - mass has fewer digits the less is left.
  check_against_float64((DivergenceSpec(valid_vocab=297, **settings), 2, 9, 300), seed=5)


@pytest.mark.parametrize('support', ['teacher_topk', pytest.param('student_topk', marks=pytest.mark.slow)])
def test_ties_go_to_the_lowest_ids(support):
  # Integer logits repeat within and across tiles: a later tile displaces some of several equal minima.
  rng = np.random.default_rng(3)
  student, teacher = rng.integers(-1, 20, (2, 18, 300)).astype(np.float32)
  eye = jnp.eye(300)
  spec = DivergenceSpec(support=support, k=25, valid_vocab=290)
  with simulated():
    top = tpu_forward.statistics(spec, student, eye, teacher, None, jnp.zeros(18, jnp.int32)).top
  ranked, other = (teacher, student) if support == 'teacher_topk' else (student, teacher)
  values, ids = jax.lax.top_k(ranked[:, :290], 25)
  order = np.argsort(top.ids[:, :25], axis=1)
  np.testing.assert_array_equal(np.take_along_axis(top.ids[:, :25], order, 1), np.sort(ids, axis=1))
  ids = np.sort(ids, axis=1)
  for kept, source in ((top.values, ranked), (top.others, other)):
    expected = np.take_along_axis(source, ids, 1)
    np.testing.assert_array_equal(np.take_along_axis(kept[:, :25], order, 1), expected)


@pytest.mark.slow
def test_largest_k():
  arguments, spec = make_inputs(10, 1, 2, 140), DivergenceSpec(support='teacher_topk', k=128, tail='bucket')
  assert_close(run(arguments, spec, races=False), exact(arguments, spec))


def crowded(name, k):
  """Logits [9, 300] of which bins of every 128th id, a few deep, cannot hold the k largest of most rows."""
  rng = np.random.default_rng(5)
  logits = rng.normal(size=(9, 300)).astype(np.float32)
  if name == 'all equal':
    logits[:] = 3.0
  elif name == 'all equal in some rows':
    logits[::2] = -2.0
  elif name == 'one bin':
    logits[:, 7::128] += 100
  else:  # The k-th largest twice; where at id 5, the bin of id 133 has no place for it.
    logits[:, 133] = 100
    descending = np.argsort(-logits, 1)
    for row, twin in enumerate([0, 1, 5, 128, 129, 256, 290, 295, 5]):
      logits[row, twin] = logits[row, descending[row, k - 1]]
  return logits


@pytest.mark.parametrize(
  'name, k',
  [
    pytest.param('all equal', 9, marks=pytest.mark.slow),
    pytest.param('all equal in some rows', 9, marks=pytest.mark.slow),
    pytest.param('one bin', 1, marks=pytest.mark.slow),
    ('one bin', 3),
    pytest.param('twins', 9, marks=pytest.mark.slow),
  ],
)
def test_a_top_k_that_bins_do_not_hold(name, k):
  ranked, other = crowded(name, k), np.random.default_rng(0).normal(size=(9, 300)).astype(np.float32)
  spec = DivergenceSpec(support='student_topk', k=k, valid_vocab=297)
  with simulated(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(tpu_bins, 'depth', lambda k, bins: 1)
    patch.setattr(tpu_rank, 'ROWS', 4)
    eye = jnp.eye(300)
    top = jax.jit(tpu_rank.top_k_alone, static_argnums=0)(spec, ranked, eye, other, eye)
  values, ids = jax.lax.top_k(ranked[:, :297], k)
  order = lambda x, by: np.take_along_axis(np.asarray(x), np.argsort(by, axis=1), 1)  # noqa: E731
  found = top.ids[:, :k]
  np.testing.assert_array_equal(order(found, found), np.sort(ids, axis=1))
  np.testing.assert_array_equal(order(top.values[:, :k], found), order(values, ids))
  np.testing.assert_array_equal(
    order(top.others[:, :k], found), order(np.take_along_axis(other, ids, 1), ids)
  )


def test_bins_lose_few_rows():
  # Rows of k ids in random order of which some bin gets more than it holds: less than a hundredth.
  rng = np.random.default_rng(0)
  for k, bins in ((9, 128), (16, 512), (64, 512), (128, 512)):
    places = rng.integers(0, bins, (4000, k))
    counts = np.stack([np.bincount(row, minlength=bins).max() for row in places])
    size = tpu_bins.depth(k, bins)
    assert np.mean(counts > size) < 0.02 and np.mean(counts > size - 1) > 0.005
  assert tpu_bins.depth(64, 512) == 3 and tpu_bins.depth(1, 128) == 1


@pytest.mark.parametrize(
  'settings, gradients',
  [
    (dict(kind='forward_kl', support='teacher_topk', entry_clip_max=0.05, student_softcap=2.0), (0, 1)),
    pytest.param(
      dict(kind='jsd', support='student_topk', student_temperature=0.7), (0, 1), marks=pytest.mark.slow
    ),
    (dict(kind='reverse_kl', support='teacher_topk', teacher_softcap=15.0), (0,)),
  ],
)
def test_a_renormalised_top_k_without_statistics(settings, gradients):
  spec, arguments = DivergenceSpec(k=9, valid_vocab=297, **settings), make_inputs(5, 2, 9, 300, valid=297)
  weights = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
  expected = exact(arguments, spec, weights)
  with pytest.MonkeyPatch.context() as patch:
    # Several parts of positions, tiles of the head and steps in a tile.
    for name, size in (('_ROWS', 8), ('_TILE', 64), ('_PAIRS', 32)):
      patch.setattr(tpu_columns, name, size)
    actual, found = run(arguments, spec, weights, gradients=gradients, statistics=False)
  assert actual.forward_kl is None and actual.student_mass is None
  for name in ('loss', 'clip_fraction'):
    left, right = getattr(actual, name), getattr(expected[0], name)
    np.testing.assert_allclose(left, right, atol=3e-6, rtol=1e-5)
  for left, right in zip(found, expected[1], strict=False):
    np.testing.assert_allclose(left, right, atol=2e-5 * np.abs(right).max())


@pytest.mark.slow
def test_rows_that_are_no_numbers_show_it():
  student, head, teacher, teacher_head, targets = make_inputs(5, 1, 4, 300)
  teacher[0, 2] = np.nan
  spec = DivergenceSpec(support='teacher_topk', k=9)
  result, _ = run((student, head, teacher, teacher_head, targets), spec, gradients=(0,), statistics=False)
  np.testing.assert_array_equal(np.isnan(result.loss), [[False, False, True, False]])
