"""Adapters: how they begin, that merged and unmerged agree, and their gradient, against float64 NumPy."""

import dataclasses
import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from opsd_jax.config import ConfigError
from opsd_jax.models import lora, model
from opsd_jax.models.lora import PROJECTIONS, LoraConfig
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from tests.models.transformer_test import (
  GRADIENT,
  HIDDEN,
  SPEC,
  UNTIED,
  continuation,
  continuation_rows,
  cube,
  flat,
  float64,
  make_params,
  make_rows,
  one_device,
  quick_jit,
  relative_gap,
)

CONFIG = LoraConfig(rank=3, alpha=1.5)
ALL = tuple(PROJECTIONS)
# The weight of a projection from its adapter, as einsum writes it.
FORMULAS = dict.fromkeys(('query', 'key', 'value'), 'dr,rnh->dnh') | {'out': 'nhr,rd->nhd'}
FORMULAS |= dict.fromkeys(('gate', 'up', 'down'), 'ir,ro->io')


def make_adapters(config=CONFIG, spec=SPEC, seed=0, mesh=None):
  """Adapters with no part 0, of the size of the weights."""
  rng = np.random.default_rng(seed)
  shapes = lora.abstract(config, spec, mesh or one_device())
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


def added(params, adapters, scale):
  """float64 weights with the adapters' products added, one layer at a time."""
  params = float64(params)
  for pairs in adapters['layers'].values():
    for name, pair in pairs.items():
      kernel = params['layers'][PROJECTIONS[name].group][name]
      for layer in range(len(kernel)):
        a, b = np.float64(pair['a'][layer]), np.float64(pair['b'][layer])
        kernel[layer] += scale * np.einsum(FORMULAS[name], a, b)
  return params


# How they begin.


WIDE = dataclasses.replace(SPEC, embed_dim=64, num_heads=8, num_kv_heads=8, head_dim=6, mlp_dim=96)
INPUTS = {'query': 64, 'key': 64, 'value': 64, 'out': 48, 'gate': 64, 'up': 64, 'down': 96}


def test_adapters_begin_as_those_of_peft():
  adapters = lora.init(LoraConfig(16), WIDE, jax.random.key(0), one_device())
  for name, inputs in INPUTS.items():
    pair = adapters['layers'][PROJECTIONS[name].group][name]
    a, bound = np.asarray(pair['a']).ravel(), 1 / math.sqrt(inputs)
    assert not np.asarray(pair['b']).any()
    assert np.abs(a).max() < bound and np.abs(a).max() > 0.99 * bound
    # A uniform number has variance bound² / 3; five standard errors over its draws.
    assert abs(a.mean()) < 5 * bound / math.sqrt(3 * a.size)
    assert a.std() == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(a.size))
    assert len({float(x) for x in a}) > 0.99 * a.size, 'layers and projections draw their own'


def test_a_projection_begins_alike_whatever_the_mesh_and_the_other_targets():
  key = jax.random.key(1)
  whole = lora.init(LoraConfig(4), WIDE, key, one_device())['layers']
  part = lora.init(LoraConfig(4, targets=('up', 'out')), WIDE, key, cube())['layers']
  np.testing.assert_array_equal(part['mlp']['up']['a'], whole['mlp']['up']['a'])
  np.testing.assert_array_equal(part['attention']['out']['a'], whole['attention']['out']['a'])
  assert list(part['mlp']) == ['up'] and list(part['attention']) == ['out']
  assert (np.asarray(whole['attention']['key']['a']) != np.asarray(whole['attention']['value']['a'])).all()


def test_fresh_adapters_change_nothing():
  params, rows = make_params(SPEC), make_rows([1, 3, 5], 2, 4)
  adapters = lora.init(CONFIG, SPEC, jax.random.key(0), one_device())
  student = lora.complete(CONFIG, params, adapters)
  np.testing.assert_array_equal(continuation(SPEC, student, *rows), continuation(SPEC, params, *rows))


