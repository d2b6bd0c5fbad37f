"""The divergence by its definition, on whole logits: what every implementation must equal."""

import math

import jax
import jax.numpy as jnp

from kernels import checks
from kernels import logits as lib
from kernels.linear_divergence.spec import KINDS, SUPPORTS, TAILS, Divergence, DivergenceSpec

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
  results = _compared(log_p, log_q, support_ids(student, teacher, targets, spec), spec)
  results |= _monitored(log_p, jax.lax.stop_gradient(log_q), spec)
  results['student_logp'] = jax.lax.stop_gradient(lib.at_targets(log_q, targets))
  results['teacher_logp'] = lib.at_targets(log_p, targets)
  # From logits, since log-probabilities round nearby logits together.
  same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
  return Divergence(agreement=same.astype(log_q.dtype), **results)


def support_ids(
  student: jax.Array, teacher: jax.Array, targets: jax.Array, spec: DivergenceSpec
) -> jax.Array | None:
  """Ids [..., n] of the support's entries, by shaped logits [..., V]; None for the full vocabulary.

  Equal logits rank by id, the lowest first. In a union the teacher's come first.
  """
  rank = lambda logits: jax.lax.top_k(jax.lax.stop_gradient(logits), spec.k)[1]  # noqa: E731
  match spec.support:
    case 'full':
      return None
    case 'teacher_topk':
      return rank(teacher)
    case 'student_topk':
      return rank(student)
    case 'union':
      return jnp.concatenate([rank(teacher), rank(student)], axis=-1)
  return targets[..., None]


def _compared(
  log_p: jax.Array, log_q: jax.Array, ids: jax.Array | None, spec: DivergenceSpec
) -> dict[str, jax.Array]:
  """The loss and what it saw: from the full log-probabilities [..., V], -inf at padding."""
  if ids is None:
    ones = jnp.ones(log_q.shape[:-1], log_q.dtype)
    # With both logs 0 at padding an entry is 0 without -inf minus -inf, in derivatives too.
    values = entries(*(lib.on_valid(x, spec.valid_vocab) for x in (log_p, log_q)), spec)
    return clipped_sum(values, spec.valid_vocab, spec) | dict(student_mass=ones, teacher_mass=ones)
  top_p, top_q = (jnp.take_along_axis(x, ids, axis=-1) for x in (log_p, log_q))
  counted = first_of(ids, spec)
  masses = dict(student_mass=mass(top_q, counted), teacher_mass=mass(top_p, counted))
  return compared_at(top_p, top_q, counted, spec.valid_vocab or log_q.shape[-1], spec) | masses


def first_of(ids: jax.Array, spec: DivergenceSpec) -> jax.Array | None:
  """False at ids [..., 2k] of a union that an earlier place holds already; None: all count."""
  if spec.support != 'union':
    return None
  seen = (ids[..., spec.k :, None] == ids[..., None, : spec.k]).any(-1)
  return jnp.concatenate([jnp.ones_like(seen), ~seen], axis=-1)


def compared_at(
  log_p: jax.Array, log_q: jax.Array, counted: jax.Array | None, size: int, spec: DivergenceSpec
) -> dict[str, jax.Array]:
  """Loss and share of clipped entries [...] of a support.

  Args:
    log_p: log-probabilities [..., n] of its entries; up to a constant if the tail is renormalised.
    log_q: the same of the student, differentiable.
    counted: bool [..., n], False where an entry is there twice, or None.
    size: valid vocabulary.
    spec: what to compare.
  """
  if spec.support == 'sampled':
    loss = sampled(log_p[..., 0], log_q[..., 0], spec)
    return dict(loss=loss, clip_fraction=jnp.zeros_like(loss))
  values = entries(*(closed(x, size, spec, counted) for x in (log_p, log_q)), spec)
  if counted is None:
    return clipped_sum(values, None, spec)
  bucket = jnp.ones((*counted.shape[:-1], values.shape[-1] - counted.shape[-1]), bool)
  return clipped_sum(values, None, spec, jnp.concatenate([counted, bucket], axis=-1))


def sampled(log_p: jax.Array, log_q: jax.Array, spec: DivergenceSpec) -> jax.Array:
  """Estimates [...] from the log-probabilities of a token drawn from q; see `DivergenceSpec`."""
  gap = log_p - jax.lax.stop_gradient(log_q)
  ratio = jnp.exp(gap)
  forward = _carrying(ratio * gap - ratio + 1, (1 - ratio) * log_q)
  reverse = _carrying(-gap, -gap * log_q)
  if spec.kind == 'both_kl':
    return spec.beta * forward + (1 - spec.beta) * reverse
  return forward if spec.kind == 'forward_kl' else reverse


def _carrying(value: jax.Array, surrogate: jax.Array) -> jax.Array:
  """`value` with the gradient of `surrogate`."""
  return value + (surrogate - jax.lax.stop_gradient(surrogate))


def closed(top: jax.Array, size: int, spec: DivergenceSpec, counted: jax.Array | None = None) -> jax.Array:
  """Log-probabilities [..., n] of a support made to sum to 1: [..., n], or n + 1 with a bucket.

  Entries that do not count have log 0, which gives no divergence in itself.
  """
  counted_top = top if counted is None else jnp.where(counted, top, -jnp.inf)
  total = jax.nn.logsumexp(counted_top, axis=-1, keepdims=True)
  # A support of every id has nothing for a bucket to hold.
  whole = spec.tail == 'renormalise' or spec.k == size
  inside = top - total if whole else top
  inside = inside if counted is None else jnp.where(counted, inside, 0.0)
  if whole:
    return inside
  rest = jnp.log(-jnp.expm1(jnp.minimum(total, _SUM_LIMIT)))
  return jnp.concatenate([inside, rest], axis=-1)


