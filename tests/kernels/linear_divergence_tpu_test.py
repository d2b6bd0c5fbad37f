"""The TPU kernels on a CPU: simulated memory full of NaN, races detected, float64 for comparison.

The simulation knows neither tiling nor the size of VMEM: `tpu_compile_test.py` is for that. Arrays
that a block sticks out of are padded with NaN here, as they may be on a device.
"""

import contextlib
import dataclasses
import io
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from kernels.linear_divergence import (
  api,
  reference,
  tpu,
  tpu_backward,
  tpu_bins,
  tpu_blocks,
  tpu_clip,
  tpu_columns,
  tpu_forward,
  tpu_rank,
)
from kernels.linear_divergence import spec as spec_module
from kernels.linear_divergence.api import Divergence, DivergenceSpec, linear_divergence

QWEN3_VOCAB = 151_936
ORIGINAL_BLOCKS = dict(ROW_MAJOR=tpu_blocks.ROW_MAJOR, VOCAB_MAJOR=tpu_blocks.VOCAB_MAJOR)
ORIGINAL_TILE = tpu_backward.VOCAB_TILE


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Blocks of 16 rows by 128 entries, so that small arrays have several."""
  with blocks_of(16, 128):
    yield


@contextlib.contextmanager
def blocks_of(rows, vocab):
  with pytest.MonkeyPatch.context() as patch:
    # Two blocks in a step of the backward pass's outer loop, of which small arrays have several.
    patch.setattr(tpu_backward, 'VOCAB_TILE', 2 * vocab)
    # Bins are filled half a block at a time.
    patch.setattr(tpu_bins, '_ROWS', rows // 2)
    patch.setattr(tpu_blocks, 'ROW_MAJOR', ((rows, vocab),))
    patch.setattr(tpu_blocks, 'VOCAB_MAJOR', ((rows, vocab),))
    yield


@contextlib.contextmanager
def simulated(races=True):
  """Runs TPU kernels on the CPU; what the simulator prints of races is an error."""
  # Two cores take turns at the first grid axis: with one there is nobody to race with.
  parameters = pltpu.InterpretParams(
    detect_races=races, uninitialized_memory='nan', num_cores_or_threads=2 if races else 1
  )
  printed = io.StringIO()
  with pltpu.force_tpu_interpret_mode(parameters), contextlib.redirect_stdout(printed):
    yield
  assert 'RACE' not in printed.getvalue()


def make_inputs(seed, batch, time, vocab, width=6, teacher_width=5, scale=1.0, valid=None):
  """Hidden states, heads and targets in NumPy, float32."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return (
    normal(batch, time, width),
    scale * normal(vocab, width),
    normal(batch, time, teacher_width),
    scale * normal(vocab, teacher_width),
    rng.integers(0, valid or vocab, (batch, time)).astype(np.int32),
  )


def run(arguments, spec, weights=None, races=True, gradients=(0, 1, 2, 3), **keywords):
  """Results, and the gradients of their weighted loss in float arguments, by default in all four."""

  def loss(*floats):
    if floats[3] is None or keywords:
      result = linear_divergence(*floats, arguments[4], spec, implementation='tpu', **keywords)
    else:
      result = tpu.linear_divergence(*floats, arguments[4], spec)
    return (result.loss if weights is None else result.loss * weights).sum(), result

  step = jax.jit(jax.value_and_grad(loss, gradients, has_aux=True))
  with simulated(races):
    (_, result), gradients = step(*(jnp.asarray(x) if x is not None else None for x in arguments[:4]))
    return jax.block_until_ready((result, gradients))


