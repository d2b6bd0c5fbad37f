"""What tells the families apart, against the float64 oracle: one thing at a time and all together."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import attention, model, rotary
from opsd_jax.models.spec import ModelSpec, RopeScaling, validate
from opsd_jax.models.transformer import Context
from tests.models.oracle import continuation_rows, decode_row
from tests.models.transformer_test import (
  GRADIENT,
  HIDDEN,
  SPEC,
  continuation,
  cube,
  make_params,
  make_rows,
  one_device,
  quick_jit,
  spec_of,
  whole_rows,
)

TALL = dataclasses.replace(SPEC, head_dim=8)  # four frequencies: some stretched, some not
LLAMA3 = RopeScaling('llama3', 8.0, 100)
YARN = RopeScaling('yarn', 4.0, 100)
WINDOW = dict(sliding_window=3, layer_pattern='LG')
GEMMA = dict(
  activation='gelu_tanh', norm_plus_one=True, post_norms=True, scale_embedding=True, query_scale=0.3
)

VARIANTS = {
  'bias': dict(attention_bias=True),
  'bias-no-norm': dict(attention_bias=True, qk_norm=False),
  'linear': dict(rope_scaling=RopeScaling('linear', 4.0)),
  'llama3': dict(rope_scaling=LLAMA3),
  'yarn': dict(rope_scaling=YARN),
  'yarn-factor': dict(rope_scaling=dataclasses.replace(YARN, attention_factor=0.7, beta_fast=8.0)),
  'window': dict(**WINDOW),
  'window-of-one': dict(sliding_window=1, layer_pattern='LG'),
  'all-local': dict(sliding_window=2, layer_pattern='L'),
  'window-yarn': dict(**WINDOW, rope_scaling=YARN),
  'two-bases': dict(**WINDOW, rope_local_theta=10.0, rope_scaling=RopeScaling('linear', 8.0)),
  'query-scale': dict(query_scale=0.9),
  'softcap': dict(attention_softcap=0.7),
  'gelu': dict(activation='gelu_tanh'),
  'norm-plus-one': dict(norm_plus_one=True),
  'post-norms': dict(post_norms=True),
  'scaled-embedding': dict(scale_embedding=True),
  'gemma2': dict(**GEMMA, **WINDOW, qk_norm=False, attention_softcap=2.0, final_softcap=3.0),
  'gemma3': dict(**GEMMA, sliding_window=3, layer_pattern='LLG', num_layers=4, rope_local_theta=100.0),
}
SPECS = {name: dataclasses.replace(TALL, **changes) for name, changes in VARIANTS.items()}


@pytest.mark.parametrize('name', SPECS)
def test_matches_numpy(name):
  spec, (tokens, _, _) = SPECS[name], make_rows([9, 9], 1, 1)
  validate(spec)
  hidden, _ = whole_rows(spec, make_params(spec), tokens)
  expected = np.stack([decode_row(spec, make_params(spec), row) for row in tokens])
  np.testing.assert_allclose(hidden, expected, **HIDDEN)
  if not {'norm_plus_one', 'post_norms', 'attention_bias'} & set(VARIANTS[name]):
    # The same weights without the change: it is not lost in the tolerance.
    plain = np.stack([decode_row(TALL, make_params(TALL), row) for row in tokens])
    assert np.abs(plain - expected).max() > 100 * HIDDEN['atol']


# Contexts: the window counts from the positions of what was read before.


@pytest.mark.parametrize('name', ['window-of-one', 'two-bases', 'gemma2'])
def test_continuations_match_whole_rows(name):
  # Prompts shorter and longer than the window, each read once for two completions.
  spec, rows = SPECS[name], make_rows([1, 2, 7], 2, 5)
  hidden = continuation(spec, make_params(spec), *rows)
  np.testing.assert_allclose(hidden, continuation_rows(spec, make_params(spec), *rows), **HIDDEN)


@functools.partial(quick_jit, static_argnums=0)
def token_by_token(spec, params, prompts, lengths, tail):
  """What decoding does: the shared prompt, then a cache of each row's own tokens. Hidden [B, T, D]."""
  repeats = len(tail) // len(prompts)
  prompt = model.read_prompts(spec, params, prompts, lengths)
  start = jnp.repeat(lengths - 1, repeats)
  first = jnp.repeat(model.last_token(prompts, lengths), repeats)
  inputs = jnp.concatenate([first[:, None], tail[:, :-1]], axis=1)
  shape = (spec.num_layers, len(inputs), spec.num_kv_heads, inputs.shape[1], spec.head_dim)
  cache = jax.tree.map(lambda x: jnp.full(shape, 7.0), prompt.kv)

  def step(cache, t):
    own = Context(cache, jnp.full(len(inputs), t), start)
    token = jax.lax.dynamic_slice_in_dim(inputs, t, 1, axis=1)
    hidden, kv = model.apply(spec, params, token, (start + t)[:, None], (prompt, own))
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t, axis=3)
    return jax.tree.map(put, cache, kv), hidden[:, 0]

  _, hidden = jax.lax.scan(step, cache, jnp.arange(inputs.shape[1]))
  return jnp.swapaxes(hidden, 0, 1)


