"""The loss of a batch: divergences at every sampled position, weighed and summed.

Axis letters: B rollouts, T completion tokens, D hidden width, V vocabulary.
"""

import jax
import jax.numpy as jnp

from kernels.linear_divergence import api as divergence
from kernels.linear_logprob.api import linear_logprob
from opsd_jax.distill import topk_reward
from opsd_jax.distill.config import ObjectiveConfig, Softcaps, divergence_spec, implementations
from opsd_jax.mesh import RULES
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import length_mask


def token_weights(length: jax.Array, width: int, reduction: str) -> jax.Array:
  """float32 [B, width] that sum to 1 over the global batch; 0 on padding.

  `token_mean` weighs every sampled token alike (the reference code); `sample_mean` weighs every
  sample alike and its tokens alike within it (OPSD, paper Eq. 6). Computed before a batch is split
  into micro-batches, so that the split cannot change the loss.
  """
  mask = length_mask(length, width).astype(jnp.float32)
  if reduction == 'token_mean':
    return mask / jnp.maximum(jnp.sum(length), 1)
  samples = jnp.maximum(jnp.sum(length > 0), 1)
  return mask / (jnp.maximum(length, 1)[:, None] * samples)


def compare(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
  tokens: jax.Array,
  config: ObjectiveConfig,
  valid_vocab: int,
  softcaps: Softcaps = Softcaps(None, None),
  weights: jax.Array | None = None,
) -> tuple[jax.Array, divergence.Divergence]:
  """Loss of every token [B, T], after the per-token clip, and the kernel's statistics.

  Args:
    student_hidden: [B, T, D], differentiable.
    student_head: [V, D], differentiable.
    teacher_hidden: [B, T, D'], constant.
    teacher_head: [V, D'], constant; None for the student's own head, held constant.
    tokens: int32 [B, T], sampled ids.
    config: the divergence, or the rewards of a top-k.
    valid_vocab: ids at and beyond it are padding of the head.
    softcaps: of the two models' logits.
    weights: [B, T], what the losses will be multiplied by; `speed` is slower without them.
  """
  arrays = (student_hidden, student_head, teacher_hidden, teacher_head, tokens)
  spec = divergence_spec(config, valid_vocab, softcaps)
  if config.estimator == 'reward_topk':
    settings = dict(chunk_tokens=config.chunk_tokens, statistics=config.statistics)
    rewarded = topk_reward.compare(*arrays, spec, config.reward_weights, **settings)
    return rewarded.loss, rewarded
  out = divergence.linear_divergence(
    *arrays,
    spec,
    chunk_tokens=config.chunk_tokens,
    mode=config.mode,
    weights=weights,
    statistics=config.statistics,
    implementation=implementations(config),
    batch_axes=RULES['batch'],
    vocab_axes=RULES['vocab'],
  )
  loss = out.loss if config.token_clip is None else jnp.minimum(out.loss, config.token_clip)
  return loss, out


def imitate(
  hidden: jax.Array,
  head: jax.Array,
  tokens: jax.Array,
  config: ObjectiveConfig,
  valid_vocab: int,
  softcap: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Cross-entropy of every token [B, T] (`estimator='nll'`), and what else is known of each.

  Args:
    hidden: the student's [B, T, D], differentiable.
    head: [V, D], differentiable.
    tokens: int32 [B, T].
    config: temperature.
    valid_vocab: ids at and beyond it are padding of the head.
    softcap: `final_softcap` of the model.
  """
  out = linear_logprob(
    hidden,
    head,
    tokens,
    temperature=config.student_temperature,
    softcap=softcap,
    valid_vocab=valid_vocab,
    chunk_tokens=config.chunk_tokens,
  )
  return -out.logp, {'student_logp': out.logp, 'student_entropy': out.entropy, 'greedy_hit': out.correct}


def served_by(
  config: ObjectiveConfig, model: ModelSpec, valid_vocab: int, teacher: ModelSpec | None = None
) -> str:
  """Which implementation of the divergence serves a run on this machine, and what the others lack.

  Args:
    config: the divergence.
    model: of the student; types and sizes decide, too.
    valid_vocab: ids at and beyond it are padding of the head.
    teacher: an external teacher's model; None for the student's.
  """
  if config.estimator == 'reward_topk':
    return 'rewards of the top-k, with the logits of a chunk of positions at a time'
  shapes = _hidden_and_head(model, model.vocab_size, 'float32')
  taught = shapes if teacher is None else _hidden_and_head(teacher, model.vocab_size, teacher.dtype)
  caps = Softcaps(model.final_softcap, (teacher or model).final_softcap)
  choices = divergence.explain(
    divergence_spec(config, valid_vocab, caps), *shapes, *taught, implementation=implementations(config)
  )
  names = [choice.name for choice in choices if choice.lacks is None][:1] or ['none']
  return '; '.join(names + [f'{choice.name} lacks {choice.lacks}' for choice in choices if choice.lacks])


def _hidden_and_head(model: ModelSpec, rows: int, head_dtype: str) -> tuple[jax.ShapeDtypeStruct, ...]:
  hidden = jax.ShapeDtypeStruct((1, 1, model.embed_dim), model.dtype)
  return hidden, jax.ShapeDtypeStruct((rows, model.embed_dim), head_dtype)


def statistics(
  loss: jax.Array, out: divergence.Divergence, mask: jax.Array, raw_logp: jax.Array, token_clip: float | None
) -> dict[str, jax.Array]:
  """Sums over sampled tokens of what is reported; divide by the token count for means.

  `logp_gap` is |scorer - sampler| of the sampled token's log-prob: what the two programs disagree by.
  `clip_fallback` counts the tokens whose entry clip took the kernel a second pass, where it tells them
  apart. What the kernel was not asked for is left out.
  """
  clipped = jnp.zeros_like(loss) if token_clip is None else (out.loss > token_clip).astype(jnp.float32)
  per_token = {
    'token_loss': loss,
    'forward_kl': out.forward_kl,
    'reverse_kl': out.reverse_kl,
    'student_entropy': out.student_entropy,
    'teacher_entropy': out.teacher_entropy,
    'student_logp': out.student_logp,
    'teacher_logp': out.teacher_logp,
    'student_topk_mass': out.student_mass,
    'teacher_topk_mass': out.teacher_mass,
    'entry_clip_fraction': out.clip_fraction,
    'token_clip_fraction': clipped,
    'agreement': out.agreement,
    'clip_fallback': out.clip_fallback,
    'logp_gap': None if out.student_logp is None else jnp.abs(out.student_logp - raw_logp),
  }
  if isinstance(out, topk_reward.Rewarded):
    per_token |= topk_reward.overlaps(out)
  known = {name: value for name, value in per_token.items() if value is not None}
  return {name: jnp.sum(jnp.where(mask, value, 0.0)) for name, value in known.items()}
