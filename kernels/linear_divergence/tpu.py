"""The divergence on a TPU, in Pallas kernels: no array of N positions by V entries exists in HBM.

Three kernels: one pass over vocabulary tiles for all statistics (`tpu_forward`), a second for losses
whose entries need both normalisers (`tpu_second`), and d loss / d logits a tile at a time
(`tpu_backward`). Where the head is not differentiated, the first two give the gradient of the hidden
states on the way and the third is not needed. What is left is arithmetic on [N] and [N, k] numbers,
which is here and the reference's own.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import (
  reference,
  tpu_backward,
  tpu_clip,
  tpu_entries,
  tpu_forward,
  tpu_merge,
  tpu_pull,
  tpu_second,
  tpu_top_k,
)
from kernels.linear_divergence.spec import Divergence, DivergenceSpec
from kernels.linear_divergence.tpu_blocks import LANES

_TYPES = (jnp.bfloat16, jnp.float32)
_EXACT = 2**24  # Ids are kept in float32.


def unsupported(spec: DivergenceSpec, *arrays: jax.Array) -> str | None:
  """Why the kernels cannot serve a call, else None.

  Args:
    spec: what to compare.
    *arrays: hidden states [..., D] and heads [V, D], those that there are; shapes and types suffice.
  """
  largest = LANES // 2 if spec.support == 'union' else LANES
  if spec.k > largest:
    return f'k = {spec.k} with support {spec.support!r}; use k <= {largest}'
  for array in arrays:
    if array.dtype not in _TYPES:
      return f'{array.dtype} arrays; use bfloat16 or float32'
    if array.ndim == 2 and array.shape[0] >= _EXACT:
      return f'a vocabulary of {array.shape[0]}; it must be below {_EXACT}'
  return None


def linear_divergence(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  vocab_axes: tuple[str, ...] = (),
) -> Divergence:
  """`api.linear_divergence` in fused kernels.

  With `vocab_axes`, mesh axes that a `jax.shard_map` around this has split, the heads are this
  device's equal part of their rows, and the results those of the whole vocabulary.

  Raises:
    NotImplementedError: see `unsupported`.
  """
  reason = unsupported(spec, student_hidden, student_head, teacher_hidden, teacher_head)
  if reason is not None:
    raise NotImplementedError(f'The TPU kernels lack {reason}.')
  batch, time, _ = student_hidden.shape
  # A shared head is read once; a type of its own makes it another array.
  shared = teacher_head is student_head and teacher_hidden.dtype == student_hidden.dtype
  teacher_hidden, teacher_head = jax.lax.stop_gradient((teacher_hidden, None if shared else teacher_head))
  student_hidden, teacher_hidden, targets = (
    x.reshape(batch * time, *x.shape[2:]) for x in (student_hidden, teacher_hidden, targets)
  )
  result = _rows(spec, tuple(vocab_axes), student_hidden, student_head, teacher_hidden, teacher_head, targets)
  return jax.tree.map(lambda x: x.reshape(batch, time), result)


class _Residuals(NamedTuple):
  """What the backward pass needs; None where the forward pass had no use for it.

  Attributes:
    arrays: hidden states and heads as they came.
    normalisers: of both models, ([N] maximum, [N] log of the sum) each.
    level: see `tpu_backward.Rows`.
    sparse: see `tpu_backward.Sparse`.
    pull: [N, D], gradient of every loss to its hidden state, where the head is not differentiated.
    head: marks that the head is.
  """

  arrays: tuple | None
  normalisers: tuple | None
  level: jax.Array | None
  sparse: tpu_backward.Sparse | None
  pull: jax.Array | None
  head: tuple | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rows(spec, axes, student_hidden, student_head, teacher_hidden, teacher_head, targets) -> Divergence:
  """Results [N] of rows [N, D]; a teacher head of None is the student's."""
  return _run(spec, axes, False, student_hidden, student_head, teacher_hidden, teacher_head, targets)[0]


def _rows_forward(spec, axes, *arguments):
  differentiated = [jax.tree.map(lambda x: x.perturbed, x) for x in arguments[:2]]
  values = [None if x is None else x.value for x in arguments]
  of_head = differentiated[1]
  result, residuals = _run(spec, axes, not of_head and spec.support == 'full', *values)
  if residuals.pull is not None:
    # The gradient is there, but for the loss's cotangent.
    return result, residuals._replace(arrays=None, normalisers=None, level=None, head=None)
  return result, residuals._replace(head=() if of_head else None)


