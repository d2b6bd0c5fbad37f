"""Weights of whole samples: how much each rollout counts, and which count at all.

They are numbers of the global batch, known before any gradient, so that neither micro-batches nor devices
can change them; the step multiplies its token weights by them.

ReNIO (arXiv 2606.23104, by its code): with l = log p_S - log p_T of each sampled token,

  l <- min(l, cap);   m = mean over the tokens with l >= threshold, or 0;   exp(m / temperature),

then normalised over the batch. A sample in which the student is often much surer than the teacher weighs
more; no answer is looked at. Another signal may stand in the place of l (`signals`): the control `entropy`
puts the student's entropy there, so that no teacher is asked. `length` is the number of tokens.

`keep` leaves samples out instead: a row that is not kept has no tokens from then on, so that no model scores
it and no denominator counts it.

Axis letters: B rollouts, T completion tokens, N micro-batches of G parts of C tokens, D hidden width, V
vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.linear_logprob.api import linear_logprob
from opsd_jax.distill import reading, signals
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.mesh import constrain
from opsd_jax.records import Graded, Plan, Rollout, Verdict, length_mask


class Weights(NamedTuple):
  """What samples weigh.

  Attributes:
    values: float32 [B], 0 where a row has no tokens.
    selected: int32 [B], tokens that were averaged; all of them with `length`.
  """

  values: jax.Array
  selected: jax.Array


def kept(config: WeighConfig, graded: Graded) -> np.ndarray:
  """bool [B], which samples are trained on. An unreadable known answer makes a sample neither."""
  judged = np.array([v != Verdict.GOLD_UNPARSABLE for v in graded.verdicts], bool)
  correct = graded.correct
  return {'all': np.ones_like(correct), 'correct': correct, 'incorrect': ~correct & judged}[config.keep]


def without(rollout: Rollout, keep: np.ndarray) -> Rollout:
  """The rollouts with no tokens in rows that are not kept; `rollout` is on the host."""
  return rollout.replace(length=np.where(keep, rollout.length, 0).astype(np.int32))


def weigh(
  config: WeighConfig,
  length: jax.Array,
  student_logp: jax.Array,
  teacher_logp: jax.Array,
  entropy: jax.Array | None = None,
) -> Weights:
  """Weights of the samples of the global batch.

  Args:
    config: of a kind that weighs.
    length: int [B], tokens of each sample; 0 for one that does not take part.
    student_logp: float32 [B, T], log-probs of the sampled tokens over the whole vocabulary, anything on
      padding, at the temperature of the loss.
    teacher_logp: the same of the teacher.
    entropy: float32 [B, T], the student's; None for `-student_logp`.
  """
  mask, length = length_mask(length, student_logp.shape[1]), jnp.asarray(length)
  if config.kind == 'length':
    return Weights(_normalised(config, length.astype(jnp.float32), length > 0), length)
  signal = signals.SIGNALS[config.kind].of(student_logp, teacher_logp, entropy)
  signal = jnp.minimum(signal, config.cap)
  chosen = mask & (signal >= config.threshold)
  count = jnp.sum(chosen, axis=1, dtype=jnp.int32)
  mean = jnp.sum(jnp.where(chosen, signal, 0.0), axis=1) / jnp.maximum(count, 1)
  raw = jnp.exp(mean / config.temperature)
  return Weights(_normalised(config, raw, length > 0), count)


def _normalised(config: WeighConfig, raw: jax.Array, real: jax.Array) -> jax.Array:
  """float32 [B] from raw weights [B]; rows that are not `real` [B] are 0 and in no mean."""
  if config.normalise == 'clamp':
    raw = jnp.clip(raw, 1 / config.largest, config.largest)
  raw = jnp.where(real, raw, 0.0)
  if config.normalise == 'none':
    return raw
  groups = (1, -1) if config.scope == 'global' else (-1, config.micro)
  total = jnp.sum(raw.reshape(groups), axis=1, keepdims=True)
  mean = total / jnp.maximum(jnp.sum(real.reshape(groups), axis=1, keepdims=True), 1)
  share = (raw.reshape(groups) / jnp.maximum(mean, jnp.finfo(raw.dtype).tiny)).ravel()
  return jnp.minimum(share, config.largest) if config.normalise == 'batch_mean' else share


@jax.named_scope('weigh')
def from_states(
  config: WeighConfig,
  rollout: Rollout,
  plan: Plan,
  teacher: tuple[jax.Array, jax.Array],
  student: tuple[jax.Array, jax.Array] | None,
  *,
  temperatures: tuple[float, float],
  softcaps: tuple[float | None, float | None],
  valid_vocab: int,
  chunk_tokens: int,
) -> Weights:
  """`weigh` of the planned tokens, from final hidden states; no [B, T, V] exists.

  Args:
    config: of a kind that weighs.
    rollout: B rows.
    plan: that the hidden states were made by.
    teacher: hidden states [N, G, C, D] and LM head [V, D].
    student: the same of the student's own pass; None for the sampler's log-probs.
    temperatures: of the student's and the teacher's logits in the loss.
    softcaps: of the two models' logits.
    valid_vocab: ids at and beyond it are padding of the heads.
    chunk_tokens: positions whose logits exist at a time.
  """

  def read(model, side):
    hidden, head = model
    settings = dict(temperature=temperatures[side], softcap=softcaps[side])
    head, ids = constrain(head, 'vocab', None), reading.gather(rollout.ids, plan.origin)

    def part(x):
      out = linear_logprob(x[0], head, x[1], valid_vocab=valid_vocab, chunk_tokens=chunk_tokens, **settings)
      return out.logp, out.entropy

    found = jax.lax.map(part, (hidden, ids))
    return jax.tree.map(lambda x: reading.scatter(x, plan.origin, rollout.ids.shape), found)

  own, entropy = (rollout.raw_logp, None) if student is None else read(student, 0)
  # Whoever weighs by the student alone asks no teacher: the compiler leaves out what nobody reads.
  return weigh(config, rollout.length, own, read(teacher, 1)[0], entropy)


def statistics(weights: Weights, length: np.ndarray, correct: np.ndarray) -> dict[str, float]:
  """Scalars of an update, on the host.

  Mean, least and largest weight of the samples that have tokens; `weight_selected`, the share of their
  tokens that was averaged; `weight_correctness`, the correlation of weight and right answer, 0 where either
  does not vary.

  Args:
    weights: NumPy arrays.
    length: int [B].
    correct: bool [B].
  """
  real = np.asarray(length) > 0
  values, right = (np.asarray(x, np.float64)[real] for x in (weights.values, correct))
  if not real.any():
    values = np.zeros(1)
  spread = values.std() * right.std() if len(values) == len(right) else 0.0
  together = ((values - values.mean()) * (right - right.mean())).mean() if spread > 0 else 0.0
  return {
    'weight_mean': float(values.mean()),
    'weight_min': float(values.min()),
    'weight_max': float(values.max()),
    'weight_selected': float(weights.selected.sum() / max(int(np.sum(length)), 1)),
    'weight_correctness': float(together / spread) if spread > 0 else 0.0,
  }
