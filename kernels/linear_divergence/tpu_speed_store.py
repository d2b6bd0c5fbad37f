"""Kernels for a chunk of positions whose logits are stored, so that no product is made twice.

Of an entry are kept, in the type of the hidden states,

  e = exp(max(a, b)) and the gap a - b,   a = student's logit - its maximum so far, b = teacher's,

from which q ~ e·min(1, exp(gap)) and p ~ e·min(1, exp(-gap)). Both have e's digits however far the
logits lie from their maxima, the larger of the two has no others, and what they differ by has those
of the gap: where the models agree it is small, and so is its rounding. Either logit rounded as it
is would lose the difference. The maxima so far are kept for every tile.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence import tpu_entries as entries
from kernels.linear_divergence import tpu_sides
from kernels.linear_divergence.spec import DivergenceSpec

_SUMS = 3  # loss, level, changed
HALF = lib.LANES // 2  # Tiles whose maxima share a block of lanes: the student's, then the teacher's.
_TINY = 1e-38


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
  """A chunk of c positions.

  Attributes:
    peaks: [c, V rounded up], e above.
    gaps: [c, V rounded up], a - b.
    maxima: float32 [c, 128·n]: those of tile i in lanes i % 64 and i % 64 + 64 of block i // 64.
    tile: vocabulary entries of a tile.
  """

  peaks: jax.Array
  gaps: jax.Array
  maxima: jax.Array
  tile: int = dataclasses.field(metadata=dict(static=True))


def space(spec: DivergenceSpec, arrays, size: int, wanted: tpu_sides.Wanted) -> tuple[jax.Array, jax.Array]:
  """Memory for the peaks and the gaps of `size` positions, to be used by every chunk.

  A loop that makes them anew in each turn, beside a sum that it carries, costs the TPU compiler a
  third of them more.
  """
  blocks = _store_blocks(spec, arrays, size, wanted)
  shape = size, blocks.valid_steps * blocks.block_vocab
  return tuple(jax.lax.empty(shape, arrays[0].dtype) for _ in range(2))


def store(
  spec: DivergenceSpec,
  arrays,
  targets: jax.Array,
  memory: tuple[jax.Array, jax.Array],
  wanted: tpu_sides.Wanted,
) -> tuple[tpu_sides.Side, tpu_sides.Side, Stored]:
  """Both sides' statistics and what is stored of c positions.

  Args:
    spec: what to compare.
    arrays: student's hidden states [c, D] and head [V, D], teacher's, whose head may be None for the
      student's. Heads are used in the type of the hidden states.
    targets: int32 [c].
    memory: from `space`; what it holds is lost.
    wanted: which statistics.
  """
  student_hidden, _, teacher_hidden, _ = arrays
  rows = [targets[:, None], student_hidden, teacher_hidden]
  blocks = _store_blocks(spec, arrays, targets.shape[0], wanted)
  heads = [lib.at_least(x, blocks.block_vocab) for x in arrays[1::2] if x is not None]
  count = blocks.rows
  tile = pl.BlockSpec(blocks.tile, lambda row, vocab: (row, vocab))
  lanes = jax.ShapeDtypeStruct((count, lib.LANES), jnp.float32)
  maxima = jax.ShapeDtypeStruct((count, lib.LANES * pl.cdiv(blocks.valid_steps, HALF)), jnp.float32)
  stats, *stored = pl.pallas_call(
    lambda *refs: _store(spec, wanted, blocks, refs[:3], refs[3 : 3 + len(heads)], refs[5 + len(heads) :]),
    grid=(blocks.row_steps, blocks.valid_steps),
    in_specs=[lib.row_block(blocks, x.shape[1], 0, buffers=1) for x in rows]
    + [lib.vocab_block(blocks, x.shape[1], 1) for x in heads]
    + [pl.BlockSpec(memory_space=pl.ANY)] * 2,
    out_specs=[
      lib.row_block(blocks, lib.LANES, 0),
      tile,
      tile,
      pl.BlockSpec((blocks.block_rows, lib.LANES), lambda row, vocab: (row, jax.lax.div(vocab, HALF))),
    ],
    out_shape=[lanes, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in memory), maxima],
    scratch_shapes=[pltpu.VMEM(blocks.tile, jnp.float32)] * 2
    + [pltpu.VMEM((blocks.block_rows, lib.LANES), jnp.float32)] * wanted.count,
    compiler_params=lib.PARAMS,
    input_output_aliases={len(rows) + len(heads) + number: 1 + number for number in range(2)},
    name='linear_divergence_store',
  )(*rows, *heads, *memory)
  return *tpu_sides.of_lanes(wanted, stats), Stored(*stored, blocks.block_vocab)


def _half(count: int) -> int:
  """Rows of a block: two cores share a chunk."""
  return count // 2 if count % 32 == 0 else count


def _store_blocks(spec, arrays, count: int, wanted) -> lib.Blocks:
  student_hidden, student_head, teacher_hidden, teacher_head = arrays
  heads = [x for x in (student_head, teacher_head) if x is not None]
  row_bytes = lib.bytes_per_row(student_hidden, teacher_hidden, buffers=1)
  # Statistics, the target, and two blocks of the results and the maxima.
  row_bytes += (wanted.count + 5) * 4 * lib.LANES
  candidates = tuple((_half(count), vocab) for _, vocab in lib.ROW_MAJOR)
  sizes = count, student_head.shape[0], spec.valid_vocab or student_head.shape[0]
  return lib.choose(*sizes, row_bytes, lib.bytes_per_row(*heads), candidates)


def _store(spec, wanted, blocks, row_refs, head_refs, refs) -> None:
  target_ref, student_ref, teacher_ref = row_refs
  stats_ref, peak_ref, gap_ref, maxima_ref, z_ref, u_ref, *lanes = refs
  step = pl.program_id(1)

  @pl.when(step == 0)
  def _():
    for ref, value in zip(lanes, tpu_sides.empty(wanted), strict=True):
      ref[...] = jnp.full(ref.shape, value, jnp.float32)

  lib.tile_logits(spec, blocks, (student_ref, teacher_ref), head_refs, (z_ref, u_ref), step)
  sides = tpu_sides.split(wanted, [ref[...] for ref in lanes])
  block = step * (blocks.block_vocab // lib.LANES)
  after = tpu_sides.update(sides, z_ref, u_ref, target_ref[...], block, True)
  for ref, value in zip(lanes, tpu_sides.flat(after), strict=True):
    ref[...] = value
  tops = [lib.row_max(side.maximum) for side in after]
  below, below_teacher = z_ref[...] - tops[0], u_ref[...] - tops[1]
  peak_ref[...] = jnp.exp(jnp.maximum(below, below_teacher)).astype(peak_ref.dtype)
  gap_ref[...] = (below - below_teacher).astype(gap_ref.dtype)
  lane, place = _places(maxima_ref.shape, step)
  maxima = jnp.where(lane == place, tops[0], maxima_ref[...])
  maxima_ref[...] = jnp.where(lane == place + HALF, tops[1], maxima)

  @pl.when(step == pl.num_programs(1) - 1)
  def _():
    stats_ref[...] = lib.in_lanes(tpu_sides.flat(tpu_sides.combined(after, True)), stats_ref.shape)


def _places(shape, step):
  return jax.lax.broadcasted_iota(jnp.int32, shape, 1), jax.lax.rem(step, HALF)


class Tile(NamedTuple):
  """Probabilities [rows, vocab] and log (q / p) of a tile, and the student's shaped logits or None."""

  p: jax.Array
  q: jax.Array
  gap: jax.Array
  logits: jax.Array | None


