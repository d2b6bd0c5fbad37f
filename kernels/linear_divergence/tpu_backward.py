"""Backward pass on a TPU: d loss / d logits tile by tile, each multiplied with both its partners.

The vocabulary is the outer loop. A kernel makes a tile G = d loss / d logits [N, n] again from the
hidden states and the normalisers; two products follow that XLA does as well as anybody: G·head is
added to the hidden states' gradient, and G transposed times the hidden states is the gradient of n
rows of the head, written once. Only G and the first sum are held beside the results.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence import tpu_entries as entries
from kernels.linear_divergence.spec import DivergenceSpec
from kernels.linear_divergence.tpu_entries import Rows
from kernels.linear_divergence.tpu_second import log_probabilities

# Entries of the outer loop's step. The hidden states' gradient is read and written in each.
VOCAB_TILE = 2048
_FEWEST = 1024  # With fewer, that reading and writing takes longer than the products.
_SHARE = (
  0.02  # Of both models' float32 logits: what a step may hold, if fewer entries can do something about it.
)
_NOWHERE = -lib.FLOOR  # Above every id.


class Sparse(NamedTuple):
  """d loss / d logit at a support, float32 [N, 128] each; unused lanes have id -1."""

  ids: jax.Array
  values: jax.Array


def in_lanes(ids: jax.Array, values: jax.Array) -> Sparse:
  """Lanes [N, 128] of ids [N, n] and derivatives [N, n]."""
  missing = [(0, 0), (0, lib.LANES - values.shape[1])]
  return Sparse(jnp.pad(ids.astype(jnp.float32), missing, constant_values=-1.0), jnp.pad(values, missing))


def dense_kind(spec: DivergenceSpec, vocab: int) -> str:
  """What touches every logit: entries of the 'full' vocabulary, q by a 'bucket', or 'none'."""
  if spec.support == 'full':
    return 'full'
  if spec.support == 'sampled':
    return 'bucket'
  # Renormalised probabilities do not change with the other logits.
  return 'bucket' if spec.tail == 'bucket' and spec.k < (spec.valid_vocab or vocab) else 'none'


def gradients(
  spec: DivergenceSpec,
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array | None,
  teacher_head: jax.Array | None,
  rows: Rows,
  sparse: Sparse | None,
  *,
  of_head: bool = True,
  of_hidden: bool = True,
  vocab: int | None = None,
  end: jax.Array | None = None,
) -> tuple[jax.Array | None, jax.Array | None]:
  """Gradients of the student's hidden states [N, D] and of its head [V, D], each in its own type.

  Args:
    spec: what to compare.
    student_hidden: [N, D].
    student_head: [V, D] of any type; used in that of the hidden states, as the teacher's is.
    teacher_hidden: [N, Dt]; for the full support alone.
    teacher_head: [V, Dt], or None where it is the student's.
    rows: see `Rows`.
    sparse: see `Sparse`, times the cotangent of the loss, or None with the full support.
    of_head: whether the head's gradient is asked for.
    of_hidden: whether the hidden states' is.
    vocab: valid entries of the whole vocabulary, where the heads are a part of it.
    end: scalar, how many rows of the heads are valid, or None where the spec says so.
  """
  valid = spec.valid_vocab or student_head.shape[0]
  kind = dense_kind(spec, vocab or student_head.shape[0])
  tile = _entries(student_hidden, valid, 1 + (kind == 'full' and teacher_head is not None))
  steps = pl.cdiv(valid, tile)
  by_row = {} if sparse is None else sparse._asdict()
  if kind != 'none':
    by_row |= dict(rows=jnp.stack(rows, axis=1), student_hidden=student_hidden)
  if kind == 'full':
    by_row |= dict(teacher_hidden=teacher_hidden)

  def add(step, carry):
    hidden_sum, head_gradient = carry
    # The last tile comes first and reaches back; what it has too much is left to the others.
    start = jnp.where(step == 0, valid - tile, (step - 1) * tile)
    skip = jnp.where(step == 0, (steps - 1) * tile - start, 0)
    cut = lambda head, like: jax.lax.dynamic_slice_in_dim(head, start, tile).astype(like.dtype)  # noqa: E731
    head = cut(student_head, student_hidden)
    by_vocab = {} if kind == 'none' else dict(student_head=head)
    if kind == 'full' and teacher_head is not None:
      by_vocab |= dict(teacher_head=cut(teacher_head, teacher_hidden))
    place = jnp.stack([start, skip] + ([] if end is None else [end])).astype(jnp.int32)
    level = _tile(spec, kind, place, (student_hidden.shape[0], tile), by_row, by_vocab, student_hidden.dtype)
    if of_hidden:
      known = head if end is None else lib.existing(head, end - start)
      hidden_sum += lib.contract(level, known, (1, 0))
    if of_head:
      part = lib.contract(level, student_hidden, (0, 0)).astype(head_gradient.dtype)
      head_gradient = jax.lax.dynamic_update_slice_in_dim(head_gradient, part, start, 0)
    return hidden_sum, head_gradient

  empty = jnp.zeros(student_hidden.shape, jnp.float32) if of_hidden else None
  head_gradient = None
  if of_head:
    # Padding of the vocabulary alone is never written.
    make = jax.lax.empty if valid == student_head.shape[0] else jnp.zeros
    head_gradient = make(student_head.shape, student_head.dtype)
  hidden_sum, head_gradient = jax.lax.fori_loop(0, steps, add, (empty, head_gradient))
  return hidden_sum.astype(student_hidden.dtype) if of_hidden else None, head_gradient


def _entries(hidden: jax.Array, vocab: int, heads: int) -> int:
  """Entries of a step: fewer where few positions of wide states make its rows of the heads weigh much."""
  (count, depth), tile = hidden.shape, min(VOCAB_TILE, vocab)

  def held(tile: int) -> int:
    return 4 * count * depth + tile * (heads * depth + count) * hidden.dtype.itemsize

  while tile >= 2 * _FEWEST and held(tile) > _SHARE * 2 * 4 * count * vocab:
    tile //= 2
  return tile


def _tile(spec, kind, place, shape, by_row, by_vocab, dtype) -> jax.Array:
  """d loss / d logits of `shape` [N, n] in `dtype`, for ids from place[0] on; 0 for the first place[1].

  Where `place` has a third number, ids from there on have 0 as well.
  """
  blocks = lib.choose(
    shape[0],
    shape[1],
    shape[1],
    lib.bytes_per_row(*by_row.values()),
    lib.bytes_per_row(*by_vocab.values()),
    lib.VOCAB_MAJOR,
  )
  rows = [lib.at_least(x, blocks.block_rows) for x in by_row.values()]
  heads = [lib.at_least(x, blocks.block_vocab) for x in by_vocab.values()]
  names = [*by_row, *by_vocab]
  count, width = max(shape[0], blocks.block_rows), max(shape[1], blocks.block_vocab)
  out = pl.pallas_call(
    lambda place_ref, *refs: _kernel(
      spec, kind, blocks, place_ref, dict(zip(names, refs, strict=False)), refs[len(names) :]
    ),
    out_shape=jax.ShapeDtypeStruct((count, width), dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(blocks.vocab_steps, blocks.row_steps),
      in_specs=[lib.row_block(blocks, x.shape[1], 1) for x in rows]
      + [lib.vocab_block(blocks, x.shape[1], 0) for x in heads],
      out_specs=pl.BlockSpec(blocks.tile, lambda vocab, row, _: (row, vocab)),
      scratch_shapes=[pltpu.VMEM(blocks.tile, jnp.float32)] * 2,
    ),
    compiler_params=lib.PARAMS,
    cost_estimate=_cost(kind, blocks, rows, heads),
    name='linear_divergence_gradient',
  )(place, *rows, *heads)
  return out[: shape[0], : shape[1]]


def _cost(kind, blocks, rows, heads) -> pl.CostEstimate:
  logits = blocks.rows * blocks.vocab
  return pl.CostEstimate(
    flops=2 * logits * sum(x.shape[1] for x in heads),
    transcendentals={'full': 2, 'bucket': 1, 'none': 0}[kind] * logits,
    bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*rows, *heads)) + 2 * logits,
  )


def _kernel(spec, kind, blocks, place_ref, refs, outputs):
  """Writes one block of the tile; grid axis 0 runs over the vocabulary, axis 1 over rows."""
  out_ref, z_ref, u_ref = outputs
  block = pl.program_id(0)
  if kind == 'none':
    gradient = jnp.zeros(blocks.tile, jnp.float32)
  else:
    gradient = _dense(spec, kind, blocks, refs, z_ref, u_ref, block)
  local = jax.lax.broadcasted_iota(jnp.int32, blocks.tile, 1) + block * blocks.block_vocab
  if 'ids' in refs:
    z_ref[...] = gradient
    columns = (local + place_ref[0]).astype(jnp.float32)
    _scatter(Sparse(refs['ids'][...], refs['values'][...]), columns, z_ref)
    gradient = z_ref[...]
  wanted = local >= place_ref[1]
  if place_ref.shape[0] > 2:
    wanted &= local < place_ref[2] - place_ref[0]
  out_ref[...] = jnp.where(wanted, gradient, 0.0).astype(out_ref.dtype)


def _dense(spec, kind, blocks, refs, z_ref, u_ref, block) -> jax.Array:
  """The part of the gradient that every logit has, [rows, vocab]."""
  lanes = refs['rows'][...]
  level, weight = lanes[:, 4:5], lanes[:, 5:6]
  if kind == 'bucket':
    z, slope = lib.logits(
      refs['student_hidden'][...], refs['student_head'][...], spec.student_temperature, spec.student_softcap
    )
    return jnp.exp(z - lanes[:, 0:1] - lanes[:, 1:2]) * slope * (-level * weight)
  hidden = refs['student_hidden'], refs['teacher_hidden']
  heads = [refs[name] for name in ('student_head', 'teacher_head') if name in refs]
  lib.tile_logits(spec, blocks, hidden, heads, (z_ref, u_ref), block)
  z = z_ref[...]
  log_p, log_q = log_probabilities(lanes, z, u_ref[...])
  gradient = entries.slope(spec, log_p, log_q) - jnp.exp(log_q) * level
  return gradient * lib.softcap_slope(spec, z) * weight


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
