"""Token log-probabilities: against float64 NumPy, finite differences, and one another."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from kernels.linear_logprob.api import linear_logprob

PROPERTY = settings(max_examples=10, deadline=None, derandomize=True)
SETTINGS = st.fixed_dictionaries(
  dict(
    temperature=st.sampled_from([1.0, 0.6]),
    softcap=st.sampled_from([None, 2.0]),
    valid_vocab=st.sampled_from([None, 11, 8]),
  )
)


def make_inputs(seed, batch, time, vocab=11, width=6, scale=1.0):
  rng = np.random.default_rng(seed)
  hidden, head = rng.normal(size=(batch, time, width)), rng.normal(size=(vocab, width)) * scale
  targets = rng.integers(0, vocab - 3, (batch, time))
  return jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32), jnp.asarray(targets)


def oracle(hidden, head, targets, temperature=1.0, softcap=None, valid_vocab=None):
  """logp, entropy, correct [B, T], and d sum(logp) / d (hidden, head) without soft-cap."""
  hidden, head, targets = np.float64(hidden), np.float64(head)[:valid_vocab], np.asarray(targets)
  z = hidden @ head.T
  z = (z if softcap is None else softcap * np.tanh(z / softcap)) / temperature
  z = z - z.max(-1, keepdims=True)
  log_q = z - np.log(np.exp(z).sum(-1, keepdims=True))
  logp = np.take_along_axis(log_q, targets[..., None], -1)[..., 0]
  error = (np.eye(len(head))[targets] - np.exp(log_q)) / temperature
  gradients = error @ head, np.einsum('btv,btd->vd', error, hidden)
  return logp, -(np.exp(log_q) * log_q).sum(-1), log_q.argmax(-1) == targets, gradients


def gradients_of(hidden, head, targets, **keywords):
  return jax.grad(lambda *x: linear_logprob(*x, targets, **keywords).logp.sum(), (0, 1))(hidden, head)


@PROPERTY
@given(SETTINGS, st.integers(0, 99), st.sampled_from([4, 1000]))
def test_matches_numpy_and_reference(options, seed, chunk_tokens):
  # Without compiling a program for each example; other tests here do compile.
  with jax.disable_jit():
    check_numpy_and_reference(options, make_inputs(seed, 2, 5), chunk_tokens)


def check_numpy_and_reference(options, arguments, chunk_tokens):
  expected = oracle(*arguments, **options)[:3]
  for implementation in ('reference', 'chunked'):
    keywords = options | dict(implementation=implementation, chunk_tokens=chunk_tokens)
    result = linear_logprob(*arguments, **keywords)
    for actual, value in zip(jax.tree.leaves(result), expected, strict=True):
      assert actual.dtype == jnp.float32 and actual.shape == (2, 5)
      np.testing.assert_allclose(actual, value, atol=1e-5, rtol=1e-5)
  reference = gradients_of(*arguments, **options, implementation='reference')
  chunked = gradients_of(*arguments, **options, chunk_tokens=chunk_tokens)
  for left, right in zip(chunked, reference, strict=True):
    np.testing.assert_allclose(left, right, atol=2e-5)


@pytest.mark.parametrize('implementation', ['reference', 'chunked'])
def test_closed_form_gradient(implementation):
  arguments = make_inputs(0, 2, 5)
  expected = oracle(*arguments, temperature=0.6, valid_vocab=8)[3]
  actual = gradients_of(
    *arguments, temperature=0.6, valid_vocab=8, implementation=implementation, chunk_tokens=4
  )
  np.testing.assert_allclose(actual[0], expected[0], atol=1e-5)
  np.testing.assert_allclose(actual[1][:8], expected[1], atol=1e-5)
  assert not np.any(actual[1][8:])


def test_finite_differences():
  hidden, head, targets = make_inputs(1, 1, 3)
  with jax.enable_x64(True):
    wide = tuple(jnp.asarray(np.asarray(x), jnp.float64) for x in (hidden, head))

    @jax.jit
    def total(hidden, head):
      result = linear_logprob(
        hidden, head, targets, temperature=0.7, softcap=3.0, valid_vocab=9, chunk_tokens=2
      )
      assert result.logp.dtype == jnp.float64
      return result.logp.sum()

    check_grads(total, wide, order=1, modes=['rev'], atol=1e-7, rtol=1e-7)


def test_only_logp_carries_a_gradient():
  hidden, head, targets = make_inputs(2, 2, 3)

  def rest(hidden, head):
    result = linear_logprob(hidden, head, targets)
    return result.entropy.sum() + result.correct.sum()

  assert not any(np.any(g) for g in jax.grad(rest, (0, 1))(hidden, head))


def test_large_logits_stay_finite():
  arguments = make_inputs(3, 2, 3, scale=1e3)
  for options in (dict(), dict(valid_vocab=8), dict(softcap=5.0)):
    outcome = linear_logprob(*arguments, **options), gradients_of(*arguments, **options)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(outcome))


def test_padding_of_the_vocabulary_has_probability_zero():
  hidden, head, targets = make_inputs(4, 1, 2)
  result = linear_logprob(hidden, head, jnp.full_like(targets, 9), valid_vocab=8)
  assert np.all(np.isneginf(result.logp)) and not np.any(result.correct)
  uniform = linear_logprob(jnp.zeros_like(hidden), head, targets, valid_vocab=8)
  np.testing.assert_allclose(uniform.logp, -math.log(8), rtol=1e-6)
  np.testing.assert_allclose(uniform.entropy, math.log(8), rtol=1e-6)


def test_batch_permutation():
  hidden, head, targets = make_inputs(5, 4, 5)
  order = np.array([2, 0, 3, 1])
  whole = linear_logprob(hidden, head, targets, chunk_tokens=8)
  moved = linear_logprob(hidden[order], head, targets[order], chunk_tokens=8)
  for field in dataclasses.fields(whole):
    np.testing.assert_allclose(getattr(moved, field.name), getattr(whole, field.name)[order], atol=1e-6)


def test_bfloat16_activations_with_float32_master_head():
  hidden, head, targets = make_inputs(6, 2, 8, vocab=32)
  narrow = hidden.astype(jnp.bfloat16)
  result = linear_logprob(narrow, head, targets, chunk_tokens=4)
  hidden_gradient, head_gradient = gradients_of(narrow, head, targets, chunk_tokens=4)
  assert result.logp.dtype == jnp.float32
  assert hidden_gradient.dtype == jnp.bfloat16 and head_gradient.dtype == jnp.float32
  logp, _, _, gradients = oracle(hidden, head, targets)
  np.testing.assert_allclose(result.logp, logp, atol=0.1)
  np.testing.assert_allclose(head_gradient, gradients[1], atol=0.1)


def test_chunked_program_never_holds_all_logits():
  hidden, head, targets = make_inputs(7, 2, 32, vocab=256)

  def largest(implementation):
    step = lambda *x: gradients_of(  # noqa: E731
      *x, implementation=implementation, chunk_tokens=8
    )
    text = jax.jit(step).lower(hidden, head, targets).compile().as_text()
    shapes = re.findall(r'\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]', text)
    return max(math.prod(int(n) for n in shape.split(',')) for shape in shapes)

  assert largest('reference') >= 2 * 32 * 256
  assert largest('chunked') <= 8 * 256


@pytest.mark.parametrize(
  'keywords, words',
  [
    (dict(temperature=0.0), ['temperature', '0.0', '> 0']),
    (dict(softcap=-1.0), ['softcap', '-1.0', 'None']),
    (dict(valid_vocab=12), ['valid_vocab', '12', '1..11']),
    (dict(chunk_tokens=0), ['chunk_tokens', '0', '>= 1']),
    (dict(implementation='fused'), ['implementation', "'fused'", 'chunked, reference']),
  ],
)
def test_setting_errors(keywords, words):
  with pytest.raises(ValueError) as error:
    linear_logprob(*make_inputs(0, 2, 3), **keywords)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  'position, replacement, words',
  [
    (0, jnp.zeros((3, 6)), ['hidden', '(3, 6)', '[batch, time, width]']),
    (1, jnp.zeros((6, 11)), ['head', '(6, 11)', 'transpose']),
    (2, jnp.zeros((2, 4), jnp.int32), ['targets', '(2, 4)', '(2, 3)']),
    (2, jnp.zeros((2, 3)), ['targets', 'float32', 'integer']),
  ],
)
def test_shape_errors(position, replacement, words):
  arguments = list(make_inputs(0, 2, 3))
  arguments[position] = replacement
  with pytest.raises(ValueError) as error:
    linear_logprob(*arguments)
  for word in words:
    assert word in str(error.value)
