"""From logits to a token: truncation, counted randomness and the inverse CDF.

Axis letters: B rows, V vocabulary.
"""

import jax
import jax.numpy as jnp

from opsd_jax.rollout.config import SamplingConfig

_BLOCK = 128  # lanes of a TPU vector register; the CDF is searched block by block, then inside one


def row_keys(seed: int, step: jax.Array, problem_id: jax.Array, rollout_index: jax.Array) -> jax.Array:
  """One key a row from (seed, step, problem, rollout): no slot or batch-mate enters.

  Args:
    seed: of the run.
    step: uint32 scalar.
    problem_id: uint32 [B].
    rollout_index: int32 [B].
  """
  base = jax.random.fold_in(jax.random.key(seed), step)
  by_problem = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, problem_id)
  return jax.vmap(jax.random.fold_in)(by_problem, rollout_index)


def uniforms(keys: jax.Array, position: jax.Array) -> jax.Array:
  """float32 [B] in [0, 1): the one random number of each row at `position`."""
  return jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)))(keys, position)


def truncate(logits: jax.Array, config: SamplingConfig) -> jax.Array:
  """Log-probabilities [B, V] of what is drawn from: temperature, top-k, top-p, min-p, renormalised.

  Ties at a threshold are all kept. Excluded tokens are -inf. At temperature 0 the most probable
  token has probability 1.
  """
  if config.temperature == 0:
    greedy = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    return jnp.log(greedy)
  logits = logits / config.temperature
  best = None
  if config.top_k is not None and config.top_k < logits.shape[-1]:
    # Without the barrier XLA merges the slice below into the top-k, and a CPU then sorts the vocabulary.
    best = jax.lax.optimization_barrier(jax.lax.top_k(logits, config.top_k)[0])
    logits = jnp.where(logits >= best[:, -1:], logits, -jnp.inf)
  if config.top_p < 1:
    logits = _top_p(logits, -jnp.sort(-logits, axis=-1) if best is None else best, config.top_p)
  if config.min_p > 0:
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(config.min_p)
    logits = jnp.where(logits >= floor, logits, -jnp.inf)
  return jax.nn.log_softmax(logits, axis=-1)


def _top_p(logits: jax.Array, ordered: jax.Array, top_p: float) -> jax.Array:
  """Keeps each token whose more probable ones hold less than `top_p` of the mass.

  `ordered` holds the logits that are left, largest first. After a top-k its k values are enough, and
  spare sorting the vocabulary: what is left beyond them equals the last.
  """
  probs = jnp.exp(ordered - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
  before = jnp.cumsum(probs, axis=-1) - probs
  threshold = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= threshold, logits, -jnp.inf)


def inverse_cdf(log_probs: jax.Array, uniform: jax.Array) -> jax.Array:
  """int32 [B]: the token whose slice of the CDF holds `uniform` [B]. Never one of probability 0.

  Two levels (blocks, then inside a block) keep float32 sums short, so that the cumulative sums of
  a 150k vocabulary stay exact to about one part in a million.
  """
  rows, vocab = log_probs.shape
  pad = -vocab % _BLOCK
  probs = jnp.pad(jnp.exp(log_probs), ((0, 0), (0, pad))).reshape(rows, -1, _BLOCK)
  within = jnp.cumsum(probs, axis=-1)
  mass = within[:, :, -1]
  blocks = jnp.cumsum(mass, axis=-1)
  target = uniform * blocks[:, -1]
  block = _first_above(blocks, target, mass > 0)
  take = jnp.take_along_axis
  start = jnp.where(block > 0, take(blocks, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0)
  inside, present = (take(x, block[:, None, None], axis=1)[:, 0] for x in (within, probs))
  entry = _first_above(inside, target - start, present > 0)
  return (block * _BLOCK + entry).astype(jnp.int32)


def _first_above(steps: jax.Array, target: jax.Array, present: jax.Array) -> jax.Array:
  """First present index whose cumulative sum exceeds `target` [B], the last present one if none does.

  Backends add prefixes in different orders, so a sum may grow by a rounding at an entry of no mass,
  and none may exceed the target: looking at present entries alone is what excludes the others.
  """
  above = present & (steps > target[:, None])
  return jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), _last_true(present))


def _last_true(mask: jax.Array) -> jax.Array:
  """Index of the last True along the last axis."""
  return mask.shape[-1] - 1 - jnp.argmax(mask[..., ::-1], axis=-1)
