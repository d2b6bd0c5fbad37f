"""The top-k of one model's logits alone, in a stream over the vocabulary on a TPU.

A renormalised top-k needs nothing else of the model that ranks: no normaliser, and of the other model
k logits (`tpu_columns`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_again, tpu_bins, tpu_columns
from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence import tpu_top_k as top_k
from kernels.linear_divergence.spec import DivergenceSpec

ROWS = 128  # Rows without a certificate that are looked at together: reading the head takes longer.


class Ranked(NamedTuple):
  """The k largest logits, float32 [N, 128] with k lanes in use, and whether they are known to be."""

  values: jax.Array
  ids: jax.Array
  certain: jax.Array


def top_k_alone(
  spec: DivergenceSpec,
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
) -> top_k.TopK:
  """The top-k of a spec, without a stream of the other model's logits.

  Args:
    spec: what to compare.
    student_hidden: [N, D].
    student_head: [V, D] of the same type.
    teacher_hidden: [N, Dt].
    teacher_head: [V, Dt] of the same type, or None where it is the student's.
  """
  arrays = student_hidden, student_head, teacher_hidden, teacher_head
  hidden, head = _model(arrays, student_ranks(spec))
  ranked = _stream(spec, hidden, head, by_turns=False)

  def look(rows):
    return _stream(spec, tpu_again.take(hidden, rows), head, by_turns=True)[:2]

  values, ids = tpu_again.look(ranked.certain, ranked[:2], look, ROWS)
  # A row without a logit above the floor has none that is a number.
  values = jnp.where(values > lib.FLOOR / 2, values, jnp.nan)
  return top_k.TopK(values, ids, _others(spec, arrays, ids))


def settle(
  spec: DivergenceSpec, top: top_k.TopK, certain: jax.Array, arrays, end: jax.Array | None = None
) -> top_k.TopK:
  """`top` with the rows that are not `certain` [N] found by turns.

  Args:
    spec: what to compare.
    top: of the first pass.
    certain: bool [N].
    arrays: as of `top_k_alone`.
    end: scalar, how many rows of the heads are valid, or None where the spec says so.
  """
  student_hidden, student_head, teacher_hidden, teacher_head = arrays

  def look(rows):
    student, teacher = (tpu_again.take(x, rows) for x in (student_hidden, teacher_hidden))
    some = student, student_head, teacher, teacher_head
    values, ids, _ = _stream(spec, *_model(some, student_ranks(spec)), by_turns=True, end=end)
    return values, ids, _others(spec, some, ids)

  return top_k.TopK(*tpu_again.look(certain, tuple(top), look, ROWS))


def student_ranks(spec: DivergenceSpec) -> bool:
  """Whether the support is of the student's choice."""
  return spec.support == 'student_topk'


def _model(arrays, student: bool) -> tuple[jax.Array, jax.Array]:
  """Hidden states and head of the student or the teacher."""
  student_hidden, student_head, teacher_hidden, teacher_head = arrays
  if student:
    return student_hidden, student_head
  return teacher_hidden, student_head if teacher_head is None else teacher_head


def _shaping(spec: DivergenceSpec, student: bool) -> tuple[float, float | None]:
  if student:
    return spec.student_temperature, spec.student_softcap
  return spec.teacher_temperature, spec.teacher_softcap


def _others(spec: DivergenceSpec, arrays, ids: jax.Array) -> jax.Array:
  """Logits [N, 128] at ids [N, 128] of the model that does not rank."""
  student = not student_ranks(spec)
  places = ids[:, : spec.k].astype(jnp.int32)
  found = tpu_columns.logits(*_model(arrays, student), places, *_shaping(spec, student))
  return jnp.pad(found, [(0, 0), (0, lib.LANES - spec.k)])


