"""Attention of new tokens over themselves and over shared, read-only contexts.

Axis letters: B rows, S new tokens, N query heads, K key/value heads, G = N / K, H head width,
R rows of a context (R divides B: context row r serves B / R consecutive rows), C context tokens.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from opsd_jax.records import length_mask

MASKED = jnp.finfo(jnp.float32).min


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  contexts: Sequence[tuple[jax.Array, jax.Array, jax.Array]],
) -> jax.Array:
  """Causal attention over the new tokens, full attention over each context's first tokens.

  A context shared by several rows is never copied for them.

  Args:
    query: [B, S, N, H].
    key: [B, S, K, H].
    value: [B, S, K, H].
    contexts: (keys [R, C, K, H], values [R, C, K, H], length [R]) each.

  Returns:
    [B, S, N, H] in the dtype of `value`. The softmax is float32.
  """
  batch, steps, heads, width = query.shape
  kv_heads = key.shape[2]
  query = query.reshape(batch, steps, kv_heads, heads // kv_heads, width) * width**-0.5

  causal = jnp.tril(jnp.ones((steps, steps), bool))
  own = jnp.einsum('bskgh,btkh->bkgst', query, key, preferred_element_type=jnp.float32)
  scores = [_context_scores(query, keys, length) for keys, _, length in contexts]
  scores.append(jnp.where(causal[None, None, None], own, MASKED))

  probs = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(value.dtype)
  out, start = jnp.zeros((), value.dtype), 0
  for _, values, _ in contexts:
    width_c = values.shape[1]
    out = out + _context_values(probs[..., start : start + width_c], values)
    start += width_c
  out = out + jnp.einsum('bkgst,btkh->bskgh', probs[..., start:], value)
  return out.reshape(batch, steps, heads, width)


def _context_scores(query: jax.Array, keys: jax.Array, length: jax.Array) -> jax.Array:
  """float32 [B, K, G, S, C], masked beyond each context's length."""
  batch, steps, kv_heads, group, width = query.shape
  rows, size = keys.shape[:2]
  shared = query.reshape(rows, batch // rows, steps, kv_heads, group, width)
  scores = jnp.einsum('rnskgh,rckh->rnkgsc', shared, keys, preferred_element_type=jnp.float32)
  visible = length_mask(length, size)[:, None, None, None, None, :]
  return jnp.where(visible, scores, MASKED).reshape(batch, kv_heads, group, steps, size)


def _context_values(probs: jax.Array, values: jax.Array) -> jax.Array:
  """[B, S, K, G, H], each row's part of the attention that falls on the context."""
  batch, kv_heads, group, steps, size = probs.shape
  rows, width = values.shape[0], values.shape[-1]
  shared = probs.reshape(rows, batch // rows, kv_heads, group, steps, size)
  out = jnp.einsum('rnkgsc,rckh->rnskgh', shared, values)
  return out.reshape(batch, steps, kv_heads, group, width)


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
  """Rotary position embedding in the half-split layout of Hugging Face checkpoints.

  Args:
    x: [B, S, heads, H].
    positions: int32 [B, S].
    theta: base of the frequencies.
  """
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)