# --- The oracle: definitions and closed-form derivatives in float64 NumPy.


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def entries(log_p, log_q, spec):
  """Contributions to the divergence, and their derivatives in log q at fixed other entries."""
  p, q = np.exp(log_p), np.exp(log_q)
  if spec.kind == 'forward_kl':
    return p * (log_p - log_q), -p
  if spec.kind == 'reverse_kl':
    return q * (log_q - log_p), q * (log_q - log_p + 1)
  beta = spec.beta
  if spec.kind == 'both_kl':
    both = [beta * p * (log_p - log_q), (1 - beta) * q * (log_q - log_p)]
    return sum(both), both[1] + (1 - beta) * q - beta * p
  log_m = np.logaddexp(log_p + np.log(beta), log_q + np.log(1 - beta))
  values = beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)
  return values, (1 - beta) * q * (log_q - log_m)


def closed(top, bucket):
  """Log-probabilities of a support [n, k], renormalised or with a bucket for the rest."""
  if not bucket:
    return log_softmax(top)
  total = np.minimum(np.logaddexp.reduce(top, -1, keepdims=True), -1e-7)  # the reference's limit
  return np.append(top, np.log(-np.expm1(total)), -1)


def logits(hidden, head, temperature, softcap, valid):
  """Shaped logits [n, valid] and the derivative of the soft-cap."""
  raw = np.float64(hidden).reshape(-1, hidden.shape[-1]) @ np.float64(head)[:valid].T
  if softcap is None:
    return raw / temperature, np.ones_like(raw)
  return softcap * np.tanh(raw / softcap) / temperature, 1 - np.tanh(raw / softcap) ** 2


def compare(log_p, log_q, ranked, spec):
  """Loss, clipped share, masses and d loss / d log q of rows [n, V], with log q not normalised."""
  full, size = spec.support == 'full', log_q.shape[-1]
  ids = np.argsort(-ranked, -1, kind='stable')[:, : size if full else spec.k]
  top_p, top_q = (np.take_along_axis(x, ids, -1) for x in (log_p, log_q))
  bucket = spec.tail == 'bucket' and not full and spec.k < size
  set_p, set_q = (top_p, top_q) if full else (closed(top_p, bucket), closed(top_q, bucket))
  values, slopes = entries(set_p, set_q, spec)
  low, high = (
    sign * np.inf if bound is None else bound
    for sign, bound in ((-1, spec.entry_clip_min), (1, spec.entry_clip_max))
  )
  changed = (values < low) | (values > high)
  slopes = np.where(changed, 0, slopes)
  if bucket:  # The bucket falls as an entry rises: d log rest = -q / rest.
    free = set_q[:, -1:] > -16.1  # not at the limit
    slopes = slopes[:, :-1] - np.where(free, slopes[:, -1:] * np.exp(top_q - set_q[:, -1:]), 0)
  elif not full:
    slopes = slopes - np.exp(set_q) * slopes.sum(-1, keepdims=True)
  gradient = np.zeros_like(log_q)
  np.put_along_axis(gradient, ids, slopes, -1)
  results = dict(
    loss=np.clip(values, low, high).sum(-1),
    clip_fraction=changed.mean(-1),
    student_mass=np.exp(top_q).sum(-1),
    teacher_mass=np.exp(top_p).sum(-1),
  )
  return results, gradient