def _run(spec, axes, pull: bool, *arguments) -> tuple[Divergence, _Residuals]:
  """Results, and what gradients are made of."""
  *arrays, targets = arguments
  narrow = _in_types_of_hidden(*arrays)
  part = tpu_merge.part(spec, axes, arrays[1].shape[0])
  own_spec, shared = tpu_merge.of_rows(spec, part), dict(apart=bool(axes), end=part.end)
  # The certificate's bins are made of normalisers that a part of the vocabulary does not have.
  at_once, once_clipped = pull and tpu_pull.supports(spec), not (pull or axes) and tpu_clip.supports(spec)
  targets = targets.astype(jnp.int32)

  def look(support, **wanted):
    local = tpu_merge.own_ids(targets, part)
    own = tpu_forward.statistics(
      dataclasses.replace(own_spec, support=support), *narrow, local, **wanted, **shared
    )
    return tpu_merge.first_pass(dataclasses.replace(spec, support=support), part, own)

  # A pass ranks one model.
  ranked = 'teacher_topk' if spec.support == 'union' else spec.support
  first = look(ranked, pull=at_once, clip=once_clipped)
  normalisers = _normalisers(first.student), _normalisers(first.teacher)
  norms = jnp.stack([*normalisers[0], *normalisers[1]], axis=1)
  results, pulled, sparse = _monitored(first.student, first.teacher, normalisers), first.pull, None
  if spec.support != 'full':
    compared, sparse, level = _compared_at(
      spec, _support(spec, first, targets, look), normalisers, part.vocab
    )
  elif once_clipped:
    compared, level = _clipped(spec, first.clip, results['forward_kl'], norms, narrow, part.vocab)
  elif tpu_entries.linear(spec):
    compared, level = _compared_fully(spec, results), tpu_entries.level(spec, results['reverse_kl'])
  if spec.support == 'full' and not once_clipped and (not tpu_entries.linear(spec) or (pull and not at_once)):
    sums = tpu_merge.second_pass(part, tpu_second.sums(own_spec, *narrow, norms, pull=pull, **shared))
    pulled = sums.pull
    if not tpu_entries.linear(spec):
      level, compared = sums.level, _whole(sums.loss, sums.changed / part.vocab)
  return Divergence(**results, **compared), _Residuals(tuple(arrays), normalisers, level, sparse, pulled, ())


def _rows_backward(spec, axes, residuals, cotangent):
  loss = cotangent.loss
  if type(loss) is jax.custom_derivatives.SymbolicZero:
    loss = jnp.zeros(loss.aval.shape, loss.aval.dtype)
  loss = tpu_merge.cotangent(loss, axes)
  if residuals.pull is not None:
    pulled = residuals.pull
    gradient = (pulled.astype(jnp.float32) * loss[:, None]).astype(pulled.dtype)
    return gradient, None, None, None, None
  (student_hidden, student_head, *teacher), normalisers = residuals.arrays, residuals.normalisers
  rows = tpu_backward.Rows(*normalisers[0], *normalisers[1], residuals.level, loss / spec.student_temperature)
  sparse = residuals.sparse and residuals.sparse._replace(values=residuals.sparse.values * loss[:, None])
  part = tpu_merge.part(spec, axes, student_head.shape[0])
  gradients = tpu_backward.gradients(
    tpu_merge.of_rows(spec, part),
    student_hidden,
    student_head,
    *teacher,
    rows,
    tpu_merge.own_sparse(sparse, part),
    of_head=residuals.head is not None,
    vocab=part.vocab,
    end=part.end,
  )
  return *gradients, None, None, None


_rows.defvjp(_rows_forward, _rows_backward, symbolic_zeros=True)


def _in_types_of_hidden(student_hidden, student_head, teacher_hidden, teacher_head):
  """The same with heads in the types of their hidden states, as `kernels.logits.project` has them."""
  student_head = student_head.astype(student_hidden.dtype)
  teacher_head = None if teacher_head is None else teacher_head.astype(teacher_hidden.dtype)
  return student_hidden, student_head, teacher_hidden, teacher_head


def _normalisers(side: tpu_forward.Side) -> tuple[jax.Array, jax.Array]:
  """Maximum and log of the sum relative to it, [N] each: their sum would round large logits."""
  return side.maximum[:, 0], jnp.log(side.total[:, 0])


