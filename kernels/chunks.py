"""Runs a per-token function over chunks of time, so that nothing as large as [B, T, V] exists."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar('Carry')
Tree = TypeVar('Tree')


def map_time(body: Callable[..., Tree], arrays: Sequence[jax.Array], chunk_tokens: int) -> Tree:
  """`body(*arrays)` computed over chunks of the time axis and recomputed in the backward pass.

  Chunks are cut along time and keep the whole batch: a batch axis sharded over devices stays so,
  which it would not if [B, T] were flattened into rows. Arrays that `body` closes over (the heads)
  get gradients summed over chunks in their own type.

  Args:
    body: maps arrays [B, t, ...] to a tree of arrays [B, t, ...], each position independently.
    arrays: [B, T, ...] each. Time is padded with zeros; what `body` makes of them is dropped, but
      must be finite with finite derivatives.
    chunk_tokens: tokens in a chunk, over the whole batch; at least one time step is taken.

  Returns:
    The tree of arrays [B, T, ...].
  """
  # The loop already keeps the recomputation apart from the forward pass; a barrier only costs time.
  step = jax.checkpoint(lambda _, *chunk: (None, body(*chunk)), prevent_cse=False)
  return fold_time(step, None, arrays, chunk_tokens)[1]


def fold_time(
  body: Callable[..., tuple[Carry, Tree]], carry: Carry, arrays: Sequence[jax.Array], chunk_tokens: int
) -> tuple[Carry, Tree]:
  """`carry, tree = body(carry, *arrays)` over the same chunks; no recomputation of its own.

  Args:
    body: as in `map_time`, with a carry that padded positions, whose arrays are 0, must leave alone.
    carry: given to the first chunk.
    arrays: [B, T, ...] each.
    chunk_tokens: tokens in a chunk, over the whole batch.

  Returns:
    The last carry, and the tree of arrays [B, T, ...].
  """
  batch, time = arrays[0].shape[:2]
  size = chunk_size(batch, time, chunk_tokens)
  chunks = [_split(array, size) for array in arrays]
  carry, results = jax.lax.scan(lambda carry, chunk: body(carry, *chunk), carry, chunks)
  return carry, jax.tree.map(lambda result: _join(result, time), results)


def chunk_size(batch: int, time: int, chunk_tokens: int) -> int:
  """Time steps in a chunk: `chunk_tokens` over the batch, at least 1 and at most `time`."""
  return max(1, min(time, chunk_tokens // max(1, batch)))


def _split(array: jax.Array, size: int) -> jax.Array:
  """[B, T, ...] to [chunks, B, size, ...], padded with zeros."""
  batch, time, *rest = array.shape
  array = jnp.pad(array, [(0, 0), (0, -time % size)] + [(0, 0)] * len(rest))
  return jnp.moveaxis(array.reshape(batch, -(-time // size), size, *rest), 1, 0)


def _join(array: jax.Array, time: int) -> jax.Array:
  """[chunks, B, size, ...] to [B, T, ...]."""
  chunks, batch, size, *rest = array.shape
  return jnp.moveaxis(array, 0, 1).reshape(batch, chunks * size, *rest)[:, :time]