def exact(arguments, spec, weights=None):
  """What `run` should return."""
  student, head, teacher, teacher_head, targets = (np.asarray(x) for x in arguments)
  valid, shape = spec.valid_vocab or len(head), targets.shape
  z, slope = logits(student, head, spec.student_temperature, spec.student_softcap, valid)
  u, _ = logits(teacher, teacher_head, spec.teacher_temperature, spec.teacher_softcap, valid)
  log_q, log_p = log_softmax(z), log_softmax(u)
  p, q = np.exp(log_p), np.exp(log_q)
  results, gradient = compare(log_p, log_q, u if spec.support == 'teacher_topk' else z, spec)
  at_target = lambda x: np.take_along_axis(x, targets.reshape(-1, 1), -1)[:, 0]  # noqa: E731
  results |= dict(
    forward_kl=(p * (log_p - log_q)).sum(-1),
    reverse_kl=(q * (log_q - log_p)).sum(-1),
    student_entropy=-(q * log_q).sum(-1),
    teacher_entropy=-(p * log_p).sum(-1),
    student_logp=at_target(log_q),
    teacher_logp=at_target(log_p),
    agreement=(z.argmax(-1) == u.argmax(-1)).astype(float),
  )
  gradient = (gradient - q * gradient.sum(-1, keepdims=True)) * slope / spec.student_temperature
  gradient *= 1 if weights is None else weights.reshape(-1, 1)
  head_gradient = np.zeros(head.shape)
  head_gradient[:valid] = gradient.T @ np.float64(student).reshape(-1, student.shape[-1])
  hidden_gradient = (gradient @ np.float64(head)[:valid]).reshape(student.shape)
  zeros = np.zeros(teacher.shape), np.zeros(teacher_head.shape)
  results = {name: x.reshape(shape) for name, x in results.items()}
  return Divergence(**results), (hidden_gradient, head_gradient, *zeros)


def assert_close(actual, expected, size=1.0, gradient=2e-5):
  """Results to a few float32 digits of logits of `size`; gradients relative to their largest.

  Large divergences times large heads cancel in the gradients, which bounds their digits as well.
  """
  for field in dataclasses.fields(Divergence):
    left, right = (getattr(results, field.name) for results in (actual[0], expected[0]))
    if right is None:  # How a loss was found is not part of its definition.
      continue
    assert left.dtype == jnp.float32 and left.shape == right.shape
    np.testing.assert_allclose(left, right, atol=3e-6 * max(1, size), rtol=1e-5, err_msg=field.name)
  cancelled = 1e-7 * size * np.abs(expected[0].loss).max()
  for left, right in zip(actual[1], expected[1], strict=True):
    bound = gradient * np.abs(right).max() + cancelled
    np.testing.assert_allclose(left.astype(jnp.float32), right, atol=bound, rtol=0)


def test_oracle_is_the_reference():
  spec = DivergenceSpec(kind='jsd', beta=0.3, support='student_topk', k=5, tail='bucket', student_softcap=2.0)
  arguments = make_inputs(0, 2, 3, 20)
  with jax.enable_x64(True):
    student, head, teacher, teacher_head = (jnp.asarray(np.float64(x)) for x in arguments[:4])

    @jax.jit
    def loss(student, head):
      arrays = (student, head, teacher, teacher_head, arguments[4])
      result = reference.linear_divergence(*arrays, spec, chunk_tokens=1)
      return result.loss.sum(), result

    (_, result), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(student, head)
  expected = exact(arguments, spec)
  for left, right in zip(jax.tree.leaves(result), jax.tree.leaves(expected[0]), strict=True):
    np.testing.assert_allclose(left, right, atol=1e-12)
  for left, right in zip(gradients, expected[1], strict=False):
    np.testing.assert_allclose(left, right, atol=1e-12)


def test_bounds_of_these_tests_are_tight():
  # A wrong digit in any result or gradient must fail: the oracle against itself, a little off.
  arguments = make_inputs(0, 1, 3, 20)
  right = exact(arguments, DivergenceSpec())
  single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), right)
  assert_close(single, right)
  for wrong in (
    (dataclasses.replace(single[0], student_entropy=single[0].student_entropy + 1e-4), single[1]),
    (single[0], (single[1][0] * 1.001, *single[1][1:])),
  ):
    with pytest.raises(AssertionError):
      assert_close(wrong, right)


def test_a_race_between_cores_would_be_seen():
  def accumulate(x_ref, sum_ref):
    sum_ref[...] += x_ref[...]

  block = (8, 128)
  with pytest.raises(AssertionError), simulated():
    # Every step of an axis that cores share adds to the same block.
    call = pl.pallas_call(
      accumulate,
      grid=(4,),
      in_specs=[pl.BlockSpec(block, lambda i: (i, 0))],
      out_specs=pl.BlockSpec(block, lambda i: (0, 0)),
      out_shape=jax.ShapeDtypeStruct(block, jnp.float32),
      compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',)),
    )
    jax.block_until_ready(jax.jit(call)(jnp.ones((32, 128))))


