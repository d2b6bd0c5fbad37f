"""Backward pass on a GPU: d loss / d logits tile by tile, each multiplied with both its partners.

As on a TPU (`tpu_backward`): the vocabulary is the outer loop; a kernel makes G = d loss / d logits of
a step again from hidden states and normalisers, XLA adds G·head to the hidden states' gradient and
writes G transposed times the hidden states into the head's.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.linear_divergence import gpu_tiles as lib
from kernels.linear_divergence import tpu_entries as entries
from kernels.linear_divergence.gpu_config import WORKER_ROWS, Config
from kernels.linear_divergence.spec import DivergenceSpec
from kernels.linear_divergence.tpu_entries import Rows


def gradients(
  config: Config,
  spec: DivergenceSpec,
  vocab: int,
  student: tuple[jax.Array, jax.Array],
  teacher: tuple[jax.Array, jax.Array],
  rows: Rows,
  *,
  of_head: bool = True,
) -> tuple[jax.Array, jax.Array | None]:
  """Gradients of the student's hidden states [N, D] and of its head [V, D], each in its own type.

  Args:
    config: how to cut; N must be a multiple of `config.rows`, `vocab` at least `config.vocab`.
    spec: what to compare.
    vocab: entries that are not padding of the head.
    student: hidden states [N, D] and head [V, D], used in the type of the hidden states.
    teacher: the same of the teacher.
    rows: see `Rows`.
    of_head: whether the head's gradient is asked for.
  """
  hidden, whole_head = student
  tile = min(config.step, vocab) // config.vocab * config.vocab
  steps = pl.cdiv(vocab, tile)
  of_rows = jnp.stack(rows)

  def add(step, carry):
    hidden_sum, head_gradient = carry
    # The last step comes first and reaches back; what it has too much is left to the others.
    start = jnp.where(step == 0, vocab - tile, (step - 1) * tile)
    skip = jnp.where(step == 0, (steps - 1) * tile - start, 0)
    cut = lambda x, like: jax.lax.dynamic_slice_in_dim(x, start, tile).astype(like.dtype)  # noqa: E731
    head = cut(whole_head, hidden)
    other = head if teacher[1] is whole_head else cut(teacher[1], teacher[0])
    models = (hidden, head), (teacher[0], other)
    level = _tile(config, spec, tile, models, of_rows, skip if vocab % tile else None)
    hidden_sum += _contract(level, head, (1, 0))
    if of_head:
      part = _contract(level, hidden, (0, 0)).astype(head_gradient.dtype)
      head_gradient = jax.lax.dynamic_update_slice_in_dim(head_gradient, part, start, 0)
    return hidden_sum, head_gradient

  head_gradient = None
  if of_head:
    # Padding of the vocabulary alone is never written.
    make = jax.lax.empty if vocab == whole_head.shape[0] else jnp.zeros
    head_gradient = make(whole_head.shape, whole_head.dtype)
  start = (jnp.zeros(hidden.shape, jnp.float32), head_gradient)
  hidden_sum, head_gradient = jax.lax.fori_loop(0, steps, add, start)
  return hidden_sum.astype(hidden.dtype), head_gradient


def _contract(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
  """Product over one axis of each matrix, summed in float32, whatever a caller's default precision."""
  return jax.lax.dot_general(
    left,
    right,
    (((axes[0],), (axes[1],)), ((), ())),
    precision=jax.lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )


def _tile(config: Config, spec: DivergenceSpec, width: int, models, rows: jax.Array, skip) -> jax.Array:
  """d loss / d logits [N, width] in the hidden states' type; 0 at the first `skip` entries, if given."""
  hidden = models[0][0]
  others = [rows] if skip is None else [rows, skip[None].astype(jnp.int32)]

  def add(tile, refs, logits, carried):
    rows_ref, *skip_ref, out_ref, buffers = refs
    norms, level, weight = lib.norms_of(tile, rows_ref), *(tile.load(rows_ref, i) for i in (4, 5))
    cut = []
    for part, raw in tile.parts(config.part, logits):
      z, u = lib.shaped(spec, raw)
      log_p, log_q = lib.log_probabilities(part, norms, z, u)
      gradient = entries.slope(spec, log_p, log_q) - jnp.exp(log_q) * part.of_rows(level)
      gradient *= part.of_rows(weight)
      if spec.student_softcap is not None:
        ratio = z * (spec.student_temperature / spec.student_softcap)
        gradient *= 1 - ratio * ratio
      if skip is not None:
        seen = part.columns() >= skip_ref[0][0] - part.start
        gradient = jnp.where(seen, gradient, jnp.zeros_like(gradient))
      cut.append(gradient.astype(hidden.dtype))
    # What was copied out of this buffer before has left it.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    buffer = buffers.at[tile.worker]
    buffer[...] = jnp.concatenate(cut, axis=1) if len(cut) > 1 else cut[0]
    plgpu.commit_smem()
    place = pl.ds(tile.rows, tile.shape[0]), pl.ds(tile.start, tile.shape[1])
    plgpu.copy_smem_to_gmem(buffer, out_ref.at[place])
    return carried

  transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
  shape = (config.workers, WORKER_ROWS, config.vocab)
  (out,) = lib.run(
    config,
    width,
    models,
    others,
    [lambda segments: jax.ShapeDtypeStruct((hidden.shape[0], width), hidden.dtype)],
    lambda tile, refs: (),
    add,
    lambda *_: plgpu.wait_smem_to_gmem(0),
    scratch=[plgpu.SMEM(shape, hidden.dtype, transforms=transforms)],
    name='linear_divergence_gradient',
  )
  return out
