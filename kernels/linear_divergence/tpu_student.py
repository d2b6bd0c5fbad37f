"""One pass of the student alone on a TPU: what the losses need that know their teacher already.

The stream of `tpu_forward` with one model. With `mean`, the mean of the head's rows under the student's
distribution comes out of the same pass, as attention does with the head as keys and values (Dao,
arXiv 2205.14135): a loss takes a multiple of it off the hidden states' gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence.spec import DivergenceSpec


class Student(NamedTuple):
  """Statistics of the student, float32; d = logit - maximum, e = exp(d).

  Outside the kernel [N] each. Inside, lanes [rows, 128] that each see every 128th entry.

  Attributes:
    maximum: of the shaped logits.
    total: sum of e.
    moment: sum of e·d.
    best: id of the maximum, the lowest on ties; in a lane, the number of its block of 128 ids.
    target: logit of the target.
  """

  maximum: jax.Array
  total: jax.Array
  moment: jax.Array
  best: jax.Array
  target: jax.Array


_EMPTY = Student(lib.FLOOR, 0.0, 0.0, 0.0, 0.0)


def statistics(
  spec: DivergenceSpec, hidden: jax.Array, head: jax.Array, targets: jax.Array, *, mean: bool = False
) -> tuple[Student, jax.Array | None]:
  """Statistics [N], and with `mean` the mean [N, D] of the head's rows, float32.

  Args:
    spec: what to compare.
    hidden: [N, D].
    head: [V, D] of the same type.
    targets: int32 [N].
    mean: whether to return E_q[w], w an entry's row of the head times the soft-cap's slope.
  """
  count, vocab = hidden.shape[0], head.shape[0]
  rows = [targets[:, None], hidden]
  row_bytes = lib.bytes_per_row(*rows, buffers=1) + (len(_EMPTY) + 2) * 4 * lib.LANES
  row_bytes += 2 * 4 * hidden.shape[1] * mean
  sizes = (count, vocab, spec.valid_vocab or vocab)
  blocks = lib.choose(*sizes, row_bytes, lib.bytes_per_row(head), lib.ROW_MAJOR)
  rows = [lib.at_least(x, blocks.block_rows) for x in rows]
  head = lib.at_least(head, blocks.block_vocab)
  widths = [lib.LANES] + [hidden.shape[1]] * mean
  out = pl.pallas_call(
    lambda *refs: _kernel(spec, blocks, refs[:3], refs[3 : 3 + len(widths)], refs[3 + len(widths) :]),
    grid=(blocks.row_steps, blocks.valid_steps),
    in_specs=[lib.row_block(blocks, x.shape[1], 0, buffers=1) for x in rows]
    + [lib.vocab_block(blocks, head.shape[1], 1)],
    out_specs=[lib.row_block(blocks, width, 0) for width in widths],
    out_shape=[jax.ShapeDtypeStruct((rows[0].shape[0], width), jnp.float32) for width in widths],
    scratch_shapes=[pltpu.VMEM(blocks.tile, jnp.float32)]
    + [pltpu.VMEM((blocks.block_rows, lib.LANES), jnp.float32)] * len(_EMPTY),
    compiler_params=lib.PARAMS,
    cost_estimate=_cost(blocks, rows, head, mean),
    name='linear_divergence_student',
  )(*rows, head)
  lanes = out[0][:count]
  return Student(*(lanes[:, lane] for lane in range(len(_EMPTY)))), out[1][:count] if mean else None


def _cost(blocks, rows, head, mean: bool) -> pl.CostEstimate:
  logits = blocks.rows * blocks.valid
  size = lambda x: x.size * x.dtype.itemsize  # noqa: E731
  return pl.CostEstimate(
    flops=2 * logits * head.shape[1] * (1 + mean),
    transcendentals=(1 + mean) * logits,
    bytes_accessed=sum(map(size, rows)) + blocks.row_steps * size(head),
  )


def _kernel(spec, blocks, inputs, outputs, scratch):
  """Adds tile (rows of grid axis 0, vocabulary of axis 1) to the statistics and the mean."""
  target_ref, hidden_ref, head_ref = inputs
  stats_ref, *means = outputs
  z_ref, *lane_refs = scratch
  step = pl.program_id(1)

  @pl.when(step == 0)
  def _():
    for ref, value in zip(lane_refs, _EMPTY, strict=True):
      ref[...] = jnp.full(ref.shape, value, jnp.float32)
    for ref in means:
      ref[...] = jnp.zeros(ref.shape, jnp.float32)

  z = lib.logits(hidden_ref[...], head_ref[...], spec.student_temperature, spec.student_softcap)[0]
  if blocks.valid % blocks.block_vocab:
    column = jax.lax.broadcasted_iota(jnp.int32, blocks.tile, 1)
    z = jnp.where(column < blocks.valid - step * blocks.block_vocab, z, lib.FLOOR)
  z_ref[...] = z
  before = Student(*(ref[...] for ref in lane_refs))
  # A mean weighs the entries of a row against one another: all lanes then have one maximum.
  joint = bool(means)
  after = _update(before, z_ref, target_ref[...], step * (blocks.block_vocab // lib.LANES), joint)
  for ref, value in zip(lane_refs, after, strict=True):
    ref[...] = value
  for ref in means:
    lib.forget_padding(blocks, head_ref, step)
    _add_mean(spec, before, after, z_ref, head_ref, ref)

  @pl.when(step == pl.num_programs(1) - 1)
  def _():
    values = _combined(after, joint)
    stats_ref[...] = lib.in_lanes(values, stats_ref.shape)
    for ref in means:
      ref[...] = ref[...] / values[1]


def _update(lanes: Student, z_ref, targets, first_block, joint: bool) -> Student:
  """Lanes with a tile added; `joint`: relative to the maximum over all lanes."""
  groups = [slice(start, start + lib.LANES) for start in range(0, z_ref.shape[1], lib.LANES)]
  lane = jax.lax.broadcasted_iota(jnp.int32, (z_ref.shape[0], lib.LANES), 1)
  top, best, found = lanes.maximum, lanes.best, lanes.target
  for number, group in enumerate(groups):
    x = z_ref[:, group]
    # The first of equal maxima stays: only a larger one moves it.
    best = jnp.where(x > top, (first_block + number).astype(jnp.float32), best)
    top = jnp.maximum(top, x)
    found = jnp.where(lane == targets - (first_block + number) * lib.LANES, x, found)
  level, before = top, lanes.maximum
  if joint:
    level, before = (jnp.broadcast_to(lib.row_max(x), x.shape) for x in (top, before))
  rise = before - level
  scale = jnp.exp(rise)
  total = scale * lanes.total
  moment = scale * lanes.moment + total * rise
  for group in groups:
    below = z_ref[:, group] - level
    weight = jnp.exp(below)
    total += weight
    moment += weight * below
  return Student(top, total, moment, best, found)


def _add_mean(spec, before: Student, after: Student, z_ref, head_ref, mean_ref) -> None:
  """Sets the sum of e·w right for a new maximum, and adds the product of a tile."""
  old, new = lib.row_max(before.maximum), lib.row_max(after.maximum)
  z, head = z_ref[...], head_ref[...]
  weight = jnp.exp(z - new) * lib.softcap_slope(spec, z)
  mean_ref[...] = jnp.exp(old - new) * mean_ref[...] + lib.contract(weight.astype(head.dtype), head, (1, 0))


def _combined(lanes: Student, joint: bool) -> list[jax.Array]:
  """Statistics [rows, 1] from those of every lane."""
  top = lib.row_max(lanes.maximum)
  # How far a lane's own reference lies below the row's; what a lane without entries holds goes to 0.
  rise = 0.0 if joint else lanes.maximum - top
  scale = 1.0 if joint else jnp.exp(rise)
  lane = jax.lax.broadcasted_iota(jnp.int32, lanes.best.shape, 1).astype(jnp.float32)
  ids = jnp.where(lanes.maximum == top, lanes.best * lib.LANES + lane, -lib.FLOOR)
  total = scale * lanes.total
  return [
    top,
    lib.row_sum(total),
    lib.row_sum(scale * lanes.moment + total * rise),
    lib.row_min(ids),
    lib.row_sum(lanes.target),
  ]
