"""Writes to rows of a cache in place: a token to every row, each at its own column, or a prompt to one row.

Axis letters: L layers, S rows (slots), K heads, W columns, G groups of rows, one for each shard of them.

A TPU rewrites the whole array for one scatter, and lays it out anew for it: at every token that would be
several times the bytes that attention reads. A slice at a time, in a loop over a device's own rows, stays in
place. On other devices a scatter does, in one kernel.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from opsd_jax import mesh as meshes

CACHE_AXES = ('layers', 'batch', 'kv_heads', 'length', 'head_dim')


def write(cache: Any, new: Any, column: jax.Array) -> Any:
  """The arrays [L, S, K, W, ...] with `new` [L, S, K, 1, ...] at column [S] of each row; inside jit."""
  step = functools.partial(jax.lax.platform_dependent, tpu=_one_by_one, default=_scattered)
  return _on_each_device(step, cache, new, column)


def place(cache: Any, prompts: Any, question: jax.Array, row: jax.Array) -> Any:
  """The arrays with a prompt in the first columns of one row of every group; inside jit.

  Args:
    cache: arrays [L, S, K, W, ...].
    prompts: arrays [L, Q, K, P, ...] with P at most W.
    question: int32 [G], which of its group's prompts.
    row: int32 [G], which of its group's rows; beyond the last: none.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and row.shape[0] == meshes.row_shards(mesh):
    return _on_each_device(_place, cache, prompts, question, row)
  return _place(cache, prompts, question, row)


def _on_each_device(function: Callable[..., Any], cache: Any, *others: Any) -> Any:
  """Runs the function on what a device has of the rows and of the heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function(cache, *others)

  def where(x: jax.Array) -> PartitionSpec:
    return meshes.partition(mesh, CACHE_AXES[: x.ndim] if x.ndim > 1 else ('batch',), x.shape)

  specs = jax.tree.map(where, (cache, *others))
  return jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)(cache, *others)


def _one_by_one(cache: Any, new: Any, column: jax.Array) -> Any:
  def row(s: jax.Array, cache: Any) -> Any:
    return jax.tree.map(
      lambda c, n: _put(c, jax.lax.dynamic_slice_in_dim(n, s, 1, 1), s, column[s]), cache, new
    )

  return jax.lax.fori_loop(0, column.shape[0], row, cache)


def _scattered(cache: Any, new: Any, column: jax.Array) -> Any:
  def put(old: jax.Array, token: jax.Array) -> jax.Array:
    numbers = jax.lax.ScatterDimensionNumbers(
      update_window_dims=(0, *range(2, old.ndim - 1)),
      inserted_window_dims=(3,),
      scatter_dims_to_operand_dims=(3,),
      operand_batching_dims=(1,),
      scatter_indices_batching_dims=(0,),
    )
    token = jnp.squeeze(token, 3).astype(old.dtype)
    how = dict(unique_indices=True, indices_are_sorted=True, mode=jax.lax.GatherScatterMode.FILL_OR_DROP)
    return jax.lax.scatter(old, column[:, None], token, numbers, **how)

  return jax.tree.map(put, cache, new)


def _put(cache: jax.Array, new: jax.Array, row: jax.Array, column: int | jax.Array) -> jax.Array:
  at = (0, row, 0, column, *[0] * (cache.ndim - 4))
  return jax.lax.dynamic_update_slice(cache, new.astype(cache.dtype), at)


def _place(cache: Any, prompts: Any, question: jax.Array, row: jax.Array) -> Any:
  def one(c: jax.Array, p: jax.Array) -> jax.Array:
    groups = row.shape[0]
    rows, questions = c.shape[1] // groups, p.shape[1] // groups
    for g in range(groups):
      at = g * rows + jnp.minimum(row[g], rows - 1)
      new = jax.lax.dynamic_slice_in_dim(p, g * questions + question[g], 1, 1).astype(c.dtype)
      old = jax.lax.dynamic_slice(c, (0, at, *[0] * (c.ndim - 2)), new.shape)
      c = _put(c, jnp.where(row[g] < rows, new, old), at, 0)
    return c

  return jax.tree.map(one, cache, prompts)
