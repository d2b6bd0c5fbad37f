"""The divergence on a TPU, in Pallas kernels: no array of N positions by V entries exists in HBM.

Three kernels: one pass over vocabulary tiles for all statistics (`tpu_forward`), a second for losses
whose entries need both normalisers (`tpu_second`), and d loss / d logits a tile at a time
(`tpu_backward`). Where the head is not differentiated, the first two give the gradient of the hidden
states on the way and the third is not needed. A renormalised top-k without statistics needs the logits
of one model (`tpu_rank`) and a few columns of the other's head (`tpu_columns`), which also have its
gradients. What is left is arithmetic on [N] and [N, k] numbers, which is here and the reference's own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import (
  reference,
  tpu_again,
  tpu_backward,
  tpu_clip,
  tpu_columns,
  tpu_entries,
  tpu_forward,
  tpu_pull,
  tpu_rank,
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
  if spec.support not in ('full', 'teacher_topk', 'student_topk'):
    return f"support {spec.support!r}; use 'full', 'teacher_topk' or 'student_topk'"
  if spec.k > LANES:
    return f'k = {spec.k}; use k <= {LANES}'
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
  chunk_tokens: int,
  statistics: bool = True,
) -> Divergence:
  """`api.linear_divergence` in fused kernels; `chunk_tokens` has no effect.

  Without `statistics` a renormalised top-k makes the logits of the model that ranks alone.

  Raises:
    NotImplementedError: see `unsupported`.
  """
  del chunk_tokens
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
  result = _rows(spec, statistics, student_hidden, student_head, teacher_hidden, teacher_head, targets)
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
def _rows(spec, statistics, *arguments) -> Divergence:
  """Results [N] of rows [N, D]: hidden states and head of the student, of the teacher, and targets.

  A teacher head of None is the student's.
  """
  return _run(spec, statistics, False, *arguments)[0]


def _rows_forward(spec, statistics, *arguments):
  differentiated = [jax.tree.map(lambda x: x.perturbed, x) for x in arguments[:2]]
  values = [None if x is None else x.value for x in arguments]
  of_head = differentiated[1]
  result, residuals = _run(spec, statistics, not of_head and spec.support == 'full', *values)
  if residuals.pull is not None:
    # The gradient is there, but for the loss's cotangent.
    return result, residuals._replace(arrays=None, normalisers=None, level=None, head=None)
  return result, residuals._replace(head=() if of_head else None)


def _run(spec, statistics: bool, pull: bool, *arguments) -> tuple[Divergence, _Residuals]:
  """Results, and what gradients are made of."""
  *arrays, targets = arguments
  narrow = _in_types_of_hidden(*arrays)
  if not statistics and spec.support != 'full' and spec.tail == 'renormalise':
    top = tpu_rank.top_k_alone(spec, *narrow)
    compared, sparse, _ = _compared_at_top_k(spec, top, None, arrays[1].shape[0])
    return Divergence(**compared), _Residuals(tuple(arrays), None, None, sparse, None, ())
  once_clipped = tpu_clip.supports(spec)
  at_once = pull and (once_clipped or tpu_pull.supports(spec))
  targets = targets.astype(jnp.int32)
  first = tpu_forward.statistics(spec, *narrow, targets, pull=at_once, clip=once_clipped)
  normalisers = _normalisers(first.student), _normalisers(first.teacher)
  norms = jnp.stack([*normalisers[0], *normalisers[1]], axis=1)
  results, pulled, sparse = _monitored(first.student, first.teacher, normalisers), first.pull, None
  valid = spec.valid_vocab or arrays[1].shape[0]
  if first.top is not None:
    compared, sparse, level = _compared_at_top_k(spec, first.top, normalisers, arrays[1].shape[0])
  elif once_clipped:
    compared, level, pulled = _clipped(spec, first, results['forward_kl'], norms, narrow, valid)
  elif tpu_entries.linear(spec):
    compared, level = _compared_fully(spec, results), tpu_entries.level(spec, results['reverse_kl'])
  if first.top is None and not once_clipped and (not tpu_entries.linear(spec) or (pull and not at_once)):
    sums = tpu_second.sums(spec, *narrow, norms, pull=pull)
    pulled = sums.pull
    if not tpu_entries.linear(spec):
      level, compared = sums.level, _whole(sums.loss, sums.changed / valid)
  return Divergence(**results, **compared), _Residuals(tuple(arrays), normalisers, level, sparse, pulled, ())


def _rows_backward(spec, statistics, residuals, cotangent):
  loss = cotangent.loss
  if type(loss) is jax.custom_derivatives.SymbolicZero:
    loss = jnp.zeros(loss.aval.shape, loss.aval.dtype)
  if residuals.pull is not None:
    pulled = residuals.pull
    gradient = (pulled.astype(jnp.float32) * loss[:, None]).astype(pulled.dtype)
    return gradient, None, None, None, None
  (student_hidden, student_head, *teacher), normalisers = residuals.arrays, residuals.normalisers
  if tpu_backward.dense_kind(spec, student_head.shape[0]) == 'none':
    return *_sparse_gradients(spec, residuals, loss), None, None, None
  rows = tpu_backward.Rows(*normalisers[0], *normalisers[1], residuals.level, loss / spec.student_temperature)
  sparse = residuals.sparse and residuals.sparse._replace(values=residuals.sparse.values * loss[:, None])
  gradients = tpu_backward.gradients(
    spec, student_hidden, student_head, *teacher, rows, sparse, of_head=residuals.head is not None
  )
  return *gradients, None, None, None


def _sparse_gradients(spec, residuals, loss) -> tuple[jax.Array, jax.Array | None]:
  """Gradients of hidden states and head where the loss sees the support's logits alone."""
  student_hidden, student_head, *_ = residuals.arrays
  ids = residuals.sparse.ids[:, : spec.k].astype(jnp.int32)
  values = residuals.sparse.values[:, : spec.k] * loss[:, None]
  of_hidden = tpu_columns.pull(values, student_head, ids, student_hidden.dtype)
  if residuals.head is None:
    return of_hidden, None
  return of_hidden, tpu_columns.push(values, student_hidden, ids, student_head)


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