@st.composite
def cases(draw):
  """(spec, batch, time, vocab) with the kernels' range of specs and ragged sizes."""
  vocab = draw(st.one_of(st.integers(5, 140), st.integers(129, 700)))
  valid = draw(st.sampled_from([None, vocab, max(5, vocab - 3), max(5, vocab // 2)]))
  support = draw(st.sampled_from(['full', 'full', 'teacher_topk', 'student_topk']))
  full = support == 'full'
  softcaps = st.sampled_from([None, 2.0, 15.0])
  spec = DivergenceSpec(
    kind=draw(st.sampled_from(['forward_kl', 'reverse_kl', 'jsd'])),
    beta=draw(st.sampled_from([0.1, 0.5, 0.9])),
    support=support,
    k=0 if full else min(draw(st.sampled_from([2, 4, 9])), valid or vocab),
    tail=draw(st.sampled_from(['renormalise', 'bucket'])),
    student_temperature=draw(st.sampled_from([1.0, 0.7])),
    teacher_temperature=draw(st.sampled_from([1.0, 1.3])),
    entry_clip_min=draw(st.sampled_from([None, 0.0])),
    entry_clip_max=draw(st.sampled_from([None, 0.05])),
    student_softcap=draw(softcaps),
    teacher_softcap=draw(softcaps),
    valid_vocab=valid,
  )
  return spec, draw(st.integers(1, 3)), draw(st.integers(1, 13)), vocab


# Without shrinking, whose every attempt compiles kernels: a failure would take minutes to show.
@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(cases(), st.integers(0, 99), st.booleans())
def test_equals_the_definition_in_float64(case, seed, frozen):
  check_against_float64(case, seed, frozen)


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize(
  'settings',
  [
    dict(kind='forward_kl', student_softcap=2.0, student_temperature=0.7),
    dict(kind='reverse_kl', valid_vocab=297),
    dict(kind='jsd', beta=0.3, teacher_softcap=15.0),
    dict(kind='forward_kl', entry_clip_min=0.0, entry_clip_max=0.05, valid_vocab=297),
    dict(kind='jsd', entry_clip_min=0.001, student_softcap=2.0, valid_vocab=140),
    dict(kind='both_kl', beta=0.3, entry_clip_max=0.05),
    pytest.param(dict(kind='both_kl', beta=0.3), marks=pytest.mark.slow),
  ],
)
def test_the_full_vocabulary_over_several_tiles(settings, frozen):
  if settings['kind'] not in getattr(spec_module, 'KINDS', ()):
    pytest.skip('not a kind yet')
  check_against_float64((DivergenceSpec(**settings), 2, 9, 300), seed=3, frozen=frozen)


@pytest.mark.parametrize(
  'bound, looked_at_again, gradients',
  [
    (0.5, 0, (0, 1, 2, 3)),
    (0.05, 1, (0, 1, 2, 3)),
    (0.01, 10, (0, 1, 2, 3)),
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
    dict(kind='forward_kl', support='teacher_topk', k=9, entry_clip_max=0.05),
    pytest.param(
      dict(kind='jsd', support='student_topk', k=9, tail='bucket', entry_clip_min=0.0, entry_clip_max=0.05),
      marks=pytest.mark.slow,
    ),
    dict(kind='forward_kl', support='student_topk', k=2, student_softcap=15.0, teacher_temperature=1.3),
    dict(kind='jsd', support='teacher_topk', k=1, tail='bucket'),
  ],
)
def test_a_top_k_over_several_tiles(settings):
  # A seed whose buckets hold a few percent: 1 - mass has fewer digits the less is left.
  check_against_float64((DivergenceSpec(valid_vocab=297, **settings), 2, 9, 300), seed=5)


def check_against_float64(case, seed, frozen=False):
  spec, batch, time, vocab = case
  arguments = make_inputs(seed, batch, time, vocab, valid=spec.valid_vocab)
  weights = np.random.default_rng(seed).normal(size=(batch, time)).astype(np.float32)
  expected = exact(arguments, spec, weights)
  if frozen:
    actual = run(arguments, spec, weights, gradients=(0,))
    assert_close(actual, (expected[0], expected[1][:1]))
    return
  actual = run(arguments, spec, weights)
  assert_close(actual, expected)
  assert not np.any(actual[1][2]) and not np.any(actual[1][3])


@pytest.mark.parametrize(
  'settings',
  [
    dict(kind='reverse_kl', valid_vocab=151_669),
    pytest.param(
      dict(kind='jsd', support='teacher_topk', k=20, tail='bucket', valid_vocab=151_669),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_whole_vocabulary_of_qwen3(settings):
  spec = DivergenceSpec(**settings)
  arguments = make_inputs(1, 1, 3, QWEN3_VOCAB, width=4, teacher_width=3, valid=spec.valid_vocab)
  with blocks_of(16, 16_384):
    actual = run(arguments, spec)
  assert_close(actual, exact(arguments, spec), size=4)


@pytest.mark.parametrize(
  'scale, settings',
  [
    (1e2, dict(kind='reverse_kl')),
    pytest.param(1e3, dict(), marks=pytest.mark.slow),
    (1e3, dict(kind='reverse_kl')),
    pytest.param(1e3, dict(support='student_topk', k=9, tail='bucket'), marks=pytest.mark.slow),
  ],
)
def test_large_logits(scale, settings):
  spec, arguments = DivergenceSpec(**settings), make_inputs(2, 2, 9, 300, scale=scale)
  # The rounding of the logits is in the exponents of the gradients.
  assert_close(run(arguments, spec), exact(arguments, spec), size=4 * scale, gradient=1e-6 * scale)


@pytest.mark.parametrize('support', ['teacher_topk', 'student_topk'])
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
  'name, k', [('all equal', 9), ('all equal in some rows', 9), ('one bin', 1), ('one bin', 3), ('twins', 9)]
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
    (dict(kind='jsd', support='student_topk', student_temperature=0.7), (0, 1)),
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


def test_rows_that_are_no_numbers_show_it():
  student, head, teacher, teacher_head, targets = make_inputs(5, 1, 4, 300)
  teacher[0, 2] = np.nan
  spec = DivergenceSpec(support='teacher_topk', k=9)
  result, _ = run((student, head, teacher, teacher_head, targets), spec, gradients=(0,), statistics=False)
  np.testing.assert_array_equal(np.isnan(result.loss), [[False, False, True, False]])


def test_agreement_of_equal_maxima_is_by_the_lowest_id():
  student, teacher = np.zeros((2, 1, 4, 260), np.float32)
  student[0, :, [7, 200]] = 1  # In two tiles.
  teacher[0, range(4), [7, 200, 3, 130]] = 1
  eye = np.eye(260, dtype=np.float32)
  result, _ = run((student, eye, teacher, eye, np.zeros((1, 4), np.int32)), DivergenceSpec())
  np.testing.assert_array_equal(result.agreement, [[1, 0, 0, 0]])


@pytest.mark.parametrize(
  'shared, settings',
  [
    (False, dict()),
    (True, dict(kind='reverse_kl')),
    pytest.param(True, dict(kind='jsd', support='teacher_topk', k=5, tail='bucket'), marks=pytest.mark.slow),
    (False, dict(kind='reverse_kl', support='student_topk', k=5)),
  ],
)
def test_equal_teacher_and_student_give_zero(shared, settings):
  hidden, head, _, _, targets = make_inputs(4, 2, 9, 300)
  arguments = (hidden, head, hidden, None if shared else head, targets)
  result, gradients = run(arguments, DivergenceSpec(**settings))
  for value in (result.loss, result.forward_kl, result.reverse_kl):
    np.testing.assert_allclose(value, 0, atol=1e-7)
  for gradient in gradients[:2]:
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
  assert np.all(result.agreement == 1)


@pytest.mark.parametrize(
  'junk, settings',
  [
    (np.nan, dict(kind='reverse_kl')),
    (np.inf, dict(support='teacher_topk', k=5, tail='bucket')),
    pytest.param(-3e38, dict(support='student_topk', k=5), marks=pytest.mark.slow),
  ],
)
def test_what_padding_of_the_vocabulary_holds_does_not_matter(junk, settings):
  spec, arguments = DivergenceSpec(valid_vocab=130, **settings), make_inputs(5, 2, 9, 300, valid=130)
  expected = exact(arguments, spec)
  for head in arguments[1::2]:
    head[130:] = junk
  actual = run(arguments, spec)
  assert_close(actual, expected)
  assert not np.any(actual[1][1][130:])


@pytest.mark.parametrize('settings', [dict(), dict(kind='jsd', support='student_topk', k=5, tail='bucket')])
def test_rows_without_weight_add_nothing(settings):
  spec, arguments = DivergenceSpec(**settings), make_inputs(6, 2, 9, 300)
  weights = np.broadcast_to(np.arange(9) < 5, (2, 9)).astype(np.float32)
  expected = exact(arguments, spec, weights)
  for hidden, junk in zip(arguments[:4:2], (1e3, -1e3), strict=True):
    hidden[:, 5:] = junk
  _, gradients = run(arguments, spec, weights)
  for left, right in zip(gradients, expected[1], strict=True):
    np.testing.assert_allclose(left, right, atol=2e-5 * np.abs(right).max())
  assert not np.any(gradients[0][:, 5:])


@pytest.mark.parametrize('head_dtype', [jnp.float32, jnp.bfloat16])
def test_bfloat16_hidden_states(head_dtype):
  spec = DivergenceSpec(support='teacher_topk', k=9, tail='bucket')
  student, head, teacher, teacher_head, targets = make_inputs(7, 2, 20, 300, width=32, scale=0.3)
  narrow = [jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)]
  heads = [jnp.asarray(x, head_dtype) for x in (head, teacher_head)]
  actual = run((narrow[0], heads[0], narrow[1], heads[1], targets), spec)
  # The kernels see rounded numbers; the rounding of the gradients is what may differ.
  rounded = [
    np.asarray(x.astype(jnp.bfloat16), np.float32) for x in (narrow[0], heads[0], narrow[1], heads[1])
  ]
  expected = exact((*rounded, targets), spec)
  assert actual[1][0].dtype == jnp.bfloat16 and actual[1][1].dtype == head_dtype
  assert_close(actual, expected, gradient=0.01)
  if head_dtype == jnp.float32:  # Summed in float32, and not rounded on the way out.
    assert np.mean(actual[1][1].astype(jnp.bfloat16).astype(jnp.float32) != actual[1][1]) > 0.5


@pytest.mark.parametrize('settings', [dict(), dict(kind='reverse_kl'), dict(kind='jsd')])
def test_narrow_gradients_of_models_that_hardly_differ(settings):
  # Sums of q·w and of p·w alone, each of narrow weights, would be off by as much as they differ.
  spec = DivergenceSpec(**settings)
  student, head, _, _, targets = make_inputs(11, 2, 9, 300, width=32, scale=0.3)
  teacher = student + 0.02 * np.random.default_rng(0).normal(size=student.shape)
  student, head, teacher = (jnp.asarray(x, jnp.bfloat16) for x in (student, head, teacher))
  actual = run((student, head, teacher, head, targets), spec, gradients=(0,))
  rounded = [np.asarray(x, np.float32) for x in (student, head, teacher, head)]
  expected = exact((*rounded, targets), spec)
  assert np.abs(expected[1][0]).max() < 0.05
  assert_close(actual, (expected[0], expected[1][:1]), gradient=0.01)


def test_missing_teacher_head_is_the_students_without_gradient():
  student, head, _, _, targets = make_inputs(8, 2, 9, 300)
  teacher, spec = np.ascontiguousarray(student[:, ::-1]), DivergenceSpec(kind='reverse_kl')
  expected = exact((student, head, teacher, head, targets), spec)
  _, gradients = run((student, head, teacher, None, targets), spec)
  for left, right in zip(gradients[:2], expected[1], strict=False):
    np.testing.assert_allclose(left, right, atol=2e-5 * np.abs(right).max())


# --- Devices.


@pytest.mark.parametrize(
  'sizes, batch_axes, batch, time, settings',
  [
    ((2, 2, 2), ('data', 'fsdp'), 4, 6, dict(kind='reverse_kl', valid_vocab=250)),
    ((2, 1, 4), ('data', 'fsdp'), 3, 8, dict(support='teacher_topk', k=5, tail='bucket')),  # B stays whole
    ((1, 8, 1), ('fsdp',), 8, 3, dict()),
    ((2, 2, 2), (), 3, 5, dict(kind='reverse_kl', support='student_topk', k=5)),  # nothing divides
  ],
)
def test_sharded_equals_unsharded(sizes, batch_axes, batch, time, settings):
  arguments, spec = make_inputs(9, batch, time, 260, valid=250), DivergenceSpec(**settings)
  weights = np.random.default_rng(0).normal(size=(batch, time)).astype(np.float32)
  expected = exact(arguments, spec, weights)
  mesh = jax.make_mesh(sizes, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    actual = run(arguments, spec, weights, races=False, batch_axes=batch_axes)
  assert_close(actual, expected)


def test_unknown_batch_axes_are_refused():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh), pytest.raises(ValueError, match=r'batch_axes has fsdp.*its axes are data'):
    run(make_inputs(0, 1, 2, 7), DivergenceSpec(), batch_axes=('data', 'fsdp'))


def lowered(spec, batch, time, width, grad=(0, 1)):
  """StableHLO of value and gradients at the sizes of Qwen3, for a TPU, from shapes alone."""
  vocab, bfloat16 = QWEN3_VOCAB, jnp.bfloat16
  hidden = jax.ShapeDtypeStruct((batch, time, width), bfloat16)
  head = jax.ShapeDtypeStruct((vocab, width), bfloat16)
  targets = jax.ShapeDtypeStruct((batch, time), jnp.int32)

  def loss(*arrays):
    result = linear_divergence(*arrays, spec, implementation='tpu')
    return result.loss.sum(), result

  call = jax.value_and_grad(loss, grad, has_aux=True) if grad else loss
  exported = jax.export.export(jax.jit(call), platforms=['tpu'])(hidden, head, hidden, head, targets)
  return exported.mlir_module()


@pytest.mark.parametrize(
  'kernels, settings',
  [
    (2, dict()),
    (2, dict(kind='reverse_kl', student_softcap=30.0)),
    (3, dict(kind='jsd', support='teacher_topk', k=64, tail='bucket')),
    (2, dict(kind='reverse_kl', support='student_topk', k=64)),
  ],
)
def test_lowers_for_a_tpu_without_logits(kernels, settings):
  batch, time, width = 4, 513, 2048
  with pytest.MonkeyPatch.context() as patch:
    for name, value in ORIGINAL_BLOCKS.items():
      patch.setattr(tpu_blocks, name, value)
    patch.setattr(tpu_backward, 'VOCAB_TILE', ORIGINAL_TILE)
    text = lowered(DivergenceSpec(valid_vocab=151_669, **settings), batch, time, width)
  assert text.count('@tpu_custom_call') == kernels
  shapes = re.findall(r'tensor<((?:\d+x)+)[a-z]\w*>', text)
  largest = max(math.prod(int(n) for n in shape.split('x') if n) for shape in shapes)
  assert largest == QWEN3_VOCAB * width  # The head and its gradient; logits would be 2052 wide.


@pytest.mark.parametrize('kind, passes', [('forward_kl', [1, 1, 2]), ('jsd', [2, 2, 3])])
def test_unused_gradients_cost_nothing(kind, passes):
  spec = DivergenceSpec(kind=kind)
  count = lambda grad: lowered(spec, 1, 64, 64, grad).count('@tpu_custom_call')  # noqa: E731
  assert [count(grad) for grad in ((), (0,), (0, 1))] == passes
  # A frozen head needs no third pass, and nothing as large as its gradient.
  frozen = lowered(spec, 1, 64, 64, (0,))
  assert 'while' not in frozen and frozen.count(f'tensor<{QWEN3_VOCAB}x64xf32>') == 0


# --- What is refused, and what is chosen.


UNSUPPORTED = [(dict(support='teacher_topk', k=129), ['k = 129', '128'])]


@pytest.mark.parametrize('settings, words', UNSUPPORTED)
def test_unsupported_specs(settings, words):
  spec, arguments = DivergenceSpec(**settings), make_inputs(0, 1, 2, 140)
  with pytest.raises(ValueError) as error:
    linear_divergence(*arguments, spec, implementation='tpu')
  for word in words:
    assert word in str(error.value)
  with pytest.raises(NotImplementedError, match=re.escape(words[0])):
    tpu.linear_divergence(*arguments, spec)


def test_unsupported_arrays():
  hidden = jax.ShapeDtypeStruct((1, 2, 8), jnp.float16)
  assert 'float16' in tpu.unsupported(DivergenceSpec(), hidden)
  with jax.enable_x64(True):
    assert 'float64' in tpu.unsupported(DivergenceSpec(), jnp.zeros((1, 2, 8), jnp.float64))
  head = jax.ShapeDtypeStruct((2**24, 8), jnp.float32)
  assert '16777216' in tpu.unsupported(DivergenceSpec(), head)


def test_choice(monkeypatch):
  arguments, spec = tuple(map(jnp.asarray, make_inputs(0, 1, 2, 140))), DivergenceSpec()
  name, why = api.choose(spec, *arguments[:4])
  assert name == 'chunked' and 'backend is' in why
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert api.choose(spec, *arguments[:4])[0] == 'tpu'
  too_many = DivergenceSpec(support='teacher_topk', k=129)
  name, why = api.choose(too_many, *arguments[:4])
  assert name == 'chunked' and '129' in why
  chosen = []
  monkeypatch.setattr(tpu, 'linear_divergence', lambda *_, **__: chosen.append('tpu'))
  linear_divergence(*arguments, spec)
  assert chosen == ['tpu']
  linear_divergence(*arguments, too_many)
  assert chosen == ['tpu']


@pytest.mark.parametrize('width', [576, 2048, 4096, 8192])
@pytest.mark.parametrize('rows', [1, 100, 4096])
def test_blocks_obey_the_rules_of_the_hardware(width, rows):
  hidden = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16)
  for candidates in ORIGINAL_BLOCKS.values():
    size = 2 * tpu_blocks.bytes_per_row(hidden)
    blocks = tpu_blocks.choose(rows, QWEN3_VOCAB, QWEN3_VOCAB, size, 2 * size, candidates)
    assert blocks.block_rows % 16 == 0 and blocks.block_vocab % 128 == 0
    assert blocks.block_rows < rows + 16
    used = blocks.block_rows * size + blocks.block_vocab * 2 * size + 32 * math.prod(blocks.tile)
    assert used < tpu_blocks.VMEM_LIMIT
