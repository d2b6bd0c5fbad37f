"""The divergence from a teacher that is known by its top-k alone, on a TPU.

What the loss compares are k entries of a position, whose rows of the head are gathered, a group of
positions at a time; all arithmetic on them is the reference's own. With a bucket, or for statistics, one
pass of the student gives its normaliser (`tpu_student`), and where the head is not differentiated the mean
of the head's rows as well, so that the hidden states' gradient is there: the gathered rows times the
derivatives, less this mean times their sum. The head's gradient is `tpu_backward`'s.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import cached, reference, tpu_backward, tpu_student
from kernels.linear_divergence.spec import Divergence, DivergenceSpec, TeacherTopK

_GATHERED = 2**25  # Bytes of the head's rows that are gathered at a time.


def linear_divergence(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher: TeacherTopK,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  statistics: bool,
) -> Divergence:
  """`api.linear_divergence_from_top_k` in fused kernels, on one device."""
  batch, time, _ = student_hidden.shape
  teacher = TeacherTopK(teacher.ids.astype(jnp.int32), teacher.logp.astype(jnp.float32))
  flat = lambda x: x.reshape(batch * time, *x.shape[2:])  # noqa: E731
  hidden, teacher, targets = jax.tree.map(flat, (student_hidden, jax.lax.stop_gradient(teacher), targets))
  result = _rows((spec, statistics), hidden, student_head, teacher, targets.astype(jnp.int32))
  return jax.tree.map(lambda x: x.reshape(batch, time), result)


class _Residuals(NamedTuple):
  """What the backward pass needs; None where the forward pass had no use for it.

  Attributes:
    pull: [N, D], gradient of every loss to its hidden state, where it was made at once.
    hidden: [N, D], where the head is differentiated.
    head: [V, D], then.
    rows: see `tpu_backward.Rows`, with weights of 1 over the temperature.
    sparse: see `tpu_backward.Sparse`.
    dense: () where the hidden states' gradient is still to be made then.
  """

  pull: jax.Array | None
  hidden: jax.Array | None = None
  head: jax.Array | None = None
  rows: tpu_backward.Rows | None = None
  sparse: tpu_backward.Sparse | None = None
  dense: tuple[()] | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(settings, hidden, head, teacher, targets) -> Divergence:
  """Results [N] of rows [N, D]."""
  return _run(settings, hidden, head, teacher, targets, False, False)[0]


def _rows_forward(settings, hidden, head, teacher, targets):
  plain = jax.tree.map(
    lambda x: x.value,
    (hidden, head, teacher, targets),
    is_leaf=lambda x: isinstance(x, jax.custom_derivatives.CustomVJPPrimal),
  )
  return _run(settings, *plain, hidden.perturbed, head.perturbed)


def _run(settings, hidden, head, teacher, targets, of_hidden: bool, of_head: bool):
  """Results, and what gradients are made of."""
  spec, statistics = settings
  open_ = tpu_backward.dense_kind(spec, head.shape[0]) == 'bucket'
  # A dense product makes both gradients where every logit has one; else rows of the head do.
  pull = of_hidden and not (of_head and open_)
  student = mean = None
  if open_ or statistics:
    narrow = head.astype(hidden.dtype)
    student, mean = tpu_student.statistics(spec, hidden, narrow, targets, mean=pull and open_)
  norm = None if student is None else (student.maximum, jnp.log(student.total))
  size = spec.valid_vocab or head.shape[0]
  arrays = (hidden, *teacher, norm, mean)
  support = _in_groups(
    lambda *arrays: _at_support(spec, head, size, open_, pull, *arrays), arrays, _group(hidden, spec.k)
  )
  seen = support.seen
  if statistics:
    seen |= dict(
      student_entropy=norm[1] - student.moment / student.total,
      student_logp=student.target - norm[0] - norm[1],
      agreement=cached.agreement(teacher, student.best.astype(jnp.int32), jnp.float32),
    )
  residuals = _Residuals(support.pull)
  if of_head:
    zeros = jnp.zeros_like(support.level)
    norm = (zeros, zeros) if norm is None else norm
    rows = tpu_backward.Rows(*norm, zeros, zeros, support.level, zeros + 1 / spec.student_temperature)
    sparse = tpu_backward.in_lanes(teacher.ids, support.values)
    dense = () if of_hidden and not pull else None
    residuals = _Residuals(support.pull, hidden, head, rows, sparse, dense)
  return Divergence(**seen), residuals


def _rows_backward(settings, residuals, cotangent):
  spec, _ = settings
  pull, hidden, head, rows, sparse, dense = residuals
  loss = cotangent.loss
  if type(loss) is jax.custom_derivatives.SymbolicZero:
    loss = jnp.zeros(loss.aval.shape, loss.aval.dtype)
  own = None if pull is None else (pull.astype(jnp.float32) * loss[:, None]).astype(pull.dtype)
  if head is None:
    return own, None, None, None
  rows = rows._replace(weight=rows.weight * loss)
  sparse = sparse._replace(values=sparse.values * loss[:, None])
  summed, of_head = tpu_backward.gradients(
    spec, hidden, head, None, None, rows, sparse, of_hidden=dense is not None
  )
  return summed if own is None else own, of_head, None, None


_rows.defvjp(_rows_forward, _rows_backward, symbolic_zeros=True)


class _Support(NamedTuple):
  """Of a group of rows.

  Attributes:
    seen: results [n].
    values: d loss / d logit [n, k].
    level: [n], see `tpu_backward.Rows`.
    pull: gradient [n, D] to the hidden states, or None.
  """

  seen: dict[str, jax.Array]
  values: jax.Array
  level: jax.Array
  pull: jax.Array | None


def _at_support(spec, head, size, open_, pull, hidden, ids, log_p, norm, mean) -> _Support:
  """What rows of the head at ids [n, k] tell."""
  # A row whose loss has no weight may have any ids.
  rows = head.at[ids].get(mode='clip').astype(hidden.dtype)
  raw = _per_row('nmd,nkd->nmk', hidden, rows)
  slope = 1.0
  if spec.student_softcap is not None:
    level = jnp.tanh(raw / spec.student_softcap)
    raw, slope = level * spec.student_softcap, 1 - level * level
  z = raw / spec.student_temperature
  maximum, log_total = (z.max(-1), jnp.zeros_like(z[:, 0])) if norm is None else norm

  def compared(log_q):
    seen = reference.compared_at(log_p, log_q, None, size, spec)
    return seen['loss'], seen

  log_q = z - maximum[:, None] - log_total[:, None]
  loss, back, seen = jax.vjp(compared, log_q, has_aux=True)
  (slopes,) = back(jnp.ones_like(loss))
  level, values = slopes.sum(-1), slopes * slope / spec.student_temperature
  seen |= dict(student_mass=reference.mass(log_q), teacher_mass=reference.mass(log_p))
  own = None
  if pull:
    own = _per_row('nmk,nkd->nmd', values.astype(rows.dtype), rows)
    own = own - (level / spec.student_temperature)[:, None] * mean if open_ else own
    own = own.astype(hidden.dtype)
  return _Support(seen, values, level, own)


def _per_row(formula: str, vectors: jax.Array, matrices: jax.Array) -> jax.Array:
  """Every row's vector [n, a] times its matrix, summed in float32, and of float32 in float32.

  A vector gets rows of zeros below it (m): matrix units then do what else is a float32 sum of a copy of
  the matrices in float32.
  """
  exact = jax.lax.Precision.HIGHEST if vectors.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
  left = jnp.pad(vectors[:, None], [(0, 0), (0, 7), (0, 0)])
  return jnp.einsum(formula, left, matrices, precision=exact, preferred_element_type=jnp.float32).sum(1)


def _group(hidden: jax.Array, k: int) -> int:
  """Rows whose k rows of the head are gathered together."""
  row = k * hidden.shape[1] * hidden.dtype.itemsize
  return max(8, _GATHERED // row // 8 * 8)


def _in_groups(function: Callable[..., _Support], arrays, size: int) -> _Support:
  """`function` of arrays [N, ...], `size` rows at a time; the last group reaches back into the others."""
  count = arrays[0].shape[0]
  if count <= size:
    return function(*arrays)
  cut = lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, size)  # noqa: E731
  part = jax.eval_shape(function, *jax.tree.map(lambda x: cut(x, 0), arrays))

  def step(group, results):
    start = jnp.minimum(group * size, count - size)
    put = lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, start, 0)  # noqa: E731
    return jax.tree.map(put, results, function(*jax.tree.map(lambda x: cut(x, start), arrays)))

  empty = jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), part)
  return jax.lax.fori_loop(0, -(-count // size), step, empty)