def _monitored(student: tpu_forward.Side, teacher: tpu_forward.Side, normalisers) -> dict[str, jax.Array]:
  """Full-vocabulary results [N]."""
  (max_s, log_s), (max_t, log_t) = normalisers
  mean = lambda value, side: (value / side.total)[:, 0]  # noqa: E731
  return dict(
    forward_kl=mean(teacher.cross, teacher) - log_t + log_s,
    reverse_kl=mean(student.cross, student) - log_s + log_t,
    student_entropy=log_s - mean(student.moment, student),
    teacher_entropy=log_t - mean(teacher.moment, teacher),
    student_logp=student.target[:, 0] - max_s - log_s,
    teacher_logp=teacher.target[:, 0] - max_t - log_t,
    agreement=(student.best == teacher.best)[:, 0].astype(jnp.float32),
  )


def _compared_fully(spec: DivergenceSpec, results: dict[str, jax.Array]) -> dict[str, jax.Array]:
  forward, reverse = tpu_entries.shares(spec)
  # Only what has a share: elsewhere 0 times infinity may wait.
  loss = sum(
    share * results[name] for share, name in ((forward, 'forward_kl'), (reverse, 'reverse_kl')) if share
  )
  return _whole(loss, jnp.zeros_like(loss))


def _clipped(spec, clip, forward_kl, norms, arrays, valid: int) -> tuple[dict[str, jax.Array], jax.Array]:
  """Results [N] of a forward KL with an upper bound, and the level of its gradient."""
  excess, mass, changed = (x[:, 0] for x in clip[:3])
  student_hidden, student_head, teacher_hidden, teacher_head = arrays
  certain = tpu_clip.certain(spec, clip, norms)

  def look(rows):
    student, teacher, some = (
      x.at[rows].get(mode='fill', fill_value=0) for x in (student_hidden, teacher_hidden, norms)
    )
    sums = tpu_second.sums(spec, student, student_head, teacher, teacher_head, some)
    return sums.loss, sums.level, sums.changed

  seen = (forward_kl - excess, mass - 1, changed)
  loss, level, changed = tpu_clip.look_again(certain, seen, look)
  fallback = 1 - certain.astype(jnp.float32)
  return _whole(loss, changed / valid) | dict(clip_fallback=fallback), level


def _whole(loss: jax.Array, clip_fraction: jax.Array) -> dict[str, jax.Array]:
  """What the full vocabulary's divergence adds to what is monitored."""
  ones = jnp.ones_like(loss)
  return dict(loss=loss, student_mass=ones, teacher_mass=ones, clip_fraction=clip_fraction)


class _Support(NamedTuple):
  """Entries that a loss compares: ids [N, n], and the shaped logits of student and teacher there."""

  ids: jax.Array
  student: jax.Array
  teacher: jax.Array


def _support(spec: DivergenceSpec, first: tpu_forward.First, targets: jax.Array, look) -> _Support:
  """From the first pass, that has ranked the teacher for a union; `look` ranks by another support."""
  if spec.support == 'sampled':
    return _Support(targets[:, None], first.student.target, first.teacher.target)
  parts = []
  if spec.support in ('teacher_topk', 'union'):
    ids, teacher, student = _lists(spec, first.top)
    parts.append(_Support(ids, student, teacher))
  if spec.support in ('student_topk', 'union'):
    top = first.top if spec.support == 'student_topk' else look('student_topk').top
    parts.append(_Support(*_lists(spec, top)))
  return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)


def _lists(spec: DivergenceSpec, top: tpu_top_k.TopK) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Ids [N, k], logits of the model that was ranked, and of the other."""
  return tuple(x[:, : spec.k] for x in (top.ids, top.values, top.others))


def _compared_at(spec: DivergenceSpec, support: _Support, normalisers, size: int):
  """Loss and masses [N], d loss / d logit at the support, and the factor of -q everywhere [N]."""
  log_q, log_p = (
    x - maximum[:, None] - log_total[:, None]
    for x, (maximum, log_total) in zip(support[1:], normalisers, strict=True)
  )
  counted = reference.first_of(support.ids, spec)

  def compare(log_q):
    results = reference.compared_at(log_p, log_q, counted, size, spec)
    return results['loss'], results

  loss, pull, results = jax.vjp(compare, log_q, has_aux=True)
  (gradient,) = pull(jnp.ones_like(loss))
  results |= dict(student_mass=reference.mass(log_q, counted), teacher_mass=reference.mass(log_p, counted))
  values = gradient * _slope(spec, support.student) / spec.student_temperature
  # A log-probability falls with the log of the sum, which every logit raises by its probability.
  return results, tpu_backward.in_lanes(support.ids, values), gradient.sum(-1)


def _slope(spec: DivergenceSpec, logits: jax.Array) -> jax.Array | float:
  """Derivative of the student's soft-cap at shaped logits."""
  if spec.student_softcap is None:
    return 1.0
  return 1 - (logits * (spec.student_temperature / spec.student_softcap)) ** 2
