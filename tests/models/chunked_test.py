"""Contexts read in pieces: against attention over all of them at once, and a row against its batch-mates."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.models import attention, chunked, model
from opsd_jax.models.transformer import Context
from tests.models.oracle import continuation_rows
from tests.models.transformer_test import HIDDEN, SPEC, cube, make_params, make_rows, quick_jit
from tests.models.variants_test import SPECS, TALL

B, S, N, K, H, C, L = 6, 2, 4, 2, 8, 12, 3  # C: capacity of a row's own cache
Q, P = 3, 7  # prompts, each of two rows


def make_case(seed=0, **changes):
  """Queries, keys and values of new tokens, a cache of each row's own, and a prompt shared by two rows."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  case = dict(
    query=normal(B, S, N, H),
    key=normal(B, S, K, H),
    value=normal(B, S, K, H),
    caches=(normal(L, B, K, C, H), normal(L, B, K, C, H)),
    prompts=(normal(L, Q, K, P, H), normal(L, Q, K, P, H)),
    length=rng.integers(0, C + 1, B).astype(np.int32),
    prompt_length=rng.integers(0, P + 1, Q).astype(np.int32),
  )
  return case | changes


def expected(case, layer, *, scale, softcap, window):
  """Float64, one row, token and head at a time, over the tokens that it sees and no others. [B, S, N, H]."""
  out = np.zeros((B, S, N, H))
  for b, s, n in np.ndindex(B, S, N):
    k, q = n // (N // K), b // (B // Q)
    read, written = case['prompt_length'][q], case['length'][b]
    keys, values = (
      np.concatenate([prompt[layer, q, k, :read], cache[layer, b, k, :written], new[b, : s + 1, k]])
      for prompt, cache, new in zip(
        case['prompts'], case['caches'], (case['key'], case['value']), strict=True
      )
    )
    keys, values = (x.astype(np.float64)[-window if window else 0 :] for x in (keys, values))
    scores = keys @ case['query'][b, s, n] * scale
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    weights = np.exp(scores - scores.max())
    out[b, s, n] = weights @ values / weights.sum()
  return out


