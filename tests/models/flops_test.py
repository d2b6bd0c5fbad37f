"""Floating-point operations: by hand, by loops over tokens, and by the compiler's count."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.flops import forward_flops, matmul_params
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.transformer import KV, Context

TINY = ModelSpec(vocab_size=7, num_layers=2, embed_dim=6, num_heads=4, num_kv_heads=2, head_dim=2, mlp_dim=5)


def test_weights_by_hand():
  # A layer: queries 6·8, keys 6·4, values 6·4, output 8·6, and three times 6·5 in the MLP.
  assert matmul_params(TINY) == 2 * (48 + 24 + 24 + 48 + 90) == 468


def test_one_token_by_hand():
  # Two a weight; scores and values with one key: 2 layers · 4 heads · 2·(2 + 2) operations.
  assert forward_flops(TINY, [0], [1], with_head=False) == 2 * 468 + 64
  assert forward_flops(TINY, [0], [1], with_head=True) == 2 * (468 + 7 * 6) + 64


def by_loops(spec, before, new):
  """Attention's operations, one multiply-add at a time; two loops for scores and for values."""
  total = 0
  for earlier, count in zip(before, new):
    for token in range(count):
      for local in spec.local_layers:
        keys = range(min(earlier + token + 1, spec.sliding_window) if local else earlier + token + 1)
        total += sum(2 * 2 * spec.head_dim for _ in keys) * spec.num_heads
  return total


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_attention_matches_loops(rows):
  before, new = zip(*rows)
  for spec in (TINY, dataclasses.replace(TINY, layer_pattern='LG', sliding_window=4)):
    attention = forward_flops(spec, before, new, with_head=False) - 2 * 468 * sum(new)
    assert attention == by_loops(spec, before, new)


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.booleans())
def test_reading_in_two_parts_costs_as_much(before, first, second, with_head):
  whole = forward_flops(TINY, [before], [first + second], with_head=with_head)
  parts = forward_flops(TINY, [before, before + first], [first, second], with_head=with_head)
  assert whole == parts


def test_a_real_batch_does_not_overflow():
  spec = dataclasses.replace(
    TINY,
    num_layers=36,
    embed_dim=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=12288,
    vocab_size=151936,
  )
  lengths = np.full(512, 32768, np.int32)
  total = forward_flops(spec, np.zeros(512, np.int32), lengths, with_head=True)
  assert total == 512 * forward_flops(spec, [0], [32768], with_head=True) > 2**58


def compiled_flops(spec, before, new, with_head):
  """What XLA counts for one row of `new` tokens after a context of `before`."""
  mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
  tokens = jnp.zeros((1, new), jnp.int32)
  shape = (spec.num_layers, 1, spec.num_kv_heads, before, spec.head_dim)
  kv, one = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  contexts = (Context(KV(kv, kv), one, one),) if before else ()

  def forward(params, contexts):
    hidden, _ = model.apply(spec, params, tokens, tokens, contexts, keep_kv=False)
    return hidden @ model.head(spec, params).T if with_head else hidden

  compiled = jax.jit(forward).lower(model.abstract_params(spec, mesh), contexts).compile()
  return compiled.cost_analysis()['flops']


@pytest.mark.parametrize(('before', 'new', 'with_head'), [(0, 16, True), (24, 8, False)])
def test_matches_the_compiler(before, new, with_head):
  # One layer, since XLA counts a loop's body once.
  spec = ModelSpec(
    vocab_size=256, num_layers=1, embed_dim=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=384
  )
  ours = forward_flops(spec, [before], [new], with_head=with_head)
  # XLA computes the masked half of the new tokens' square as well.
  masked = 4 * spec.num_heads * spec.head_dim * new * (new - 1) // 2
  ratio = compiled_flops(spec, before, new, with_head) / (ours + masked)
  # It also counts norms, rotations, softmax and gates: some 10 operations for each of a token's
  # ~1000 activations beside 2 for each of its ~230,000 weights.
  assert 1.0 < ratio < 1.03
