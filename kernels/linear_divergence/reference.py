"""The divergence by its definition, on whole logits: what every implementation must equal."""

import math

import jax
import jax.numpy as jnp

from kernels import checks
from kernels import logits as lib
from kernels.linear_divergence.spec import Divergence, DivergenceSpec

_SUM_LIMIT = -1e-7  # Largest log of the support's mass: keeps log(1 - mass) finite.


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
  """`api.linear_divergence` with all logits held at once; `chunk_tokens` has no effect."""
  del chunk_tokens
  student = lib.project(student_hidden, student_head)
  teacher = lib.project(*jax.lax.stop_gradient((teacher_hidden, teacher_head)))
  return divergence_from_logits(student, teacher, targets, spec)


def divergence_from_logits(
  student_logits: jax.Array, teacher_logits: jax.Array, targets: jax.Array, spec: DivergenceSpec
) -> Divergence:
  """Compares two next-token distributions (OPSD, arXiv 2601.18734, Eq. 7 and 8).

  Args:
    student_logits: [..., V] before soft-cap and temperature, any floating type.
    teacher_logits: [..., V]; gets no gradient.
    targets: [...] integer ids below the valid vocabulary.
    spec: what to compare; see `validate`.

  Returns:
    Results [...], in nats, float32 (float64 for float64 logits).
  """
  valid = spec.valid_vocab
  student = lib.shape(student_logits, spec.student_temperature, spec.student_softcap, valid)
  teacher = lib.shape(teacher_logits, spec.teacher_temperature, spec.teacher_softcap, valid)
  log_q = jax.nn.log_softmax(student)
  log_p = jax.lax.stop_gradient(jax.nn.log_softmax(teacher))
  results = _compared(log_p, log_q, spec) | _monitored(log_p, jax.lax.stop_gradient(log_q), spec)
  results['student_logp'] = jax.lax.stop_gradient(lib.at_targets(log_q, targets))
  results['teacher_logp'] = lib.at_targets(log_p, targets)
  # From logits, since log-probabilities round nearby logits together.
  same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
  return Divergence(agreement=same.astype(log_q.dtype), **results)


def _compared(log_p: jax.Array, log_q: jax.Array, spec: DivergenceSpec) -> dict[str, jax.Array]:
  """The loss and what it saw: from the full log-probabilities [..., V], -inf at padding."""
  if spec.support == 'full':
    ones = jnp.ones(log_q.shape[:-1], log_q.dtype)
    # With both logs 0 at padding an entry is 0 without -inf minus -inf, in derivatives too.
    values = entries(*(lib.on_valid(x, spec.valid_vocab) for x in (log_p, log_q)), spec)
    return clipped_sum(values, spec.valid_vocab, spec) | dict(student_mass=ones, teacher_mass=ones)
  ranked = log_p if spec.support == 'teacher_topk' else log_q
  ids = jax.lax.top_k(jax.lax.stop_gradient(ranked), spec.k)[1]
  top_p, top_q = (jnp.take_along_axis(x, ids, axis=-1) for x in (log_p, log_q))
  size = spec.valid_vocab or log_q.shape[-1]
  values = entries(closed(top_p, size, spec), closed(top_q, size, spec), spec)
  masses = dict(student_mass=mass(top_q), teacher_mass=mass(top_p))
  return clipped_sum(values, None, spec) | masses


def closed(top: jax.Array, size: int, spec: DivergenceSpec) -> jax.Array:
  """Log-probabilities [..., k] of a support of `size` ids made to sum to 1, [..., k or k + 1]."""
  # A support of every id has nothing for a bucket to hold.
  if spec.tail == 'renormalise' or spec.k == size:
    return jax.nn.log_softmax(top)
  total = jax.nn.logsumexp(top, axis=-1, keepdims=True)
  rest = jnp.log(-jnp.expm1(jnp.minimum(total, _SUM_LIMIT)))
  return jnp.concatenate([top, rest], axis=-1)