# Optimised like what is run: the tests below compare bits.
@functools.partial(jax.jit, static_argnames=('chunk', 'prompt_chunk', 'softcap', 'window'))
def attended(case, layer, *, chunk, prompt_chunk, softcap=None, window=None, scale=0.3):
  start = case['prompt_length'].repeat(B // Q, total_repeat_length=B)
  positions = (start + case['length'])[:, None] + jnp.arange(S)[None, :]

  def opened(kv, length, start, chunk):
    if chunk is None:
      return attention.Read(kv[0][layer], kv[1][layer], length, start)
    first, end = chunked.span(length, start, chunk, positions, window)
    return chunked.Walk(*kv, None, None, layer, length, start, first, end, chunk)

  return chunked.attend(
    case['query'],
    case['key'],
    case['value'],
    [
      opened(case['prompts'], case['prompt_length'], jnp.zeros(Q, jnp.int32), prompt_chunk),
      opened(case['caches'], case['length'], start, chunk),
    ],
    scale=scale,
    softcap=softcap,
    window=None if window is None else attention.Window(jnp.int32(window), positions),
  )


@pytest.mark.parametrize(
  ('chunk', 'prompt_chunk', 'choices'),
  [
    (4, None, dict(softcap=None, window=None)),
    (4, 3, dict(softcap=1.5, window=None)),  # the last piece of the prompt starts early
    (5, 100, dict(softcap=None, window=3)),
    (1, None, dict(softcap=2.0, window=9)),
  ],
  ids=['plain', 'uneven', 'window', 'one-by-one'],
)
def test_pieces_add_up_to_the_whole(chunk, prompt_chunk, choices):
  for seed in range(3):
    case = make_case(seed)
    for layer in (0, L - 1):
      got = attended(case, layer, chunk=chunk, prompt_chunk=prompt_chunk, **choices)
      want = expected(case, layer, scale=0.3, **choices)
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


def test_rows_that_have_read_nothing():
  case = make_case(length=np.zeros(B, np.int32), prompt_length=np.zeros(Q, np.int32))
  got = attended(case, 0, chunk=4, prompt_chunk=3, window=2)
  np.testing.assert_allclose(got, expected(case, 0, scale=0.3, softcap=None, window=2), rtol=1e-5, atol=2e-6)


def test_large_scores_come_late():
  # The running maximum rises by far in every piece, and what was summed before must shrink by as much.
  case = make_case(length=np.full(B, C, np.int32))
  steep = np.linspace(1, 40, C, dtype=np.float32)[:, None]
  case['caches'] = (case['caches'][0] * steep, case['caches'][1])
  got = attended(case, 1, chunk=4, prompt_chunk=None, scale=1.0)
  np.testing.assert_allclose(
    got, expected(case, 1, scale=1.0, softcap=None, window=None), rtol=1e-5, atol=2e-5
  )


@pytest.mark.parametrize('window', [None, 3])
@hypothesis.settings(max_examples=20)
@hypothesis.given(data=st.data())
def test_a_row_does_not_depend_on_how_long_the_others_are(window, data):
  lengths = st.lists(st.integers(0, C), min_size=B, max_size=B)
  mine, others = (np.int32(data.draw(lengths)) for _ in range(2))
  row = data.draw(st.integers(0, B - 1))
  others[row] = mine[row]
  alone, among = (
    attended(make_case(length=length), 1, chunk=4, prompt_chunk=None, window=window)
    for length in (mine, others)
  )
  np.testing.assert_array_equal(np.asarray(alone)[row], np.asarray(among)[row])


@pytest.mark.parametrize('window', [None, 3])
def test_a_row_does_not_depend_on_the_room_it_has(window):
  for seed in range(4):
    case = make_case(seed)
    wide = [np.concatenate([x, 9 + np.zeros_like(x)], axis=3) for x in case['caches']]
    narrow = attended(case, 1, chunk=4, prompt_chunk=3, window=window)
    wider = attended(case | dict(caches=tuple(wide)), 1, chunk=4, prompt_chunk=3, window=window)
    np.testing.assert_array_equal(narrow, wider)


def test_pieces_beyond_the_longest_row_and_before_every_window_are_not_read():
  # What is not read cannot poison: a NaN would, even at weight zero.
  case = make_case(length=np.int32([6, 8, 7, 8, 5, 6]))
  rotten = tuple(x.copy() for x in case['caches'])
  for x in rotten:
    x[:, :, :, 8:] = np.nan
  got = attended(case | dict(caches=rotten), 0, chunk=4, prompt_chunk=None)
  np.testing.assert_array_equal(got, attended(case, 0, chunk=4, prompt_chunk=None))
  for x in rotten:
    x[:, :, :, :4] = np.nan  # a window of 2 reaches back to entry 4 at most
  got = attended(case | dict(caches=rotten), 0, chunk=4, prompt_chunk=None, window=2)
  np.testing.assert_array_equal(got, attended(case, 0, chunk=4, prompt_chunk=None, window=2))


def test_spans():
  length, start = jnp.int32([5, 0, 9]), jnp.int32([2, 3, 4])
  positions = (start + length)[:, None]
  assert tuple(map(int, chunked.span(length, start, 4, positions, None))) == (0, 3)
  # Rows 0 and 2 see back to entries 3 and 7; row 1 has none, and does not draw the walk to the first.
  assert tuple(map(int, chunked.span(length, start, 2, positions, 3))) == (1, 5)
  nothing = chunked.span(jnp.zeros(3, jnp.int32), start, 4, positions, 3)
  assert nothing.first >= nothing.end == 0


# The model.


@functools.partial(quick_jit, static_argnums=(0, 5))
def last_halves(spec, params, prompts, lengths, tail, chunks):
  """Hidden states of the second half of every completion, after the prompt and a cache of the first half."""
  prompt = model.read_prompts(spec, params, prompts, lengths)
  repeats, half = len(tail) // len(prompts), tail.shape[1] // 2
  first = jnp.repeat(model.last_token(prompts, lengths), repeats)
  inputs = jnp.concatenate([first[:, None], tail[:, :-1]], axis=1)
  start = jnp.repeat(lengths - 1, repeats)
  positions = start[:, None] + jnp.arange(inputs.shape[1])[None, :]
  _, kv = model.apply(spec, params, inputs[:, :half], positions[:, :half], (prompt,))
  room = jax.tree.map(lambda x: jnp.concatenate([x, jnp.full_like(x, 7.0)], axis=3), kv)
  own = Context(room, jnp.full(len(inputs), half), start, chunks[1])
  contexts = (prompt.replace(chunk=chunks[0]), own)
  return model.apply(spec, params, inputs[:, half:], positions[:, half:], contexts, keep_kv=False)[0]


@pytest.mark.parametrize(('name', 'chunks'), [('tall', (None, 2)), ('gemma2', (3, 2)), ('gemma3', (4, None))])
def test_the_model_reads_in_pieces(name, chunks):
  spec, rows = SPECS.get(name, TALL), make_rows([1, 3, 8], 2, 8)
  hidden = last_halves(spec, make_params(spec), *rows, chunks)
  whole = continuation_rows(spec, make_params(spec), *rows)
  np.testing.assert_allclose(hidden, whole[:, 4:], **HIDDEN)


def test_on_a_mesh():
  spec, rows = dataclasses.replace(SPEC, num_layers=1), make_rows([1, 3, 8, 4], 2, 8)
  params = make_params(spec)
  shardings = jax.tree.map(lambda x: x.sharding, model.abstract_params(spec, cube()))
  with jax.set_mesh(cube()):
    sharded = last_halves(spec, jax.device_put(params, shardings), *rows, (3, 2))
  np.testing.assert_allclose(sharded, continuation_rows(spec, params, *rows)[:, 4:], **HIDDEN)


def test_nothing_is_as_large_as_a_cache():
  """A layer's slice of it would be, handed to the loop over pieces."""
  spec, params = SPEC, make_params(SPEC)
  kv = jax.ShapeDtypeStruct((spec.num_layers, 5, spec.num_kv_heads, 4096, spec.head_dim), jnp.float32)
  at = jax.ShapeDtypeStruct((5,), jnp.int32)

  def step(params, key, value, length):
    context = Context(model.KV(key, value), length, jnp.zeros_like(length), 64)
    tokens = length[:, None]
    return model.apply(spec, params, tokens % 7, tokens, (context,))

  compiled = jax.jit(step).lower(params, kv, kv, at).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < kv.size * 4 / spec.num_layers / 4