def read(spec, refs, step) -> Tile:
  """A tile of which the maxima so far were the `step`-th."""
  norms_ref, peak_ref, gap_ref, maxima_ref = refs
  lane, place = _places(maxima_ref.shape, step)
  maxima = maxima_ref[...]
  pick = lambda place: lib.row_sum(jnp.where(lane == place, maxima, 0.0))  # noqa: E731
  top, top_teacher = pick(place), pick(place + HALF)
  norms = norms_ref[...]
  rise = top - norms[:, 0:1] - norms[:, 1:2]
  rise_teacher = top_teacher - norms[:, 2:3] - norms[:, 3:4]
  peak, gap = peak_ref[...].astype(jnp.float32), gap_ref[...].astype(jnp.float32)
  other = peak * jnp.exp(-jnp.abs(gap))
  above = gap > 0
  q = jnp.where(above, peak, other) * jnp.exp(rise)
  p = jnp.where(above, other, peak) * jnp.exp(rise_teacher)
  logits = None
  if spec.student_softcap is not None:
    logits = top + jnp.log(jnp.maximum(peak, _TINY)) + jnp.minimum(gap, 0.0)
  return Tile(p, q, gap + (rise - rise_teacher), logits)


def sums(spec: DivergenceSpec, stored: Stored, norms: jax.Array, vocab: int):
  """Loss, level of its gradient and changed entries [c] of what is stored, see `tpu_second`."""
  count, width = stored.peaks.shape
  valid = spec.valid_vocab or vocab
  blocks = lib.Blocks(count, width, valid, _half(count), stored.tile)
  tile = pl.BlockSpec(blocks.tile, lambda row, vocab: (row, vocab))
  out = pl.pallas_call(
    lambda *refs: _add(spec, blocks, refs[:4], refs[4], refs[5:]),
    grid=(blocks.row_steps, blocks.vocab_steps),
    in_specs=[lib.row_block(blocks, norms.shape[1], 0), tile, tile]
    + [pl.BlockSpec((blocks.block_rows, lib.LANES), lambda row, vocab: (row, jax.lax.div(vocab, HALF)))],
    out_specs=lib.row_block(blocks, lib.LANES, 0),
    out_shape=jax.ShapeDtypeStruct((count, lib.LANES), jnp.float32),
    scratch_shapes=[pltpu.VMEM((blocks.block_rows, lib.LANES), jnp.float32)] * _SUMS,
    compiler_params=lib.PARAMS,
    name='linear_divergence_recall',
  )(norms, stored.peaks, stored.gaps, stored.maxima)
  return out[:, 0], out[:, 1], out[:, 2]


def _add(spec, blocks, tile_refs, out_ref, lanes) -> None:
  step = pl.program_id(1)

  @pl.when(step == 0)
  def _():
    for ref in lanes:
      ref[...] = jnp.zeros(ref.shape, jnp.float32)

  tile = read(spec, tile_refs, step)
  value, g, changed = entries.clipped_at(spec, tile.p, tile.q, tile.gap)
  if entries.clips(spec):
    # Bounds move entries that do not exist, too.
    column = jax.lax.broadcasted_iota(jnp.int32, blocks.tile, 1)
    exists = column < blocks.valid - step * blocks.block_vocab
    value, changed = jnp.where(exists, value, 0.0), jnp.where(exists, changed, 0.0)
  for ref, x in zip(lanes, (value, g, changed), strict=True):
    if x is not None:
      ref[...] += lib.lane_sum(x)

  @pl.when(step == pl.num_programs(1) - 1)
  def _():
    out_ref[...] = lib.in_lanes([lib.row_sum(ref[...]) for ref in lanes], out_ref.shape)
