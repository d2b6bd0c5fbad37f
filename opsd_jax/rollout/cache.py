"""The cache of keys and values: made, written a token at a time, filled from prompts that were read.

Axis letters: L layers, S rows (slots), Q questions, K key/value heads, W columns, P prompt tokens, H head
width, G groups of rows, one for each shard of them.
"""

import jax
import jax.numpy as jnp

from opsd_jax.mesh import constrain
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.transformer import KV
from opsd_jax.rollout import rows
from opsd_jax.rollout.config import Kind


def empty(spec: ModelSpec, count: int, width: int, kind: Kind = 'compute') -> KV:
  """Zeros for `count` rows of `width` columns: in the model's dtype, in bfloat16, or int8 with scales."""
  shape = (spec.num_layers, count, spec.num_kv_heads, width, spec.head_dim)
  if kind != 'int8':
    dtype = spec.dtype if kind == 'compute' else kind
    return pinned(KV(*(jnp.zeros(shape, dtype) for _ in range(2))))
  arrays = [jnp.zeros(shape, jnp.int8) for _ in range(2)] + [jnp.zeros(shape[:-1]) for _ in range(2)]
  return pinned(KV(*arrays))


def pinned(cache: KV) -> KV:
  """The cache in its declared layout, without which it would be replicated."""
  return jax.tree.map(lambda x: constrain(x, *rows.CACHE_AXES[: x.ndim]), cache)


def write(cache: KV, new: KV, column: jax.Array) -> KV:
  """The cache [L, S, K, W, H] with new tokens [L, S, K, 1, H] at column [S] of each row."""
  return rows.write(cache, _as(cache, new), column)


def place(cache: KV, prompts: KV, question: jax.Array, slot: jax.Array) -> KV:
  """The cache with a prompt of [L, Q, K, P, H] in the first columns of a row of each group.

  Args:
    cache: [L, S, K, W, H].
    prompts: as `cache` or unquantised.
    question: int32 [G], which of its group's prompts.
    slot: int32 [G], which of its group's rows; beyond the last: none.
  """
  return rows.place(cache, _as(cache, prompts), question, slot)


def gather(cache: KV, order: jax.Array) -> KV:
  """Rows `order` [G, s] of each group: [L, G·s, K, W, H]."""

  def one(x: jax.Array) -> jax.Array:
    grouped = x.reshape(x.shape[0], order.shape[0], -1, *x.shape[2:])
    taken = jax.vmap(lambda rows, at: jnp.take(rows, at, axis=1), (1, 0), 1)(grouped, order)
    return taken.reshape(x.shape[0], -1, *x.shape[2:])

  return pinned(jax.tree.map(one, cache))


def quantised(kv: KV) -> KV:
  """int8 keys and values with one scale a token and head: the largest magnitude becomes 127.

  A number is off by half a step at most, 1/254 of the largest of its token and head.
  """

  def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    steps = x / jnp.where(scale > 0, scale, 1.0)[..., None]
    return jnp.clip(jnp.round(steps), -127, 127).astype(jnp.int8), scale

  (key, key_scale), (value, value_scale) = split(kv.key), split(kv.value)
  return KV(key, value, key_scale, value_scale)


def kept(kv: KV, kind: Kind) -> KV:
  """Keys and values as a cache of that kind keeps them."""
  if kind == 'int8':
    return quantised(kv)
  return kv if kind == 'compute' else jax.tree.map(lambda x: x.astype(kind), kv)


def _as(cache: KV, kv: KV) -> KV:
  """`kv` as the cache keeps it."""
  return quantised(kv) if cache.key_scale is not None and kv.key_scale is None else kv
