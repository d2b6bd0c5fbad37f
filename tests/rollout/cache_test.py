"""The sampler's cache against NumPy arrays, and what a cache of int8 costs in precision."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.models import model
from opsd_jax.models.transformer import KV, Context
from opsd_jax.rollout import cache as lib
from tests.models.oracle import continuation_rows
from tests.models.transformer_test import SPEC, cube, make_params, make_rows, quick_jit
from tests.models.variants_test import SPECS

L, K, H = SPEC.num_layers, SPEC.num_kv_heads, SPEC.head_dim
ROWS, WIDTH, QUESTIONS, PROMPT = 5, 6, 3, 4
KINDS = ('compute', 'bfloat16', 'int8')


def random_kv(rows, width, seed=0, shape=(L, K, H)):
  rng = np.random.default_rng(seed)
  layers, heads, size = shape
  keys, values = rng.normal(size=(2, layers, rows, heads, width, size)).astype(np.float32)
  return KV(keys, values)


def numbers(cache):
  """Keys and values [2, L, R, K, C, H] as attention sees them, float64."""
  kept = np.stack([np.asarray(x, np.float64) for x in (cache.key, cache.value)])
  if cache.key_scale is None:
    return kept
  return kept * np.stack([np.asarray(x, np.float64) for x in (cache.key_scale, cache.value_scale)])[..., None]


def error(kind, x):
  """How far a kept number may be from x [..., H]: half a unit of 8 bits, half a step of int8."""
  if kind == 'int8':
    # 1e-5: the division by the scale, in float32, may round a number across the middle of a step.
    return np.abs(x).max(-1, keepdims=True) / 254 * (1 + 1e-5) + 0 * x
  return np.abs(x) * (2.0**-8 if kind == 'bfloat16' else 0)


write, place = quick_jit(lib.write), quick_jit(lib.place)


@pytest.mark.parametrize('kind', KINDS)
def test_empty(kind):
  cache = lib.empty(SPEC, ROWS, WIDTH, kind)
  assert cache.key.shape == cache.value.shape == (L, ROWS, K, WIDTH, H)
  assert cache.key.dtype == cache.value.dtype == dict(compute='float32').get(kind, kind)
  assert not any(np.asarray(x, np.float32).any() for x in jax.tree.leaves(cache))
  assert (cache.key_scale is None) == (cache.value_scale is None) == (kind != 'int8')
  if kind == 'int8':
    assert cache.key_scale.shape == cache.value_scale.shape == (L, ROWS, K, WIDTH)


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.settings(max_examples=8)
@hypothesis.given(data=st.data())
def test_writes_and_places_like_arrays(kind, data):
  cache, prompts = lib.empty(SPEC, ROWS, WIDTH, kind), random_kv(QUESTIONS, PROMPT, 1)
  want = numbers(cache)
  for turn in range(data.draw(st.integers(1, 4))):
    if data.draw(st.booleans()):
      question, slot = data.draw(st.integers(0, QUESTIONS - 1)), data.draw(st.integers(0, ROWS - 1))
      cache = place(cache, prompts, jnp.int32([question]), jnp.int32([slot]))
      want[:, :, slot, :, :PROMPT] = np.stack([prompts.key, prompts.value])[:, :, question]
    else:
      new = random_kv(ROWS, 1, 2 + turn)
      position = np.int32(data.draw(st.lists(st.integers(0, WIDTH - 1), min_size=ROWS, max_size=ROWS)))
      cache = write(cache, new, position)
      for row in range(ROWS):
        want[:, :, row, :, position[row]] = np.stack([new.key, new.value])[:, :, row, :, 0]
  assert (np.abs(numbers(cache) - want) <= error(kind, want)).all()


def test_a_placed_prompt_may_be_quantised_already():
  prompts = random_kv(QUESTIONS, PROMPT)
  cache = lib.empty(SPEC, ROWS, WIDTH, 'int8')
  at = jnp.int32([1]), jnp.int32([4])
  once, before = place(cache, prompts, *at), place(cache, quick_jit(lib.quantised)(prompts), *at)
  jax.tree.map(np.testing.assert_array_equal, once, before)


def test_quantised():
  kv = random_kv(ROWS, WIDTH, 3)
  kv = KV(kv.key * np.float32([1e-30, 1, 1e30, 7]), kv.value)
  kv.key[0, 0] = 0  # no scale makes a number of it
  cache = quick_jit(lib.quantised)(kv)
  exact = np.stack([kv.key, kv.value]).astype(np.float64)
  assert (np.abs(numbers(cache) - exact) <= error('int8', exact)).all()
  # The largest of a token and head is kept, and nothing is beyond it.
  ints = np.stack([cache.key, cache.value]).astype(int)
  assert (np.abs(ints).max(-1) == np.where(np.abs(exact).max(-1) > 0, 127, 0)).all()


@functools.partial(quick_jit, static_argnums=(0, 5, 6))
def token_by_token(spec, params, prompts, lengths, tail, kind, chunk):
  """Hidden states [B, T, D] of completions, each row's prompt in its own cache, read and written in turn."""
  repeats, steps = len(tail) // len(prompts), tail.shape[1]
  prompt = model.read_prompts(spec, params, prompts, lengths)
  cache = lib.empty(spec, len(tail), prompt.kv.key.shape[3] + steps, kind)

  def fill(row, cache):
    return lib.place(cache, prompt.kv, (row // repeats)[None], row[None])

  cache = jax.lax.fori_loop(0, len(tail), fill, cache)
  start, zeros = jnp.repeat(lengths - 1, repeats), jnp.zeros(len(tail), jnp.int32)
  first = jnp.repeat(model.last_token(prompts, lengths), repeats)
  inputs = jnp.concatenate([first[:, None], tail[:, :-1]], axis=1)

  def step(cache, t):
    token = jax.lax.dynamic_slice_in_dim(inputs, t, 1, axis=1)
    context = Context(cache, start + t, zeros, chunk)
    hidden, kv = model.apply(spec, params, token, (start + t)[:, None], (context,))
    return lib.write(cache, kv, start + t), hidden[:, 0]

  _, hidden = jax.lax.scan(step, cache, jnp.arange(steps))
  return jnp.swapaxes(hidden, 0, 1)


# Against what is exact: rounding in float32 alone, and 8 bits or 7 of every key and value. A relative
# error e of keys and of values moves a layer's output by at most about 2 e, and two layers follow each other.
# Half a step of int8 is 1/254 of a head's largest number, which is some twice its mean square.
BOUND = {'compute': 1e-5, 'bfloat16': 2 * 2 * 2.0**-8, 'int8': 2 * 2 * 2 / 254}


@pytest.mark.parametrize(
  ('name', 'kind', 'chunk'),
  [('gemma3', 'compute', 3), ('gemma2', 'bfloat16', 4), ('gemma2', 'int8', None), ('gemma3', 'int8', 5)],
)
def test_decoding_from_a_cache(name, kind, chunk):
  spec, rows = SPECS[name], make_rows([1, 3, 8], 2, 9)
  params = make_params(spec)
  want = continuation_rows(spec, params, *rows)
  hidden = token_by_token(spec, params, *rows, kind, chunk)
  off = np.sqrt(((hidden - want) ** 2).mean() / (want**2).mean())
  assert off < BOUND[kind]
  # And the kind is at work: its error is there.
  assert kind == 'compute' or off > BOUND[kind] / 100


def test_a_layout_is_declared():
  with jax.set_mesh(cube()):
    caches = jax.jit(lambda: lib.empty(SPEC, 8, WIDTH, 'int8'))()
  for array in jax.tree.leaves(caches):
    assert tuple(array.sharding.spec)[:3] == (None, ('data', 'fsdp'), 'tensor')


@pytest.mark.parametrize('kind', ['compute', 'int8'])
def test_it_is_changed_in_place(kind):
  """In a loop's carry and between loops: nothing else as large as the cache exists."""
  cache = jax.eval_shape(lambda: lib.empty(SPEC, 8, 4096, kind))
  prompts = jax.eval_shape(lambda: random_kv(QUESTIONS, PROMPT))

  def steps(cache, prompts, position):
    def fill(row, cache):
      return lib.place(cache, prompts, (row % QUESTIONS)[None], row[None])

    def step(t, cache):
      cache = lib.write(cache, KV(*jax.tree.leaves(random_kv(8, 1))), position + t)
      return jax.lax.fori_loop(0, t % 3, fill, cache)

    return jax.lax.fori_loop(0, position[0], step, cache)

  position = jax.ShapeDtypeStruct((8,), jnp.int32)
  memory = jax.jit(steps, donate_argnums=0).lower(cache, prompts, position).compile().memory_analysis()
  total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  assert memory.alias_size_in_bytes >= total and memory.temp_size_in_bytes < total / 8
