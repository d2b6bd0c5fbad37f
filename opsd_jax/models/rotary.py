"""Rotary position embedding (arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints.

Frequencies, with or without a stretch, follow `modeling_rope_utils.py` of transformers 5. Axis
letters: B rows, S tokens, H head width.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.models.spec import ModelSpec, RopeScaling


class Rotary(NamedTuple):
  """Cosine and sine of every token's angles, each float32 [B, S, 1, H / 2]."""

  cos: jax.Array
  sin: jax.Array


def tables(spec: ModelSpec, positions: jax.Array) -> tuple[Rotary, Rotary | None]:
  """Of global layers, and of local ones where they differ; positions int32 [B, S]."""
  globally = _table(positions, *frequencies(spec.head_dim, spec.rope_theta, spec.rope_scaling))
  if spec.rope_local_theta is None or not any(spec.local_layers):
    return globally, None
  return globally, _table(positions, *frequencies(spec.head_dim, spec.rope_local_theta, RopeScaling()))


def rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
  """Turns entries i and i + H/2 of x [B, S, heads, H] together, in float32."""
  half = x.shape[-1] // 2
  first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
  cos, sin = rotary
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)


def frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
  """Radians a position [H / 2], float32, and the factor on cosine and sine."""
  plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
  if scaling.kind == 'linear':
    return np.float32(plain / scaling.factor), 1.0
  if scaling.kind == 'llama3':
    return np.float32(_blend(plain, scaling.factor, _llama3_share(plain, scaling))), 1.0
  if scaling.kind == 'yarn':
    share = _yarn_share(head_dim, theta, scaling)
    return np.float32(_blend(plain, scaling.factor, share)), _yarn_attention(scaling)
  return np.float32(plain), 1.0


def _table(positions: jax.Array, frequency: np.ndarray, factor: float) -> Rotary:
  angle = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return Rotary(cos, sin) if factor == 1 else Rotary(cos * factor, sin * factor)


def _blend(plain: np.ndarray, factor: float, share: np.ndarray) -> np.ndarray:
  """Frequencies of which `share` (0 to 1) is left alone and the rest is stretched."""
  return plain * (share + (1 - share) / factor)


def _llama3_share(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
  """By how often a frequency turns over the original length: linear between the two factors."""
  turns = scaling.original_length * plain / (2 * math.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  return np.clip((turns - low) / (high - low), 0, 1)


def _yarn_share(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
  """By the index of a frequency: linear between those that turn `beta_fast` and `beta_slow` times.

  The ends are rounded outwards to whole indices, as the authors' code does by default.
  """

  def index(turns: float) -> float:
    return head_dim * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

  low = max(math.floor(index(scaling.beta_fast)), 0)
  high = min(math.ceil(index(scaling.beta_slow)), head_dim - 1)
  high = high + 0.001 if low == high else high
  return 1 - np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)


def _yarn_attention(scaling: RopeScaling) -> float:
  if scaling.attention_factor is not None:
    return scaling.attention_factor
  return 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