def entries(log_p: jax.Array, log_q: jax.Array, spec: DivergenceSpec) -> jax.Array:
  """Each entry's contribution to the divergence, before clipping; same shape as the inputs."""
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  if spec.kind == 'forward_kl':
    return p * (log_p - log_q)
  if spec.kind == 'reverse_kl':
    return q * (log_q - log_p)
  teacher, student = math.log(spec.beta), math.log1p(-spec.beta)
  log_m = jnp.logaddexp(log_p + teacher, log_q + student)
  return spec.beta * p * (log_p - log_m) + (1 - spec.beta) * q * (log_q - log_m)


def clipped_sum(values: jax.Array, valid_vocab: int | None, spec: DivergenceSpec) -> dict[str, jax.Array]:
  """Loss [...] and the share of entries that clipping changed, from entries [..., n]."""
  low, high = spec.entry_clip_min, spec.entry_clip_max
  clipped = values if low is None and high is None else jnp.clip(values, low, high)
  count = valid_vocab or values.shape[-1]
  # Masked again: a lower bound above 0 would lift the padding.
  changed = lib.on_valid((clipped != values).astype(values.dtype), valid_vocab).sum(-1) / count
  return dict(loss=lib.on_valid(clipped, valid_vocab).sum(-1), clip_fraction=changed)


def _monitored(log_p: jax.Array, log_q: jax.Array, spec: DivergenceSpec) -> dict[str, jax.Array]:
  """Full-vocabulary divergences and entropies [...]."""
  log_p, log_q = (lib.on_valid(x, spec.valid_vocab) for x in (log_p, log_q))
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  return dict(
    forward_kl=(p * (log_p - log_q)).sum(-1),
    reverse_kl=(q * (log_q - log_p)).sum(-1),
    student_entropy=-(q * log_q).sum(-1),
    teacher_entropy=-(p * log_p).sum(-1),
  )


def mass(top: jax.Array) -> jax.Array:
  """Probability [...] of a support from its log-probabilities [..., k]; no gradient."""
  return jnp.exp(jax.lax.stop_gradient(top)).sum(-1)


def validate(spec: DivergenceSpec, vocab: int) -> None:
  """Raises `ValueError` if `spec` cannot work for a head of `vocab` rows."""
  checks.choice('kind', spec.kind, ('forward_kl', 'reverse_kl', 'jsd'))
  checks.choice('support', spec.support, ('full', 'teacher_topk', 'student_topk'))
  checks.choice('tail', spec.tail, ('renormalise', 'bucket'))
  for side in ('student', 'teacher'):
    checks.temperature(f'{side}_temperature', getattr(spec, f'{side}_temperature'))
    checks.softcap(f'{side}_softcap', getattr(spec, f'{side}_softcap'))
  checks.valid_vocab(spec.valid_vocab, vocab)
  _validate_beta(spec)
  _validate_k(spec, spec.valid_vocab or vocab)
  _validate_clip(spec)


def _validate_beta(spec: DivergenceSpec) -> None:
  checks.require(
    spec.kind != 'jsd' or 0 < spec.beta < 1,
    f'beta is {spec.beta}, but jsd needs 0 < beta < 1 and is 0 at both ends; use kind='
    "'forward_kl' for what some code calls beta 0, kind='reverse_kl' for beta 1.",
  )


def _validate_k(spec: DivergenceSpec, size: int) -> None:
  if spec.support == 'full':
    checks.require(
      spec.k == 0,
      f"k is {spec.k}, but support 'full' compares all entries; set k=0, or a top-k support "
      "('teacher_topk', 'student_topk').",
    )
    return
  checks.require(
    spec.k >= 1, f"k is {spec.k}, but support {spec.support!r} needs k >= 1; or use support='full'."
  )
  checks.require(
    spec.k <= size, f'k is {spec.k}, above the {size} valid vocabulary entries; use k <= {size}.'
  )


def _validate_clip(spec: DivergenceSpec) -> None:
  low, high = spec.entry_clip_min, spec.entry_clip_max
  checks.require(
    low is None or high is None or low <= high,
    f'entry_clip_min is {low}, above entry_clip_max {high}; swap them or set one to None.',
  )
