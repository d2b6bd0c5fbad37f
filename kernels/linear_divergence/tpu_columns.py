"""The head at a few ids of every row on a TPU: logits there and the gradients of these.

Rows of the head are gathered for `_ROWS` positions at a time, fewer where these rows are wide, and multiplied
with all of these: a matrix unit has that many columns in any case. What belongs to another position is
left out.
"""

import jax
import jax.numpy as jnp

from kernels.linear_divergence import tpu_blocks as lib

_ROWS = 128  # Positions at a time, at most.
_GATHERED = 2**25  # Bytes of the head's rows that are gathered at a time, at most.
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

  return lib.shaped(_in_parts(some, _positions(head, ids), hidden, ids), temperature, softcap)[0]


def pull(
  weights: jax.Array, head: jax.Array, ids: jax.Array, dtype: jnp.dtype, onto: jax.Array | None = None
) -> jax.Array:
  """Sums [N, D] in `dtype` of the head's rows at ids [N, n] times weights [N, n]; `onto` is added before."""

  def some(weights, ids, onto=0.0):
    wide = jnp.where(_own(ids), weights[..., None], 0.0).reshape(-1, ids.shape[0])
    return (onto + lib.contract(wide.astype(dtype), _rows(head, ids, dtype), (0, 0))).astype(dtype)

  return _in_parts(some, _positions(head, ids), weights, ids, *([] if onto is None else [onto]))


def push(weights: jax.Array, hidden: jax.Array, ids: jax.Array, like: jax.Array) -> jax.Array:
  """Gradient of a head `like` [V, D]: hidden states [N, D] times weights [N, n], added up at ids [N, n].

  Pairs of an id and a position are sorted by id and cut into parts of `_PAIRS`. A step of a loop has one
  part and one tile of the head that share ids: it multiplies the part's hidden states with a matrix
  that has a pair's weight where its id is. There are no more such steps than parts and tiles.
  """
  vocab, pairs = like.shape[0], ids.size
  tile, size = min(_TILE, vocab), min(_PAIRS, pairs)
  tiles, parts = -(-vocab // tile), -(-pairs // size)
  # The first tile reaches into the second, which overwrites what it has too much.
  firsts = jnp.maximum(vocab - (tiles - jnp.arange(tiles, dtype=jnp.int32)) * tile, 0)
  names, positions, values = _sorted(weights, ids, parts * size)
  ends = jnp.append(jnp.searchsorted(names[:pairs], firsts[1:]).astype(jnp.int32), pairs)
  # A step is the last of its tile once all parts that end before the tile does had theirs.
  lasts = jnp.arange(tiles) + jnp.maximum(-(-ends // size) - 1, 0)
  steps = jnp.arange(tiles + parts - 1)
  places = (lasts[None] < steps[:, None]).sum(1)
  part = jnp.minimum(steps - places, parts - 1)
  kept = jnp.append(False, places[1:] == places[:-1])
  names, positions, values = (x.reshape(parts, size) for x in (names, positions, values))

  def add(carry, step):
    total, gradient = carry
    part, first, kept = step
    spread = jnp.where((names[part] - first)[:, None] == jnp.arange(tile)[None], values[part][:, None], 0.0)
    rows = hidden.at[positions[part]].get(mode='promise_in_bounds')
    total = jnp.where(kept, total, 0.0) + lib.contract(spread.astype(hidden.dtype), rows, (0, 0))
    gradient = jax.lax.dynamic_update_slice_in_dim(gradient, total.astype(gradient.dtype), first, 0)
    return (total, gradient), None

  empty = jnp.zeros((tile, like.shape[1]), jnp.float32), jax.lax.empty(like.shape, like.dtype)
  return jax.lax.scan(add, empty, (part, firsts[places], kept))[0][1]


def _sorted(weights: jax.Array, ids: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Pairs in the order of their ids, [size] each: ids, positions, weights; what is added is of no tile."""
  names, order = jax.lax.sort((ids.reshape(-1), jnp.arange(ids.size, dtype=jnp.int32)), num_keys=1)
  values, positions = weights.astype(jnp.float32).reshape(-1)[order], order // ids.shape[1]
  pad = lambda x, value: jnp.pad(x, (0, size - ids.size), constant_values=value)  # noqa: E731
  return pad(names, -1), pad(positions, 0), pad(values, 0.0)


def _positions(head: jax.Array, ids: jax.Array) -> int:
  """Positions whose rows of the head are gathered together."""
  wide = ids.shape[1] * head.shape[1] * head.dtype.itemsize
  return min(_ROWS, max(8, _GATHERED // wide // 8 * 8))


def _in_parts(some, size: int, *arrays: jax.Array) -> jax.Array:
  """`some` of arrays [N, ...], `size` positions at a time."""
  count = arrays[0].shape[0]
  size = min(size, count)
  parts = [lib.at_least(x, -(-count // size) * size).reshape(-1, size, *x.shape[1:]) for x in arrays]
  result = jax.lax.map(lambda x: some(*x), tuple(parts))
  return result.reshape(-1, *result.shape[2:])[:count]


def _rows(head: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Rows [n·m, D] of the head at ids [n, m]."""
  return head.at[ids.reshape(-1)].get(mode='clip').astype(dtype)


def _own(ids: jax.Array) -> jax.Array:
  """[n, 1, n] for ids [n, m]: which of n positions they belong to."""
  return jnp.eye(ids.shape[0], dtype=bool)[:, None]
