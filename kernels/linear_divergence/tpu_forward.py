"""First pass on a TPU: one stream over vocabulary tiles gives all that the results need.

Both logits of a tile exist in VMEM alone; `tpu_sides` has the sums over them. With `pull` the gradient of
a KL to the hidden states comes from the same stream; see `tpu_pull`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_bins, tpu_rank, tpu_sides
from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence import tpu_clip as clips
from kernels.linear_divergence import tpu_pull as pulls
from kernels.linear_divergence import tpu_top_k as top_k
from kernels.linear_divergence.spec import DivergenceSpec


class First(NamedTuple):
  """Results of the pass: both sides, and what was asked for, else None.

  Attributes:
    student: its statistics.
    teacher: its statistics.
    top: largest logits of the ranked side.
    pull: gradient [N, D] of every loss to its hidden state; apart, the two sums of `tpu_pull` that it
      is made of, for the entries of these heads.
    clip: see `tpu_clip`.
    kept: see `tpu_clip`, with both clip and pull; then the pull is float32 and lacks the correction.
  """

  student: tpu_sides.Side
  teacher: tpu_sides.Side
  top: top_k.TopK | None
  pull: jax.Array | tuple[jax.Array, jax.Array] | None
  clip: clips.Clip | None
  kept: clips.Kept | None


def statistics(
  spec: DivergenceSpec,
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
  targets: jax.Array,
  *,
  pull: bool = False,
  clip: bool = False,
  wanted: tpu_sides.Wanted = tpu_sides.EVERYTHING,
  apart: bool = False,
  end: jax.Array | None = None,
) -> First:
  """Student's and teacher's statistics, and the top-k of the side that the spec ranks.

  Args:
    spec: what to compare.
    student_hidden: [N, D].
    student_head: [V, D] of the same type.
    teacher_hidden: [N, Dt].
    teacher_head: [V, Dt] of the same type, or None where it is the student's.
    targets: int32 [N].
    pull: whether to return the loss's gradient to `student_hidden`; for a forward or a reverse KL.
    clip: whether to look for entries above the spec's upper bound.
    wanted: which statistics, see `tpu_sides.wanted`; those that the loss and the pull need at least.
    apart: whether the heads are a part of the vocabulary, so that the pull is to be left unfinished.
    end: scalar, how many rows of the heads are valid, or None where the spec says so.
  """
  count, vocab = student_hidden.shape[0], student_head.shape[0]
  ranked = spec.support in ('teacher_topk', 'student_topk')
  rows = [lib.with_end(targets[:, None], end), student_hidden, teacher_hidden]
  heads = [x for x in (student_head, teacher_head) if x is not None]
  kept = pull and clip
  outputs = 1 + len(top_k.TopK._fields) * ranked
  # The rows of bounded entries are yet to be added.
  pull_dtype = jnp.float32 if kept else student_hidden.dtype
  width = student_hidden.shape[1]
  row_bytes = lib.bytes_per_row(*rows, buffers=1) + (wanted.count + 2 * outputs) * 4 * lib.LANES
  results = pull * (2 if apart else 1)
  row_bytes += pulls.bytes_per_row(student_hidden, results) if pull else 0
  make_bins = lambda block_vocab: _bins(spec, block_vocab, pull, clip)  # noqa: E731
  row_bytes += make_bins(tpu_bins.GROUPS * lib.LANES).bytes_per_row if ranked or clip else 0
  sizes = (count, vocab, spec.valid_vocab or vocab)
  blocks = lib.choose(*sizes, row_bytes, lib.bytes_per_row(*heads), lib.ROW_MAJOR)
  rows = [lib.at_least(x, blocks.block_rows) for x in rows]
  heads = [lib.at_least(x, blocks.block_vocab) for x in heads]
  bins = make_bins(blocks.block_vocab) if ranked or clip else None
  lanes = jax.ShapeDtypeStruct((rows[0].shape[0], lib.LANES), jnp.float32)
  pulled = [jax.ShapeDtypeStruct(rows[1].shape, pull_dtype)] * results
  lane_scratch = pltpu.VMEM((blocks.block_rows, lib.LANES), jnp.float32)
  cuts = outputs, results
  out = pl.pallas_call(
    lambda *refs: _kernel(
      spec, blocks, refs[:3], refs[3 : 3 + len(heads)], refs[3 + len(heads) :], *cuts, clip, bins, wanted
    ),
    grid=(blocks.row_steps, blocks.valid_steps),
    in_specs=[lib.row_block(blocks, x.shape[1], 0, buffers=1) for x in rows]
    + [lib.vocab_block(blocks, x.shape[1], 1) for x in heads],
    out_specs=[lib.row_block(blocks, lib.LANES, 0)] * outputs
    + [lib.row_block(blocks, width, 0)] * len(pulled),
    out_shape=[lanes] * outputs + pulled,
    scratch_shapes=[pltpu.VMEM(blocks.tile, jnp.float32)] * 2
    + [lane_scratch] * wanted.count
    + (pulls.scratch(blocks, student_hidden)[kept:] if pull else [])
    + (tpu_bins.scratch(bins, blocks.block_rows) if bins else [])
    + [lane_scratch] * clip,
    compiler_params=lib.PARAMS,
    cost_estimate=_cost(blocks, rows, heads, pull),
    name='linear_divergence_forward',
  )(*rows, *heads)
  sides = out[0][:count]
  top = None
  if ranked:
    arrays = student_hidden, student_head, teacher_hidden, teacher_head
    top = top_k.TopK(*(x[:count] for x in out[1:outputs]))
    top = tpu_rank.settle(spec, top, sides[:, wanted.count] > 0, arrays, end)
  pulled = tuple(x[:count] for x in out[outputs:])
  pulled = (pulled if apart else pulled[0]) if pull else None
  clipped = None
  first = wanted.count + len(clips.Clip._fields)
  if clip:
    clipped = clips.Clip(*(sides[:, lane : lane + 1] for lane in range(wanted.count, first)))
  found = None
  if kept:
    lanes = [range(start, start + clips.KEPT) for start in range(first, lib.LANES, clips.KEPT)]
    found = clips.Kept(*(sides[:, x.start : x.stop] for x in lanes[: len(clips.Kept._fields)]))
  return First(*tpu_sides.of_lanes(wanted, sides), top, pulled, clipped, found)


def _cost(blocks, rows, heads, pull) -> pl.CostEstimate:
  logits = blocks.rows * blocks.valid
  size = lambda x: x.size * x.dtype.itemsize  # noqa: E731
  return pl.CostEstimate(
    flops=2 * logits * (sum(x.shape[1] for x in rows[1:]) + 2 * pull * rows[1].shape[1]),
    transcendentals=(4 if pull else 2) * logits,
    bytes_accessed=sum(map(size, rows)) + blocks.row_steps * sum(map(size, heads)),
  )


def _kernel(spec, blocks, row_refs, head_refs, refs, outputs, pull, clip, shape, wanted):
  """Adds tile (rows of grid axis 0, vocabulary of axis 1) to the statistics, top-k and pull.

  `pull` is how many results the pull has, 0 without one.
  """
  target_ref, student_ref, teacher_ref = row_refs
  stats_ref, top_refs = refs[0], refs[1:outputs]
  pull_refs, refs = refs[outputs : outputs + pull], refs[outputs + pull :]
  z_ref, u_ref, *refs = refs
  lanes, refs = refs[: wanted.count], refs[wanted.count :]
  kept = bool(pull) and clip
  # What is rounded later is summed where it goes.
  sums = 2 - kept if pull else 0
  pull_scratch, refs = [*pull_refs[:1]] * kept + [*refs[:sums]], refs[sums:]
  lowest_ref, refs = (refs[-1], refs[:-1]) if clip else (None, refs)
  bins = tpu_bins.split(shape, refs) if shape else None
  step, last = pl.program_id(1), pl.num_programs(1) - 1

  @pl.when(step == 0)
  def _():
    for ref, value in zip(lanes, tpu_sides.empty(wanted), strict=True):
      ref[...] = jnp.full(ref.shape, value, jnp.float32)
    if shape:
      tpu_bins.start(bins)
    if pull:
      pulls.start(pull_scratch)
    if clip:
      clips.start(lowest_ref)

  end = target_ref[:, 1:2] if target_ref.shape[1] > 1 else None
  lib.tile_logits(spec, blocks, (student_ref, teacher_ref), head_refs, (z_ref, u_ref), step, end)
  sides = tpu_sides.split(wanted, [ref[...] for ref in lanes])
  # A pull weighs the entries of a row against one another: all lanes then have one maximum.
  first_block = step * (blocks.block_vocab // lib.LANES)
  after = tpu_sides.update(sides, z_ref, u_ref, target_ref[:, 0:1], first_block, bool(pull))
  for ref, value in zip(lanes, tpu_sides.flat(after), strict=True):
    ref[...] = value
  if pull:
    norms = tuple(tuple(_norms(side) for side in pair) for pair in (sides, after))
    pulls.add_linear(spec, blocks, norms, z_ref, u_ref, head_refs[0], pull_scratch, step, end)
  if shape:
    ranked, other = (z_ref, u_ref) if tpu_rank.student_ranks(spec) else (u_ref, z_ref)
    marks = [jnp.broadcast_to(pulls.mark(norms[1][1]), lanes[0].shape)] if kept else []
    tpu_bins.insert(bins, ranked, [other], step * (blocks.block_vocab // lib.LANES), marks)
  if clip:
    clips.insert(lowest_ref, z_ref)

  @pl.when(step == last)
  def _():
    sides = tpu_sides.combined(after, bool(pull))
    values = tpu_sides.flat(sides)
    if clip:
      totals = [(side.maximum, side.total) for side in sides]
      found = clips.found(spec, bins, lowest_ref, *totals)
      values += found
    if kept:
      pulls.bound(found.mass, pull_scratch)
      values += clips.keep(spec, bins, *totals, lanes[: len(clips.Kept._fields)], student_ref.dtype)
    if top_refs:
      values.append(top_k.choose(spec.k, bins, top_refs))
    stats_ref[...] = lib.in_lanes(values, stats_ref.shape)
    if pull:
      pulls.finish(spec, pull_refs, pull_scratch)


def _bins(spec: DivergenceSpec, block_vocab: int, pull: bool, clip: bool) -> tpu_bins.Shape:
  """Bins for an upper bound's certificate, else for a top-k."""
  return clips.bins(block_vocab, pull) if clip else top_k.bins(spec, block_vocab, others=1)


def _norms(side: tpu_sides.Side) -> pulls.Norms:
  """Normaliser [rows, 1] and, where it is made, mean gap of lanes that are relative to one maximum."""
  cross = None if side.cross is None else lib.row_sum(side.cross)
  return pulls.Norms(lib.row_max(side.maximum), lib.row_sum(side.total), cross)
