"""Attention of new tokens over themselves and over shared, read-only contexts.

Axis letters: B rows, S new tokens, N query heads, K key/value heads, G = N / K, H head width,
R rows of a context (R divides B: context row r serves B / R consecutive rows), C context tokens.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opsd_jax.records import length_mask

MASKED = jnp.finfo(jnp.float32).min
BLOCK = 512  # queries whose scores over a row's own keys are made at a time


class Read(NamedTuple):
  """One layer of a run of tokens already read: key and value [R, K, C, H]; length and start int32 [R].

  Entry c is the token at position `start + c`; those at and beyond `length` are ignored. Keys and values
  of int8 are multiplied by their scales, float32 [R, K, C]; others have none.
  """

  key: jax.Array
  value: jax.Array
  length: jax.Array
  start: jax.Array
  key_scale: jax.Array | None = None
  value_scale: jax.Array | None = None


class Window(NamedTuple):
  """How far back tokens see: `size` int32 [] tokens, themselves among them; their positions int32 [B, S]."""

  size: jax.Array
  positions: jax.Array


class Segments(NamedTuple):
  """Several sequences in one row: `group` and `branch`, int32 [B, S].

  A token sees the tokens before it in the row that are of its own group and either of branch 0, which is
  the group's common beginning, or of its own branch. Sequences that share nothing are groups of one
  branch.
  """

  group: jax.Array
  branch: jax.Array


def attend_in_blocks(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  contexts: Sequence[Read],
  *,
  window: Window | None = None,
  segments: Segments | None = None,
  again: bool = False,
  **more: float | None,
) -> jax.Array:
  """`attend`, `BLOCK` queries at a time and each block over no key after its own.

  Nearly half of a long row's scores are never made, and few of them exist at a time. With `again` few exist
  at a time in a backward pass as well: each block's are made once more when it is its turn.
  """
  one = functools.partial(attend, **more)
  one, blocks = jax.checkpoint(one) if again else one, []
  for first, last in _blocks(query.shape[1]):
    seen = None if window is None else window._replace(positions=window.positions[:, :last])
    parts = jax.tree.map(lambda x, last=last: x[:, :last], (key, value, segments))
    blocks.append(one(query[:, first:last], *parts[:2], contexts, window=seen, segments=parts[2]))
  return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


def own_pairs(steps: int) -> int:
  """Pairs of a query and a key of its own row, of `steps` tokens, whose scores are made."""
  return sum((last - first) * last for first, last in _blocks(steps))


def _blocks(steps: int) -> list[tuple[int, int]]:
  return [(first, min(first + BLOCK, steps)) for first in range(0, steps, BLOCK)]


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  contexts: Sequence[Read],
  *,
  scale: float,
  softcap: float | None = None,
  window: Window | None = None,
  segments: Segments | None = None,
) -> jax.Array:
  """Causal attention over the new tokens, full attention over each context's first tokens.

  A context shared by several rows is never copied for them.

  Args:
    query: [B, S, N, H].
    key: [B, T, K, H] of new tokens, of which the queries are the last S.
    value: [B, T, K, H].
    contexts: what each row has read before.
    scale: multiplies the scores.
    softcap: c in c·tanh(score / c), before any masking, or None.
    window: what every token sees, with the positions [B, T]; None for all. Without segments a row's
      positions are consecutive.
    segments: which of a row's new tokens belong together, [B, T]; None for all. Contexts are seen by all.

  Returns:
    [B, S, N, H] in the dtype of `value`. Scores and softmax are float32.
  """
  batch, steps, heads, width = query.shape
  kv_heads = key.shape[2]
  query = query.reshape(batch, steps, kv_heads, heads // kv_heads, width)

  def shaped(scores):
    # Not on the query: in bfloat16, a scale that is no power of two would round every query.
    return soft_cap(scores * scale, softcap)

  own = shaped(jnp.einsum('bskgh,btkh->bkgst', query, key, preferred_element_type=jnp.float32))
  scores = [_masked(shaped(_context_scores(query, c)), c, window) for c in contexts]
  scores = [s.reshape(batch, kv_heads, heads // kv_heads, steps, -1) for s in scores]
  scores.append(jnp.where(own_visible(steps, key.shape[1], window, segments)[:, None, None], own, MASKED))

  probs = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(value.dtype)
  out, start = jnp.zeros((), value.dtype), 0
  for context in contexts:
    width_c = context.value.shape[2]
    out = out + _context_values(probs[..., start : start + width_c], context)
    start += width_c
  out = out + jnp.einsum('bkgst,btkh->bskgh', probs[..., start:], value)
  return out.reshape(batch, steps, heads, width)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
  """cap·tanh(x / cap), which keeps x within ±cap; x itself for None."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def own_visible(steps: int, keys: int, window: Window | None, segments: Segments | None) -> jax.Array:
  """bool [B, S, T], or [1, S, T] where rows are alike: which of T new tokens the last S attend to."""

  def pairs(compare, x):
    return compare(x[:, -steps:, None], x[:, None, :])

  at = jnp.arange(keys)[None]
  visible = pairs(jnp.greater_equal, at)
  if segments is not None:
    visible &= pairs(jnp.equal, segments.group)
    visible &= pairs(jnp.equal, segments.branch) | (segments.branch == 0)[:, None, :]
  if window is not None:
    # Of tokens that see each other, positions differ as they would in a row of their own.
    visible &= pairs(jnp.subtract, at if segments is None else window.positions) < window.size
  return visible


def _context_scores(query: jax.Array, context: Read) -> jax.Array:
  """float32 [R, B / R, K, G, S, C]."""
  batch, steps, kv_heads, group, width = query.shape
  rows = context.key.shape[0]
  shared = query.reshape(rows, batch // rows, steps, kv_heads, group, width)
  keys = context.key.astype(query.dtype)
  scores = jnp.einsum('rnskgh,rkch->rnkgsc', shared, keys, preferred_element_type=jnp.float32)
  # On the scores, a number for each token, and not on the keys: no cache in the compute dtype.
  return scores if context.key_scale is None else scores * context.key_scale[:, None, :, None, None]


def _masked(scores: jax.Array, context: Read, window: Window | None) -> jax.Array:
  """`_context_scores` masked beyond the context's length and before each token's window."""
  rows, repeats, _, _, steps, size = scores.shape
  visible = length_mask(context.length, size)[:, None, None, None, None, :]
  if window is not None:
    at = context.start[:, None] + jnp.arange(size)[None, :]
    age = window.positions[:, -steps:].reshape(rows, repeats, steps, 1) - at[:, None, None, :]
    visible = visible & (age < window.size)[:, :, None, None]
  return jnp.where(visible, scores, MASKED)


def _context_values(probs: jax.Array, context: Read) -> jax.Array:
  """[B, S, K, G, H], each row's part of the attention that falls on the context."""
  batch, kv_heads, group, steps, size = probs.shape
  rows, width = context.value.shape[0], context.value.shape[-1]
  shared = probs.reshape(rows, batch // rows, kv_heads, group, steps, size)
  if context.value_scale is not None:
    shared = (shared * context.value_scale[:, None, :, None, None]).astype(probs.dtype)
  out = jnp.einsum('rnkgsc,rkch->rnskgh', shared, context.value.astype(probs.dtype))
  return out.reshape(batch, steps, kv_heads, group, width)
