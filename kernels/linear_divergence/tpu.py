"""The divergence on a TPU, in Pallas kernels: no array of N positions by V entries exists in HBM.

Three kernels: one pass over vocabulary tiles for all results (`tpu_forward`), one each for the
gradients of the hidden states and of the head (`tpu_backward`). What is left is arithmetic on
[N] and [N, k] numbers, which is here and the reference's own.
"""

import functools

import jax
import jax.numpy as jnp

from kernels.linear_divergence import reference, tpu_backward, tpu_forward, tpu_top_k
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
  if spec.support == 'full' and spec.kind == 'jsd':
    return "the full-vocabulary jsd; use support 'teacher_topk' or 'student_topk'"
  if spec.support == 'full' and not (spec.entry_clip_min is None and spec.entry_clip_max is None):
    return "entry clips over the full vocabulary; use support 'teacher_topk' or 'student_topk', or no clip"
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
) -> Divergence:
  """`api.linear_divergence` in fused kernels; `chunk_tokens` has no effect.

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
  result = _rows(spec, student_hidden, student_head, teacher_hidden, teacher_head, targets)
  return jax.tree.map(lambda x: x.reshape(batch, time), result)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(spec, student_hidden, student_head, teacher_hidden, teacher_head, targets) -> Divergence:
  """Results [N] of rows [N, D]; a teacher head of None is the student's."""
  return _rows_forward(spec, student_hidden, student_head, teacher_hidden, teacher_head, targets)[0]


def _rows_forward(spec, *arguments):
  *arrays, targets = arguments
  student, teacher, top = tpu_forward.statistics(
    spec, *_in_types_of_hidden(*arrays), targets.astype(jnp.int32)
  )
  normalisers = _normalisers(student), _normalisers(teacher)
  results = _monitored(student, teacher, normalisers)
  if top is None:
    compared, sparse, level = _compared_fully(spec, results), None, results['reverse_kl']
  else:
    compared, sparse, level = _compared_at_top_k(spec, top, normalisers, arrays[1].shape[0])
  return Divergence(**results, **compared), (arrays, normalisers, level, sparse)


def _rows_backward(spec, residuals, cotangent):
  (student_hidden, student_head, *teacher), normalisers, level, sparse = residuals
  loss = cotangent.loss
  rows = tpu_backward.Rows(*normalisers[0], *normalisers[1], level, loss / spec.student_temperature)
  sparse = sparse and sparse._replace(values=sparse.values * loss[:, None])
  arrays = _in_types_of_hidden(student_hidden, student_head, *teacher)
  gradients = tpu_backward.gradients(spec, *arrays, rows, sparse, student_head.dtype)
  return *gradients, None, None, None


_rows.defvjp(_rows_forward, _rows_backward)


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
  loss = results[spec.kind]
  ones = jnp.ones_like(loss)
  return dict(loss=loss, student_mass=ones, teacher_mass=ones, clip_fraction=0 * ones)


def _compared_at_top_k(spec: DivergenceSpec, top: tpu_top_k.TopK, normalisers, vocab: int):
  """Loss and masses [N], d loss / d logit at the support, and the factor of q everywhere [N]."""
  ranked, other = top.values[:, : spec.k], top.others[:, : spec.k]
  logits = (other, ranked) if spec.support == 'teacher_topk' else (ranked, other)
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
  masses = dict(student_mass=reference.mass(log_q), teacher_mass=reference.mass(log_p))
  sparse = _sparse(spec, top.ids, gradient * _slope(spec, logits[0]) / spec.student_temperature)
  # A log-probability falls with the log of the sum, which every logit raises by its probability.
  return masses | dict(loss=loss, clip_fraction=clipped), sparse, -gradient.sum(-1)


def _slope(spec: DivergenceSpec, logits: jax.Array) -> jax.Array | float:
  """Derivative of the student's soft-cap at shaped logits."""
  if spec.student_softcap is None:
    return 1.0
  return 1 - (logits * (spec.student_temperature / spec.student_softcap)) ** 2


def _sparse(spec: DivergenceSpec, ids: jax.Array, values: jax.Array) -> tpu_backward.Sparse:
  """Lanes [N, 128] of ids [N, 128] and values [N, k]."""
  used = jnp.arange(LANES)[None] < spec.k
  return tpu_backward.Sparse(jnp.where(used, ids, -1.0), jnp.pad(values, [(0, 0), (0, LANES - spec.k)]))
