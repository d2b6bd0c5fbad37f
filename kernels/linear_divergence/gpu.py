"""The divergence on a Hopper GPU, in Pallas kernels: no array of N positions by V entries exists.

One pass over vocabulary tiles for all statistics, a second for losses whose entries need both
normalisers (`gpu_passes`), and d loss / d logits a step of the vocabulary at a time (`gpu_backward`).

Written for `jax.experimental.pallas.mosaic_gpu` and run under its interpreter alone so far: `api` takes
it where it is asked for by name, and where nobody asks `chunked` serves GPUs.
"""

import functools

import jax
import jax.numpy as jnp

from kernels.linear_divergence import tpu_entries as entries
from kernels.linear_divergence.gpu_config import Config
from kernels.linear_divergence.spec import Divergence, DivergenceSpec

_JAX = (0, 11)  # Before, Mosaic GPU could not lower `concatenate`.
_EXACT = 2**24  # Ids are kept in float32.
CONFIG = Config()


def unsupported(spec: DivergenceSpec, *arrays: jax.Array) -> str | None:
  """Why the kernels cannot serve a call, else None.

  Args:
    spec: what to compare.
    *arrays: hidden states [..., D] and heads [V, D], those that there are; shapes and types suffice.
  """
  if jax.__version_info__[:2] < _JAX:
    return f'jax {jax.__version__}; use jax >= {".".join(map(str, _JAX))}, which needs Python >= 3.12'
  if spec.support != 'full':
    return f"support {spec.support!r} (and with it k = {spec.k}); use 'full'"
  for array in arrays:
    lack = _lacks_array(spec, array)
    if lack is not None:
      return lack
  capability = getattr(jax.devices()[0], 'compute_capability', None)
  if capability is not None and not capability.startswith('9.'):
    return f'compute capability {capability}; use a Hopper GPU (9.0)'
  return None


def _lacks_array(spec: DivergenceSpec, array: jax.Array) -> str | None:
  width = array.shape[-1]
  if width % CONFIG.depth:
    return f'a width of {width}; use a multiple of {CONFIG.depth}'
  if array.ndim != 2:
    return None if array.dtype == jnp.bfloat16 else f'{array.dtype} hidden states; use bfloat16'
  if array.dtype not in (jnp.bfloat16, jnp.float32):
    return f'a head of {array.dtype}; use bfloat16 or float32'
  valid = spec.valid_vocab or array.shape[0]
  if not CONFIG.vocab <= valid <= array.shape[0] < _EXACT:
    return f'a vocabulary of {valid}; it must be in {CONFIG.vocab}..{_EXACT - 1}'
  return None


def linear_divergence(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  config: Config | None = None,
) -> Divergence:
  """`api.linear_divergence` in fused kernels.

  Args: as `api.linear_divergence`, and how to cut, by default `CONFIG`.

  Raises:
    NotImplementedError: see `unsupported`.
  """
  reason = unsupported(spec, student_hidden, student_head, teacher_hidden, teacher_head)
  if reason is not None:
    raise NotImplementedError(f'The GPU kernels lack {reason}.')
  config, (batch, time) = config or CONFIG, targets.shape
  shared = teacher_head is student_head
  teacher_hidden, teacher_head = jax.lax.stop_gradient((teacher_hidden, None if shared else teacher_head))
  missing = -(batch * time) % config.rows

  def rows(x):
    flat = x.reshape(batch * time, *x.shape[2:])
    return jnp.pad(flat, [(0, missing)] + [(0, 0)] * (flat.ndim - 1)) if missing else flat

  result = _rows(
    spec, config, rows(student_hidden), student_head, rows(teacher_hidden), teacher_head, rows(targets)
  )
  return jax.tree.map(lambda x: x[: batch * time].reshape(batch, time), result)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rows(spec, config, student_hidden, student_head, teacher_hidden, teacher_head, targets) -> Divergence:
  """Results [N] of rows [N, D], N a multiple of `config.rows`; a teacher head of None is the student's."""
  return _run(spec, config, student_hidden, student_head, teacher_hidden, teacher_head, targets)[0]


def _rows_forward(spec, config, *arguments):
  differentiated = [x.perturbed for x in arguments[:2]]
  values = [None if x is None else x.value for x in arguments]
  result, norms, level = _run(spec, config, *values)
  return result, (tuple(values[:4]), norms, level, () if differentiated[1] else None)


def _run(spec, config, student_hidden, student_head, teacher_hidden, teacher_head, targets):
  """Results, norms (float32 [4, N], see `gpu_passes.sums`), and the level [N] of the gradient."""
  # Here and not above: where Mosaic GPU is missing, the other implementations serve.
  from kernels.linear_divergence import gpu_passes

  head = student_head.astype(student_hidden.dtype)
  other = head if teacher_head is None else teacher_head.astype(teacher_hidden.dtype)
  models = (student_hidden, head), (teacher_hidden, other)
  valid = spec.valid_vocab or student_head.shape[0]
  student, teacher = gpu_passes.statistics(config, spec, valid, models, targets.astype(jnp.int32))
  norms = jnp.stack([student.maximum, jnp.log(student.total), teacher.maximum, jnp.log(teacher.total)])
  results = _monitored(student, teacher, norms)
  if entries.linear(spec):
    shares = zip(entries.shares(spec), ('forward_kl', 'reverse_kl'), strict=True)
    # Only what has a share: elsewhere 0 times infinity may wait.
    loss = sum(share * results[name] for share, name in shares if share)
    level, changed = entries.level(spec, results['reverse_kl']), jnp.zeros_like(loss)
  else:
    loss, level, changed = gpu_passes.sums(config, spec, valid, models, norms)
  level = jnp.broadcast_to(level, loss.shape)
  ones = jnp.ones_like(loss)
  compared = dict(loss=loss, clip_fraction=changed / valid, student_mass=ones, teacher_mass=ones)
  return Divergence(**results, **compared), norms, level


def _rows_backward(spec, config, residuals, cotangent):
  from kernels.linear_divergence import gpu_backward

  (student_hidden, student_head, teacher_hidden, teacher_head), norms, level, of_head = residuals
  loss = cotangent.loss
  if type(loss) is jax.custom_derivatives.SymbolicZero:
    loss = jnp.zeros(loss.aval.shape, loss.aval.dtype)
  gradients = gpu_backward.gradients(
    config,
    spec,
    spec.valid_vocab or student_head.shape[0],
    (student_hidden, student_head),
    (teacher_hidden, student_head if teacher_head is None else teacher_head),
    gpu_backward.Rows(*norms, level, loss / spec.student_temperature),
    of_head=of_head is not None,
  )
  return *gradients, None, None, None


_rows.defvjp(_rows_forward, _rows_backward, symbolic_zeros=True)


def _monitored(student, teacher, norms: jax.Array) -> dict[str, jax.Array]:
  """Full-vocabulary results [N] from both sides' statistics (`gpu_passes.Side`)."""
  max_s, log_s, max_t, log_t = norms
  return dict(
    forward_kl=teacher.cross / teacher.total - log_t + log_s,
    reverse_kl=student.cross / student.total - log_s + log_t,
    student_entropy=log_s - student.moment / student.total,
    teacher_entropy=log_t - teacher.moment / teacher.total,
    student_logp=student.target - max_s - log_s,
    teacher_logp=teacher.target - max_t - log_t,
    agreement=(student.best == teacher.best).astype(jnp.float32),
  )
