"""The sampler's cache of keys and values: made, written a token at a time, filled from a read prompt.

Pure functions; inside a loop's carry, or donated, the cache is changed in place. Axis letters: L layers,
R rows (slots), Q questions, K key/value heads, C tokens a row has room for, P prompt tokens, H head width.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from opsd_jax.mesh import constrain
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.transformer import KV

Kind = Literal['compute', 'bfloat16', 'int8']
AXES = ('layers', 'batch', 'kv_heads', 'length', 'head_dim')


def empty(spec: ModelSpec, rows: int, width: int, kind: Kind = 'compute') -> KV:
  """Zeros for `rows` rows of `width` tokens: in the model's dtype, in bfloat16, or int8 with scales."""
  shape = (spec.num_layers, rows, spec.num_kv_heads, width, spec.head_dim)
  dtype = jnp.dtype(spec.dtype if kind == 'compute' else kind)
  if kind != 'int8':
    return pinned(KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)))
  scales = (jnp.zeros(shape[:-1], jnp.float32) for _ in range(2))
  return pinned(KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), *scales))


def pinned(cache: KV) -> KV:
  """The cache in its declared layout, without which it would be replicated."""
  return jax.tree.map(lambda x: constrain(x, *AXES[: x.ndim]), cache)


def write(cache: KV, new: KV, position: jax.Array, active: jax.Array) -> KV:
  """Writes one token of every active row at the row's own position.

  Args:
    cache: [L, R, K, C, H].
    new: [L, R, K, 1, H], unquantised.
    position: int32 [R], below C where active.
    active: bool [R]; the other rows stay as they are.
  """
  size = cache.key.shape[3]
  at = jnp.where(active, position, size)[:, None]  # beyond the end, where a write is dropped

  def put(old, new):
    tail = old.ndim - 4
    numbers = jax.lax.ScatterDimensionNumbers(
      update_window_dims=(0, 2, *range(3, 3 + tail)),
      inserted_window_dims=(3,),
      scatter_dims_to_operand_dims=(3,),
      operand_batching_dims=(1,),
      scatter_indices_batching_dims=(0,),
    )
    options = dict(unique_indices=True, indices_are_sorted=True, mode=jax.lax.GatherScatterMode.FILL_OR_DROP)
    return jax.lax.scatter(old, at, jnp.squeeze(new, 3), numbers, **options)

  return jax.tree.map(put, cache, _like(new, cache))


def place(cache: KV, prompts: KV, question: jax.Array, slot: jax.Array) -> KV:
  """Copies one prompt into the first columns of one row.

  Args:
    cache: [L, R, K, C, H] with C >= P.
    prompts: [L, Q, K, P, H], as `cache` or unquantised.
    question: int32 [], whose prompt.
    slot: int32 [], the row.
  """
  one = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, question, 1, axis=1), prompts)

  def put(old, new):
    return jax.lax.dynamic_update_slice(old, new, (0, slot, 0, 0, 0)[: old.ndim])

  return jax.tree.map(put, cache, _like(one, cache))


def quantised(kv: KV) -> KV:
  """int8 keys and values with one scale a token and head: the largest magnitude becomes 127.

  A number is off by half a step at most, 1/254 of the largest of its token and head.
  """

  def split(x):
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    steps = x / jnp.where(scale > 0, scale, 1.0)[..., None]
    return jnp.clip(jnp.round(steps), -127, 127).astype(jnp.int8), scale

  (key, key_scale), (value, value_scale) = split(kv.key), split(kv.value)
  return KV(key, value, key_scale, value_scale)


def _like(kv: KV, cache: KV) -> KV:
  """`kv` as the cache keeps it."""
  if cache.key_scale is not None and kv.key_scale is None:
    return quantised(kv)
  return jax.tree.map(lambda x, kept: x.astype(kept.dtype), kv, cache)