def _clipped(spec, first: tpu_forward.First, forward_kl, norms, arrays, valid: int):
  """Results [N] of a forward KL with an upper bound, the level of its gradient, and the pull or None."""
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
  return _whole(loss, changed / valid) | dict(clip_fallback=fallback), level, pulled[0] if pulled else None


def _whole(loss: jax.Array, clip_fraction: jax.Array) -> dict[str, jax.Array]:
  """What the full vocabulary's divergence adds to what is monitored."""
  ones = jnp.ones_like(loss)
  return dict(loss=loss, student_mass=ones, teacher_mass=ones, clip_fraction=clip_fraction)


def _compared_at_top_k(spec: DivergenceSpec, top: tpu_top_k.TopK, normalisers, vocab: int):
  """Loss and masses [N], d loss / d logit at the support, and the factor of -q everywhere [N].

  Without normalisers there are no masses, and the tail is renormalised.
  """
  ranked, other = top.values[:, : spec.k], top.others[:, : spec.k]
  logits = (other, ranked) if spec.support == 'teacher_topk' else (ranked, other)
  if normalisers is None:
    log_q, log_p = (x - x.max(1, keepdims=True) for x in logits)
  else:
    log_q, log_p = (
      x - maximum[:, None] - log_total[:, None]
      for x, (maximum, log_total) in zip(logits, normalisers, strict=True)
    )
  size = spec.valid_vocab or vocab

  def compare(log_q):
    values = reference.entries(*(reference.closed(x, size, spec) for x in (log_p, log_q)), spec)
    results = reference.clipped_sum(values, None, spec)
    return results['loss'], results['clip_fraction']

  loss, pull, clipped = jax.vjp(compare, log_q, has_aux=True)
  (gradient,) = pull(jnp.ones_like(loss))
  masses = {}
  if normalisers is not None:
    masses = dict(student_mass=reference.mass(log_q), teacher_mass=reference.mass(log_p))
  sparse = _sparse(spec, top.ids, gradient * _slope(spec, logits[0]) / spec.student_temperature)
  # A log-probability falls with the log of the sum, which every logit raises by its probability.
  return masses | dict(loss=loss, clip_fraction=clipped), sparse, gradient.sum(-1)


def _slope(spec: DivergenceSpec, logits: jax.Array) -> jax.Array | float:
  """Derivative of the student's soft-cap at shaped logits."""
  if spec.student_softcap is None:
    return 1.0
  return 1 - (logits * (spec.student_temperature / spec.student_softcap)) ** 2


def _sparse(spec: DivergenceSpec, ids: jax.Array, values: jax.Array) -> tpu_backward.Sparse:
  """Lanes [N, 128] of ids [N, 128] and values [N, k]."""
  used = jnp.arange(LANES)[None] < spec.k
  return tpu_backward.Sparse(jnp.where(used, ids, -1.0), jnp.pad(values, [(0, 0), (0, LANES - spec.k)]))
