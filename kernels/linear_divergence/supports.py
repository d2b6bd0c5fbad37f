"""The divergence on a few entries of every position: top-k supports and the sampled token.

All that is not linear happens on [B, T, n] numbers, where JAX differentiates the reference's own
formulas; what reaches the whole vocabulary is the normaliser, whose gradient is q.
"""

import jax
import jax.numpy as jnp

from kernels import tiles
from kernels.linear_divergence import again, cached, columns, first_pass, full, reference, top_k
from kernels.linear_divergence.first_pass import Found, Wants
from kernels.linear_divergence.parts import FLOOR, Inputs, Outcome, Plan, Sparse, make_tile
from kernels.linear_divergence.spec import Divergence, TeacherTopK


def compare(plan: Plan, inputs: Inputs, ahead: bool) -> tuple[Divergence, Outcome]:
  """Results [B, T], and what gradients are made of; `ahead`: that of the hidden states at once."""
  spec, known = plan.spec, isinstance(inputs.teacher, TeacherTopK)
  ranks = dict(
    student=spec.support in ('student_topk', 'union'),
    teacher=spec.support in ('teacher_topk', 'union') and not known,
  )
  # A renormalised support does not know what lies outside, and its gradients neither.
  open_ = spec.support == 'sampled' or (spec.tail == 'bucket' and spec.k < plan.vocab)
  wide = {name: open_ or plan.statistics or ranked for name, ranked in ranks.items()}
  wide |= dict(teacher=wide['teacher'] and not known)
  wants = Wants(
    **wide,
    student_k=spec.k * ranks['student'],
    teacher_k=spec.k * ranks['teacher'],
    means=('student',) if ahead and open_ else (),
  )
  found = first_pass.run(plan, inputs, wants) if any(wide.values()) else Found()
  ids, logits, own = _logits(plan, inputs, found)
  log_q = _log(found.student, logits)
  log_p = own.astype(log_q.dtype) if known else _log(found.teacher, own)
  counted = reference.first_of(ids, spec)

  def compared(log_q):
    seen = reference.compared_at(log_p, log_q, counted, plan.vocab, spec)
    return seen['loss'], seen

  loss, back, seen = jax.vjp(compared, log_q, has_aux=True)
  (values,) = back(jnp.ones_like(loss))
  if plan.statistics:
    seen |= full.statistics(found)
    seen |= dict(student_mass=reference.mass(log_q, counted), teacher_mass=reference.mass(log_p, counted))
    if known:
      seen |= dict(agreement=cached.agreement(inputs.teacher, found.student.best, log_q.dtype))
  return Divergence(**seen), _outcome(plan, inputs, found, values, ids, logits, open_, ahead)


def _outcome(
  plan: Plan, inputs: Inputs, found: Found, values, ids, logits, open_: bool, ahead: bool
) -> Outcome:
  """Gradients from the derivatives [B, T, n] to the support's log-probabilities."""
  spec = plan.spec
  slope = 1.0
  if spec.student_softcap is not None:
    slope = 1 - (logits * (spec.student_temperature / spec.student_softcap)) ** 2
  gamma = values.sum(-1) if open_ else None
  pull = None
  if ahead:
    pull = columns.pull(plan, values * slope, inputs.student_head, ids, inputs.student.dtype)
    pull = pull - gamma[..., None] * found.means.student if open_ else pull
    pull = pull / spec.student_temperature
  # A tile knows its slopes itself.
  sparse = Sparse(values if open_ else values * slope, ids)
  return Outcome((found.student.norm if open_ else None, None), gamma, sparse, pull)


def _log(side: first_pass.Side | None, logits: jax.Array) -> jax.Array:
  """Log-probabilities [B, T, n]; those of a model that was not normalised up to a constant."""
  return logits - logits.max(-1, keepdims=True) if side is None else side.norm.log(logits)


def _logits(plan: Plan, inputs: Inputs, found: Found) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Ids of the support, and the student's and teacher's shaped logits there, [B, T, n] each."""
  if plan.spec.support == 'sampled':
    return tuple(x[..., None] for x in (inputs.targets, found.student.target, found.teacher.target))
  if isinstance(inputs.teacher, TeacherTopK):
    ids, logp = inputs.teacher
    return ids, _student_at(plan, inputs, ids), logp
  parts = []
  if found.teacher_top is not None:
    values, ids = _exact(plan, inputs, found.teacher_top, student=False)
    parts.append((ids, _student_at(plan, inputs, ids), values))
  if found.student_top is not None:
    values, ids = _exact(plan, inputs, found.student_top, student=True)
    parts.append((ids, values, _teacher_at(plan, inputs, ids)))
  return tuple(jnp.concatenate(x, axis=-1) for x in zip(*parts, strict=True))


def _student_at(plan: Plan, inputs: Inputs, ids: jax.Array) -> jax.Array:
  spec = plan.spec
  settings = (spec.student_temperature, spec.student_softcap)
  return columns.logits(plan, inputs.student, inputs.student_head, ids, *settings)[0]


def _teacher_at(plan: Plan, inputs: Inputs, ids: jax.Array) -> jax.Array:
  spec = plan.spec
  head = inputs.student_head if inputs.teacher_head is None else inputs.teacher_head
  settings = (spec.teacher_temperature, spec.teacher_softcap)
  return columns.logits(plan, inputs.teacher, head, ids, *settings)[0]


def _exact(plan: Plan, inputs: Inputs, ranked: top_k.Ranked, student: bool) -> tuple[jax.Array, jax.Array]:
  """Values and ids [B, T, k] of the largest logits, the lowest ids of equal ones."""
  if plan.size <= plan.tile:
    return ranked.values, ranked.ids

  def look(places):
    some = inputs.rows(places)
    shape = (*places.shape, plan.spec.k)
    empty = jnp.full(shape, FLOOR, ranked.values.dtype), jnp.full(shape, top_k.NOBODY, jnp.int32)

    def body(best, start, size):
      tile = make_tile(plan, some, start, size, student, not student)
      return top_k.merge(best, tile.student if student else tile.teacher, tile.ids)

    return top_k.merged(plan, tiles.sweep(body, empty, plan.size, plan.tile))

  return again.where(~ranked.sure, look, (ranked.values, ranked.ids), plan.group)
