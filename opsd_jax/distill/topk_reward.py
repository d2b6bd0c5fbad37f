"""A reward for each of a few next tokens, and the policy gradient that needs no sampling.

The objective of the code of Rethinking OPD (arXiv 2604.13016), whose equation is another. With p the
student's and q the teacher's probabilities, both over the whole vocabulary, a position's ids S have

  d_k = log p_k - log q_k,   reward r_k = -w_k d_k,   loss Σ_k w_k d_k,   gradient Σ_k w_k d_k ∇ log p_k.

Ids, weights and log-ratios are constants. The rollouts are the student's own and are used once, so that the
ratio to older weights, and the clip of it, are not there. The paper's equation renormalises p and q on S:
`divergence=reverse_kl, support=student_topk, tail=renormalise`. Over all ids both have the gradient of the
reverse KL. On fewer, every d_k here differs by the log-ratio of the two masses on S, and at k = 1, where the
equation has no gradient, there is one that follows the most probable token alone.

Axis letters: B rollouts, T completion tokens, D hidden width, V vocabulary, n places of a support.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels import chunks
from kernels import logits as lib
from kernels.linear_divergence import reference
from kernels.linear_divergence.spec import Divergence, DivergenceSpec

_CONSTANT = 'reward_topk'  # what the backward pass does not compute again


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rewarded(Divergence):
  """Per-token results, each float32 [B, T]; of the overlap of student's and teacher's k most probable ids.

  Attributes:
    overlap: share of the k ids that are in both.
    overlap_student_mass: the student's probability of these.
    overlap_teacher_mass: the teacher's.
    overlap_advantage: mean over these of p (log q - log p), p and q renormalised on them (the paper's).
    overlap_reward: sum of the rewards of these (the code's, before it divides by their number).
  """

  overlap: jax.Array | None = None
  overlap_student_mass: jax.Array | None = None
  overlap_teacher_mass: jax.Array | None = None
  overlap_advantage: jax.Array | None = None
  overlap_reward: jax.Array | None = None


def compare(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
  tokens: jax.Array,
  spec: DivergenceSpec,
  weighting: str,
  *,
  chunk_tokens: int,
  statistics: bool,
) -> Rewarded:
  """Loss [B, T] of every position, and statistics; a chunk of positions has logits at a time.

  Args:
    student_hidden: [B, T, D], differentiable.
    student_head: [V, D], differentiable.
    teacher_hidden: [B, T, D'], constant.
    teacher_head: [V, D'], constant; None for the student's own head, held constant.
    tokens: int32 [B, T], sampled ids.
    spec: temperatures, soft-caps, valid vocabulary, k, and one of `choose`'s supports.
    weighting: of `shares`.
    chunk_tokens: positions, over the whole batch, whose logits are held at once.
    statistics: report what the loss does not need too.
  """
  own = student_head if teacher_head is None else teacher_head
  teacher_hidden, own = jax.lax.stop_gradient((teacher_hidden, own))

  def body(_, student, teacher, token):
    logits = lib.project(student, student_head), lib.project(teacher, own)
    shaped = lib.shape(logits[0], spec.student_temperature, spec.student_softcap, spec.valid_vocab)
    other = lib.shape(logits[1], spec.teacher_temperature, spec.teacher_softcap, spec.valid_vocab)
    return None, from_logits(shaped, other, token, spec, weighting, statistics)

  # The backward pass makes the student's logits again, and nothing of the teacher.
  kept = jax.checkpoint_policies.save_only_these_names(_CONSTANT)
  step = jax.checkpoint(body, prevent_cse=False, policy=kept)
  return chunks.fold_time(step, None, (student_hidden, teacher_hidden, tokens), chunk_tokens)[1]


def from_logits(
  student: jax.Array,
  teacher: jax.Array,
  tokens: jax.Array,
  spec: DivergenceSpec,
  weighting: str,
  statistics: bool = True,
) -> Rewarded:
  """Results [...] from shaped logits [..., V], the student's differentiable, and sampled ids [...]."""
  fixed = jax.lax.stop_gradient(student)
  mine, theirs = (jax.lax.top_k(x, spec.k)[1] for x in (fixed, teacher))
  ids, counted = choose(mine, theirs, spec.support)
  ids = checkpoint_name(ids, _CONSTANT)
  log_p, log_q = _log_at(student, ids), _log_at(teacher, ids)
  weights = shares(jax.lax.stop_gradient(log_p), log_q, counted, spec.support, weighting)
  signal = jnp.where(counted, weights * (jax.lax.stop_gradient(log_p) - log_q), 0.0)
  signal = checkpoint_name(signal, _CONSTANT)
  surrogate = (signal * log_p).sum(-1)
  loss = signal.sum(-1) + (surrogate - jax.lax.stop_gradient(surrogate))
  if not statistics:
    return Rewarded(loss, jnp.zeros_like(loss))
  plain = DivergenceSpec(kind='reverse_kl', valid_vocab=spec.valid_vocab)
  seen = dict(vars(reference.divergence_from_logits(fixed, teacher, tokens, plain)))
  masses = dict(student_mass=reference.mass(log_p, counted), teacher_mass=reference.mass(log_q, counted))
  both = counted & _among(ids, mine) & _among(ids, theirs)
  common = _overlap(_log_at(fixed, mine), _log_at(teacher, mine), _among(mine, theirs))
  common['overlap_reward'] = -jnp.where(both, signal, 0.0).sum(-1)
  return Rewarded(**(seen | masses | common | dict(loss=loss)))


def choose(mine: jax.Array, theirs: jax.Array, support: str) -> tuple[jax.Array, jax.Array]:
  """Ids [..., n] of a support, and which of the n places count.

  Args:
    mine: ids [..., k] of the student's most probable entries, each once.
    theirs: the teacher's.
    support: `student_topk` (the code's only_stu), `teacher_topk` (only_tch), `intersection`: those of the
      student's that are the teacher's too; `union`: the student's, then the teacher's others;
      `symmetric_difference` (union-intersection): those that are one's alone.
  """
  all_mine, all_theirs = (jnp.ones(x.shape, bool) for x in (mine, theirs))
  match support:
    case 'student_topk':
      return mine, all_mine
    case 'teacher_topk':
      return theirs, all_theirs
    case 'intersection':
      return mine, _among(mine, theirs)
  own = all_mine if support == 'union' else ~_among(mine, theirs)
  return jnp.concatenate([mine, theirs], -1), jnp.concatenate([own, ~_among(theirs, mine)], -1)


def shares(log_p: jax.Array, log_q: jax.Array, counted: jax.Array, support: str, weighting: str) -> jax.Array:
  """Weights [..., n] of a support's places: 0 where they do not count, all 0 where none does.

  Probabilities renormalised on the support, the student's (`student_p`) or the teacher's (`teacher_p`), or
  all alike (`none`). On the symmetric difference probabilities stay as they are, as in the code.

  Args:
    log_p: the student's log-probabilities [..., n] over the whole vocabulary.
    log_q: the teacher's.
    counted: bool [..., n].
    support: of `choose`.
    weighting: see above.
  """
  if weighting == 'none':
    return counted / jnp.maximum(counted.sum(-1, keepdims=True), 1).astype(log_p.dtype)
  logs = jnp.where(counted, log_p if weighting == 'student_p' else log_q, -jnp.inf)
  if support == 'symmetric_difference':
    return jnp.exp(logs)
  total = jax.nn.logsumexp(logs, axis=-1, keepdims=True)
  return jnp.exp(logs - jnp.where(counted.any(-1, keepdims=True), total, 0.0))


def overlaps(out: Rewarded) -> dict[str, jax.Array | None]:
  """Statistics [B, T] that other objectives do not have; None where none were asked for."""
  own = [f.name for f in dataclasses.fields(Rewarded) if f.name.startswith('overlap')]
  gap = None if out.student_entropy is None else jnp.abs(out.teacher_entropy - out.student_entropy)
  return {name: getattr(out, name) for name in own} | {'entropy_gap': gap}


def _overlap(log_p: jax.Array, log_q: jax.Array, shared: jax.Array) -> dict[str, jax.Array]:
  """Of log-probabilities [..., k] at the student's most probable ids, of which some are `shared`."""
  count = shared.sum(-1)
  p, q = _renormalised(log_p, shared), _renormalised(log_q, shared)
  inside = jnp.where(shared, jnp.exp(p) * (q - p), 0.0).sum(-1)
  return dict(
    overlap=count / jnp.asarray(shared.shape[-1], log_p.dtype),
    overlap_student_mass=reference.mass(log_p, shared),
    overlap_teacher_mass=reference.mass(log_q, shared),
    overlap_advantage=inside / jnp.maximum(count, 1).astype(log_p.dtype),
  )


def _renormalised(logs: jax.Array, counted: jax.Array) -> jax.Array:
  """Log-probabilities [..., k] that sum to 1 over the places that count; 0 at the others."""
  total = jax.nn.logsumexp(jnp.where(counted, logs, -jnp.inf), axis=-1, keepdims=True)
  return jnp.where(counted, logs - jnp.where(counted.any(-1, keepdims=True), total, 0.0), 0.0)


def _among(ids: jax.Array, others: jax.Array) -> jax.Array:
  """Which of `ids` [..., n] are in `others` [..., m]."""
  return (ids[..., :, None] == others[..., None, :]).any(-1)


def _log_at(logits: jax.Array, ids: jax.Array) -> jax.Array:
  """Log-probabilities [..., n] at ids, from shaped logits [..., V]."""
  return jnp.take_along_axis(logits, ids, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
