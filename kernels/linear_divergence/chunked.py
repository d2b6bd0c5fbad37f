"""The divergence in JAX alone, without logits of all positions: the implementation for every backend.

Two modes. `memory` goes over tiles of the vocabulary with all positions (`whole_vocab`): each
tile of the head's gradient is written once and nothing is padded; the backward pass computes the
logits again. `speed` goes over chunks of positions with the whole vocabulary (`whole_rows`) and
makes the gradients while a chunk's logits exist.

What needs no gradient costs none: whether it does is asked of the transformation, not of the caller.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from kernels.linear_divergence import whole_rows, whole_vocab
from kernels.linear_divergence.parts import Inputs
from kernels.linear_divergence.spec import Divergence, DivergenceSpec, Mode, TeacherTopK

_MODES = {'memory': whole_vocab, 'speed': whole_rows}


def linear_divergence(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  chunk_tokens: int,
  mode: Mode = 'memory',
  weights: jax.Array | None = None,
  statistics: bool = True,
  vocab_axes: tuple[str, ...] = (),
) -> Divergence:
  """`api.linear_divergence` that holds logits of about `chunk_tokens` positions at a time."""
  # A shared head is read once; a type of its own makes it another array.
  shared = teacher_head is student_head and teacher_hidden.dtype == student_hidden.dtype
  teacher_head = None if shared else jax.lax.stop_gradient(teacher_head)
  teacher_hidden, weights = jax.lax.stop_gradient((teacher_hidden, weights))
  arrays = (student_hidden, student_head, teacher_hidden, teacher_head, targets)
  inputs = Inputs(*(x if x is None else jnp.asarray(x) for x in arrays))
  settings = (spec, mode, chunk_tokens, statistics, tuple(vocab_axes))
  return _divergence(settings, inputs, weights)


def from_top_k(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher: TeacherTopK,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  chunk_tokens: int,
  statistics: bool,
  vocab_axes: tuple[str, ...],
) -> Divergence:
  """`api.linear_divergence_from_top_k` in tiles of the vocabulary, or without any where none is needed."""
  arrays = (student_hidden, student_head, jax.lax.stop_gradient(teacher), None, targets)
  inputs = jax.tree.map(jnp.asarray, Inputs(*arrays))
  return _divergence((spec, 'memory', chunk_tokens, statistics, tuple(vocab_axes)), inputs, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(settings, inputs: Inputs, weights: jax.Array | None) -> Divergence:
  return _run(settings, inputs, weights, False, False)[0]


def _forward(settings, inputs, weights):
  """With the primals as pairs of value and whether anybody differentiates to it."""
  wants = inputs.student.perturbed, inputs.student_head.perturbed
  plain = lambda tree: jax.tree.map(  # noqa: E731
    lambda x: x.value, tree, is_leaf=lambda x: isinstance(x, jax.custom_derivatives.CustomVJPPrimal)
  )
  return _run(settings, plain(inputs), plain(weights), *wants)


def _run(settings, inputs, weights, hidden: bool, head: bool):
  spec, mode, chunk_tokens, statistics, axes = settings
  return _MODES[mode].forward(
    spec,
    inputs,
    hidden=hidden,
    head=head,
    weights=weights,
    chunk_tokens=chunk_tokens,
    statistics=statistics,
    axes=axes,
  )


def _backward(settings, residuals, cotangent):
  spec, mode, chunk_tokens, _, axes = settings
  loss = cotangent.loss
  if isinstance(loss, SymbolicZero):
    loss = jnp.zeros(loss.shape, loss.dtype)
  hidden, head = _MODES[mode].backward(spec, residuals, loss, chunk_tokens=chunk_tokens, axes=axes)
  return Inputs(hidden, head, None, None, None), None


_divergence.defvjp(_forward, _backward, symbolic_zeros=True)
