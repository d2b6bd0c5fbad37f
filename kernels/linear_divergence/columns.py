"""The head at a few ids of every position: logits there and the gradients of these, without all others."""

import jax
import jax.numpy as jnp

from kernels import tiles
from kernels.linear_divergence.parts import Plan

_GATHERED = 8  # Rows of the head that are gathered for a position at a time.
_COMPARED = 32  # Ids that a tile's are compared with in one operation.


def logits(
  plan: Plan, hidden: jax.Array, head: jax.Array, ids: jax.Array, temperature: float, softcap: float | None
) -> tuple[jax.Array, jax.Array | float]:
  """Shaped logits [B, T, n] at ids [B, T, n], and the soft-cap's slope there."""

  def step(_, ids):
    rows, own = _rows(plan, head, ids, hidden.dtype)
    raw = tiles.contract('btd,btnd->btn', hidden, rows)
    return None, jnp.where(own, raw, 0.0)

  raw = tiles.total(_joined(jax.lax.scan(step, None, _split(ids))[1], ids.shape[-1]), plan.axes)
  if softcap is None:
    return raw / temperature, 1.0
  level = jnp.tanh(raw / softcap)
  return level * (softcap / temperature), 1 - level * level


def pull(plan: Plan, weights: jax.Array, head: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Sum [B, T, D] of the head's rows at ids [B, T, n] times weights [B, T, n], in at least float32.

  Where devices share the vocabulary it is this device's share: of the rows that it has.
  """

  def step(total, part):
    weights, ids = part
    rows, own = _rows(plan, head, ids, dtype)
    if plan.masked:
      rows = jnp.where(own[..., None], rows, jnp.zeros_like(rows))  # 0 · NaN is NaN.
    return total + tiles.contract('btn,btnd->btd', jnp.where(own, weights, 0.0), rows), None

  zeros = jnp.zeros((*ids.shape[:2], head.shape[1]), weights.dtype)
  return jax.lax.scan(step, zeros, (_split(weights), _split(ids)))[0]


def push(plan: Plan, weights: jax.Array, hidden: jax.Array, ids: jax.Array, head: jax.Array) -> jax.Array:
  """Gradient [V, D] of a head: hidden states [B, T, D] times weights [B, T, n], added up at ids.

  Summed in at least float32, whatever the head's type.
  """

  def step(total, part):
    weights, ids = part
    local, own = _local(plan, head, ids)
    rows = jnp.where(own, weights, 0.0)[..., None] * hidden[:, :, None].astype(weights.dtype)
    return total.at[local].add(rows), None

  zeros = jnp.zeros(head.shape, weights.dtype)
  return jax.lax.scan(step, zeros, (_split(weights), _split(ids)))[0].astype(head.dtype)


def dense(weights: jax.Array, ids: jax.Array, tile_ids: jax.Array) -> jax.Array:
  """Weights [B, T, n] at ids [B, T, n] as a tile [B, T, m] whose ids are `tile_ids` [m].

  Comparisons, not a scatter: they are of one operation with what follows, and laid out like it.
  """

  def step(total, part):
    for weight, name in zip(*(jnp.moveaxis(x, -1, 0) for x in part), strict=True):
      total += jnp.where(name[..., None] == tile_ids[None, None], weight[..., None], 0.0)
    return total, None

  zeros = jnp.zeros((*ids.shape[:2], tile_ids.shape[0]), weights.dtype)
  return jax.lax.scan(step, zeros, (_split(weights, _COMPARED), _split(ids, _COMPARED)))[0]


def _split(x: jax.Array, size: int = _GATHERED) -> jax.Array:
  """[B, T, n] to [parts, B, T, at most `size`]; what is added is 0."""
  size = min(size, x.shape[-1])
  x = jnp.pad(x, [(0, 0), (0, 0), (0, -x.shape[-1] % size)])
  return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size), 2, 0)


def _joined(x: jax.Array, count: int) -> jax.Array:
  """The inverse of `_split` for `count` numbers."""
  x = jnp.moveaxis(x, 0, 2)
  return x.reshape(*x.shape[:2], -1)[..., :count]


def _local(plan: Plan, head: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array | bool]:
  """This device's rows of the head for ids, and whether they are its own."""
  if not plan.axes:
    return jnp.maximum(ids, 0), ids >= 0
  local = ids - plan.first_id()
  return jnp.clip(local, 0, head.shape[0] - 1), (local >= 0) & (local < head.shape[0]) & (ids >= 0)


def _rows(plan: Plan, head: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
  """Rows [B, T, n, D] of the head at ids [B, T, n], and whether they are this device's."""
  local, own = _local(plan, head, ids)
  return head[local].astype(dtype), own
