"""Entry point of the divergence between two output layers; picks an implementation by name."""

import jax

from kernels import checks
from kernels.linear_divergence import chunked, reference
from kernels.linear_divergence.spec import Divergence, DivergenceSpec

__all__ = ['Divergence', 'DivergenceSpec', 'IMPLEMENTATIONS', 'linear_divergence']

IMPLEMENTATIONS = {'reference': reference.linear_divergence, 'chunked': chunked.linear_divergence}
_DEFAULT = 'chunked'


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
    chunk_tokens: positions, over the whole batch, whose logits are held at once.
    implementation: a key of `IMPLEMENTATIONS`, or None for the default.

  Returns:
    Results [B, T], float32 (float64 for float64 inputs).

  Raises:
    ValueError: a setting or a shape that cannot work; the message has the remedy.
  """
  teacher_head = student_head if teacher_head is None else teacher_head
  name = _DEFAULT if implementation is None else implementation
  checks.choice('implementation', name, IMPLEMENTATIONS)
  checks.chunk_tokens(chunk_tokens)
  _check_shapes(student_hidden, student_head, teacher_hidden, teacher_head, targets)
  reference.validate(spec, student_head.shape[0])
  return IMPLEMENTATIONS[name](
    student_hidden, student_head, teacher_hidden, teacher_head, targets, spec, chunk_tokens=chunk_tokens
  )


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
