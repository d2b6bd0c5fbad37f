"""What blocks are made of: matrix products that an adapter may add to, norms, and the gated MLP.

Parameters are born in float32 and may be loaded in any floating type: every use casts. A module that
calls `linear` has the attributes `spec` and `lora_scale`.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from opsd_jax.mesh import constrain
from opsd_jax.models.spec import ModelSpec

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'silu': nn.silu,
  'gelu_tanh': lambda x: nn.gelu(x, approximate=True),
}


def parameter(
  module: nn.Module, name: str, init: nn.initializers.Initializer, dims: Mapping[str, int]
) -> jax.Array:
  """A float32 parameter with axes named as in `mesh.RULES`, cast to the compute dtype."""
  init = nn.with_logical_partitioning(init, tuple(dims))
  return module.param(name, init, tuple(dims.values()), jnp.float32).astype(module.spec.dtype)


def linear(
  module: nn.Module, name: str, x: jax.Array, inputs: Mapping[str, int], outputs: Mapping[str, int]
) -> jax.Array:
  """x [B, S, *inputs] times the kernel `name` [*inputs, *outputs], and the same through its adapter.

  The kernel is drawn with standard deviation fan_in^-1/2. An adapter is the entry `name` of the
  variable collection `lora`, {'a': [*inputs, r], 'b': [r, *outputs]}; it adds ((x a) b)·lora_scale
  (arXiv 2106.09685).
  """
  init = nn.initializers.normal(math.prod(inputs.values()) ** -0.5)
  kernel = parameter(module, name, init, {**inputs, **outputs})
  out = jnp.tensordot(x, kernel, axes=len(inputs))
  if not module.has_variable('lora', name):
    return out
  adapter = module.get_variable('lora', name)
  low = jnp.tensordot(x, adapter['a'].astype(x.dtype), axes=len(inputs))
  # In float32, or a scale that bfloat16 does not hold would be off for every token alike.
  low = (low.astype(jnp.float32) * module.lora_scale).astype(x.dtype)
  return out + jnp.tensordot(low, adapter['b'].astype(x.dtype), axes=1)


class RMSNorm(nn.Module):
  """x / rms(x) · scale over the last axis, or · (1 + scale), in float32 throughout.

  Published Llama and Qwen code rounds to the compute dtype before it multiplies by the scale; one
  rounding less is nearer to what both approximate.
  """

  spec: ModelSpec

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.zeros if self.spec.norm_plus_one else nn.initializers.ones
    init = nn.with_logical_partitioning(init, (None,))
    scale = self.param('scale', init, (x.shape[-1],), jnp.float32).astype(jnp.float32)
    scale = 1 + scale if self.spec.norm_plus_one else scale
    wide = x.astype(jnp.float32)
    variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + self.spec.norm_eps)
    return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class GatedMLP(nn.Module):
  """down(activation(gate x) · up x)."""

  spec: ModelSpec
  lora_scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    s = self.spec
    embed, mlp = {'embed': s.embed_dim}, {'mlp': s.mlp_dim}
    gate = _ACTIVATIONS[s.activation](linear(self, 'gate', x, embed, mlp))
    inner = constrain(gate * linear(self, 'up', x, embed, mlp), 'batch', 'length', 'mlp')
    return linear(self, 'down', inner, mlp, embed)
