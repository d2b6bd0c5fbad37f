"""The chunked divergence's own promises: what it computes, what it holds, and when it looks twice."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import tiles
from kernels.linear_divergence.api import DivergenceSpec, linear_divergence
from tests.kernels import oracle

OPSD = DivergenceSpec(entry_clip_max=0.05)
PROPERTY = settings(max_examples=8, deadline=None, derandomize=True)


def make(seed, batch=2, time=4, vocab=700, width=6, own=5, scale=1.0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  arrays = (
    normal(batch, time, width),
    scale * normal(vocab, width),
    normal(batch, time, own),
    scale * normal(vocab, own),
  )
  return arrays, jnp.asarray(rng.integers(0, vocab, (batch, time)), jnp.int32), rng.normal(size=(batch, time))


@functools.cache
def step_of(spec, places, settings):
  """A compiled step; examples of one shape share it."""

  def loss(wanted, arrays, targets, factors, weights):
    inside = list(arrays)
    for place, x in zip(places, wanted, strict=True):
      inside[place] = x
    result = linear_divergence(
      *inside, targets, spec, weights=weights, **dict(chunk_tokens=2) | dict(settings)
    )
    return (result.loss * factors).sum(), result

  return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=oracle.QUICK)


def run(arrays, targets, spec, factors, places=(0, 1), weights=None, **settings):
  """Result, and gradients of the losses times factors to the arrays at `places`."""
  step = step_of(spec, places, tuple(sorted(settings.items())))
  factors = jnp.asarray(factors, jnp.float32)
  (_, result), gradients = step([arrays[i] for i in places], arrays, targets, factors, weights)
  return result, gradients


def from_logits(student, teacher, spec, places=(0, 1)):
  """The same for logits [B, T, V]: the head is an identity, cut into tiles of 128."""
  eye = jnp.eye(student.shape[-1])
  targets, weights = jnp.zeros(student.shape[:2], jnp.int32), np.ones(student.shape[:2])
  arrays = (jnp.asarray(student, jnp.float32), eye, jnp.asarray(teacher, jnp.float32), eye)
  result, gradients = run(arrays, targets, spec, weights, places)
  return result, gradients, *oracle.call(arrays, np.asarray(targets), spec, weights)


# --- The upper clip of a forward KL, in one pass where a certificate holds.


def test_a_clip_of_spread_logits_needs_no_second_pass():
  arrays, targets, weights = make(0, scale=4.0)
  result, gradients = run(arrays, targets, OPSD, weights, chunk_tokens=6)
  expected, pulls = oracle.call(arrays, np.asarray(targets), OPSD, weights)
  assert not np.any(result.clip_fallback)
  assert np.all(expected['clip_fraction'] > 0)
  np.testing.assert_allclose(result.loss, expected['loss'], atol=1e-5)
  np.testing.assert_allclose(result.clip_fraction, expected['clip_fraction'], atol=1e-7)
  for actual, pull in zip(gradients, pulls, strict=True):
    np.testing.assert_allclose(actual, pull, atol=2e-5)


@pytest.mark.parametrize('places', [(0,), (0, 1)], ids=['frozen head', 'both'])
@pytest.mark.parametrize('tau, fallback', [(1e-6, 1), (10.0, 0), (0.0, 1), (-0.001, 1)])
def test_a_clip_that_is_tiny_huge_or_negative(tau, fallback, places):
  arrays, targets, weights = make(1)
  spec = DivergenceSpec(entry_clip_max=tau)
  result, gradients = run(arrays, targets, spec, weights, places)
  expected, pulls = oracle.call(arrays, np.asarray(targets), spec, weights)
  assert np.all(result.clip_fallback == fallback)
  np.testing.assert_allclose(result.loss, expected['loss'], atol=2e-5)
  for actual, pull in zip(gradients, pulls, strict=False):
    np.testing.assert_allclose(actual, pull, atol=3e-5)


@PROPERTY
@given(st.floats(0.3, 6), st.floats(0.3, 6), st.sampled_from([0.003, 0.05]), st.integers(0, 99))
def test_a_clip_is_exact_whatever_the_certificate_says(student_scale, teacher_scale, tau, seed):
  rng = np.random.default_rng(seed)
  student, teacher = (s * rng.normal(size=(1, 3, 400)) for s in (student_scale, teacher_scale))
  # One position of equal models, one of a teacher that is nearly sure.
  teacher[0, 0] = student[0, 0]
  teacher[0, 1, 7] += 15
  spec = DivergenceSpec(entry_clip_max=tau)
  result, (actual,), expected, (pull, _) = from_logits(student, teacher, spec, (0,))
  np.testing.assert_allclose(result.loss, expected['loss'], atol=2e-5)
  np.testing.assert_allclose(result.clip_fraction, expected['clip_fraction'], atol=1e-6)
  np.testing.assert_allclose(actual, pull, atol=3e-5)


def test_more_clipped_entries_than_are_looked_for():
  # 100 entries of 1 % each that the student gives next to nothing: 64 are kept, 36 would be missed.
  student = np.zeros((1, 8, 400))
  student[..., :100] = -12
  teacher = np.where(np.arange(400) < 100, 8.0, 0.0) + np.zeros_like(student)
  spec = DivergenceSpec(entry_clip_max=0.05)
  result, gradients, expected, pulls = from_logits(student, teacher, spec)
  assert np.all(expected['clip_fraction'] == 0.25) and np.all(result.clip_fallback == 1)
  np.testing.assert_allclose(result.loss, expected['loss'], rtol=1e-5)
  np.testing.assert_allclose(gradients[0], pulls[0], atol=1e-5)


@pytest.mark.parametrize('places', [(0,), (0, 1)], ids=['frozen head', 'both'])
@pytest.mark.parametrize('kind', ['forward_kl', 'reverse_kl', 'both_kl'])
def test_narrow_gradients_of_models_that_hardly_differ(kind, places):
  # Probabilities rounded to 8 bits, then subtracted, would be wrong by as much as the difference.
  (student, head, *_), targets, weights = make(15, width=16)
  noise = np.random.default_rng(16).normal(size=student.shape)
  student, head = student.astype(jnp.bfloat16), (head / 3).astype(jnp.bfloat16)
  arrays = (student, head, (student + 0.02 * noise).astype(jnp.bfloat16), head)
  spec = DivergenceSpec(kind=kind, beta=0.3)
  _, gradients = run(arrays, targets, spec, weights, places)
  _, pulls = oracle.call(arrays, np.asarray(targets), spec, weights)
  for actual, pull in zip(gradients, pulls, strict=False):
    np.testing.assert_allclose(np.asarray(actual, np.float64), pull, atol=0.02 * np.abs(pull).max())


# --- Top-k lists: ties and crowded bins are looked at again.


@pytest.mark.parametrize('support', ['teacher_topk', 'student_topk', 'union'])
@pytest.mark.parametrize('case', ['all equal', 'tied at k', 'one bin', 'plain'])
def test_supports_of_awkward_logits(support, case):
  rng = np.random.default_rng(5)
  student, teacher = rng.normal(size=(2, 1, 3, 900))
  for x in (student, teacher):
    if case == 'all equal':
      x[:, 0] = 1.0
    if case == 'tied at k':
      x[:, 1, [3, 130, 250, 390, 777, 899]] = 5.0
    if case == 'one bin':
      # Seven of the largest at the same place of their tiles, and lists are four deep.
      x[:, 2, 17::128] = 6.0 + rng.permutation(7)
  spec = DivergenceSpec(kind='jsd', support=support, k=5, tail='bucket')
  result, gradients, expected, pulls = from_logits(student, teacher, spec)
  for name in ('loss', 'student_mass', 'teacher_mass'):
    np.testing.assert_allclose(getattr(result, name), expected[name], atol=2e-6, err_msg=name)
  np.testing.assert_allclose(gradients[0], pulls[0], atol=2e-6)


def test_a_top_k_larger_than_the_lists():
  arrays, targets, weights = make(6, 1, 2, vocab=700)
  spec = DivergenceSpec(support='union', k=600, tail='bucket')
  expected, (pull, _) = oracle.call(arrays, np.asarray(targets), spec, weights)
  # In float64: next to nothing is left for the bucket, and 1 - mass has few digits.
  with jax.enable_x64(True):
    arrays = tuple(jnp.asarray(np.asarray(x), jnp.float64) for x in arrays)
    result, (actual,) = run(arrays, targets, spec, weights, (0,), chunk_tokens=1)
  np.testing.assert_allclose(result.loss, expected['loss'], rtol=1e-8)
  np.testing.assert_allclose(actual, pull, atol=1e-7)


# --- What is computed, counted in products of the size of a head.


def products(function, *arrays, unit):
  """Multiplications of all matrix products of a traced function, in `unit`s; of a branch, the longest."""

  def of(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
      if equation.primitive.name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        left = equation.invars[0].aval.shape
        total += math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
      if equation.primitive.name == 'while':
        continue  # A second look, which takes as long as it must.
      times = equation.params['length'] if equation.primitive.name == 'scan' else 1
      inner = [x for x in jax.tree.leaves(list(equation.params.values()), is_leaf=hasattr_jaxpr)]
      totals = [of(getattr(x, 'jaxpr', x)) for x in inner if hasattr_jaxpr(x)]
      branch = equation.primitive.name == 'cond'
      total += times * (max(totals, default=0) if branch else sum(totals))
    return total

  return of(jax.make_jaxpr(function)(*arrays).jaxpr) / unit


def hasattr_jaxpr(x):
  return hasattr(x, 'eqns') or hasattr(x, 'jaxpr')


@pytest.mark.parametrize(
  'spec, settings, counts',
  [
    # Products without a gradient, with the hidden states', with both.
    (DivergenceSpec(), dict(), (2, 4, 6)),
    (DivergenceSpec(kind='reverse_kl'), dict(), (2, 4, 6)),
    (DivergenceSpec(kind='both_kl'), dict(), (2, 5, 6)),
    (OPSD, dict(), (2, 4, 6)),
    (DivergenceSpec(kind='jsd'), dict(), (4, 6, 8)),
    (DivergenceSpec(entry_clip_min=0.0, entry_clip_max=0.05), dict(), (4, 6, 8)),
    (DivergenceSpec(support='teacher_topk', k=3, tail='bucket'), dict(), (2, 3, 5)),
    (DivergenceSpec(support='sampled'), dict(), (2, 3, 5)),
    (DivergenceSpec(support='teacher_topk', k=3), dict(), (2, 2, 2)),
    (DivergenceSpec(support='teacher_topk', k=3), dict(statistics=False), (1, 1, 1)),
    (DivergenceSpec(support='student_topk', k=3), dict(statistics=False), (1, 1, 1)),
    (DivergenceSpec(support='union', k=3), dict(statistics=False), (2, 2, 2)),
    (DivergenceSpec(kind='jsd'), dict(mode='speed'), (2, 3, 6)),
  ],
)
def test_products_with_a_head(spec, settings, counts):
  batch, time, vocab, width = 2, 8, 40_000, 4
  arrays, targets, _ = make(7, batch, time, vocab, width, width)

  def counted(places):
    def loss(*wanted):
      inside = wanted + arrays[len(wanted) :] if places else arrays
      return linear_divergence(*inside, targets, spec, chunk_tokens=8, **settings).loss.sum()

    function = jax.grad(loss, places) if places else loss
    wanted = [arrays[i] for i in places]
    return products(function, *wanted, unit=batch * time * vocab * width)

  # Few columns are gathered; and they are few beside the vocabulary.
  for places, count in zip(((), (0,), (0, 1)), counts, strict=True):
    assert count <= counted(places) < count + 0.1, places


def test_weights_known_beforehand_spare_products():
  batch, time, vocab, width = 2, 8, 4_000, 4
  arrays, targets, weights = make(7, batch, time, vocab, width, width)
  weights = jnp.asarray(weights, jnp.float32)

  def counted(**settings):
    def loss(*student):
      result = linear_divergence(
        *student, *arrays[2:], targets, DivergenceSpec(), chunk_tokens=4, mode='speed', **settings
      )
      return (weights * result.loss).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arrays[:2])
    return str(jaxpr).count('dot_general')

  # Those for other weights are in a branch of their own: as many again as there are without weights.
  assert counted() == 6 and counted(weights=weights) == 7


@pytest.mark.parametrize('guess', ['right', 'scaled', 'wrong', 'zero', 'absent'])
def test_weights_change_no_gradient(guess):
  arrays, targets, weights = make(8, vocab=50)
  weights = jnp.asarray(weights, jnp.float32)
  given = dict(right=weights, scaled=3 * weights, wrong=jnp.ones_like(weights), zero=0 * weights, absent=None)
  result, actual = run(arrays, targets, OPSD, weights, mode='speed', weights=given[guess])
  plain, expected = run(arrays, targets, OPSD, weights, implementation='reference')
  np.testing.assert_allclose(result.loss, plain.loss, atol=1e-6)
  for left, right in zip(actual, expected, strict=True):
    np.testing.assert_allclose(left, right, atol=1e-5)


def test_results_that_nobody_asks_for_are_absent():
  arrays, targets, weights = make(9)
  for implementation in ('reference', 'chunked'):
    result, _ = run(arrays, targets, OPSD, weights, implementation=implementation, statistics=False)
    present = {f.name for f in dataclasses.fields(result) if getattr(result, f.name) is not None}
    assert present - {'clip_fallback'} == {'loss', 'clip_fraction'}


def test_a_gradient_of_what_carries_none_is_zero():
  arrays, targets, _ = make(10)

  def other(student, head):
    return linear_divergence(student, head, *arrays[2:], targets, OPSD, chunk_tokens=2).student_entropy.sum()

  gradients = jax.jit(jax.grad(other, (0, 1)), compiler_options=oracle.QUICK)(*arrays[:2])
  assert not any(np.any(g) for g in gradients)


# --- What is held.


def test_tiles_keep_to_their_room():
  for rows, vocab, chunk_tokens in [
    (512, 151_936, 1024),
    (16_384, 151_936, 1024),
    (512, 4099, 64),
    (7, 300, 1),
  ]:
    width = tiles.width(rows, vocab, chunk_tokens)
    assert rows * width <= max(chunk_tokens * vocab, 128 * rows) and width <= vocab
  assert tiles.width(16_384, 151_936, 1024) == 2048
  assert tiles.width(32, 50, 1024) == 50


@pytest.mark.parametrize('mode', ['memory', 'speed'])
def test_whole_logits_are_never_held(mode):
  arrays, targets, weights = make(11, 2, 32, 1024)

  def loss(*arrays):
    result = linear_divergence(
      *arrays, targets, DivergenceSpec(), chunk_tokens=8, mode=mode, weights=jnp.asarray(weights)
    )
    return (result.loss * weights).sum()

  text = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile().as_text()
  shapes = re.findall(r'\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]', text)
  assert max(math.prod(int(n) for n in shape.split(',')) for shape in shapes) <= 8 * 1024
