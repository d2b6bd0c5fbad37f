"""Importance weights of sampled tokens, for rollouts that other weights or another program drew.

Axis letters: B rollouts, T completion tokens.

The weight of a token y after the tokens before it is p(y) / q(y), capped. p is the student's probability in
the program that computes the loss, q the one that the sampler told: both over the full vocabulary, at the
loss temperature, so that a rollout of the very same weights and program weighs 1. What is corrected for is
hence older weights and other arithmetic, and no more: top-k, top-p, min-p and a sampling temperature of its
own are choices of the experiment, and the loss stays an average over what they leave.

The weights are per token. For a loss of the sampled token alone (`support=sampled`) its mean over q, given
the tokens before, is then the mean over p, but for the cap. A divergence of whole distributions does not
depend on the token drawn at its position, so that there the weight removes no bias: it turns down tokens
that the student has moved away from, up to the cap turns up those it has moved towards. That the tokens
before were drawn by q stays uncorrected in both cases; a product over the prefix would correct it, at a
variance that grows with its length.
"""

import jax
import jax.numpy as jnp

from opsd_jax.distill.config import ObjectiveConfig


def factors(config: ObjectiveConfig, student_logp: jax.Array, raw_logp: jax.Array) -> jax.Array:
  """float32 [B, T] in 0..cap, what a token's loss is multiplied by; carries no gradient.

  Args:
    config: says whether tokens are corrected, and the cap.
    student_logp: [B, T] of the sampled tokens, from the program that computes the loss.
    raw_logp: [B, T] of the same tokens, from what sampled them.
  """
  # Capped as a logarithm: exp of a large difference would not be finite.
  log_ratio = jnp.minimum(student_logp - raw_logp, jnp.log(config.correction_cap))
  return jax.lax.stop_gradient(jnp.exp(log_ratio))


def statistics(config: ObjectiveConfig, weights: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
  """Sums over sampled tokens: the weights, and how many are at the cap; divide by the token count."""
  capped = weights >= config.correction_cap * (1 - 1e-6)
  return {
    'correction_weight': jnp.sum(jnp.where(mask, weights, 0.0)),
    'correction_capped': jnp.sum(jnp.where(mask, capped, False).astype(jnp.float32)),
  }
