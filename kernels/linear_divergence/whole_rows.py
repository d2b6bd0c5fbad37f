"""The divergence over chunks of positions, whose gradients are made while their logits exist.

The reference's own formulas on a chunk of logits at a time. The loss's derivative is not known yet:
a position's enters its hidden state's gradient as a factor, afterwards. The head's gradient adds up
positions, so that it needs them beforehand: given as `weights`, it is made with them and scaled; if
they turn out to be others, or none were given, it is made anew.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels import chunks, tiles
from kernels import logits as lib
from kernels.linear_divergence import reference
from kernels.linear_divergence.parts import Inputs
from kernels.linear_divergence.spec import Divergence, DivergenceSpec

_SAME = 1e-5  # How near, of the largest, a derivative must be to a multiple of the weights.


class Residuals(NamedTuple):
  """What the backward pass needs; None where nobody asks."""

  pull: jax.Array | None
  head_gradient: jax.Array | None
  weights: jax.Array | None
  inputs: Inputs | None


def forward(
  spec: DivergenceSpec,
  inputs: Inputs,
  *,
  hidden: bool,
  head: bool,
  weights: jax.Array | None,
  chunk_tokens: int,
  statistics: bool,
  axes: tuple[str, ...],
) -> tuple[Divergence, Residuals]:
  """Results [B, T], and what the gradients asked for are made of."""
  del axes  # Whole rows of logits are laid out as their head is.
  ahead = head and weights is not None
  total, result, pull = _chunks(spec, inputs, weights if ahead else None, hidden, chunk_tokens)
  if not statistics:
    result = Divergence(result.loss, result.clip_fraction)
  kept = Residuals(pull, total, weights if ahead else None, inputs if head else None)
  return result, kept


def backward(
  spec: DivergenceSpec,
  residuals: Residuals,
  cotangent: jax.Array,
  *,
  chunk_tokens: int,
  axes: tuple[str, ...],
) -> tuple[jax.Array | None, jax.Array | None]:
  """Gradients of the student's hidden states and head."""
  del axes
  pull, total, weights, inputs = residuals
  hidden = None if pull is None else (pull * cotangent[..., None]).astype(pull.dtype)
  if inputs is None:
    return hidden, None
  dtype = inputs.student_head.dtype
  anew = lambda: _chunks(spec, inputs, cotangent, False, chunk_tokens)[0].astype(dtype)  # noqa: E731
  if total is None:
    return hidden, anew()
  factor = (cotangent * weights).sum() / jnp.maximum((weights * weights).sum(), jnp.finfo(weights.dtype).tiny)
  apart = jnp.abs(cotangent - factor * weights).max()
  same = apart <= _SAME * jnp.abs(cotangent).max()
  return hidden, jax.lax.cond(same, lambda: (total * factor).astype(dtype), anew)


def _chunks(spec: DivergenceSpec, inputs: Inputs, weights: jax.Array | None, hidden: bool, chunk_tokens: int):
  """Head's gradient under `weights` [B, T], results, and each loss's gradient to its hidden state."""
  head, own = inputs.student_head, inputs.teacher_head
  own = head if own is None else own
  dtype = lib.at_least_float32(inputs.student.dtype)

  def body(total, student, teacher, targets, *weights):
    teacher_logits = lib.project(teacher, own)

    def compared(logits):
      result = reference.divergence_from_logits(logits, teacher_logits, targets, spec)
      return result.loss, result

    logits = lib.project(student, head)
    if not (hidden or weights):
      return total, (compared(logits)[1], None)
    loss, back, result = jax.vjp(compared, logits, has_aux=True)
    (level,) = back(jnp.ones_like(loss))
    pull = None
    if hidden:
      pull = tiles.contract('btv,vd->btd', level, head.astype(student.dtype)).astype(student.dtype)
    if weights:
      total += tiles.contract('btv,btd->vd', level * weights[0][..., None], student)
    return total, (result, pull)

  arrays = (inputs.student, inputs.teacher, inputs.targets) + (() if weights is None else (weights,))
  total = None if weights is None else jnp.zeros(head.shape, dtype)
  total, (result, pull) = chunks.fold_time(body, total, arrays, chunk_tokens)
  return total, result, pull
