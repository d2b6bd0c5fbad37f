"""The divergence on a TPU, in Pallas kernels: no array of N positions by V entries exists in HBM.

Three kernels: one pass over vocabulary tiles for all sums that are wanted (`tpu_forward`, `tpu_sides`), a
second for losses whose entries need both normalisers (`tpu_second`), and d loss / d logits a tile at a
time (`tpu_backward`). Where the head is not differentiated, the first two give the gradient of the hidden
states on the way and the third is not needed. A renormalised top-k without statistics needs none of them,
but the logits of the model that ranks (`tpu_rank`) and a few columns of the other's head (`tpu_columns`).
What is left is arithmetic on [N] and [N, k] numbers (`tpu_results`), and what devices that share a
vocabulary tell one another (`tpu_merge`).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import (
  tpu_backward,
  tpu_clip,
  tpu_columns,
  tpu_entries,
  tpu_forward,
  tpu_merge,
  tpu_pull,
  tpu_rank,
  tpu_second,
  tpu_sides,
  tpu_speed,
)
from kernels.linear_divergence import tpu_results as lib
from kernels.linear_divergence.spec import Divergence, DivergenceSpec, Mode
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
  mode: Mode = 'memory',
  weights: jax.Array | None = None,
  statistics: bool = True,
  vocab_axes: tuple[str, ...] = (),
) -> Divergence:
  """`api.linear_divergence` in fused kernels.

  `speed` stores the logits of as many positions as a tenth of all logits' memory holds (`tpu_speed`),
  where these are enough to be faster and the head is frozen or `weights` are given; else it is `memory`.
  Without `statistics` the first pass sums what the loss needs (`tpu_sides.wanted`), and a renormalised top-k
  makes the logits of the model that ranks alone.

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
  if weights is not None:
    weights = jax.lax.stop_gradient(weights).astype(jnp.float32)
  student_hidden, teacher_hidden, targets, weights = jax.tree.map(
    lambda x: x.reshape(batch * time, *x.shape[2:]), (student_hidden, teacher_hidden, targets, weights)
  )
  settings = _Settings(spec, mode, statistics, tuple(vocab_axes))
  targets = targets.astype(jnp.int32)
  result = _rows(settings, student_hidden, student_head, teacher_hidden, teacher_head, targets, weights)
  return jax.tree.map(lambda x: x.reshape(batch, time), result)


class _Settings(NamedTuple):
  """What a call is compiled for; see `linear_divergence`."""

  spec: DivergenceSpec
  mode: Mode
  statistics: bool
  axes: tuple[str, ...]

  @property
  def ranks_alone(self) -> bool:
    """Whether k logits of the model that does not rank are enough."""
    one = self.spec.support in ('teacher_topk', 'student_topk') and self.spec.tail == 'renormalise'
    return one and not self.statistics and not self.axes


class _Residuals(NamedTuple):
  """What the backward pass needs; None where the forward pass had no use for it.

  Attributes:
    arrays: hidden states and heads as they came.
    normalisers: of both models, ([N] maximum, [N] log of the sum) each.
    level: see `tpu_backward.Rows`.
    sparse: see `tpu_backward.Sparse`.
    pull: [N, D], gradient of every loss to its hidden state, where the head is not differentiated.
    head: marks that the head is.
    ahead: gradients made from stored logits.
  """

  arrays: tuple | None
  normalisers: tuple | None
  level: jax.Array | None
  sparse: tpu_backward.Sparse | None
  pull: jax.Array | None
  head: tuple | None
  ahead: tpu_speed.Ahead | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(settings: _Settings, *arguments) -> Divergence:
  """Results [N] of rows [N, D]: hidden states and head of the student, of the teacher, targets, weights.

  A teacher head of None is the student's.
  """
  return _run(settings, False, *arguments[:5])[0]


def _rows_forward(settings, *arguments):
  spec = settings.spec
  differentiated = [jax.tree.map(lambda x: x.perturbed, x) for x in arguments[:2]]
  *values, weights = (None if x is None else x.value for x in arguments)
  of_head = differentiated[1]
  if settings.mode == 'speed' and not settings.axes and not (of_head and weights is None):
    size = tpu_speed.chunk(spec, values[0], values[1], of_head)
    if size is not None:
      return _run_ahead(settings, size, values, weights if of_head else None, of_head)
  result, residuals = _run(settings, not of_head and spec.support == 'full', *values)
  if residuals.pull is not None:
    # The gradient is there, but for the loss's cotangent.
    return result, residuals._replace(arrays=None, normalisers=None, level=None, head=None)
  return result, residuals._replace(head=() if of_head else None)