def _stream(
  spec: DivergenceSpec, hidden: jax.Array, head: jax.Array, *, by_turns: bool, end: jax.Array | None = None
) -> Ranked:
  """Top-k of all rows; `by_turns`: certain for all of them, and slow. `end` as of `settle`."""
  count, vocab = hidden.shape[0], head.shape[0]
  outputs = 2 if by_turns else 3
  bins = top_k.bins(spec, tpu_bins.GROUPS * lib.LANES, others=0)
  row_bytes = lib.bytes_per_row(hidden, buffers=1) + 2 * outputs * 4 * lib.LANES + bins.bytes_per_row
  sizes = (count, vocab, spec.valid_vocab or vocab)
  blocks = lib.choose(*sizes, row_bytes, lib.bytes_per_row(head), lib.ROW_MAJOR)
  bins = None if by_turns else top_k.bins(spec, blocks.block_vocab, others=0)
  hidden, head = lib.at_least(hidden, blocks.block_rows), lib.at_least(head, blocks.block_vocab)
  ends = [] if end is None else [jnp.broadcast_to(end.astype(jnp.int32), (hidden.shape[0], 1))]
  out = pl.pallas_call(
    lambda *refs: _kernel(spec, blocks, bins, refs[: len(ends)], *refs[len(ends) :]),
    grid=(blocks.row_steps, blocks.valid_steps),
    in_specs=[lib.row_block(blocks, x.shape[1], 0, buffers=1) for x in (*ends, hidden)]
    + [lib.vocab_block(blocks, head.shape[1], 1)],
    out_specs=[lib.row_block(blocks, lib.LANES, 0)] * outputs,
    out_shape=[jax.ShapeDtypeStruct((hidden.shape[0], lib.LANES), jnp.float32)] * outputs,
    scratch_shapes=[pltpu.VMEM(blocks.tile, jnp.float32)]
    + (tpu_bins.scratch(bins, blocks.block_rows) if bins else []),
    compiler_params=lib.PARAMS,
    cost_estimate=_cost(blocks, hidden, head),
    name='linear_divergence_exact_top_k' if by_turns else 'linear_divergence_top_k',
  )(*ends, hidden, head)
  certain = jnp.ones(count, bool) if by_turns else out[2][:count, 0] > 0
  return Ranked(out[0][:count], out[1][:count], certain)


def _cost(blocks: lib.Blocks, hidden: jax.Array, head: jax.Array) -> pl.CostEstimate:
  return pl.CostEstimate(
    flops=2 * blocks.rows * blocks.valid * hidden.shape[1],
    transcendentals=0,
    bytes_accessed=hidden.size * hidden.dtype.itemsize + blocks.row_steps * head.size * head.dtype.itemsize,
  )


def _kernel(spec, blocks, shape, end_refs, hidden_ref, head_ref, values_ref, ids_ref, *refs):
  """Adds tile (rows of grid axis 0, vocabulary of axis 1) to the bins, or without these to the lists."""
  certain_ref, x_ref, *refs = refs if shape else (None, *refs)
  bins = tpu_bins.split(shape, refs) if shape else None
  step, last = pl.program_id(1), pl.num_programs(1) - 1

  @pl.when(step == 0)
  def _():
    if shape:
      tpu_bins.start(bins)
    else:
      top_k.start(spec.k, values_ref, ids_ref)

  shaping = _shaping(spec, student_ranks(spec))
  logits = lib.logits(hidden_ref[...], head_ref[...], *shaping)[0]
  x_ref[...] = lib.existing_logits(blocks, logits, step, *(ref[...] for ref in end_refs))
  if not shape:
    top_k.insert(values_ref, ids_ref, x_ref, lib.columns(blocks, step))
    return
  tpu_bins.insert(bins, x_ref, (), step * (blocks.block_vocab // lib.LANES))

  @pl.when(step == last)
  def _():
    certain = top_k.choose(spec.k, bins, (values_ref, ids_ref))
    certain_ref[...] = lib.in_lanes([certain], certain_ref.shape)
