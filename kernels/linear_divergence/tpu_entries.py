"""What one entry of the vocabulary adds to a full-vocabulary divergence, on tiles in a TPU kernel.

With g the derivative of an entry to log q, d loss / d logit = g - q·level, level = sum of g (times
the soft-cap's slope and over the temperature).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence.spec import DivergenceSpec

_FAR = 80.0  # exp of it is finite; entries this far apart in log-probability differ no more.


class Rows(NamedTuple):
  """What the gradient needs of a row, float32 [N]; log-probability = logit - maximum - log_total.

  Attributes:
    student_maximum: of the shaped logits.
    student_log_total: log of the sum of exp(logit - maximum).
    teacher_maximum: the same for the teacher.
    teacher_log_total: the same for the teacher.
    level: factor of -q in the gradient of every logit, see above.
    weight: cotangent of the loss over the student's temperature.
  """

  student_maximum: jax.Array
  student_log_total: jax.Array
  teacher_maximum: jax.Array
  teacher_log_total: jax.Array
  level: jax.Array
  weight: jax.Array


def clips(spec: DivergenceSpec) -> bool:
  """Whether the spec bounds each entry."""
  return not (spec.entry_clip_min is None and spec.entry_clip_max is None)


def linear(spec: DivergenceSpec) -> bool:
  """Whether one pass over the vocabulary gives the loss and the level: a KL without clips."""
  return spec.kind != 'jsd' and not clips(spec)


def shares(spec: DivergenceSpec) -> tuple[float, float]:
  """Of the forward and the reverse KL in a loss that is made of them."""
  if spec.kind == 'both_kl':
    return spec.beta, 1 - spec.beta
  return float(spec.kind == 'forward_kl'), float(spec.kind == 'reverse_kl')


def level(spec: DivergenceSpec, reverse_kl: jax.Array) -> jax.Array:
  """The level [N] of a `linear` spec, that goes with `slope`; `reverse_kl` may be 0 where it has no share."""
  forward, reverse = shares(spec)
  return reverse * reverse_kl - forward


def slope(spec: DivergenceSpec, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """g of a tile, up to a multiple of q that the level has as well."""
  return slope_at(spec, jnp.exp(log_p), jnp.exp(log_q), log_q - log_p)


def slope_at(spec: DivergenceSpec, p: jax.Array, q: jax.Array, gap: jax.Array) -> jax.Array:
  """`slope` from probabilities and gap = log(q / p)."""
  if not linear(spec):
    return clipped_at(spec, p, q, gap)[1]
  forward, reverse = shares(spec)
  result = 0.0
  if forward:
    result -= forward * p
  if reverse:
    result += reverse * (q * gap)
  return result


def clipped(
  spec: DivergenceSpec, log_p: jax.Array, log_q: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Entries of a tile between their bounds, g, and 1 where a bound changed the entry."""
  return clipped_at(spec, jnp.exp(log_p), jnp.exp(log_q), log_q - log_p)


def clipped_at(
  spec: DivergenceSpec, p: jax.Array, q: jax.Array, gap: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """`clipped` from probabilities and gap = log(q / p)."""
  value, g = _entry(spec, p, q, gap)
  if not clips(spec):
    return value, g, None
  low, high = spec.entry_clip_min, spec.entry_clip_max
  bounded = value
  if low is not None:
    bounded = jnp.maximum(bounded, low)
  if high is not None:
    bounded = jnp.minimum(bounded, high)
  changed = bounded != value
  return bounded, jnp.where(changed, 0.0, g), jnp.where(changed, 1.0, 0.0)


def _entry(spec: DivergenceSpec, p: jax.Array, q: jax.Array, gap: jax.Array) -> tuple[jax.Array, jax.Array]:
  if spec.kind != 'jsd':
    forward, reverse = shares(spec)
    value, g = 0.0, 0.0
    if forward:
      value, g = value - forward * (p * gap), g - forward * p
    if reverse:
      value, g = value + reverse * (q * gap), g + reverse * (q * gap + q)
    return value, g
  # With the mixture m: log (m / p), from the ratio alone, so that equal entries give 0.
  gap = jnp.minimum(gap, _FAR)
  above = jnp.log(spec.beta + (1 - spec.beta) * jnp.exp(gap))
  g = (1 - spec.beta) * (q * (gap - above))
  return g - spec.beta * (p * above), g
