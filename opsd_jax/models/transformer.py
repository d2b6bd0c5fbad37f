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
import numpy as np

from opsd_jax.mesh import constrain
from opsd_jax.models import attention, rotary
from opsd_jax.models.layers import GatedMLP, RMSNorm, linear, parameter
from opsd_jax.models.spec import ModelSpec


@flax.struct.dataclass
class KV:
  """Keys (rotated) and values of a run of tokens, each [L, R, K, C, H]: a head's tokens lie together,
  which is how a decode step reads them."""

  key: jax.Array
  value: jax.Array


@flax.struct.dataclass
class Context:
  """Tokens already read. Row r serves B / R consecutive rows of the call.

  Attributes:
    kv: keys and values, [L, R, K, C, H].
    length: int32 [R]; entries at and beyond it are ignored.
    start: int32 [R], position of the first entry; the others follow it one by one.
  """

  kv: KV
  length: jax.Array
  start: jax.Array


@flax.struct.dataclass
class Place:
  """What all layers share about where the new tokens stand.

  Attributes:
    positions: int32 [B, S].
    rotary: of global layers.
    local_rotary: of local layers, None where it is the same.
    lengths: int32 [R] of each context.
    starts: int32 [R] of each context.
    segments: of the new tokens, None where a row is one sequence.
  """

  positions: jax.Array
  rotary: rotary.Rotary
  local_rotary: rotary.Rotary | None
  lengths: tuple[jax.Array, ...]
  starts: tuple[jax.Array, ...]
  segments: attention.Segments | None

  def rotary_of(self, local: jax.Array | None) -> rotary.Rotary:
    """Of one layer; `local` is a bool scalar, None where no layer is local."""
    if local is None or self.local_rotary is None:
      return self.rotary
    return jax.tree.map(lambda a, b: jnp.where(local, a, b), self.local_rotary, self.rotary)


class Attention(nn.Module):
  """Grouped-query attention with rotary positions, and norms or biases where the family has them."""

  spec: ModelSpec
  lora_scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, place: Place, contexts: tuple[KV, ...], local: jax.Array | None):
    s = self.spec
    query = self._project(x, 'query', 'heads', s.num_heads)
    key = self._project(x, 'key', 'kv_heads', s.num_kv_heads)
    value = self._project(x, 'value', 'kv_heads', s.num_kv_heads)
    if s.qk_norm:
      query, key = RMSNorm(s, name='query_norm')(query), RMSNorm(s, name='key_norm')(key)
    turn = place.rotary_of(local)
    query, key = rotary.rotate(query, turn), rotary.rotate(key, turn)
    mixed = attention.attend_in_blocks(
      query,
      key,
      value,
      [attention.Read(c.key, c.value, *at) for c, *at in zip(contexts, place.lengths, place.starts)],
      scale=s.head_dim**-0.5 if s.query_scale is None else s.query_scale,
      softcap=s.attention_softcap,
      window=None if local is None else attention.Window(self._window(local), place.positions),
      segments=place.segments,
    )
    wide = {'heads': s.num_heads, 'head_dim': s.head_dim}
    return linear(self, 'out', mixed, wide, {'embed': s.embed_dim}), KV(
      jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    )

  def _project(self, x: jax.Array, name: str, axis: str, heads: int) -> jax.Array:
    s = self.spec
    out = {axis: heads, 'head_dim': s.head_dim}
    y = linear(self, name, x, {'embed': s.embed_dim}, out)
    if s.attention_bias:
      y = y + parameter(self, f'{name}_bias', nn.initializers.zeros, out)[None, None]
    return constrain(y, 'batch', 'length', axis, 'head_dim')

  def _window(self, local: jax.Array) -> jax.Array:
    """int32 [], which is never reached on a global layer."""
    return jnp.where(local, self.spec.sliding_window, np.iinfo(np.int32).max)


class Block(nn.Module):
  """Attention and MLP around a residual stream, each after a norm and, for Gemma, before another."""

  spec: ModelSpec
  keep_kv: bool
  lora_scale: float

  @nn.compact
  def __call__(self, x, place, contexts, local):
    s = self.spec
    normed = RMSNorm(s, name='attention_norm')(x)
    mixed, kv = Attention(s, self.lora_scale, name='attention')(normed, place, contexts, local)
    x = x + self._after(mixed, 'attention_post_norm')
    inner = GatedMLP(s, self.lora_scale, name='mlp')(RMSNorm(s, name='mlp_norm')(x))
    x = x + self._after(inner, 'mlp_post_norm')
    return constrain(x, 'batch', 'length', 'activation'), kv if self.keep_kv else None

  def _after(self, x: jax.Array, name: str) -> jax.Array:
    return RMSNorm(self.spec, name=name)(x) if self.spec.post_norms else x


def _rematerialised(spec: ModelSpec) -> Callable[..., Any]:
  if spec.remat == 'none':
    return Block
  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if spec.remat == 'dots' else None
  return nn.remat(Block, prevent_cse=False, policy=policy)


class Transformer(nn.Module):
  """Embedding, scanned blocks and the final norm; the LM head is a parameter that others apply.

  The optional variable collection `lora` holds adapters at the paths of the kernels that they add to,
  stacked over layers like those (see `layers.linear`).
  """

  spec: ModelSpec
  keep_kv: bool = True
  lora_scale: float = 1.0

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    contexts: tuple[Context, ...] = (),
    segments: attention.Segments | None = None,
  ) -> tuple[jax.Array, KV | None]:
    """tokens and positions int32 [B, S] -> hidden [B, S, D] and the tokens' KV [L, B, K, S, H]."""
    s = self.spec
    x = self._embed(tokens)
    place = Place(
      positions,
      *rotary.tables(s, positions),
      tuple(c.length for c in contexts),
      tuple(c.start for c in contexts),
      segments,
    )
    layers = nn.scan(
      _rematerialised(s),
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, 0, 0),
      length=s.num_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(s, self.keep_kv, self.lora_scale, name='layers')
    # Without local layers, no layer computes anything for a window.
    local = jnp.array(s.local_layers) if any(s.local_layers) else None
    x, kv = layers(x, place, tuple(c.kv for c in contexts), local)
    return RMSNorm(s, name='final_norm')(x), kv

  def _embed(self, tokens: jax.Array) -> jax.Array:
    s = self.spec
    init, dims = nn.initializers.normal(s.embed_dim**-0.5), {'vocab': s.vocab_size, 'embed': s.embed_dim}
    table = parameter(self, 'embedding', init, dims)
    if not s.tie_embeddings:
      parameter(self, 'head', init, dims)
    # Whole in width before the lookup: a gather of rows from a table split in width would be replicated.
    x = constrain(table, 'vocab', None)[tokens]
    if s.scale_embedding:
      # Rounded as in training: 55.5 for 3072 in bfloat16, where the root is 55.43.
      x = x * jnp.asarray(s.embed_dim**0.5, x.dtype)
    return constrain(x, 'batch', 'length', 'activation')