def entries(log_p: jax.Array, log_q: jax.Array, spec: DivergenceSpec) -> jax.Array:
  """Each entry's contribution to the divergence, before clipping; same shape as the inputs."""
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  if spec.kind == 'forward_kl':
    return p * (log_p - log_q)
  if spec.kind == 'reverse_kl':
    return q * (log_q - log_p)
  if spec.kind == 'both_kl':
    return (spec.beta * p - (1 - spec.beta) * q) * (log_p - log_q)
  teacher, student = math.log(spec.beta), math.log1p(-spec.beta)
  log_m = jnp.logaddexp(log_p + teacher, log_q + student)
  return spec.beta * p * (log_p - log_m) + (1 - spec.beta) * q * (log_q - log_m)


def clipped_sum(
  values: jax.Array, valid_vocab: int | None, spec: DivergenceSpec, counted: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Loss [...] and the share of entries that clipping changed, from entries [..., n].

  Only ids below `valid_vocab`, and entries that are `counted` [..., n], are looked at; None is all.
  """
  clipped = clip(values, spec)
  changed = (clipped != values).astype(values.dtype)
  # Masked again: a lower bound above 0 would lift the padding.
  clipped, changed = (lib.on_valid(x, valid_vocab) for x in (clipped, changed))
  count = valid_vocab or values.shape[-1]
  if counted is not None:
    clipped, changed = (jnp.where(counted, x, 0.0) for x in (clipped, changed))
    count = counted.sum(-1)
  return dict(loss=clipped.sum(-1), clip_fraction=changed.sum(-1) / count)


def clip(values: jax.Array, spec: DivergenceSpec) -> jax.Array:
  """Entries between the bounds of the spec."""
  if not clips(spec):
    return values
  return jnp.clip(values, spec.entry_clip_min, spec.entry_clip_max)


def clips(spec: DivergenceSpec) -> bool:
  """Whether the spec has a bound on entries."""
  return not (spec.entry_clip_min is None and spec.entry_clip_max is None)


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


def mass(top: jax.Array, counted: jax.Array | None = None) -> jax.Array:
  """Probability [...] of a support from its log-probabilities [..., n]; no gradient."""
  probability = jnp.exp(jax.lax.stop_gradient(top))
  return (probability if counted is None else jnp.where(counted, probability, 0.0)).sum(-1)


def validate(spec: DivergenceSpec, vocab: int) -> None:
  """Raises `ValueError` if `spec` cannot work for a head of `vocab` rows."""
  checks.choice('kind', spec.kind, KINDS)
  checks.choice('support', spec.support, SUPPORTS)
  checks.choice('tail', spec.tail, TAILS)
  for side in ('student', 'teacher'):
    checks.temperature(f'{side}_temperature', getattr(spec, f'{side}_temperature'))
    checks.softcap(f'{side}_softcap', getattr(spec, f'{side}_softcap'))
  checks.valid_vocab(spec.valid_vocab, vocab)
  _validate_beta(spec)
  _validate_k(spec, spec.valid_vocab or vocab)
  _validate_clip(spec)
  _validate_sampled(spec)


def _validate_beta(spec: DivergenceSpec) -> None:
  checks.require(
    spec.kind != 'jsd' or 0 < spec.beta < 1,
    f'beta is {spec.beta}, but jsd needs 0 < beta < 1 and is 0 at both ends; use kind='
    "'forward_kl' for what some code calls beta 0, kind='reverse_kl' for beta 1.",
  )
  checks.require(
    spec.kind != 'both_kl' or 0 < spec.beta < 1,
    f'beta is {spec.beta}, but both_kl needs 0 < beta < 1; at the ends it is one of the two: use kind='
    "'reverse_kl' for beta 0, kind='forward_kl' for beta 1.",
  )


def _validate_k(spec: DivergenceSpec, size: int) -> None:
  if spec.support in ('full', 'sampled'):
    compares = 'all entries' if spec.support == 'full' else 'one entry'
    checks.require(
      spec.k == 0,
      f'k is {spec.k}, but support {spec.support!r} compares {compares}; set k=0, or a top-k support '
      "('teacher_topk', 'student_topk', 'union').",
    )
    return
  checks.require(
    spec.k >= 1, f"k is {spec.k}, but support {spec.support!r} needs k >= 1; or use support='full'."
  )
  checks.require(
    spec.k <= size, f'k is {spec.k}, above the {size} valid vocabulary entries; use k <= {size}.'
  )


def _validate_sampled(spec: DivergenceSpec) -> None:
  if spec.support != 'sampled':
    return
  checks.require(
    spec.kind != 'jsd',
    "kind is 'jsd', which has no estimate from the sampled token alone here; use 'forward_kl', "
    "'reverse_kl' or 'both_kl', or another support.",
  )
  checks.require(
    not clips(spec),
    f'entry_clip_min is {spec.entry_clip_min} and entry_clip_max {spec.entry_clip_max}, but support '
    "'sampled' estimates a sum of entries and has none to clip; set both to None.",
  )


def _validate_clip(spec: DivergenceSpec) -> None:
  low, high = spec.entry_clip_min, spec.entry_clip_max
  checks.require(
    low is None or high is None or low <= high,
    f'entry_clip_min is {low}, above entry_clip_max {high}; swap them or set one to None.',
  )