def test_adapters_lie_as_their_kernels_do():
  found = lora.init(CONFIG, SPEC, jax.random.key(0), cube())['layers']
  kernels = model.abstract_params(SPEC, cube())['layers']
  for name, p in PROJECTIONS.items():
    kernel = kernels[p.group][name].sharding.spec
    pair, inputs = found[p.group][name], len(p.inputs)
    assert pair['a'].sharding.spec == PartitionSpec(*kernel[: 1 + inputs], None), name
    assert pair['b'].sharding.spec == PartitionSpec(None, None, *kernel[1 + inputs :]), name
    assert pair['a'].addressable_shards[0].data.size < pair['a'].size


def test_the_number_of_their_weights():
  assert lora.size(CONFIG, SPEC) == sum(x.size for x in jax.tree.leaves(make_adapters()))
  assert lora.size(LoraConfig(targets=('query',)), SPEC) == 0
  # Qwen3-1.7B at the published rank: 28 layers of 64 · (in + out).
  wide = dataclasses.replace(
    SPEC, num_layers=28, embed_dim=2048, num_heads=16, num_kv_heads=8, head_dim=128, mlp_dim=6144
  )
  by_hand = 28 * 64 * (2 * (2048 + 2048) + 2 * (2048 + 1024) + 3 * (2048 + 6144))
  assert lora.size(LoraConfig(64), wide) == by_hand == 69_730_304


# Merged and unmerged.


def test_adapters_add_their_product():
  rows = make_rows([1, 3, 5], 2, 4)
  student = lora.complete(CONFIG, make_params(SPEC), make_adapters())
  hidden = continuation(SPEC, student, *rows)
  expected = continuation_rows(SPEC, added(make_params(SPEC), make_adapters(), 0.5), *rows)
  np.testing.assert_allclose(hidden, expected, **HIDDEN)
  base = continuation(SPEC, make_params(SPEC), *rows)
  assert np.abs(np.asarray(hidden - base)).max() > 0.1


@hypothesis.settings(max_examples=6)
@hypothesis.given(st.sets(st.sampled_from(ALL), min_size=1), st.integers(1, 4), st.floats(0.5, 4))
def test_merged_weights_compute_the_same(targets, rank, alpha):
  config = LoraConfig(rank, alpha, tuple(targets))
  params, adapters, rows = make_params(SPEC), make_adapters(config), make_rows([2, 4], 1, 3)
  merged = lora.merge(params, adapters, lora.scale(config))
  assert relative_gap(merged, added(params, adapters, alpha / rank)) < 1e-6
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  beside = continuation(SPEC, lora.complete(config, params, adapters), *rows)
  np.testing.assert_allclose(beside, continuation(SPEC, merged, *rows), **HIDDEN)


def test_merging_leaves_the_base_alone_and_rounds_once():
  base = lora.freeze(CONFIG, dataclasses.replace(SPEC, dtype='bfloat16'), make_params(SPEC))
  before = jax.tree.map(np.array, base)
  merged = lora.merge(base, make_adapters(), 0.5)
  jax.tree.map(np.testing.assert_array_equal, base, before)
  expected = jax.tree.map(lambda x, like: x.astype(like.dtype), added(base, make_adapters(), 0.5), before)
  # Float32 sums may fall on the other side of a tie of bfloat16: one unit in the last place.
  assert relative_gap(merged, expected) < 2**-8
  assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype('bfloat16'), jnp.dtype('float32')}


def test_the_sampler_draws_what_the_merged_weights_draw():
  ids = np.random.default_rng(0).integers(0, SPEC.vocab_size, (3, 4), np.int32)
  prompts = Prompts(ids, np.int32([1, 4, 2]), np.arange(3, dtype=np.uint32))
  beside = lora.complete(CONFIG, make_params(SPEC), make_adapters())
  merged = lora.merge(make_params(SPEC), make_adapters(), 0.5)
  draw = functools.partial(decode.generate, SPEC, prompts=prompts, eos_ids=(), per_question=2)
  ours, theirs, base = (
    draw(params=p, config=SamplingConfig(max_tokens=6)) for p in (beside, merged, make_params(SPEC))
  )
  np.testing.assert_array_equal(ours.ids, theirs.ids)
  np.testing.assert_allclose(ours.raw_logp, theirs.raw_logp, atol=1e-5)
  assert (np.asarray(ours.ids) != np.asarray(base.ids)).any()


# The base.


