"""The divergence over chunks of time: one chunk's logits at a time, recomputed backward."""

import jax

from kernels import chunks, logits
from kernels.linear_divergence.reference import divergence_from_logits
from kernels.linear_divergence.spec import Divergence, DivergenceSpec


def linear_divergence(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  chunk_tokens: int,
) -> Divergence:
  """`api.linear_divergence` that holds logits of about `chunk_tokens` positions at a time."""
  teacher_hidden, teacher_head = jax.lax.stop_gradient((teacher_hidden, teacher_head))

  def body(student_chunk, teacher_chunk, target_chunk):
    student = logits.project(student_chunk, student_head)
    teacher = logits.project(teacher_chunk, teacher_head)
    return divergence_from_logits(student, teacher, target_chunk, spec)

  return chunks.map_time(body, (student_hidden, teacher_hidden, targets), chunk_tokens)
