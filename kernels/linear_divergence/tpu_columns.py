"""The head at a few ids of every row on a TPU: logits there and the gradients of these.

Rows of the head are gathered for `_ROWS` positions at a time and multiplied with all of these: a matrix
unit has that many columns in any case. What belongs to another position is left out.
"""

import jax
import jax.numpy as jnp

from kernels.linear_divergence import tpu_blocks as lib

_ROWS = 128  # Positions at a time.
_TILE = 512  # Rows of the head's gradient that are summed at a time.
_PAIRS = 1024  # Of ids and positions, that are added to these at a time.


def logits(
  hidden: jax.Array, head: jax.Array, ids: jax.Array, temperature: float, softcap: float | None
) -> jax.Array:
  """Shaped logits, float32 [N, n], of hidden states [N, D] at ids [N, n] of a head [V, D]."""

  def some(hidden, ids):
    rows = _rows(head, ids, hidden.dtype)
    products = lib.contract(rows, hidden, (1, 1)).reshape(*ids.shape, -1)
    return jnp.where(_own(ids), products, 0.0).sum(-1)

  return lib.shaped(_in_parts(some, hidden, ids), temperature, softcap)[0]


def pull(weights: jax.Array, head: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Sums [N, D] in `dtype` of the head's rows at ids [N, n] times weights [N, n]."""

  def some(weights, ids):
    wide = jnp.where(_own(ids), weights[..., None], 0.0).reshape(-1, ids.shape[0])
    return lib.contract(wide.astype(dtype), _rows(head, ids, dtype), (0, 0)).astype(dtype)

  return _in_parts(some, weights, ids)


def push(weights: jax.Array, hidden: jax.Array, ids: jax.Array, like: jax.Array) -> jax.Array:
  """Gradient of a head `like` [V, D]: hidden states [N, D] times weights [N, n], added up at ids [N, n].

  Pairs of an id and a position are sorted by id. A step of a loop takes up to `_PAIRS` of one tile of
  the head and multiplies their hidden states with a matrix that has a pair's weight where its id is;
  it writes the tile, whole after its last pair. No tile takes more steps than its pairs fill and one.
  """
  vocab, pairs = like.shape[0], ids.size
  tile, size = min(_TILE, vocab), min(_PAIRS, pairs)
  tiles, steps = -(-vocab // tile), -(-vocab // tile) + -(-pairs // size)
  table, ends = _sorted(weights, ids, tile, tiles, size)
  # The last tile comes first and reaches back; what it has too much the others overwrite.
  order = jnp.roll(jnp.arange(tiles), 1)
  begins = jnp.concatenate([jnp.zeros(1, jnp.int32), ends[:-1]])[order]
  firsts, ends = jnp.minimum(order * tile, vocab - tile), ends[order]

  def add(_, carry):
    place, cursor, total, gradient = carry
    first, end = firsts[place], ends[place]
    names, positions, values = jax.lax.dynamic_slice_in_dim(table, cursor, size, axis=1)
    weight = jax.lax.bitcast_convert_type(values, jnp.float32)
    weight = jnp.where(jnp.arange(size) < end - cursor, weight, 0.0)
    spread = jnp.where((names - first)[:, None] == jnp.arange(tile)[None], weight[:, None], 0.0)
    rows = hidden.at[positions].get(mode='clip')
    total += lib.contract(spread.astype(hidden.dtype), rows, (0, 0))
    gradient = jax.lax.dynamic_update_slice_in_dim(gradient, total.astype(gradient.dtype), first, 0)
    # After its last pair the last tile stays, with nothing left to add.
    turns = (cursor + size >= end) & (place < tiles - 1)
    place = jnp.where(turns, place + 1, place)
    cursor = jnp.where(turns, begins[place], cursor + size)
    return place, cursor, jnp.where(turns, 0.0, total), gradient

  empty = jnp.zeros((tile, like.shape[1]), jnp.float32), jax.lax.empty(like.shape, like.dtype)
  return jax.lax.fori_loop(0, steps, add, (jnp.int32(0), begins[0], *empty))[3]


def _sorted(
  weights: jax.Array, ids: jax.Array, tile: int, tiles: int, size: int
) -> tuple[jax.Array, jax.Array]:
  """Pairs in the order of their ids: int32 [3, pairs + size] of ids, positions, bits of the weights.

  And int32 [tiles], where the pairs of each tile of the head end.
  """
  names, order = jax.lax.sort((ids.reshape(-1), jnp.arange(ids.size, dtype=jnp.int32)), num_keys=1)
  bits = jax.lax.bitcast_convert_type(weights.astype(jnp.float32).reshape(-1)[order], jnp.int32)
  ends = jnp.searchsorted(names, (jnp.arange(tiles, dtype=jnp.int32) + 1) * tile).astype(jnp.int32)
  # One array, to be cut once in a step.
  table = jnp.stack([names, order // ids.shape[1], bits])
  return jnp.pad(table, [(0, 0), (0, size)]), ends


def _in_parts(some, left: jax.Array, right: jax.Array) -> jax.Array:
  """`some` of arrays [N, ...], `_ROWS` positions at a time."""
  count = left.shape[0]
  size = min(_ROWS, count)
  parts = [lib.at_least(x, -(-count // size) * size).reshape(-1, size, *x.shape[1:]) for x in (left, right)]
  result = jax.lax.map(lambda x: some(*x), tuple(parts))
  return result.reshape(-1, *result.shape[2:])[:count]


def _rows(head: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Rows [n·m, D] of the head at ids [n, m]."""
  return head.at[ids.reshape(-1)].get(mode='clip').astype(dtype)


def _own(ids: jax.Array) -> jax.Array:
  """[n, 1, n] for ids [n, m]: which of n positions they belong to."""
  return jnp.eye(ids.shape[0], dtype=bool)[:, None]
