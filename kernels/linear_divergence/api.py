"""Entry point of the divergence between two output layers; picks an implementation by name."""

import jax

from kernels import checks
from kernels.linear_divergence import chunked, reference, sharded, tpu
from kernels.linear_divergence.spec import Divergence, DivergenceSpec

__all__ = ['Divergence', 'DivergenceSpec', 'IMPLEMENTATIONS', 'choose', 'linear_divergence']

IMPLEMENTATIONS = {
  'reference': reference.linear_divergence,
  'chunked': chunked.linear_divergence,
  'tpu': tpu.linear_divergence,
}


def linear_divergence(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  chunk_tokens: int = 1024,
  implementation: str | None = None,
  batch_axes: tuple[str, ...] = (),
) -> Divergence:
  """Divergence between the distributions that two heads make of two hidden states.

  Gradients flow from `loss` alone, to `student_hidden` and `student_head` alone. A head may be a
  float32 master while the hidden states are bfloat16: it is used in the type of the hidden states,
  its gradient is summed in its own.

  Args:
    student_hidden: [B, T, D].
    student_head: [V, D]; rows are vocabulary entries.
    teacher_hidden: [B, T, Dt].
    teacher_head: [V, Dt], or None for the student's head without gradient (a live teacher).
    targets: [B, T] integer ids in 0..valid_vocab - 1, also where the caller masks the position.
    spec: what to compare.
    chunk_tokens: positions, over the whole batch, whose logits are held at once; `tpu` ignores it.
    implementation: a key of `IMPLEMENTATIONS`, or None for what `choose` gives.
    batch_axes: axes of the current mesh (`jax.set_mesh`, Auto axes) that the batch is laid out over.
      `tpu`, which XLA cannot partition, splits B over them where they divide it, T over the others,
      and takes whole heads; the other implementations ignore it.

  Returns:
    Results [B, T], float32 (float64 for float64 inputs).

  Raises:
    ValueError: a setting or a shape that cannot work; the message has the remedy.
  """
  teacher_head = student_head if teacher_head is None else teacher_head
  arrays = (student_hidden, student_head, teacher_hidden, teacher_head)
  name = choose(spec, *arrays)[0] if implementation is None else implementation
  checks.choice('implementation', name, IMPLEMENTATIONS)
  checks.chunk_tokens(chunk_tokens)
  _check_shapes(*arrays, targets)
  reference.validate(spec, student_head.shape[0])
  call = IMPLEMENTATIONS[name]
  if name != 'tpu':
    return call(*arrays, targets, spec, chunk_tokens=chunk_tokens)
  reason = tpu.unsupported(spec, *arrays)
  checks.require(reason is None, f"implementation is 'tpu', which lacks {reason}, or use 'chunked'.")
  return sharded.over_rows(call, *arrays, targets, spec, chunk_tokens=chunk_tokens, batch_axes=batch_axes)


def choose(spec: DivergenceSpec, *arrays: jax.Array) -> tuple[str, str]:
  """The implementation that None stands for, and why.

  Args:
    spec: what to compare.
    *arrays: hidden states and heads, as far as they are known; shapes and types suffice.
  """
  backend = jax.default_backend()
  if backend != 'tpu':
    return 'chunked', f'the backend is {backend}, and the fused kernels are for tpu'
  reason = tpu.unsupported(spec, *arrays)
  if reason is not None:
    return 'chunked', f'the fused kernels lack {reason}'
  return 'tpu', 'the backend is tpu, and the fused kernels have all that is asked for'


def _check_shapes(student_hidden, student_head, teacher_hidden, teacher_head, targets) -> None:
  checks.hidden_and_head('student_', student_hidden, student_head)
  checks.hidden_and_head('teacher_', teacher_hidden, teacher_head)
  checks.require(
    student_hidden.shape[:2] == teacher_hidden.shape[:2],
    f'student_hidden has shape {student_hidden.shape}, teacher_hidden {teacher_hidden.shape}: '
    '[batch, time] must be equal; gather both at the positions of the same completion tokens.',
  )
  checks.require(
    student_head.shape[0] == teacher_head.shape[0],
    f'student_head has {student_head.shape[0]} rows, teacher_head {teacher_head.shape[0]}: both '
    'must have one vocabulary; pad the smaller head and set valid_vocab.',
  )
  checks.targets_like(targets, student_hidden, 'student_hidden')
