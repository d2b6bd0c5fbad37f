"""Backward pass on a TPU: each tile of d loss / d logits is made again and multiplied at once.

Two kernels, for the hidden states and for the head, so that the compiler drops the second where
the head is frozen. d loss / d logit = weight · soft-cap slope · dense + sparse, where `dense` is a
formula on the tile and `sparse` is given at a top-k support.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence.spec import DivergenceSpec

_NOWHERE = -lib.FLOOR  # Above every id.


class Rows(NamedTuple):
  """What the gradient needs of a row, float32 [N]; log-probability = logit - maximum - log_total.

  Attributes:
    student_maximum: of the shaped logits.
    student_log_total: log of the sum of exp(logit - maximum).
    teacher_maximum: the same for the teacher.
    teacher_log_total: the same for the teacher.
    level: KL(q || p) for the full reverse KL; the factor of q for a bucket.
    weight: cotangent of the loss over the student's temperature.
  """

  student_maximum: jax.Array
  student_log_total: jax.Array
  teacher_maximum: jax.Array
  teacher_log_total: jax.Array
  level: jax.Array
  weight: jax.Array


class Sparse(NamedTuple):
  """d loss / d logit at a support, float32 [N, 128] each; unused lanes have id -1."""

  ids: jax.Array
  values: jax.Array


def dense_kind(spec: DivergenceSpec, vocab: int) -> str:
  """The formula that touches every logit: 'forward_kl', 'reverse_kl', 'bucket' or 'none'."""
  if spec.support == 'full':
    return spec.kind
  # Renormalised probabilities do not change with the other logits.
  return 'bucket' if spec.tail == 'bucket' and spec.k < (spec.valid_vocab or vocab) else 'none'


class _Operands(NamedTuple):
  """Inputs of a kernel by name: `by_row` [N, ...] and `by_vocab` [V, ...]."""

  by_row: dict[str, jax.Array]
  by_vocab: dict[str, jax.Array]


def gradients(
  spec: DivergenceSpec,
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
  rows: Rows,
  sparse: Sparse | None,
  head_dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
  """Gradients of the student's hidden states [N, D] and of its head [V, D].

  Args:
    spec: what to compare.
    student_hidden: [N, D]; its gradient has its type.
    student_head: [V, D] of the same type.
    teacher_hidden: [N, Dt].
    teacher_head: [V, Dt] of the same type, or None where it is the student's.
    rows: see `Rows`.
    sparse: see `Sparse`, times the cotangent of the loss, or None with the full support.
    head_dtype: type of the head's gradient.
  """
  kind = dense_kind(spec, student_head.shape[0])
  by_row = {} if sparse is None else sparse._asdict()
  by_vocab = {}
  if kind != 'none':
    by_row |= dict(rows=jnp.stack(rows, axis=1))
  if kind in ('forward_kl', 'reverse_kl'):
    by_row |= dict(teacher_hidden=teacher_hidden)
    by_vocab |= {} if teacher_head is None else dict(teacher_head=teacher_head)
  # Where no logits are needed, a product reads one of the student's two matrices alone.
  hidden, head = dict(student_hidden=student_hidden), dict(student_head=student_head)
  for_hidden = _Operands(by_row | (hidden if kind != 'none' else {}), by_vocab | head)
  for_head = _Operands(by_row | hidden, by_vocab | (head if kind != 'none' else {}))
  like_hidden = jax.ShapeDtypeStruct(student_hidden.shape, student_hidden.dtype)
  like_head = jax.ShapeDtypeStruct(student_head.shape, head_dtype)
  sizes = (student_hidden.shape[0], student_head.shape[0], spec.valid_vocab or student_head.shape[0])
  return (
    _product(spec, kind, sizes, for_hidden, like_hidden, of_head=False),
    _product(spec, kind, sizes, for_head, like_head, of_head=True),
  )


def _product(spec, kind, sizes, operands: _Operands, like, *, of_head: bool) -> jax.Array:
  """d loss / d logits times the head, or its transpose times the hidden states, as `like`."""
  blocks = _blocks(sizes, operands, like, of_head)
  by_row = [lib.at_least(x, blocks.block_rows) for x in operands.by_row.values()]
  by_vocab = [lib.at_least(x, blocks.block_vocab) for x in operands.by_vocab.values()]
  names = [*operands.by_row, *operands.by_vocab]
  # The first axis is what the result has; the second is summed over.
  row_axis, vocab_axis, grid = (0, 1, (blocks.row_steps, blocks.valid_steps))
  cut, block = lib.row_block, blocks.block_rows
  if of_head:
    row_axis, vocab_axis, grid = (1, 0, (blocks.vocab_steps, blocks.row_steps))
    cut, block = lib.vocab_block, blocks.block_vocab
  length, width = like.shape
  out = pl.pallas_call(
    lambda *refs: _kernel(
      spec, kind, blocks, dict(zip(names, refs, strict=False)), refs[len(names) :], of_head
    ),
    grid=grid,
    in_specs=[lib.row_block(blocks, x.shape[1], row_axis) for x in by_row]
    + [lib.vocab_block(blocks, x.shape[1], vocab_axis) for x in by_vocab],
    out_specs=cut(blocks, width, 0),
    out_shape=jax.ShapeDtypeStruct((max(block, length), width), like.dtype),
    scratch_shapes=[pltpu.VMEM((block, width), jnp.float32), pltpu.VMEM(blocks.tile, jnp.float32)],
    compiler_params=lib.PARAMS,
    cost_estimate=_cost(kind, blocks, by_row + by_vocab, like),
    name=f'linear_divergence_{"head" if of_head else "hidden"}_gradient',
  )(*by_row, *by_vocab)
  return out[:length]


def _blocks(sizes, operands: _Operands, like, of_head: bool) -> lib.Blocks:
  result = like.shape[1] * (4 + 2 * like.dtype.itemsize)  # The float32 sum, and two blocks on their way.
  row_bytes, vocab_bytes = (lib.bytes_per_row(*arrays.values()) for arrays in operands)
  if of_head:
    return lib.choose(*sizes, row_bytes, vocab_bytes + result, lib.VOCAB_MAJOR)
  return lib.choose(*sizes, row_bytes + result, vocab_bytes, lib.ROW_MAJOR)


def _cost(kind, blocks, arrays, like) -> pl.CostEstimate:
  products = {'forward_kl': 3, 'reverse_kl': 3, 'bucket': 2, 'none': 1}[kind]
  return pl.CostEstimate(
    flops=2 * products * blocks.rows * blocks.valid * like.shape[1],
    transcendentals=2 * blocks.rows * blocks.valid,
    bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, like)),
  )


def _kernel(spec, kind, blocks, refs, outputs, of_head: bool):
  """Adds the product of one tile; grid axis 1 runs over the dimension that is summed."""
  out_ref, sum_ref, tile_ref = outputs
  outer, inner = pl.program_id(0), pl.program_id(1)
  row_step, vocab_step = (inner, outer) if of_head else (outer, inner)

  @pl.when(inner == 0)
  def _():
    sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

  gradient = _tile(spec, kind, blocks, refs, tile_ref, row_step, vocab_step)
  if of_head:
    other = lib.existing(refs['student_hidden'][...], row_step, blocks.rows)
    sum_ref[...] += lib.contract(gradient.astype(other.dtype), other, (0, 0))
  else:
    other = lib.existing(refs['student_head'][...], vocab_step, blocks.valid)
    sum_ref[...] += lib.contract(gradient.astype(other.dtype), other, (1, 0))

  @pl.when(inner == pl.num_programs(1) - 1)
  def _():
    out_ref[...] = sum_ref[...].astype(out_ref.dtype)


def _tile(spec, kind, blocks, refs, tile_ref, row_step, vocab_step) -> jax.Array:
  """d loss / d logits [rows, vocab] of a tile, 0 where it sticks out."""
  gradient = jnp.zeros(blocks.tile, jnp.float32) if kind == 'none' else _dense(spec, kind, refs)
  if 'ids' in refs:
    tile_ref[...] = gradient
    _scatter(Sparse(refs['ids'][...], refs['values'][...]), lib.columns(blocks, vocab_step), tile_ref)
    gradient = tile_ref[...]
  return jnp.where(lib.inside(blocks, row_step, vocab_step), gradient, 0.0)


def _dense(spec, kind, refs) -> jax.Array:
  """The part of the gradient that is a formula, [rows, vocab]."""
  lanes = refs['rows'][...]
  rows = Rows(*(lanes[:, lane : lane + 1] for lane in range(len(Rows._fields))))
  head = refs['student_head'][...]
  z, slope = lib.logits(refs['student_hidden'][...], head, spec.student_temperature, spec.student_softcap)
  log_q = z - rows.student_maximum - rows.student_log_total
  q = jnp.exp(log_q)
  if kind == 'bucket':
    return q * slope * (rows.level * rows.weight)
  teacher_head = refs['teacher_head'][...] if 'teacher_head' in refs else head
  u, _ = lib.logits(refs['teacher_hidden'][...], teacher_head, spec.teacher_temperature, spec.teacher_softcap)
  log_p = u - rows.teacher_maximum - rows.teacher_log_total
  dense = q - jnp.exp(log_p) if kind == 'forward_kl' else q * (log_q - log_p - rows.level)
  return dense * slope * rows.weight


def _scatter(sparse: Sparse, columns: jax.Array, tile_ref) -> None:
  """Adds to the tile what is at its ids, the lowest of each row first: few of the k are in a tile."""
  below = sparse.ids <= jnp.max(columns)
  waiting = jnp.where(below & (sparse.ids >= jnp.min(columns)), sparse.ids, _NOWHERE)

  def some(waiting):
    return jnp.min(waiting)

  def add(carry):
    _, waiting = carry
    first = lib.row_min(waiting)
    value = lib.row_sum(jnp.where(waiting == first, sparse.values, 0.0))
    tile_ref[...] += jnp.where(columns == first, value, 0.0)
    waiting = jnp.where(waiting == first, _NOWHERE, waiting)
    return some(waiting), waiting

  jax.lax.while_loop(lambda carry: carry[0] < _NOWHERE, add, (some(waiting), waiting))
