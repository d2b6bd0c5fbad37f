"""Second pass on a TPU: sums over entries that need both normalisers first.

The divergence to a mixture, and every loss whose entries are bounded, in one stream over the
vocabulary once `tpu_forward` is through: the loss, how many entries a bound changed, and the level of
the gradient; with `pull` the gradient of the hidden states as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence import tpu_entries as entries
from kernels.linear_divergence import tpu_pull as pulls
from kernels.linear_divergence.spec import DivergenceSpec

_SUMS = 4  # loss, level, changed, student's probability
_TINY = 1e-30


class Sums(NamedTuple):
  """Float32 [N]: the loss, the level of its gradient, entries changed, the student's probability.

  The pull is [N, D], or None; apart, the two sums of `tpu_pull` that it is made of, with the level of
  these entries.
  """

  loss: jax.Array
  level: jax.Array
  changed: jax.Array
  mass: jax.Array | None
  pull: jax.Array | tuple[jax.Array, jax.Array] | None


def sums(
  spec: DivergenceSpec,
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
  norms: jax.Array,
  *,
  pull: bool = False,
  apart: bool = False,
  end: jax.Array | None = None,
) -> Sums:
  """Sums over the full vocabulary.

  Args:
    spec: what to compare.
    student_hidden: [N, D].
    student_head: [V, D] of the same type.
    teacher_hidden: [N, Dt].
    teacher_head: [V, Dt] of the same type, or None where it is the student's.
    norms: float32 [N, 4]: student's maximum and log of the sum relative to it, then the teacher's.
    pull: whether to return the loss's gradient to `student_hidden`.
    apart: whether the heads are a part of the vocabulary, so that the pull is to be left unfinished.
    end: scalar, how many rows of the heads are valid, or None where the spec says so.
  """
  count, vocab = student_hidden.shape[0], student_head.shape[0]
  rows = [lib.with_end(norms, end), student_hidden, teacher_hidden]
  heads = [x for x in (student_head, teacher_head) if x is not None]
  row_bytes = lib.bytes_per_row(*rows, buffers=1) + (_SUMS + 2) * 4 * lib.LANES
  results = pull * (2 if apart else 1)
  row_bytes += pulls.bytes_per_row(student_hidden, results) if pull else 0
  sizes = (count, vocab, spec.valid_vocab or vocab)
  blocks = lib.choose(*sizes, row_bytes, lib.bytes_per_row(*heads), lib.ROW_MAJOR)
  rows = [lib.at_least(x, blocks.block_rows) for x in rows]
  heads = [lib.at_least(x, blocks.block_vocab) for x in heads]
  widths = [(lib.LANES, jnp.float32)] + [(student_hidden.shape[1], student_hidden.dtype)] * results
  out = pl.pallas_call(
    lambda *refs: _kernel(
      spec, blocks, refs[:3], refs[3 : 3 + len(heads)], refs[3 + len(heads) :], results, apart
    ),
    grid=(blocks.row_steps, blocks.valid_steps),
    in_specs=[lib.row_block(blocks, x.shape[1], 0, buffers=1) for x in rows]
    + [lib.vocab_block(blocks, x.shape[1], 1) for x in heads],
    out_specs=[lib.row_block(blocks, width, 0) for width, _ in widths],
    out_shape=[jax.ShapeDtypeStruct((rows[0].shape[0], width), dtype) for width, dtype in widths],
    scratch_shapes=[pltpu.VMEM(blocks.tile, jnp.float32)] * 2
    + [pltpu.VMEM((blocks.block_rows, lib.LANES), jnp.float32)] * _SUMS
    + (pulls.scratch(blocks, student_hidden) if pull else []),
    compiler_params=lib.PARAMS,
    cost_estimate=_cost(blocks, rows, heads, pull),
    name='linear_divergence_entries',
  )(*rows, *heads)
  stats = out[0][:count]
  pulled = tuple(x[:count] for x in out[1:])
  pulled = (pulled if apart else pulled[0]) if pull else None
  return Sums(*(stats[:, place] for place in range(_SUMS)), pulled)


def _cost(blocks, rows, heads, pull) -> pl.CostEstimate:
  logits = blocks.rows * blocks.valid
  size = lambda x: x.size * x.dtype.itemsize  # noqa: E731
  return pl.CostEstimate(
    flops=2 * logits * (sum(x.shape[1] for x in rows[1:]) + 2 * pull * rows[1].shape[1]),
    transcendentals=4 * logits,
    bytes_accessed=sum(map(size, rows)) + blocks.row_steps * sum(map(size, heads)),
  )


def _kernel(spec, blocks, row_refs, head_refs, refs, pull: int, apart: bool):
  """Adds tile (rows of grid axis 0, vocabulary of axis 1) to the sums and the pull of so many results."""
  norms_ref, student_ref, teacher_ref = row_refs
  out_ref, pull_refs, refs = refs[0], refs[1 : 1 + pull], refs[1 + pull :]
  z_ref, u_ref, *refs = refs
  lanes, pull_scratch = refs[:_SUMS], refs[_SUMS:]
  step = pl.program_id(1)

  @pl.when(step == 0)
  def _():
    for ref in lanes:
      ref[...] = jnp.zeros(ref.shape, jnp.float32)
    if pull:
      pulls.start(pull_scratch)

  end = norms_ref[:, 4:5] if norms_ref.shape[1] > 4 else None
  lib.tile_logits(spec, blocks, (student_ref, teacher_ref), head_refs, (z_ref, u_ref), step, end)
  z = z_ref[...]
  log_p, log_q = log_probabilities(norms_ref[...], z, u_ref[...])
  value, g, changed = entries.clipped(spec, log_p, log_q)
  q = jnp.exp(log_q)
  # Bounds move entries that do not exist, too.
  exists = z > lib.FLOOR / 2
  if entries.clips(spec):
    value, changed = jnp.where(exists, value, 0.0), jnp.where(exists, changed, 0.0)
  before = [ref[...] for ref in lanes]
  tile = (value, g, changed, q)
  after = [x if y is None else x + lib.lane_sum(y) for x, y in zip(before, tile, strict=True)]
  for ref, value in zip(lanes, after, strict=True):
    ref[...] = value
  if pull:
    level, new_level = (lib.row_sum(x[1]) / jnp.maximum(lib.row_sum(x[3]), _TINY) for x in (before, after))
    slope = lib.softcap_slope(spec, z)
    mix = (1.0, level - new_level, 1.0)
    pulls.add(blocks, mix, (g - new_level * q) * slope, q * slope, head_refs[0], pull_scratch, step, end)

  @pl.when(step == pl.num_programs(1) - 1)
  def _():
    sums = [lib.row_sum(x) for x in after]
    out_ref[...] = lib.in_lanes(sums, out_ref.shape)
    if pull and not apart:
      # The student's probabilities add up to 1 but for rounding.
      pull_scratch[0][...] += (new_level - sums[1]) * pull_scratch[1][...]
    if pull:
      pulls.finish(spec, pull_refs, pull_scratch)


def log_probabilities(norms: jax.Array, z: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
  """log p and log q [rows, vocab] from shaped logits and norms [rows, 4 or more]."""
  log_q = z - norms[:, 0:1] - norms[:, 1:2]
  log_p = u - norms[:, 2:3] - norms[:, 3:4]
  return log_p, log_q
