"""Attention that reads a cache some tokens at a time, and only as far as its longest row reaches.

Softmax with a running maximum and sum (arXiv 1805.02867). What a row gets does not depend on how long
the others are: a piece in which it has no token multiplies by exactly 1 and adds exactly 0. For decoding
and for scoring without gradients: the number of pieces is known when it runs, so there is no derivative.

Axis letters as in `attention`, and M = (B / R)·G·S queries that read the same head of one context row.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opsd_jax.models.attention import MASKED, Read, Window, own_visible, soft_cap


class Walk(NamedTuple):
  """One layer of a run of tokens already read, in pieces of `chunk` tokens from `first` to before `end`.

  It holds all layers: one layer's slice, handed to the loop over pieces, would be copied whole.
  """

  key: jax.Array  # [L, R, K, C, H]
  value: jax.Array  # [L, R, K, C, H]
  key_scale: jax.Array | None  # float32 [L, R, K, C], of an int8 key
  value_scale: jax.Array | None
  layer: jax.Array  # int32 []
  length: jax.Array  # int32 [R]
  start: jax.Array  # int32 [R]
  first: jax.Array  # int32 [], a piece
  end: jax.Array  # int32 [], a piece
  chunk: int


class Span(NamedTuple):
  """Which pieces of a context any row sees, int32 []: from 0 to before `end`, in a window from `first`."""

  first: jax.Array
  end: jax.Array


class Mix(NamedTuple):
  """A softmax under way, float32: its largest score, the sum of its weights, and its weighted values."""

  peak: jax.Array  # [B, K, G, S] or [R, K, M]
  total: jax.Array
  values: jax.Array  # [..., H]


def usual_chunk() -> int:
  """Tokens of a piece: on a CPU few enough that a piece stays near, else whole TPU tiles (not measured)."""
  return 64 if jax.default_backend() == 'cpu' else 128


def span(length: jax.Array, start: jax.Array, chunk: int, positions: jax.Array, window: int | None) -> Span:
  """The pieces of a context that rows of `length` [R] see from `positions` [B, S].

  Found once for all layers, since it asks all rows, which may live on several devices.
  """
  end = (jnp.max(length) + chunk - 1) // chunk
  if window is None:
    return Span(jnp.zeros_like(end), end)
  before = jnp.min(positions.reshape(length.shape[0], -1), axis=1) - start
  oldest = jnp.where(length > 0, jnp.maximum(before + 1 - window, 0), jnp.iinfo(jnp.int32).max)
  return Span(jnp.min(oldest) // chunk, end)


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  contexts: Sequence[Read | Walk],
  *,
  scale: float,
  softcap: float | None = None,
  window: Window | None = None,
) -> jax.Array:
  """As `attention.attend`, which see; a `Read` is one piece. Sums are float32."""
  batch, steps, heads, width = query.shape
  kv_heads = key.shape[2]
  query = query.reshape(batch, steps, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)

  def shaped(scores):
    return soft_cap(scores * scale, softcap)

  # First the tokens' own: each sees itself, so that the maximum is a real score from here on.
  scores = shaped(jnp.einsum('bkgsh,btkh->bkgst', query, key, preferred_element_type=jnp.float32))
  weighted = functools.partial(jnp.einsum, 'bkgst,btkh->bkgsh', preferred_element_type=jnp.float32)
  mix = Mix(*(jnp.zeros(query.shape[:4]) for _ in range(2)), jnp.zeros(query.shape))
  mix = mix._replace(peak=jnp.full_like(mix.peak, MASKED))
  mix = _merged(
    mix,
    scores,
    own_visible(steps, steps, window, None)[:, None, None],
    lambda w: weighted(w.astype(value.dtype), value),
  )
  for context in contexts:
    mix = _after(mix, query, context, shaped, window)
  out = (mix.values / mix.total[..., None]).astype(value.dtype)
  return out.transpose(0, 3, 1, 2, 4).reshape(batch, steps, heads, width)


def _merged(mix: Mix, scores: jax.Array, visible: jax.Array, weighted: Callable) -> Mix:
  """`mix` and what `visible` of `scores` adds; `weighted` sums values by weights."""
  peak = jnp.maximum(mix.peak, jnp.max(jnp.where(visible, scores, MASKED), axis=-1))
  # Zero by `where`, not by an exponent that some backend may round up.
  weights = jnp.where(visible, jnp.exp(scores - peak[..., None]), 0.0)
  keep = jnp.exp(mix.peak - peak)
  total = mix.total * keep + jnp.sum(weights, axis=-1)
  return Mix(peak, total, mix.values * keep[..., None] + weighted(weights))


def _after(mix: Mix, query: jax.Array, context: Read | Walk, shaped: Callable, window: Window | None) -> Mix:
  """`mix` [B, ...] and the context; queries are first laid out by the context's rows."""
  rows, group = context.length.shape[0], query.shape[2]
  asked = _by_context(query, rows)
  positions = None
  if window is not None:
    positions = jnp.repeat(window.positions[:, None, None], group, axis=2)
    positions = _by_context(positions, rows)  # [R, 1, M]

  def read(mix: Mix, piece: Read, first: int | jax.Array, fresh: int | jax.Array) -> Mix:
    """`mix` and a piece whose entries are those from `first`; those before `fresh` are known already."""
    visible = _visible(piece, first, fresh, positions, window)
    keys, values = piece.key.astype(asked.dtype), piece.value.astype(asked.dtype)
    scores = jnp.einsum('rkmh,rkch->rkmc', asked, keys, preferred_element_type=jnp.float32)
    if piece.key_scale is not None:
      scores = scores * piece.key_scale[:, :, None]

    def weighted(weights):
      if piece.value_scale is not None:
        weights = weights * piece.value_scale[:, :, None]
      weights = weights.astype(values.dtype)
      return jnp.einsum('rkmc,rkch->rkmh', weights, values, preferred_element_type=jnp.float32)

    return _merged(mix, shaped(scores), visible, weighted)

  mixed = jax.tree.map(lambda x: _by_context(x, rows), mix)
  mixed = _walked(mixed, context, read) if isinstance(context, Walk) else read(mixed, context, 0, 0)
  return jax.tree.map(lambda x, y: _by_row(x, y.shape), mixed, mix)


