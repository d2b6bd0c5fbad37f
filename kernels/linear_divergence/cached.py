"""The divergence from a teacher that is known by its top-k alone: what must hold, and its definition.

Its ids are the support. Nothing of the teacher is multiplied with anything: with a bucket the student's
normaliser is all that needs the whole vocabulary, and a renormalised support needs k rows of the head.
"""

import jax
import jax.numpy as jnp

from kernels import checks
from kernels import logits as lib
from kernels.linear_divergence import reference
from kernels.linear_divergence.spec import Divergence, DivergenceSpec, TeacherTopK


def linear_divergence(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher: TeacherTopK,
  targets: jax.Array,
  spec: DivergenceSpec,
) -> Divergence:
  """`api.linear_divergence_from_top_k` with all of the student's logits held at once."""
  return divergence_from_logits(lib.project(student_hidden, student_head), teacher, targets, spec)


def divergence_from_logits(
  student_logits: jax.Array, teacher: TeacherTopK, targets: jax.Array, spec: DivergenceSpec
) -> Divergence:
  """Compares a next-token distribution with a teacher's top-k.

  Args:
    student_logits: [..., V] before soft-cap and temperature, any floating type.
    teacher: [..., k]; gets no gradient.
    targets: [...] integer ids below the valid vocabulary.
    spec: what to compare; see `validate`.

  Returns:
    Results [...], in nats, float32 (float64 for float64 logits).
  """
  student = lib.shape(student_logits, spec.student_temperature, spec.student_softcap, spec.valid_vocab)
  log_q = jax.nn.log_softmax(student)
  log_p = jax.lax.stop_gradient(teacher.logp).astype(log_q.dtype)
  top_q = jnp.take_along_axis(log_q, teacher.ids, axis=-1)
  own = lib.on_valid(jax.lax.stop_gradient(log_q), spec.valid_vocab)
  size = spec.valid_vocab or log_q.shape[-1]
  return Divergence(
    **reference.compared_at(log_p, top_q, None, size, spec),
    student_entropy=-(jnp.exp(own) * own).sum(-1),
    student_logp=lib.at_targets(own, targets),
    student_mass=reference.mass(top_q),
    teacher_mass=reference.mass(log_p),
    agreement=agreement(teacher, jnp.argmax(student, axis=-1), log_q.dtype),
  )


def agreement(teacher: TeacherTopK, best: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """1 where the student's most probable id [...] is the teacher's, of equal ones the lowest."""
  largest = teacher.logp == teacher.logp.max(-1, keepdims=True)
  first = jnp.where(largest, teacher.ids, jnp.iinfo(teacher.ids.dtype).max).min(-1)
  return (best == first).astype(dtype)


def validate(spec: DivergenceSpec, teacher: TeacherTopK, student_hidden: jax.Array) -> None:
  """Raises `ValueError` if a spec that is valid otherwise, or an array, does not fit such a teacher."""
  checks.require(
    spec.support == 'teacher_topk',
    f"support is {spec.support!r}, but of this teacher the top-k alone is known; use 'teacher_topk', or "
    'linear_divergence with the hidden states of the teacher.',
  )
  checks.require(
    spec.teacher_temperature == 1 and spec.teacher_softcap is None,
    f'teacher_temperature is {spec.teacher_temperature} and teacher_softcap {spec.teacher_softcap}, but the '
    "teacher's log-probabilities are taken as they are; apply both where these are made, over the whole "
    'vocabulary, and leave 1.0 and None here.',
  )
  ids, logp = teacher
  shape = (*student_hidden.shape[:2], spec.k)
  for name, array in (('ids', ids), ('logp', logp)):
    checks.require(
      array.shape == shape,
      f'teacher.{name} has shape {array.shape}; pass {shape}: [batch, time] of student_hidden and k of '
      'the spec.',
    )
  checks.require(
    jnp.issubdtype(ids.dtype, jnp.integer), f'teacher.ids has dtype {ids.dtype}; pass integer vocabulary ids.'
  )
  checks.require(
    jnp.issubdtype(logp.dtype, jnp.floating),
    f'teacher.logp has dtype {logp.dtype}; pass a floating type such as float32.',
  )
