"""Where truncation cuts: thresholds of many values a row, found without sorting them.

Axis letters: B rows, N blocks of values.
"""

import jax
import jax.numpy as jnp


def least(values: jax.Array, weights: jax.Array, limit: jax.Array, low: jax.Array) -> jax.Array:
  """float32 [B]: the least number t >= `low` above which the values weigh less than `limit`.

  With weights of 1 and the limit k, the values >= t are the k largest and those that equal the k-th;
  with probabilities, those whose more probable ones hold less than the limit. Bisection over the bit
  patterns, which order as the numbers do: at most 32 masked sums.

  Args:
    values: float32 [B, N, 128]; -inf may stand where nothing does.
    weights: float32 of the same shape, at least 0.
    limit: float32 [B], positive.
    low: float32 [B], at most the largest value.
  """

  def halve(bounds):
    low, high = bounds
    middle = (low & high) + ((low ^ high) >> 1)
    above = jnp.sum(jnp.where(values > _number(middle)[:, None, None], weights, 0), axis=(1, 2))
    return jnp.where(above < limit, low, middle + 1), jnp.where(above < limit, middle, high)

  high = jnp.max(values, axis=(1, 2))
  bounds = _order(jnp.minimum(low, high)), _order(high)
  return _number(jax.lax.while_loop(lambda x: jnp.any(x[0] < x[1]), halve, bounds)[1])


def _order(x: jax.Array) -> jax.Array:
  """int32 that compare as the float32 numbers do."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _number(order: jax.Array) -> jax.Array:
  """The float32 number of a place in that order."""
  return jax.lax.bitcast_convert_type(jnp.where(order < 0, order ^ 0x7FFFFFFF, order), jnp.float32)
