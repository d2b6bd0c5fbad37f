"""The largest logits of every row, in bins that a TPU kernel fills without looking across lanes.

Blocks of 128 ids go to groups of lanes in turn, so that every lane of a group is a bin with ids of its
own. A bin keeps its few largest logits in order; what finds no place leaves a trace in `rest`, the
largest such logit, by which a row is known to have lost nothing that matters.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib

GROUPS = 4  # Groups of bins, at most: as many as a tile has blocks of 128 ids.
_ROWS = 32  # At a time: more do not stay in registers.
_ODDS = 0.01  # Of a row whose k largest are not all in the bins, for logits in random order.


@dataclasses.dataclass(frozen=True)
class Shape:
  """Size of the bins of a row.

  Attributes:
    groups: of 128 bins each.
    depth: logits that a bin keeps.
    ids: whether it keeps their ids, as numbers of blocks of 128.
    others: how many other numbers it keeps of each, such as the other model's logit.
  """

  groups: int
  depth: int
  ids: bool
  others: int

  @property
  def fields(self) -> int:
    """Numbers that are kept of a logit."""
    return 1 + self.ids + self.others

  @property
  def bytes_per_row(self) -> int:
    """VMEM for the bins of a row."""
    return 4 * lib.LANES * (self.fields * self.depth * self.groups + 1)


class Bins(NamedTuple):
  """References to the bins of a block of rows.

  Attributes:
    values: [rows, groups·128] for each place in a bin, the largest first.
    blocks: the same of the numbers of the blocks of ids; empty if these are not kept.
    others: as many times the same of other numbers.
    rest: [rows, 128], the largest logit of a lane that found no place.
  """

  values: tuple
  blocks: tuple
  others: tuple
  rest: jax.Array

  @property
  def fields(self) -> tuple[tuple, ...]:
    """What is kept of a logit."""
    return tuple(x for x in (self.values, self.blocks, *self.others) if x)


def depth(k: int, bins: int) -> int:
  """Places in a bin that hold all of a row's k largest logits for 99 rows of 100 in random order."""
  for size in range(1, k):
    tail = 1 - sum(math.comb(k, n) * (bins - 1) ** (k - n) for n in range(size + 1)) / bins**k
    if tail * bins < _ODDS:
      return size
  return k


def groups(block_vocab: int, most: int = GROUPS) -> int:
  """Groups of bins for tiles as wide as this."""
  return min(most, block_vocab // lib.LANES)


def scratch(shape: Shape, rows: int) -> list:
  """VMEM of the bins, for `split`."""
  wide, lanes = (pltpu.VMEM((rows, n * lib.LANES), jnp.float32) for n in (shape.groups, 1))
  return [wide] * (shape.fields * shape.depth) + [lanes]


def split(shape: Shape, refs) -> Bins:
  """The bins in references to `scratch`."""
  *levels, rest = refs
  parts = [tuple(levels[start : start + shape.depth]) for start in range(0, len(levels), shape.depth)]
  values = parts.pop(0)
  blocks = parts.pop(0) if shape.ids else ()
  return Bins(values, blocks, tuple(parts), rest)


def start(bins: Bins) -> None:
  """Empty bins."""
  floors = (*bins.values, bins.rest)
  others = [ref for field in bins.others for ref in field]
  for refs, empty in ((floors, lib.FLOOR), (bins.blocks, -1.0), (others, 0.0)):
    for ref in refs:
      ref[...] = jnp.full(ref.shape, empty, jnp.float32)


def insert(bins: Bins, ranked_ref, other_refs, first_block: jax.Array | int, shared=()) -> None:
  """Adds a tile: a bin's logits move down a place when a larger one comes, the last of them out.

  Args:
    bins: where to.
    ranked_ref: logits [rows, vocab] to rank, of whole blocks of 128 ids.
    other_refs: other numbers [rows, vocab], as many as the bins keep.
    first_block: number of the tile's first block; ids above all that came before, which stay first
      among equals.
    shared: more other numbers [rows, 128], the same for all of the tile's blocks.
  """
  height = bins.rest.shape[0]
  step = _ROWS if height % _ROWS == 0 else height
  for start in range(0, height, step):
    _insert(bins, slice(start, start + step), ranked_ref, other_refs, first_block, shared)


def _insert(bins: Bins, rows: slice, ranked_ref, other_refs, first_block, shared) -> None:
  """`insert` of some rows."""
  rest = bins.rest[rows]
  size, count = bins.values[0].shape[1] // lib.LANES, ranked_ref.shape[1] // lib.LANES
  for group in range(size):
    lanes = slice(group * lib.LANES, (group + 1) * lib.LANES)
    kept = [[ref[rows, lanes] for ref in field] for field in bins.fields]
    for place in range(group, count, size):
      columns = slice(place * lib.LANES, (place + 1) * lib.LANES)
      coming = [ranked_ref[rows, columns]]
      if bins.blocks:
        coming.append(jnp.asarray(first_block + place, jnp.float32))
      coming += [*(ref[rows, columns] for ref in other_refs), *(x[rows] for x in shared)]
      for level in range(len(bins.values)):
        rises = coming[0] > kept[0][level]
        for field, x in enumerate(coming):
          old = kept[field][level]
          kept[field][level], coming[field] = jnp.where(rises, x, old), jnp.where(rises, old, x)
      rest = jnp.maximum(rest, coming[0])
    for refs, values in zip(bins.fields, kept, strict=True):
      for ref, x in zip(refs, values, strict=True):
        ref[rows, lanes] = x
  bins.rest[rows] = rest


def ids(blocks: jax.Array) -> jax.Array:
  """Vocabulary ids [rows, 128], as float32, of one group's numbers of blocks."""
  return blocks * lib.LANES + jax.lax.broadcasted_iota(jnp.int32, blocks.shape, 1).astype(jnp.float32)
