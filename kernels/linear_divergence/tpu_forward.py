"""Forward pass on a TPU: one stream over vocabulary tiles gives all that the results need.

Both logits of a tile exist in VMEM alone. Sums are kept relative to running maxima and rescaled
when these rise (online softmax, Milakov and Gimelshein, arXiv 1805.02867), here also for the
entropy and the divergences: every summand is a difference to the maximum, so that logits of
hundreds lose no digits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence import tpu_top_k as top_k
from kernels.linear_divergence.spec import DivergenceSpec


class Side(NamedTuple):
  """One distribution's statistics, float32 [N, 1] each; d = logit - maximum, e = exp(d).

  Attributes:
    maximum: of the shaped logits.
    total: sum of e.
    moment: sum of e·d.
    cross: sum of e·(d - d of the other side).
    best: id of the maximum, the lowest on ties.
    target: logit of the target.
  """

  maximum: jax.Array
  total: jax.Array
  moment: jax.Array
  cross: jax.Array
  best: jax.Array
  target: jax.Array


_EMPTY = Side(lib.FLOOR, 0.0, 0.0, 0.0, 0.0, 0.0)
_STUDENT, _TEACHER = 0, len(_EMPTY)  # first lanes of the two in a row's statistics


def statistics(
  spec: DivergenceSpec,
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
  targets: jax.Array,
) -> tuple[Side, Side, top_k.TopK | None]:
  """Student's and teacher's statistics, and the top-k of the side that the spec ranks.

  Args:
    spec: what to compare.
    student_hidden: [N, D].
    student_head: [V, D] of the same type.
    teacher_hidden: [N, Dt].
    teacher_head: [V, Dt] of the same type, or None where it is the student's.
    targets: int32 [N].
  """
  count, vocab = student_hidden.shape[0], student_head.shape[0]
  rows = [targets[:, None], student_hidden, teacher_hidden]
  heads = [x for x in (student_head, teacher_head) if x is not None]
  outputs = 1 if spec.support == 'full' else 1 + len(top_k.TopK._fields)
  row_bytes = lib.bytes_per_row(*rows) + outputs * 8 * lib.LANES
  sizes = (count, vocab, spec.valid_vocab or vocab)
  blocks = lib.choose(*sizes, row_bytes, lib.bytes_per_row(*heads), lib.ROW_MAJOR)
  rows = [lib.at_least(x, blocks.block_rows) for x in rows]
  heads = [lib.at_least(x, blocks.block_vocab) for x in heads]
  out = pl.pallas_call(
    lambda *refs: _kernel(spec, blocks, refs[:3], refs[3 : 3 + len(heads)], refs[3 + len(heads) :]),
    grid=(blocks.row_steps, blocks.valid_steps),
    in_specs=[lib.row_block(blocks, x.shape[1], 0) for x in rows]
    + [lib.vocab_block(blocks, x.shape[1], 1) for x in heads],
    out_specs=[lib.row_block(blocks, lib.LANES, 0)] * outputs,
    out_shape=[jax.ShapeDtypeStruct((rows[0].shape[0], lib.LANES), jnp.float32)] * outputs,
    scratch_shapes=[pltpu.VMEM(blocks.tile, jnp.float32)] * (2 if outputs > 1 else 0),
    compiler_params=lib.PARAMS,
    cost_estimate=_cost(blocks, rows, heads),
    name='linear_divergence_forward',
  )(*rows, *heads)
  sides = out[0][:count]
  top = top_k.TopK(*(x[:count] for x in out[1:])) if outputs > 1 else None
  return _side(sides, _STUDENT), _side(sides, _TEACHER), top


def _cost(blocks, rows, heads) -> pl.CostEstimate:
  logits = blocks.rows * blocks.valid
  size = lambda x: x.size * x.dtype.itemsize  # noqa: E731
  return pl.CostEstimate(
    flops=2 * logits * sum(x.shape[1] for x in rows[1:]),
    transcendentals=2 * logits,
    bytes_accessed=sum(map(size, rows)) + blocks.row_steps * sum(map(size, heads)),
  )


def _kernel(spec, blocks, row_refs, head_refs, refs):
  """Adds tile (rows of grid axis 0, vocabulary of axis 1) to the statistics and to the top-k."""
  target_ref, student_ref, teacher_ref = row_refs
  stats_ref, *refs = refs
  row_step, step = pl.program_id(0), pl.program_id(1)

  @pl.when(step == 0)
  def _():
    stats_ref[...] = _join(_EMPTY, _EMPTY, stats_ref.shape)
    if refs:
      top_k.start(spec.k, top_k.TopK(*refs[:3]))

  inside = lib.inside(blocks, row_step, step)
  ids = lib.columns(blocks, step)
  student, teacher = (
    jnp.where(inside, lib.logits(hidden[...], head[...], temperature, softcap)[0], lib.FLOOR)
    for hidden, head, temperature, softcap in (
      (student_ref, head_refs[0], spec.student_temperature, spec.student_softcap),
      (teacher_ref, head_refs[-1], spec.teacher_temperature, spec.teacher_softcap),
    )
  )
  stats = stats_ref[...]
  sides = _update(
    _side(stats, _STUDENT), _side(stats, _TEACHER), student, teacher, ids, target_ref[...].astype(jnp.float32)
  )
  stats_ref[...] = _join(*sides, stats_ref.shape)
  if refs:
    ranked, other = (teacher, student) if spec.support == 'teacher_topk' else (student, teacher)
    refs[3][...], refs[4][...] = ranked, other
    top_k.insert(top_k.TopK(*refs[:3]), *refs[3:], ids)


def _side(stats: jax.Array, first: int) -> Side:
  """Statistics of one side from lanes [rows, 128], `first` and up."""
  return Side(*(stats[:, first + lane : first + lane + 1] for lane in range(len(Side._fields))))


def _join(student: Side, teacher: Side, shape: tuple[int, int]) -> jax.Array:
  """The inverse of `_side` for both sides: lanes [rows, 128]."""
  lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  stats = jnp.zeros(shape, jnp.float32)
  for index, value in enumerate((*student, *teacher)):
    stats = jnp.where(lane == index, value, stats)
  return stats


def _update(student: Side, teacher: Side, z, u, ids, targets) -> tuple[Side, Side]:
  """Statistics with a tile added: shaped logits `z` and `u`, vocabulary `ids`, each [rows, vocab]."""
  tops = [jnp.maximum(side.maximum, lib.row_max(x)) for side, x in ((student, z), (teacher, u))]
  rises = [side.maximum - top for side, top in zip((student, teacher), tops, strict=True)]
  below = [x - top for x, top in zip((z, u), tops, strict=True)]
  at_target = ids == targets

  def add(side, x, one, other):
    scale, weight = jnp.exp(rises[one]), jnp.exp(below[one])
    return Side(
      maximum=tops[one],
      total=scale * side.total + lib.row_sum(weight),
      moment=scale * (side.moment + side.total * rises[one]) + lib.row_sum(weight * below[one]),
      cross=scale * (side.cross + side.total * (rises[one] - rises[other]))
      + lib.row_sum(weight * (below[one] - below[other])),
      # The first of equal maxima stays: only a larger one moves it.
      best=jnp.where(rises[one] < 0, lib.first(x, tops[one], ids), side.best),
      target=side.target + lib.row_sum(jnp.where(at_target, x, 0.0)),
    )

  return add(student, z, 0, 1), add(teacher, u, 1, 0)