@pytest.mark.parametrize('name', ['window', 'all-local', 'softcap', 'gemma2', 'gemma3'])
def test_cached_decoding_equals_the_whole_row_at_every_position(name):
  spec, rows = SPECS[name], make_rows([1, 3, 8], 2, 9)
  hidden = token_by_token(spec, make_params(spec), *rows)
  np.testing.assert_allclose(hidden, continuation_rows(spec, make_params(spec), *rows), **HIDDEN)


def test_gradients_match_differences_of_the_oracle():
  spec, rows = SPECS['gemma3'], make_rows([2, 5], 1, 4)
  pull = np.random.default_rng(1).normal(size=(2, 4, spec.embed_dim)).astype(np.float32)
  gradient = quick_jit(jax.grad(lambda p: jnp.sum(pull * model.continuation_hidden(spec, p, *rows))))
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), make_params(spec))
  rng = np.random.default_rng(2)
  direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)

  def along(step):
    moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
    return np.sum(pull * continuation_rows(spec, moved, *rows))

  products = jax.tree.map(lambda g, d: np.sum(np.float64(g) * d), gradient(make_params(spec)), direction)
  difference = (along(1e-5) - along(-1e-5)) / 2e-5
  assert sum(jax.tree.leaves(products)) == pytest.approx(difference, rel=GRADIENT)


def test_a_token_beyond_every_window_does_not_matter():
  spec, (tokens, _, _) = SPECS['all-local'], make_rows([9, 9], 1, 1)
  changed = tokens.copy()
  changed[:, 3] = (changed[:, 3] + 1) % spec.vocab_size
  before, after = (np.asarray(whole_rows(spec, make_params(spec), t)[0]) for t in (tokens, changed))
  # Two layers that see two tokens each: token 3 reaches token 5 and no further.
  same = (before == after).all((0, 2))
  assert same.tolist() == [True] * 3 + [False] * 3 + [True] * 3


# What a model does not have costs it nothing.


def lowered(spec):
  rows = make_rows([3, 5], 2, 7)
  return jax.jit(lambda p: model.continuation_hidden(spec, p, *rows)).lower(make_params(spec)).as_text()


def test_global_layers_compute_nothing_for_a_window():
  plain = lowered(TALL)
  assert plain == lowered(dataclasses.replace(TALL, layer_pattern='GG'))
  assert lowered(SPECS['window']).count('stablehlo.compare') > plain.count('stablehlo.compare')
  assert plain.count('stablehlo.cosine') == 2  # of the prompt's positions and of the completions'


@pytest.mark.parametrize('name', ['gemma2', 'gemma3'])
def test_a_shared_prompt_is_not_copied_for_its_rows(name):
  spec = SPECS[name]
  rows = make_rows([3, 5, 12], 2, 7)
  text = str(jax.make_jaxpr(lambda p: model.continuation_hidden(spec, p, *rows))(make_params(spec)))
  kv = f'{spec.num_kv_heads},11,{spec.head_dim}]'
  assert f'[3,{kv}' in text
  assert f'[6,{kv}' not in text and f'[3,2,{kv}' not in text


def test_local_layers_compute_the_same_on_a_mesh():
  spec, rows = SPECS['gemma2'], make_rows([1, 3, 7, 2], 2, 5)
  params = make_params(spec)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, model.abstract_params(spec, cube()))
  with jax.set_mesh(cube()):
    # Another jit than `continuation`, which has met these shapes without a mesh.
    sharded = quick_jit(lambda p: model.continuation_hidden(spec, p, *rows))
    hidden = sharded(jax.device_put(params, shardings))
  np.testing.assert_allclose(hidden, continuation_rows(spec, params, *rows), **HIDDEN)


# Precision.