def _walked(mix: Mix, walk: Walk, read: Callable) -> Mix:
  size = walk.key.shape[3]
  chunk = min(walk.chunk, size)

  def piece(i: jax.Array, mix: Mix) -> Mix:
    # The last piece of a context that is no multiple of pieces starts early.
    first = jnp.minimum(i * walk.chunk, size - chunk)

    def cut(x):
      sizes = (1, *x.shape[1:3], chunk, *x.shape[4:])
      return jax.lax.dynamic_slice(x, (walk.layer, 0, 0, first, 0)[: x.ndim], sizes)[0]

    kv = jax.tree.map(cut, (walk.key, walk.value, walk.key_scale, walk.value_scale))
    return read(mix, Read(*kv[:2], walk.length, walk.start, *kv[2:]), first, i * walk.chunk)

  return jax.lax.fori_loop(walk.first, walk.end, piece, mix)


def _visible(piece: Read, first, fresh, positions: jax.Array | None, window: Window | None) -> jax.Array:
  """bool [R, 1, 1 or M, C]."""
  at = first + jnp.arange(piece.key.shape[2])[None, :]
  visible = ((at >= fresh) & (at < piece.length[:, None]))[:, None, None]
  if window is None:
    return visible
  age = positions[..., None] - (piece.start[:, None] + at)[:, None, None]
  return visible & (age < window.size)


def _by_context(x: jax.Array, rows: int) -> jax.Array:
  """[B, K, G, S, ...] -> [R, K, M, ...]."""
  split = x.reshape(rows, -1, *x.shape[1:]).swapaxes(1, 2)
  return split.reshape(rows, x.shape[1], -1, *x.shape[4:])


def _by_row(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """`_by_context` undone: [R, K, M, ...] -> `shape` [B, K, G, S, ...]."""
  rows = x.shape[0]
  split = x.reshape(rows, shape[1], shape[0] // rows, *shape[2:])
  return split.swapaxes(1, 2).reshape(shape)
