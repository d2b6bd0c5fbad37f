"""One decoder-only transformer, as Flax modules with logical axis names.

It knows nothing of teachers, caches or sampling: it maps new tokens, their positions and read-only
contexts to hidden states and to the new tokens' keys and values. Prefill, decode and scoring are
all this one call. Axis letters: B rows, S new tokens, D width, L layers, K/N heads, H head width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.mesh import constrain
from opsd_jax.models import attention, chunked, rotary
from opsd_jax.models.layers import GatedMLP, RMSNorm, linear, parameter
from opsd_jax.models.spec import ModelSpec


@flax.struct.dataclass
class KV:
  """Keys (rotated) and values of a run of tokens, each [L, R, K, C, H]: a head's tokens lie together,
  which is how a decode step reads them. Those of int8 have scales, float32 [L, R, K, C]."""

  key: jax.Array
  value: jax.Array
  key_scale: jax.Array | None = None
  value_scale: jax.Array | None = None


@flax.struct.dataclass
class Context:
  """Tokens already read. Row r serves B / R consecutive rows of the call.

  Attributes:
    kv: keys and values, [L, R, K, C, H].
    length: int32 [R]; entries at and beyond it are ignored.
    start: int32 [R], position of the first entry; the others follow it one by one.
    chunk: tokens read at a time, as far as the longest row reaches and no further (see `chunked`): for
      decoding and for scoring without gradients. None reads all of them at once.
  """

  kv: KV
  length: jax.Array
  start: jax.Array
  chunk: int | None = flax.struct.field(pytree_node=False, default=None)


@flax.struct.dataclass
class Where:
  """What all layers share about a context: as there, and which pieces of it are read in any layer."""

  length: jax.Array
  start: jax.Array
  span: chunked.Span | None
  chunk: int | None = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Place:
  """What all layers share about where the new tokens stand.

  Attributes:
    positions: int32 [B, S].
    rotary: of global layers.
    local_rotary: of local layers, None where it is the same.
    contexts: where each of them is.
    segments: of the new tokens, None where a row is one sequence.
  """

  positions: jax.Array
  rotary: rotary.Rotary
  local_rotary: rotary.Rotary | None
  contexts: tuple[Where, ...]
  segments: attention.Segments | None

  def rotary_of(self, local: jax.Array | None) -> rotary.Rotary:
    """Of one layer; `local` is a bool scalar, None where no layer is local."""
    if local is None or self.local_rotary is None:
      return self.rotary
    return jax.tree.map(lambda a, b: jnp.where(local, a, b), self.local_rotary, self.rotary)


class Index(NamedTuple):
  """Which layer it is: whether a local one (None where none is), its number (None where none asks)."""

  local: jax.Array | None
  layer: jax.Array | None


def _opened(kv: KV, where: Where, index: Index) -> attention.Read | chunked.Walk:
  """One layer of a context: `kv` is that layer's, of one in pieces all layers'."""
  at, scales = (where.length, where.start), (kv.key_scale, kv.value_scale)
  if where.chunk is None:
    return attention.Read(kv.key, kv.value, *at, *scales)
  first, end = where.span
  first = jnp.int32(0) if index.local is None else jnp.where(index.local, first, 0)
  return chunked.Walk(kv.key, kv.value, *scales, index.layer, *at, first, end, where.chunk)


class Attention(nn.Module):
  """Grouped-query attention with rotary positions, and norms or biases where the family has them."""

  spec: ModelSpec
  lora_scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, place: Place, contexts: tuple[KV, ...], index: Index):
    s, local = self.spec, index.local
    query = self._project(x, 'query', 'heads', s.num_heads)
    key = self._project(x, 'key', 'kv_heads', s.num_kv_heads)
    value = self._project(x, 'value', 'kv_heads', s.num_kv_heads)
    if s.qk_norm:
      query, key = RMSNorm(s, name='query_norm')(query), RMSNorm(s, name='key_norm')(key)
    turn = place.rotary_of(local)
    query, key = rotary.rotate(query, turn), rotary.rotate(key, turn)
    reads = [_opened(*context, index) for context in zip(contexts, place.contexts, strict=True)]
    how = dict(
      scale=s.head_dim**-0.5 if s.query_scale is None else s.query_scale,
      softcap=s.attention_softcap,
      window=None if local is None else attention.Window(self._window(local), place.positions),
    )
    if any(where.chunk is not None for where in place.contexts):
      if place.segments is not None:
        raise ValueError(
          'a context with a chunk goes with rows of one sequence; read it at once, without a chunk.'
        )
      mixed = chunked.attend(query, key, value, reads, **how)
    else:
      how |= dict(segments=place.segments, again=s.remat == 'full')
      mixed = attention.attend_in_blocks(query, key, value, reads, **how)
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
  def __call__(self, x, place, contexts, index):
    s = self.spec
    normed = RMSNorm(s, name='attention_norm')(x)
    mixed, kv = Attention(s, self.lora_scale, name='attention')(normed, place, contexts, index)
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
    where = tuple(self._where(c, positions) for c in contexts)
    place = Place(positions, *rotary.tables(s, positions), where, segments)
    layers = nn.scan(
      _rematerialised(s),
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, tuple(0 if c.chunk is None else nn.broadcast for c in contexts), 0),
      length=s.num_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(s, self.keep_kv, self.lora_scale, name='layers')
    x, kv = layers(x, place, tuple(c.kv for c in contexts), self._indices(contexts))
    return RMSNorm(s, name='final_norm')(x), kv

  def _indices(self, contexts: tuple[Context, ...]) -> Index:
    """Of all layers; without local layers no layer computes anything for a window."""
    s = self.spec
    local = jnp.array(s.local_layers) if any(s.local_layers) else None
    return Index(local, None if all(c.chunk is None for c in contexts) else jnp.arange(s.num_layers))

  def _where(self, context: Context, positions: jax.Array) -> Where:
    length, start, chunk = context.length, context.start, context.chunk
    window = self.spec.sliding_window if any(self.spec.local_layers) else None
    span = None if chunk is None else chunked.span(length, start, chunk, positions, window)
    return Where(length, start, span, chunk)

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
