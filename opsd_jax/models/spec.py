"""A decoder-only transformer described by numbers."""

import dataclasses
from typing import Literal

from opsd_jax.config import require, require_choice


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """Shape and arithmetic of a Qwen3-style decoder.

  Attributes:
    vocab_size: rows of the embedding V; may exceed the tokenizer's ids (padding).
    num_layers: transformer blocks L.
    embed_dim: residual width D.
    num_heads: query heads N.
    num_kv_heads: key/value heads K; each serves N / K query heads.
    head_dim: width of a head H.
    mlp_dim: inner width of SwiGLU F.
    rope_theta: base of the rotary frequencies.
    norm_eps: epsilon of RMSNorm.
    qk_norm: RMSNorm on queries and keys, per head (Qwen3).
    tie_embeddings: the LM head is the embedding table.
    dtype: compute dtype; parameters are always float32 masters.
    remat: what a backward pass recomputes: nothing, everything, or all but matrix products.
  """

  vocab_size: int = 32
  num_layers: int = 2
  embed_dim: int = 96
  num_heads: int = 4
  num_kv_heads: int = 2
  head_dim: int = 24
  mlp_dim: int = 288
  rope_theta: float = 1e4
  norm_eps: float = 1e-6
  qk_norm: bool = True
  tie_embeddings: bool = True
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: Literal['none', 'full', 'dots'] = 'none'


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
  require_choice('model.dtype', spec.dtype, ('float32', 'bfloat16'))
  require_choice('model.remat', spec.remat, ('none', 'full', 'dots'))