def _run(settings: _Settings, pull: bool, *arguments) -> tuple[Divergence, _Residuals]:
  """Results, and what gradients are made of."""
  spec, axes = settings.spec, settings.axes
  *arrays, targets = arguments
  narrow = _in_types_of_hidden(*arrays)
  part = tpu_merge.part(spec, axes, arrays[1].shape[0])
  if settings.ranks_alone:
    support = lib.listed(spec, tpu_rank.top_k_alone(spec, *narrow))
    compared, sparse, _ = lib.compared(spec, support, None, part.vocab)
    return Divergence(**compared), _Residuals(tuple(arrays), None, None, sparse, None, ())
  own_spec, shared = tpu_merge.of_rows(spec, part), dict(apart=bool(axes), end=part.end)
  # The certificate's bins are made of normalisers that a part of the vocabulary does not have.
  once_clipped = not axes and tpu_clip.supports(spec)
  at_once = pull and (once_clipped or tpu_pull.supports(spec))
  wanted = tpu_sides.wanted(spec, statistics=settings.statistics, clip=once_clipped)

  def look(support, **more):
    own, whole = (dataclasses.replace(x, support=support) for x in (own_spec, spec))
    local = tpu_merge.own_ids(targets, part)
    return tpu_merge.first_pass(
      whole, part, tpu_forward.statistics(own, *narrow, local, wanted=wanted, **more, **shared)
    )

  # A pass ranks one model.
  first = look('teacher_topk' if spec.support == 'union' else spec.support, pull=at_once, clip=once_clipped)
  normalisers = lib.normalisers(first.student), lib.normalisers(first.teacher)
  norms = jnp.stack([*normalisers[0], *normalisers[1]], axis=1)
  results, pulled, sparse = lib.monitored(first.student, first.teacher, normalisers), first.pull, None
  if spec.support != 'full':
    support = lib.support(spec, first, targets, look)
    compared, sparse, level = lib.compared(spec, support, normalisers, part.vocab)
  elif once_clipped:
    compared, level, pulled = lib.bounded(spec, first, results['forward_kl'], norms, narrow, part.vocab)
  elif tpu_entries.linear(spec):
    compared = lib.of_kl(spec, results)
    level = tpu_entries.level(spec, results.get('reverse_kl', jnp.zeros_like(norms[:, 0])))
  if spec.support == 'full' and not once_clipped and (not tpu_entries.linear(spec) or (pull and not at_once)):
    sums = tpu_merge.second_pass(part, tpu_second.sums(own_spec, *narrow, norms, pull=pull, **shared))
    pulled = sums.pull
    if not tpu_entries.linear(spec):
      level, compared = sums.level, lib.of_all(sums.loss, sums.changed / part.vocab)
  return Divergence(**results, **compared), _Residuals(tuple(arrays), normalisers, level, sparse, pulled, ())


def _run_ahead(settings, size: int, arguments, weights, of_head: bool) -> tuple[Divergence, _Residuals]:
  """The same with gradients from stored logits, `size` positions at a time."""
  spec = settings.spec
  *arrays, targets = arguments
  wanted = tpu_sides.wanted(spec, statistics=settings.statistics)
  passes, ahead = tpu_speed.run(spec, size, arrays, targets, weights, of_head, wanted)
  normalisers = lib.normalisers(passes.student), lib.normalisers(passes.teacher)
  results = lib.monitored(passes.student, passes.teacher, normalisers)
  if passes.loss is None:
    compared = lib.of_kl(spec, results)
  else:
    compared = lib.of_all(passes.loss, passes.changed / (spec.valid_vocab or arrays[1].shape[0]))
  kept = (tuple(arrays), normalisers, passes.level) if of_head else (None, None, None)
  return Divergence(**results, **compared), _Residuals(*kept, None, None, () if of_head else None, ahead)


def _rows_backward(settings, residuals, cotangent):
  loss = cotangent.loss
  if type(loss) is jax.custom_derivatives.SymbolicZero:
    loss = jnp.zeros(loss.aval.shape, loss.aval.dtype)
  loss = tpu_merge.cotangent(loss, settings.axes)
  if residuals.pull is not None:
    pulled = residuals.pull
    gradients = (pulled.astype(jnp.float32) * loss[:, None]).astype(pulled.dtype), None
  elif residuals.ahead is not None:
    gradients = tpu_speed.settled(residuals.ahead, loss, lambda: _made_again(settings, residuals, loss))
  else:
    gradients = _made_again(settings, residuals, loss)
  return *gradients, None, None, None, None


def _made_again(settings, residuals: _Residuals, loss: jax.Array) -> tuple[jax.Array, jax.Array | None]:
  """Gradients of the student's hidden states and head under `loss`, the loss's cotangent [N]."""
  student_hidden, student_head, *teacher = residuals.arrays
  part = tpu_merge.part(settings.spec, settings.axes, student_head.shape[0])
  sparse = residuals.sparse and residuals.sparse._replace(values=residuals.sparse.values * loss[:, None])
  if not settings.axes and tpu_backward.dense_kind(settings.spec, part.vocab) == 'none':
    return _at_support(settings.spec, sparse, student_hidden, student_head, residuals.head is not None)
  spec, normalisers = settings.spec, residuals.normalisers
  weight = loss / spec.student_temperature
  return tpu_backward.gradients(
    tpu_merge.of_rows(spec, part),
    student_hidden,
    student_head,
    *teacher,
    tpu_backward.Rows(*normalisers[0], *normalisers[1], residuals.level, weight),
    tpu_merge.own_sparse(sparse, part),
    of_head=residuals.head is not None,
    vocab=part.vocab,
    end=part.end,
  )


def _at_support(spec, sparse, hidden, head, of_head: bool) -> tuple[jax.Array, jax.Array | None]:
  """Gradients of hidden states and head where the loss sees the support's logits alone."""
  size = spec.k * (2 if spec.support == 'union' else 1)
  ids, values = sparse.ids[:, :size].astype(jnp.int32), sparse.values[:, :size]
  of_hidden = tpu_columns.pull(values, head, ids, hidden.dtype)
  return of_hidden, tpu_columns.push(values, hidden, ids, head) if of_head else None


_rows.defvjp(_rows_forward, _rows_backward, symbolic_zeros=True)


def _in_types_of_hidden(student_hidden, student_head, teacher_hidden, teacher_head):
  """The same with heads in the types of their hidden states, as `kernels.logits.project` has them."""
  student_head = student_head.astype(student_hidden.dtype)
  teacher_head = None if teacher_head is None else teacher_head.astype(teacher_hidden.dtype)
  return student_hidden, student_head, teacher_hidden, teacher_head