def test_the_embedding_scale_is_rounded_to_the_compute_dtype():
  spec = ModelSpec(
    vocab_size=64, num_layers=1, scale_embedding=True, norm_eps=2.0**40, tie_embeddings=True, dtype='bfloat16'
  )
  params = jax.tree.map(jnp.zeros_like, model.abstract_params(spec, one_device()))
  values = (1 + np.arange(64) / 128)[:, None] * np.ones(spec.embed_dim)  # exact in bfloat16
  params['embedding'] = jnp.float32(values)
  params['final_norm']['scale'] = jnp.full(spec.embed_dim, 2.0**20)  # undoes the epsilon
  hidden, _ = whole_rows(spec, params, np.arange(64, dtype=np.int32)[None])
  root = jnp.bfloat16(np.sqrt(spec.embed_dim))
  expected = (values * float(root)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(hidden[0], expected)
  assert (expected != (values * np.sqrt(spec.embed_dim)).astype(jnp.bfloat16)).any()


def test_a_scale_that_bfloat16_does_not_hold_scales_right():
  # One token after another, scores 0 and 100·scale: the second's weight says how it was scaled.
  query = jnp.full((1, 2, 1, 1), 10, jnp.bfloat16)
  key = jnp.array([0, 10], jnp.bfloat16)[None, :, None, None]
  value = jnp.array([0, 1], jnp.bfloat16)[None, :, None, None]
  scale = 0.0301  # bfloat16 has 0.03003, and 0.3003 beside 0.301
  weight = float(attention.attend(query, key, value, (), scale=scale)[0, 1, 0, 0])
  assert weight == pytest.approx(1 / (1 + np.exp(-100 * scale)), rel=2**-9)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_weights_may_be_stored_narrow(dtype):
  spec = dataclasses.replace(SPECS['gemma3'], dtype=dtype, attention_bias=True)
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params(spec))
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
  tokens = make_rows([5, 5], 1, 1)[0]
  one, two = (whole_rows(spec, p, tokens)[0] for p in (narrow, wide))
  assert one.dtype == jnp.dtype(dtype)
  np.testing.assert_array_equal(one, two)


# Frequencies by hand.


def test_published_stretches():
  # Llama 3.1 8B: theta 5e5, width 128, factor 8 from 8192 positions.
  plain, _ = rotary.frequencies(128, 5e5, RopeScaling())
  long, factor = rotary.frequencies(128, 5e5, RopeScaling('llama3', 8.0, 8192))
  wavelength = 2 * np.pi / plain
  assert factor == 1
  np.testing.assert_array_equal(long[wavelength < 2048], plain[wavelength < 2048])
  np.testing.assert_allclose(long[wavelength > 8192], plain[wavelength > 8192] / 8, rtol=1e-6)
  between = long[(wavelength > 2048) & (wavelength < 8192)]
  assert len(between) == 6 and (np.diff(long) < 0).all()
  # Qwen3 with YARN: theta 1e6, factor 4 from 32768 positions; the authors' bounds are 23 and 40.
  plain, _ = rotary.frequencies(128, 1e6, RopeScaling())
  long, factor = rotary.frequencies(128, 1e6, RopeScaling('yarn', 4.0, 32768))
  assert factor == pytest.approx(1.1386294361)
  ratio = np.float64(long) / plain
  np.testing.assert_allclose(ratio[:24], 1, rtol=1e-6)
  np.testing.assert_allclose(ratio[40:], 0.25, rtol=1e-6)
  assert ((ratio[24:40] > 0.25) & (ratio[24:40] < 1)).all()


# Birth and layout of the weights.


def test_new_weights_are_born_neutral():
  spec = dataclasses.replace(SPECS['gemma3'], attention_bias=True)
  params = quick_jit(functools.partial(model.init_params, spec, mesh=one_device()))(jax.random.key(0))
  attend = params['layers']['attention']
  assert attend['query_bias'].shape == (4, 4, 8) and attend['key_bias'].shape == (4, 2, 8)
  assert attend['value_bias'].shape == (4, 2, 8)
  assert params['layers']['attention_post_norm']['scale'].shape == (4, 16)
  assert params['layers']['mlp_post_norm']['scale'].shape == (4, 16)
  at_zero = [leaf for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == 'scale']
  at_zero += [attend[f'{name}_bias'] for name in ('query', 'key', 'value')]
  assert all((np.asarray(leaf) == 0).all() for leaf in at_zero)


def test_biases_are_sharded_like_their_heads():
  spec = dataclasses.replace(TALL, attention_bias=True)
  attend = model.abstract_params(spec, cube())['layers']['attention']
  assert all(spec_of(attend[f'{name}_bias']) == (None, 'tensor', None) for name in ('query', 'key', 'value'))
  single = dataclasses.replace(spec, num_kv_heads=1)
  attend = model.abstract_params(single, make_mesh(MeshConfig(2, 2, 2)))['layers']['attention']
  assert spec_of(attend['key_bias']) == (None, None, None)
