"""Adapters inside the model: none, neutral ones, and the same as their product merged into the kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.models import model
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from tests.models.transformer_test import (
  HIDDEN,
  UNTIED,
  continuation,
  make_params,
  make_rows,
  quick_jit,
  relative_gap,
)

SPEC = dataclasses.replace(UNTIED, attention_bias=True)
RANK, SCALE = 3, 0.7
D, N, K, H, F = SPEC.embed_dim, SPEC.num_heads, SPEC.num_kv_heads, SPEC.head_dim, SPEC.mlp_dim
SHAPES = {
  'attention': {
    'query': ((D,), (N, H)),
    'key': ((D,), (K, H)),
    'value': ((D,), (K, H)),
    'out': ((N, H), (D,)),
  },
  'mlp': {'gate': ((D,), (F,)), 'up': ((D,), (F,)), 'down': ((F,), (D,))},
}
ALL = [(group, name) for group, found in SHAPES.items() for name in found]
ROWS = make_rows([1, 3, 5], 2, 4)


def adapters(places=ALL, out=0.3):
  rng, tree = np.random.default_rng(3), {}
  for group, name in places:
    inputs, outputs = SHAPES[group][name]
    a = rng.normal(size=(SPEC.num_layers, *inputs, RANK)) * 0.3
    b = rng.normal(size=(SPEC.num_layers, RANK, *outputs)) * out
    tree.setdefault(group, {})[name] = {'a': jnp.float32(a), 'b': jnp.float32(b)}
  return {'layers': tree}


def adapted(lora, params=None):
  return model.Adapted(make_params(SPEC) if params is None else params, lora, SCALE)


def merged(lora):
  """The base with every adapter's product added to its kernel."""
  params = jax.tree.map(np.asarray, make_params(SPEC))
  for group, found in lora['layers'].items():
    for name, pair in found.items():
      product = [np.tensordot(a, b, axes=1) for a, b in zip(np.float64(pair['a']), np.float64(pair['b']))]
      params['layers'][group][name] = np.float32(params['layers'][group][name] + SCALE * np.stack(product))
  return params


def test_adapters_that_add_nothing_change_nothing():
  # `continuation` is not optimised: its sums are taken in the order of the text, whatever else is in it.
  plain = continuation(SPEC, make_params(SPEC), *ROWS)
  np.testing.assert_array_equal(continuation(SPEC, adapted(adapters(out=0.0)), *ROWS), plain)


def test_without_adapters_the_program_is_the_same():
  def lowered(params):
    call = jax.jit(lambda *rows: model.continuation_hidden(SPEC, params, *rows))
    return call.lower(*ROWS).as_text()

  assert lowered(adapted({})) == lowered(make_params(SPEC)) != lowered(adapted(adapters()))


@pytest.mark.parametrize(
  'places', [ALL, *[[place] for place in ALL]], ids=lambda p: '-'.join(n for _, n in p)
)
def test_adapters_equal_merged_weights(places):
  hidden = continuation(SPEC, adapted(adapters(places)), *ROWS)
  np.testing.assert_allclose(hidden, continuation(SPEC, merged(adapters(places)), *ROWS), **HIDDEN)
  assert np.abs(hidden - continuation(SPEC, make_params(SPEC), *ROWS)).max() > 0.01


def test_gradients_reach_the_adapters():
  spec, lora = dataclasses.replace(SPEC, remat='full'), adapters()
  pull = np.random.default_rng(1).normal(size=(6, 4, D)).astype(np.float32)

  def total(params):
    return jnp.sum(pull * model.continuation_hidden(spec, params, *ROWS))

  actual = quick_jit(jax.grad(lambda lora: total(adapted(lora))))(lora)
  kernels = quick_jit(jax.grad(total))(jax.tree.map(jnp.asarray, merged(lora)))

  def chained(group, name):
    """By the chain rule from the gradient of the merged kernel."""
    pair, layers, inputs = lora['layers'][group][name], SPEC.num_layers, len(SHAPES[group][name][0])
    shape = kernels['layers'][group][name].shape
    slope = np.float64(kernels['layers'][group][name]).reshape(layers, np.prod(shape[1 : 1 + inputs]), -1)
    a, b = np.float64(pair['a']).reshape(layers, -1, RANK), np.float64(pair['b']).reshape(layers, RANK, -1)
    found = {'a': SCALE * slope @ b.swapaxes(1, 2), 'b': SCALE * a.swapaxes(1, 2) @ slope}
    return {key: value.reshape(pair[key].shape) for key, value in found.items()}

  expected = {'layers': {g: {n: chained(g, n) for n in SHAPES[g]} for g in SHAPES}}
  # Two float32 programs with their sums in another order.
  assert relative_gap(actual, expected) < 2e-5


def test_every_function_takes_an_adapted_tree():
  lora, prompts = adapters(), Prompts(ROWS[0], ROWS[1], np.arange(3, dtype=np.uint32))
  config = SamplingConfig(temperature=0.0, max_tokens=6)
  one, two = (
    decode.generate(SPEC, params, prompts, config, eos_ids=()) for params in (adapted(lora), merged(lora))
  )
  np.testing.assert_array_equal(one.ids, two.ids)
  np.testing.assert_allclose(one.raw_logp, two.raw_logp, atol=1e-5)
  np.testing.assert_array_equal(model.head(SPEC, adapted(lora)), make_params(SPEC)['head'])


def test_adapters_compute_in_the_compute_dtype():
  spec = dataclasses.replace(SPEC, dtype='bfloat16')
  masters = adapted(adapters())
  narrow = model.in_compute_dtype(spec, masters)
  assert {x.dtype.name for x in jax.tree.leaves(narrow.lora)} == {'bfloat16'}
  assert {x.dtype.name for x in jax.tree.leaves(masters.lora)} == {'float32'}
  hidden = continuation(spec, masters, *ROWS)
  assert hidden.dtype == jnp.bfloat16
  np.testing.assert_array_equal(continuation(spec, narrow, *ROWS), hidden)
  exact = continuation(SPEC, masters, *ROWS)
  error = np.sqrt(np.mean((np.float64(hidden) - exact) ** 2))
  assert 1e-3 < error < 0.03  # as without adapters: some twenty roundings at 2^-9
