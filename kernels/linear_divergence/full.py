"""The full vocabulary's divergence, in as few passes as its kind allows.

An upper clip needs both normalisers for every entry, hence a second pass; but few entries p log(p / q)
of a forward KL reach a bound tau > 0, and these have a large p. With S the entries with the largest p
and x above all other p, an entry outside is at most x (log x - min log q), where that is positive.
Where this is at most tau, every clipped entry is in S: the loss is the KL less what stands out in S,
and with a = 1 - (mass of the clipped), d loss / d logit = a q - p, and p more where clipped. Positions
where it is not so, as every one for tau <= 0, take the second pass: exact all the same.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kernels.linear_divergence import again, columns, first_pass, passes
from kernels.linear_divergence.first_pass import Found, Means, Wants
from kernels.linear_divergence.parts import Inputs, Norm, Outcome, Plan, take_rows
from kernels.linear_divergence.reference import clips
from kernels.linear_divergence.spec import Divergence, DivergenceSpec

_LARGEST = 64  # Teacher's entries among which those to be clipped are looked for.
_MEANS = {
  'forward_kl': ('student', 'difference'),
  'reverse_kl': ('student', 'gap'),
  'both_kl': ('student', 'difference', 'gap'),
}


def compare(plan: Plan, inputs: Inputs, ahead: bool) -> tuple[Divergence, Outcome]:
  """Results [B, T], and what gradients are made of; `ahead`: that of the hidden states at once."""
  spec = plan.spec
  if spec.kind in _MEANS and not clips(spec):
    found = first_pass.run(plan, inputs, Wants(True, True, means=_MEANS[spec.kind] if ahead else ()))
    return _kl(plan, found)
  # Where all fits into one tile, its logits are there for the second look.
  if spec.kind == 'forward_kl' and spec.entry_clip_min is None and plan.size > plan.tile:
    return _clipped_kl(plan, inputs, ahead)
  found = first_pass.run(plan, inputs, Wants(True, True))
  norms = (found.student.norm, found.teacher.norm)
  sums = passes.sum_entries(plan, inputs, norms, ahead)
  result = results(found, sums.loss, sums.changed / plan.vocab)
  return result, Outcome(norms, sums.gamma, None, sums.pull)


def statistics(found: Found) -> dict[str, jax.Array]:
  """What is reported of the two distributions whatever is compared; without a teacher, of the student."""
  (student, teacher), norm = found[:2], found.student.norm
  seen = dict(
    student_entropy=norm.log_total - student.moment / student.total,
    student_logp=student.target - norm.maximum - norm.log_total,
  )
  if teacher is None:
    return seen
  own = teacher.norm
  return seen | dict(
    forward_kl=teacher.cross / teacher.total - own.log_total + norm.log_total,
    reverse_kl=student.cross / student.total - norm.log_total + own.log_total,
    teacher_entropy=own.log_total - teacher.moment / teacher.total,
    teacher_logp=teacher.target - own.maximum - own.log_total,
    agreement=(student.best == teacher.best).astype(student.total.dtype),
  )


def results(found: Found, loss: jax.Array, clip_fraction: jax.Array, **more: jax.Array) -> Divergence:
  """A divergence of the full vocabulary."""
  ones = jnp.ones_like(loss)
  return Divergence(loss, clip_fraction, **statistics(found), student_mass=ones, teacher_mass=ones, **more)


def _kl(plan: Plan, found: Found) -> tuple[Divergence, Outcome]:
  """A KL, or both: linear in what one pass sums."""
  forward, reverse = _shares(plan.spec)
  seen = statistics(found)
  loss = forward * seen['forward_kl'] + reverse * seen['reverse_kl']
  gamma = reverse * (seen['reverse_kl'] + 1) - forward
  pull = _pull(plan.spec, found.means, seen['reverse_kl'])
  norms = (found.student.norm, found.teacher.norm)
  return results(found, loss, jnp.zeros_like(loss)), Outcome(norms, gamma, None, pull)


def _shares(spec: DivergenceSpec) -> tuple[float, float]:
  """Of the forward and the reverse KL in the loss."""
  if spec.kind == 'both_kl':
    return spec.beta, 1 - spec.beta
  return float(spec.kind == 'forward_kl'), float(spec.kind == 'reverse_kl')


def _pull(
  spec: DivergenceSpec, means: Means, reverse_kl: jax.Array | None, kept: jax.Array | None = None
) -> jax.Array | None:
  """Gradient [B, T, D] of a KL to the hidden state; q counts `kept` times in a forward one with a bound."""
  if means.student is None:
    return None
  forward, reverse = _shares(spec)
  total = 0.0
  if means.difference is not None:
    bounded = 0.0 if kept is None else (kept - 1) * means.student
    total += forward * (means.difference + bounded)
  if means.gap is not None:
    total += reverse * (means.gap - reverse_kl[..., None] * means.student)
  return total / spec.student_temperature


def _clipped_kl(plan: Plan, inputs: Inputs, ahead: bool) -> tuple[Divergence, Outcome]:
  """Forward KL with an upper clip: one pass, and a second for positions without a certificate."""
  spec, tau = plan.spec, plan.spec.entry_clip_max
  count = min(_LARGEST, plan.vocab)
  wants = Wants(True, True, teacher_k=count, means=_MEANS['forward_kl'] if ahead else ())
  found = first_pass.run(dataclasses.replace(plan, bins=256, depth=3), inputs, wants)
  norm, own, top = found.student.norm, found.teacher.norm, found.teacher_top
  logits, slope = columns.logits(
    plan, inputs.student, inputs.student_head, top.ids, spec.student_temperature, spec.student_softcap
  )
  log_p = own.log(top.values)
  p = jnp.exp(log_p)
  values = p * (log_p - norm.log(logits))
  over = jnp.where((values > tau) & (top.ids >= 0), 1.0, 0.0).astype(p.dtype)
  kept = 1 - (over * p).sum(-1)
  loss = statistics(found)['forward_kl'] - (over * (values - tau)).sum(-1)
  pull = _pull(spec, found.means, None, kept[..., None])
  if ahead:
    pull += columns.pull(
      plan, over * p * slope / spec.student_temperature, inputs.student_head, top.ids, inputs.student.dtype
    )
  unsure = ~_certain(top.rest, own, found.student.lowest, norm, tau)
  seen = (loss, over.sum(-1), -kept, pull)

  def look(places):
    some = tuple(Norm(*(take_rows(x, places) for x in pair)) for pair in (norm, own))
    sums = passes.sum_entries(plan, inputs.rows(places), some, ahead)
    return sums.loss, sums.changed, sums.gamma, sums.pull

  loss, changed, gamma, pull = again.where(unsure, look, seen, plan.group)
  result = results(found, loss, changed / plan.vocab, clip_fallback=unsure.astype(loss.dtype))
  return result, Outcome((norm, own), gamma, None, pull)


def _certain(rest: jax.Array, own: Norm, lowest: jax.Array, norm: Norm, tau: float) -> jax.Array:
  """Whether no entry of a teacher's logit up to `rest` can be above `tau`; bool [B, T]."""
  log_x = own.log(rest[..., None])[..., 0]
  log_least = norm.log(lowest[..., None])[..., 0]
  # x (log x - c) rises with x as long as it is positive; below, 0 is the bound.
  return jnp.maximum(jnp.exp(log_x) * (log_x - log_least), 0.0) <= tau
