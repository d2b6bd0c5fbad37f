"""One decoder-only transformer, as Flax modules with logical axis names.

It knows nothing of teachers, caches or sampling: it maps new tokens, their positions and read-only
contexts to hidden states and to the new tokens' keys and values. Prefill, decode and scoring are
all this one call. Axis letters: B rows, S new tokens, D width, L layers, K/N heads, H head width.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from opsd_jax.mesh import constrain
from opsd_jax.models import attention
from opsd_jax.models.spec import ModelSpec


@flax.struct.dataclass
class KV:
  """Keys (rotated) and values of a run of tokens, each [L, R, C, K, H]."""

  key: jax.Array
  value: jax.Array


@flax.struct.dataclass
class Context:
  """Tokens already read. Row r serves B / R consecutive rows of the call.

  Attributes:
    kv: keys and values, [L, R, C, K, H].
    length: int32 [R]; entries at and beyond it are ignored.
  """

  kv: KV
  length: jax.Array


def _kernel(
  module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int
) -> jax.Array:
  """A float32 parameter drawn with standard deviation fan_in^-1/2, cast to the compute dtype."""
  init = nn.initializers.normal(fan_in**-0.5)
  param = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
  return param.astype(module.spec.dtype)


class RMSNorm(nn.Module):
  """x / rms(x) · scale over the last axis, in float32."""

  spec: ModelSpec

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.with_logical_partitioning(nn.initializers.ones, (None,))
    scale = self.param('scale', init, (x.shape[-1],), jnp.float32)
    wide = x.astype(jnp.float32)
    variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + self.spec.norm_eps)
    return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Attention(nn.Module):
  """Grouped-query attention with rotary positions and, for Qwen3, normalised queries and keys."""

  spec: ModelSpec

  @nn.compact
  def __call__(
    self, x: jax.Array, positions: jax.Array, contexts: tuple[tuple[jax.Array, jax.Array, jax.Array], ...]
  ):
    s = self.spec
    heads, kv_heads = (s.num_heads, 'heads'), (s.num_kv_heads, 'kv_heads')
    query, key, value = (
      self._project(x, name, *shape)
      for name, shape in (('query', heads), ('key', kv_heads), ('value', kv_heads))
    )
    if s.qk_norm:
      query, key = RMSNorm(s, name='query_norm')(query), RMSNorm(s, name='key_norm')(key)
    query = attention.rotate(query, positions, s.rope_theta)
    key = attention.rotate(key, positions, s.rope_theta)
    mixed = attention.attend(query, key, value, contexts)
    out = _kernel(
      self,
      'out',
      (s.num_heads, s.head_dim, s.embed_dim),
      ('heads', 'head_dim', 'embed'),
      s.num_heads * s.head_dim,
    )
    return jnp.einsum('bsnh,nhd->bsd', mixed, out), (key, value)

  def _project(self, x: jax.Array, name: str, heads: int, axis: str) -> jax.Array:
    s = self.spec
    kernel = _kernel(self, name, (s.embed_dim, heads, s.head_dim), ('embed', axis, 'head_dim'), s.embed_dim)
    return constrain(jnp.einsum('bsd,dnh->bsnh', x, kernel), 'batch', 'length', axis, 'head_dim')


class SwiGLU(nn.Module):
  """down(silu(gate x) · up x)."""

  spec: ModelSpec

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    s = self.spec
    gate = _kernel(self, 'gate', (s.embed_dim, s.mlp_dim), ('embed', 'mlp'), s.embed_dim)
    up = _kernel(self, 'up', (s.embed_dim, s.mlp_dim), ('embed', 'mlp'), s.embed_dim)
    down = _kernel(self, 'down', (s.mlp_dim, s.embed_dim), ('mlp', 'embed'), s.mlp_dim)
    inner = constrain(nn.silu(x @ gate) * (x @ up), 'batch', 'length', 'mlp')
    return inner @ down


class Block(nn.Module):
  """Pre-norm attention and MLP around a residual stream."""

  spec: ModelSpec
  keep_kv: bool

  @nn.compact
  def __call__(self, x, positions, context_kv, context_length):
    s = self.spec
    contexts = tuple(
      (kv.key, kv.value, length) for kv, length in zip(context_kv, context_length, strict=True)
    )
    mixed, kv = Attention(s, name='attention')(RMSNorm(s, name='attention_norm')(x), positions, contexts)
    x = x + mixed
    x = x + SwiGLU(s, name='mlp')(RMSNorm(s, name='mlp_norm')(x))
    return constrain(x, 'batch', 'length', 'activation'), KV(*kv) if self.keep_kv else None


def _rematerialised(spec: ModelSpec) -> Callable[..., Any]:
  if spec.remat == 'none':
    return Block
  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if spec.remat == 'dots' else None
  return nn.remat(Block, prevent_cse=False, policy=policy)


class Transformer(nn.Module):
  """Embedding, scanned blocks and the final norm; the LM head is a parameter that others apply."""

  spec: ModelSpec
  keep_kv: bool = True

  @nn.compact
  def __call__(
    self, tokens: jax.Array, positions: jax.Array, contexts: tuple[Context, ...] = ()
  ) -> tuple[jax.Array, KV | None]:
    """tokens and positions int32 [B, S] -> hidden [B, S, D] and the tokens' KV [L, B, S, K, H]."""
    s = self.spec
    table_init = nn.with_logical_partitioning(nn.initializers.normal(s.embed_dim**-0.5), ('vocab', 'embed'))
    embedding = self.param('embedding', table_init, (s.vocab_size, s.embed_dim), jnp.float32)
    if not s.tie_embeddings:
      self.param('head', table_init, (s.vocab_size, s.embed_dim), jnp.float32)
    # Whole in width before the lookup: a gather of rows from a table split in width would be replicated.
    table = constrain(embedding.astype(s.dtype), 'vocab', None)
    x = constrain(table[tokens], 'batch', 'length', 'activation')
    layers = nn.scan(
      _rematerialised(s),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, 0, nn.broadcast),
      length=s.num_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(s, self.keep_kv, name='layers')
    x, kv = layers(x, positions, tuple(c.kv for c in contexts), tuple(c.length for c in contexts))
    return RMSNorm(s, name='final_norm')(x), kv
