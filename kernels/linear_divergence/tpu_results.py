"""Results of rows from what the TPU kernels have summed: arithmetic on [N] and [N, k] numbers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import (
  reference,
  tpu_again,
  tpu_backward,
  tpu_clip,
  tpu_entries,
  tpu_forward,
  tpu_second,
  tpu_sides,
  tpu_top_k,
)
from kernels.linear_divergence.spec import DivergenceSpec

# Of one model: maximum of the shaped logits and log of the sum relative to it, [N] each.
Norm = tuple[jax.Array, jax.Array]
Results = dict[str, jax.Array]


def normalisers(side: tpu_sides.Side) -> Norm:
  """Maximum and log of the sum relative to it, [N] each: their sum would round large logits."""
  return side.maximum[:, 0], jnp.log(side.total[:, 0])


def monitored(student: tpu_sides.Side, teacher: tpu_sides.Side, norms: tuple[Norm, Norm]) -> Results:
  """Full-vocabulary results [N], those whose sums were made."""
  (max_s, log_s), (max_t, log_t) = norms
  mean = lambda value, side: (value / side.total)[:, 0]  # noqa: E731
  made = dict(
    forward_kl=(teacher.cross, lambda x: mean(x, teacher) - log_t + log_s),
    reverse_kl=(student.cross, lambda x: mean(x, student) - log_s + log_t),
    student_entropy=(student.moment, lambda x: log_s - mean(x, student)),
    teacher_entropy=(teacher.moment, lambda x: log_t - mean(x, teacher)),
    student_logp=(student.target, lambda x: x[:, 0] - max_s - log_s),
    teacher_logp=(teacher.target, lambda x: x[:, 0] - max_t - log_t),
    agreement=(student.best, lambda x: (x == teacher.best)[:, 0].astype(jnp.float32)),
  )
  return {name: result(x) for name, (x, result) in made.items() if x is not None}


def of_kl(spec: DivergenceSpec, results: Results) -> Results:
  """A KL without bounds over the full vocabulary is made of what is monitored."""
  forward, reverse = tpu_entries.shares(spec)
  # Only what has a share: elsewhere 0 times infinity may wait.
  loss = sum(
    share * results[name] for share, name in ((forward, 'forward_kl'), (reverse, 'reverse_kl')) if share
  )
  return of_all(loss, jnp.zeros_like(loss))


def of_all(loss: jax.Array, clip_fraction: jax.Array) -> Results:
  """What the full vocabulary's divergence adds to what is monitored."""
  ones = jnp.ones_like(loss)
  return dict(loss=loss, student_mass=ones, teacher_mass=ones, clip_fraction=clip_fraction)


def bounded(
  spec: DivergenceSpec, first: tpu_forward.First, forward_kl: jax.Array, norms: jax.Array, arrays, valid: int
) -> tuple[Results, jax.Array, jax.Array | None]:
  """Results [N] of a forward KL with an upper bound, the level of its gradient, and the pull or None.

  Args:
    spec: what to compare.
    first: with `clip`, and `kept` where a pull is wanted.
    forward_kl: [N], without the bound.
    norms: [N, 4] as in `tpu_second`.
    arrays: hidden states and heads of a type, for rows that are looked at again.
    valid: entries of the vocabulary.
  """
  excess, mass, changed = (x[:, 0] for x in first.clip[:3])
  student_hidden, student_head, teacher_hidden, teacher_head = arrays
  certain, pulled = tpu_clip.certain(spec, first.clip, norms), ()
  if first.kept is not None:
    certain &= changed <= tpu_clip.KEPT
    pulled = (tpu_clip.correct(spec, first.pull, first.clip.mass, first.kept, student_head),)

  def look(rows):
    student, teacher, some = (tpu_again.take(x, rows) for x in (student_hidden, teacher_hidden, norms))
    sums = tpu_second.sums(spec, student, student_head, teacher, teacher_head, some, pull=bool(pulled))
    return sums.loss, sums.level, sums.changed, *(sums.pull for _ in pulled)

  seen = (forward_kl - excess, mass - 1, changed, *pulled)
  loss, level, changed, *pulled = tpu_again.look(certain, seen, look, tpu_clip.ROWS)
  fallback = 1 - certain.astype(jnp.float32)
  return of_all(loss, changed / valid) | dict(clip_fallback=fallback), level, pulled[0] if pulled else None


class Support(NamedTuple):
  """Entries that a loss compares: ids [N, n], and the shaped logits of student and teacher there."""

  ids: jax.Array
  student: jax.Array
  teacher: jax.Array


def support(
  spec: DivergenceSpec, first: tpu_forward.First, targets: jax.Array, look: Callable[[str], tpu_forward.First]
) -> Support:
  """From the first pass, that has ranked the teacher for a union; `look` ranks for another support."""
  if spec.support == 'sampled':
    return Support(targets[:, None], first.student.target, first.teacher.target)
  if spec.support != 'union':
    return listed(spec, first.top)
  lists = [listed(spec, first.top, 'teacher_topk'), listed(spec, look('student_topk').top, 'student_topk')]
  return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *lists)


def listed(spec: DivergenceSpec, top: tpu_top_k.TopK, ranked: str | None = None) -> Support:
  """A top-k as a support; `ranked` says whose it is where the spec does not."""
  values, ids, others = (x[:, : spec.k] for x in top)
  if (ranked or spec.support) == 'teacher_topk':
    return Support(ids, others, values)
  return Support(ids, values, others)


def compared(
  spec: DivergenceSpec, support: Support, norms: tuple[Norm, Norm] | None, size: int
) -> tuple[Results, tpu_backward.Sparse, jax.Array]:
  """Loss and masses [N], d loss / d logit at the support, and the factor of -q everywhere [N].

  Args:
    spec: what to compare.
    support: its entries.
    norms: of student and teacher; None where a tail is renormalised and no masses are wanted.
    size: entries of the vocabulary.
  """
  if norms is None:
    log_q, log_p = (x - x.max(1, keepdims=True) for x in support[1:])
  else:
    log_q, log_p = (
      x - maximum[:, None] - log_total[:, None]
      for x, (maximum, log_total) in zip(support[1:], norms, strict=True)
    )
  counted = reference.first_of(support.ids, spec)

  def compare(log_q):
    results = reference.compared_at(log_p, log_q, counted, size, spec)
    return results['loss'], results

  loss, pull, results = jax.vjp(compare, log_q, has_aux=True)
  (gradient,) = pull(jnp.ones_like(loss))
  if norms is not None:
    results |= dict(student_mass=reference.mass(log_q, counted), teacher_mass=reference.mass(log_p, counted))
  values = gradient * _slope(spec, support.student) / spec.student_temperature
  # A log-probability falls with the log of the sum, which every logit raises by its probability.
  return results, tpu_backward.in_lanes(support.ids, values), gradient.sum(-1)


def _slope(spec: DivergenceSpec, logits: jax.Array) -> jax.Array | float:
  """Derivative of the student's soft-cap at shaped logits."""
  if spec.student_softcap is None:
    return 1.0
  return 1 - (logits * (spec.student_temperature / spec.student_softcap)) ** 2
