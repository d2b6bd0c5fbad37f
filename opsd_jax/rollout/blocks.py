"""A vocabulary's logits, block by block of 128 ids: what each block holds, without keeping the logits.

Axis letters: B rows, V vocabulary, D width, N blocks of the vocabulary.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opsd_jax import mesh as meshes
from opsd_jax.models.attention import soft_cap

BLOCK = 128  # lanes of a TPU vector register
_TILE = 32  # blocks whose logits a CPU holds at a time: with 64 rows they stay in its second-level cache
_COLUMNS = 4  # rows of hidden states from which a CPU computes faster with one row a column


class Scales(NamedTuple):
  """What multiplies the logits, float32 scalars."""

  behaviour: jax.Array  # of the distribution that is drawn from
  loss: jax.Array  # of the one that log-probabilities are reported of


class Blocks(NamedTuple):
  """What a draw must know of every block."""

  largest: jax.Array  # float32 [B, N]
  mass: jax.Array | None  # float32 [B, N], sum of exp(behaviour·(logit - largest)); None where not asked for
  loss_mass: jax.Array  # float32 [B, N], the same with the loss's scale
  logits: jax.Array | None  # float32 [B, N, 128], -inf where no id stands; None where not kept


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Which ids a block holds: block b of part p is ids p·V/parts + 128·b and on.

  Attributes:
    rows: V, of the head.
    valid: ids that can be drawn.
    parts: devices that the head's rows are split over.
    softcap: of the logits, or None.
  """

  rows: int
  valid: int
  parts: int
  softcap: float | None

  @property
  def blocks(self) -> int:
    """N."""
    return self.parts * self._blocks_of_a_part

  @property
  def _blocks_of_a_part(self) -> int:
    return -(-self.rows // self.parts // BLOCK)

  def ids(self, block: jax.Array, entry: jax.Array) -> jax.Array:
    """int32, the id of an entry of a block."""
    part, inside = jnp.divmod(block, self._blocks_of_a_part)
    return (part * (self.rows // self.parts) + inside * BLOCK + entry).astype(jnp.int32)


def vocabulary(rows: int, valid: int | None, softcap: float | None) -> Vocabulary:
  """The blocks of a head with `rows` rows on the current mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  parts = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in meshes.RULES['vocab'])
  parts = parts if rows % parts == 0 else 1
  return Vocabulary(rows, rows if valid is None else min(valid, rows), parts, softcap)


def read(
  vocabulary: Vocabulary,
  hidden: jax.Array,
  head: jax.Array,
  scales: Scales,
  *,
  tiled: bool,
  mass: bool,
  keep: bool,
) -> Blocks:
  """Every block of the logits of `hidden` [B, D] under `head` [V, D].

  Args:
    vocabulary: of the head.
    hidden: [B, D].
    head: [V, D].
    scales: of the masses.
    tiled: go over the vocabulary a few blocks at a time, or hold the logits of all of it.
    mass: whether `Blocks.mass` is asked for.
    keep: whether the logits stay.
  """

  def summary(rows: jax.Array) -> Blocks:
    if not keep and hidden.shape[0] >= _COLUMNS and rows.shape[0] % BLOCK == 0:
      return _by_columns(vocabulary, hidden, rows, scales, mass)
    return _summary(_padded(_logits(vocabulary, hidden, rows)), scales, mass, keep)

  if tiled:
    return _over_tiles(vocabulary, head, summary)
  return _summary(_at_once(vocabulary, hidden, head), scales, mass, keep)


def entries(vocabulary: Vocabulary, hidden: jax.Array, head: jax.Array, block: jax.Array) -> jax.Array:
  """float32 [B, 128]: the logits of one block a row, from the head again. The vocabulary has one part."""
  ids = block[:, None] * BLOCK + jnp.arange(BLOCK)[None, :]
  rows = head[jnp.minimum(ids, vocabulary.valid - 1)].astype(hidden.dtype)
  logits = jnp.einsum('bd,bnd->bn', hidden, rows, preferred_element_type=jnp.float32)
  return jnp.where(ids < vocabulary.valid, soft_cap(logits, vocabulary.softcap), -jnp.inf)


def _logits(vocabulary: Vocabulary, hidden: jax.Array, rows: jax.Array) -> jax.Array:
  """float32 [B, rows], soft-capped."""
  rows = rows.astype(hidden.dtype)
  logits = jnp.einsum('bd,vd->bv', hidden, rows, preferred_element_type=jnp.float32)
  return soft_cap(logits, vocabulary.softcap)


def _padded(logits: jax.Array) -> jax.Array:
  """[..., N, 128] of [..., ids], with -inf where no id stands."""
  widths = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % BLOCK)]
  return jnp.pad(logits, widths, constant_values=-jnp.inf).reshape(*logits.shape[:-1], -1, BLOCK)


def _at_once(vocabulary: Vocabulary, hidden: jax.Array, head: jax.Array) -> jax.Array:
  """All logits in blocks, each on the device that holds its rows of the head."""
  logits = meshes.constrain(_logits(vocabulary, hidden, head), 'batch', 'vocab')
  valid = jnp.arange(vocabulary.rows)[None, :] < vocabulary.valid
  logits = jnp.where(valid, logits, -jnp.inf).reshape(hidden.shape[0], vocabulary.parts, -1)
  logits = _padded(meshes.constrain(logits, 'batch', 'vocab', None))
  return meshes.constrain(logits.reshape(hidden.shape[0], -1, BLOCK), 'batch', 'vocab', None)


def _summary(logits: jax.Array, scales: Scales, mass: bool, keep: bool, axis: int = -1) -> Blocks:
  """What the blocks hold; `axis` of the logits is that of a block's ids, and is gone from the result."""
  largest = jnp.max(logits, axis=axis)
  below = logits - jnp.expand_dims(jnp.where(jnp.isneginf(largest), 0, largest), axis)

  def total(scale):
    return jnp.sum(jnp.exp(below * scale), axis=axis)

  loss = total(scales.loss)
  other = None
  if mass:
    other = jax.lax.cond(scales.behaviour == scales.loss, lambda: loss, lambda: total(scales.behaviour))
  return Blocks(largest, other, loss, logits if keep else None)


def _by_columns(vocabulary: Vocabulary, hidden: jax.Array, rows: jax.Array, scales: Scales, mass: bool):
  """`_summary` of the logits of whole blocks [N·128, D], computed as [N, 128, B].

  A CPU then adds and compares whole vectors of rows; with a block's ids side by side it would have to
  shuffle inside of each.
  """
  logits = jnp.einsum('vd,bd->vb', rows.astype(hidden.dtype), hidden, preferred_element_type=jnp.float32)
  logits = soft_cap(logits, vocabulary.softcap).reshape(rows.shape[0] // BLOCK, BLOCK, hidden.shape[0])
  return jax.tree.map(jnp.transpose, _summary(logits, scales, mass, False, axis=1))


def _over_tiles(vocabulary: Vocabulary, head: jax.Array, summary) -> Blocks:
  """A few blocks at a time; the last tile ends with the last full block and may repeat some."""
  full = vocabulary.valid // BLOCK
  tile = min(_TILE, full)

  def at(first: jax.Array) -> Blocks:
    rows = jax.lax.dynamic_slice_in_dim(head, first * BLOCK, tile * BLOCK)
    return summary(rows)

  def put(whole: Blocks, some: Blocks, first: jax.Array | int) -> Blocks:
    write = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, first, axis=1)  # noqa: E731
    return jax.tree.map(write, whole, some)

  def body(whole: Blocks, i: jax.Array) -> tuple[Blocks, None]:
    first = jnp.minimum(i * tile, full - tile)
    return put(whole, at(first), first), None

  rest = summary(head[full * BLOCK : vocabulary.valid])
  whole = jax.tree.map(lambda x: jnp.zeros((x.shape[0], x.shape[1] + full, *x.shape[2:]), x.dtype), rest)
  whole = put(whole, rest, full)
  return jax.lax.scan(body, whole, jnp.arange(-(-full // tile)))[0] if full else whole
