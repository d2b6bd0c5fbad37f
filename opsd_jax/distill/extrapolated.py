"""A teacher moved away from the weights that the student began with (ExOPD, arXiv 2602.12125).

With log-probs of the sampled token y by the student (s), the teacher (t) and the initial weights (r), the
target is r + λ(t - r) instead of t. The loss is the sampled-token one towards it: its value is
(s - r) - λ(t - r), its gradient that value, held constant, times the gradient of s. λ = 1 is plain
distillation of the sampled token.

Axis letters: B rollouts, T completion tokens, D hidden width, V vocabulary.
"""

import jax
import jax.numpy as jnp

from kernels.linear_divergence.api import Divergence
from kernels.linear_logprob.api import linear_logprob
from opsd_jax.distill.config import ObjectiveConfig, Softcaps


def compare(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
  tokens: jax.Array,
  initial_logp: jax.Array,
  config: ObjectiveConfig,
  valid_vocab: int,
  softcaps: Softcaps = Softcaps(None, None),
) -> tuple[jax.Array, Divergence]:
  """Loss of every token [B, T], after the per-token clip, and what is known of it.

  Args:
    student_hidden: [B, T, D], differentiable.
    student_head: [V, D], differentiable.
    teacher_hidden: [B, T, D'], constant.
    teacher_head: [V, D'], constant; None for the student's own head, held constant.
    tokens: int32 [B, T], sampled ids.
    initial_logp: [B, T] of these by the initial weights, at the student's temperature.
    config: λ, temperatures and chunks.
    valid_vocab: ids at and beyond it are padding of the head.
    softcaps: of the two models' logits.
  """
  how = dict(valid_vocab=valid_vocab, chunk_tokens=config.chunk_tokens)
  own_how = how | dict(temperature=config.student_temperature, softcap=softcaps.student)
  own = linear_logprob(student_hidden, student_head, tokens, **own_how)
  teacher_head = jax.lax.stop_gradient(student_head if teacher_head is None else teacher_head)
  told_how = how | dict(temperature=config.teacher_temperature, softcap=softcaps.teacher)
  told = linear_logprob(teacher_hidden, teacher_head, tokens, **told_how)
  student, teacher, initial = (jax.lax.stop_gradient(x) for x in (own.logp, told.logp, initial_logp))
  value = (student - initial) - config.extrapolation * (teacher - initial)
  loss = value + value * (own.logp - student)  # The second factor is 0 and carries the gradient.
  clipped = loss if config.token_clip is None else jnp.minimum(loss, config.token_clip)
  return clipped, Divergence(
    loss=loss,
    clip_fraction=jnp.zeros_like(loss),
    student_entropy=own.entropy,
    teacher_entropy=told.entropy,
    student_logp=student,
    teacher_logp=teacher,
  )