def test_a_base_in_its_compute_type_is_kept_as_it_is():
  params = make_params(SPEC)
  kept = lora.freeze(CONFIG, SPEC, params)
  assert all(a is b for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(params)))
  assert lora.freeze(LoraConfig(), dataclasses.replace(SPEC, dtype='bfloat16'), params) is params
  narrow = lora.freeze(CONFIG, dataclasses.replace(SPEC, dtype='bfloat16'), params)
  assert narrow['layers']['mlp']['up'].dtype == jnp.bfloat16 == narrow['embedding'].dtype
  assert narrow['final_norm']['scale'].dtype == jnp.float32


def test_what_a_model_is_made_of():
  params, adapters = make_params(SPEC), make_adapters()
  assert lora.complete(CONFIG, params, None) is params
  assert lora.complete(LoraConfig(), params, adapters) is adapters
  whole = lora.complete(CONFIG, params, adapters)
  assert whole.base is params and whole.lora is adapters and whole.scale == 0.5
  assert model.head(SPEC, whole) is params['embedding']


# Gradients.

ROWS = make_rows([1, 3, 5], 2, 4)
PULL = np.random.default_rng(1).normal(size=(6, 4, SPEC.embed_dim)).astype(np.float32)


def pulled(params):
  return jnp.sum(PULL * model.continuation_hidden(UNTIED, params, *ROWS))


@functools.cache
def gradient():
  params = make_params(UNTIED)
  return quick_jit(jax.grad(lambda trained: pulled(lora.complete(CONFIG, params, trained))))(make_adapters())


def test_the_gradient_is_that_of_the_merged_weights_times_the_other_factor():
  merged = lora.merge(make_params(UNTIED), make_adapters(), 0.5)
  weights, expected = quick_jit(jax.grad(pulled))(merged), {}
  for name, p in PROJECTIONS.items():
    pair, found = make_adapters()['layers'][p.group][name], expected.setdefault(p.group, {})
    formula = FORMULAS[name]  # a, b -> w
    (a, b), w = formula.split('->')[0].split(','), formula.split('->')[1]
    slope, pair = np.float64(weights['layers'][p.group][name]), float64(pair)
    found[name] = {
      'a': 0.5 * np.einsum(f'l{w},l{b}->l{a}', slope, pair['b']),
      'b': 0.5 * np.einsum(f'l{w},l{a}->l{b}', slope, pair['a']),
    }
  assert relative_gap(gradient(), {'layers': expected}) < GRADIENT


def test_the_gradient_matches_differences():
  rng = np.random.default_rng(5)
  at = float64(make_adapters())
  direction = jax.tree.map(lambda x: rng.normal(size=x.shape), at)

  def value(step):
    moved = jax.tree.map(lambda x, d: x + step * d, at, direction)
    return (PULL * continuation_rows(UNTIED, added(make_params(UNTIED), moved, 0.5), *ROWS)).sum()

  expected = (value(1e-5) - value(-1e-5)) / 2e-5
  assert flat(gradient()) @ flat(direction) == pytest.approx(expected, rel=GRADIENT)


# The config.


@pytest.mark.parametrize(
  ('targets', 'found'),
  [
    (('q_proj', 'v_proj'), ('query', 'value')),
    (('down', 'query', 'q_proj'), ('query', 'down')),
    (('*_proj',), ALL),
    (('*',), ALL),
    (('[qkvo]_proj',), ('query', 'key', 'value', 'out')),
  ],
)
def test_targets_go_by_our_names_and_by_those_of_peft(targets, found):
  config = LoraConfig(2, targets=targets)
  lora.validate(config)
  assert lora.projections(config) == found


def test_the_scale():
  assert lora.scale(LoraConfig(64, 128)) == lora.scale(LoraConfig(64)) == 2
  assert lora.scale(LoraConfig(8, 4)) == 0.5


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (LoraConfig(-1), 'lora.rank is -1'),
    (LoraConfig(4, 0.0), 'lora.alpha is 0.0'),
    (LoraConfig(4, targets=()), 'lora.targets is empty'),
    (LoraConfig(4, targets=('q_pro',)), "'q_pro', no projection. Did you mean 'q_proj'"),
    (LoraConfig(4, targets=('query', 'lm_head')), "'lm_head', no projection"),
  ],
)
def test_adapters_that_cannot_be_made(config, message):
  with pytest.raises(ConfigError, match=message):
    lora.validate(config)
