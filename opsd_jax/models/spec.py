"""A decoder-only transformer described by numbers."""

import dataclasses
from typing import Literal

from opsd_jax.config import require, require_choice


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the length that a model was first trained on.

  Attributes:
    kind: `none`; `linear`: all by `factor`; `llama3`: low frequencies by `factor`, high ones not, a
      ramp between (Llama 3.1); `yarn`: the same idea by rotations, with a factor on the attention
      (arXiv 2309.00071).
    factor: of the stretch.
    original_length: positions before the stretch (llama3, yarn).
    low_frequency_factor: wavelengths above `original_length` over this are stretched in full (llama3).
    high_frequency_factor: wavelengths below `original_length` over this are left alone (llama3).
    beta_fast: rotations over `original_length` above which a frequency is left alone (yarn).
    beta_slow: rotations below which it is stretched in full (yarn).
    attention_factor: multiplies cosine and sine (yarn); none for 0.1·ln(factor) + 1.
  """

  kind: Literal['none', 'linear', 'llama3', 'yarn'] = 'none'
  factor: float = 1.0
  original_length: int = 0
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """Shape and arithmetic of a decoder: Qwen2, Qwen3, Llama 3, Gemma 2, Gemma 3 (text).

  Attributes:
    vocab_size: rows of the embedding V; may exceed the tokenizer's ids (padding).
    num_layers: transformer blocks L.
    embed_dim: residual width D.
    num_heads: query heads N.
    num_kv_heads: key/value heads K; each serves N / K query heads.
    head_dim: width of a head H.
    mlp_dim: inner width of the gated MLP F.
    activation: of the MLP's gate.
    rope_theta: base of the rotary frequencies.
    rope_scaling: their stretch.
    rope_local_theta: base on local layers, which are then not stretched (Gemma 3); none: they are
      rotated as global ones are.
    sliding_window: tokens, itself among them, that a token of a local layer attends to; none: all.
    layer_pattern: repeated over the layers, `L` local and `G` global; empty: all global.
    attention_bias: biases on queries, keys and values (Qwen2).
    qk_norm: RMSNorm on queries and keys, per head (Qwen3, Gemma 3).
    query_scale: multiplies the attention's scores; none for head_dim^-1/2.
    attention_softcap: c in c·tanh(score / c), or none (Gemma 2).
    final_softcap: the same for logits; whoever applies the head applies it (Gemma 2).
    norm_plus_one: norms multiply by 1 + scale (Gemma).
    post_norms: norms on the outputs of attention and MLP as well (Gemma).
    scale_embedding: embeddings are multiplied by sqrt(D), rounded to the compute dtype (Gemma).
    norm_eps: epsilon of RMSNorm.
    tie_embeddings: the LM head is the embedding table.
    dtype: compute dtype.
    remat: what a backward pass recomputes: nothing, everything, or all but matrix products.
  """

  vocab_size: int = 32
  num_layers: int = 2
  embed_dim: int = 96
  num_heads: int = 4
  num_kv_heads: int = 2
  head_dim: int = 24
  mlp_dim: int = 288
  activation: Literal['silu', 'gelu_tanh'] = 'silu'
  rope_theta: float = 1e4
  rope_scaling: RopeScaling = RopeScaling()
  rope_local_theta: float | None = None
  sliding_window: int | None = None
  layer_pattern: str = ''
  attention_bias: bool = False
  qk_norm: bool = True
  query_scale: float | None = None
  attention_softcap: float | None = None
  final_softcap: float | None = None
  norm_plus_one: bool = False
  post_norms: bool = False
  scale_embedding: bool = False
  norm_eps: float = 1e-6
  tie_embeddings: bool = True
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: Literal['none', 'full', 'dots'] = 'none'

  @property
  def local_layers(self) -> tuple[bool, ...]:
    """Of every layer, whether it attends within the sliding window alone."""
    pattern = self.layer_pattern or 'G'
    return tuple(pattern[i % len(pattern)] == 'L' for i in range(self.num_layers))

  def named(self, name: str) -> 'ModelSpec':
    """A published size, or the model of a folder with a config.json; dtype and remat stay.

    Raises:
      ConfigError: there is no such size or folder, or its model is not one of the families.
    """
    from opsd_jax.models import families

    found = families.find(name)
    return dataclasses.replace(found, dtype=self.dtype, remat=self.remat)


def validate(spec: ModelSpec) -> None:
  """Raises `ConfigError` where the numbers cannot make a model."""
  for field in ('vocab_size', 'num_layers', 'embed_dim', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim'):
    require(getattr(spec, field) > 0, f'model.{field} is {getattr(spec, field)}; it must be positive.')
  require(
    spec.num_heads % spec.num_kv_heads == 0,
    f'model.num_heads is {spec.num_heads}, not a multiple of model.num_kv_heads '
    f'({spec.num_kv_heads}): every key/value head serves the same number of query heads.',
  )
  require(spec.head_dim % 2 == 0, f'model.head_dim is {spec.head_dim}; rotary embedding needs an even one.')
  for field in ('rope_theta', 'norm_eps'):
    require(getattr(spec, field) > 0, f'model.{field} is {getattr(spec, field)}; it must be positive.')
  for field in ('rope_local_theta', 'sliding_window', 'query_scale', 'attention_softcap', 'final_softcap'):
    value = getattr(spec, field)
    require(value is None or value > 0, f'model.{field} is {value}; it must be positive, or none.')
  _validate_layers(spec)
  _validate_scaling(spec.rope_scaling, spec.rope_theta)
  require_choice('model.activation', spec.activation, ('silu', 'gelu_tanh'))
  require_choice('model.dtype', spec.dtype, ('float32', 'bfloat16'))
  require_choice('model.remat', spec.remat, ('none', 'full', 'dots'))


def _validate_layers(spec: ModelSpec) -> None:
  require(
    set(spec.layer_pattern) <= set('LG'),
    f'model.layer_pattern is {spec.layer_pattern!r}; write L for a local layer and G for a global one.',
  )
  if any(spec.local_layers):
    require(
      spec.sliding_window is not None,
      f'model.layer_pattern is {spec.layer_pattern!r}, but local layers need model.sliding_window.',
    )
    return
  for field in ('sliding_window', 'rope_local_theta'):
    value = getattr(spec, field)
    require(
      value is None, f'model.{field} is {value}, but no layer is local; put L into model.layer_pattern.'
    )


def _validate_scaling(scaling: RopeScaling, theta: float) -> None:
  name = 'model.rope_scaling'
  require_choice(f'{name}.kind', scaling.kind, ('none', 'linear', 'llama3', 'yarn'))
  require(scaling.factor > 0, f'{name}.factor is {scaling.factor}; it must be positive.')
  if scaling.kind in ('llama3', 'yarn'):
    require(
      scaling.original_length > 0,
      f'{name}.original_length is {scaling.original_length}; {scaling.kind} needs the positions that the '
      'model was first trained on.',
    )
  if scaling.kind == 'llama3':
    _require_order(
      f'{name}.low_frequency_factor', scaling.low_frequency_factor, scaling.high_frequency_factor
    )
  if scaling.kind == 'yarn':
    _require_order(f'{name}.beta_slow', scaling.beta_slow, scaling.beta_fast)
    require(theta > 1, f'model.rope_theta is {theta}; yarn needs one above 1.')
    factor = scaling.attention_factor
    require(
      factor is None or factor > 0, f'{name}.attention_factor is {factor}; it must be positive, or none.'
    )


def _require_order(name: str, low: float, high: float) -> None:
  require(0 < low < high, f'{name} is {low}; it must lie above 0 and below its counterpart, {high}.')
