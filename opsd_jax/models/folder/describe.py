"""From a ModelSpec to a config.json, for a model that has none: `families.from_config` the other way."""

from typing import Any

from opsd_jax.config import require
from opsd_jax.models import families, layer_fields, rope_fields
from opsd_jax.models.spec import ModelSpec


def to_config(spec: ModelSpec, dtype: str = 'float32', longest: int = 32768) -> dict[str, Any]:
  """The content of a config.json for a model that has none, readable by all versions of transformers.

  Args:
    spec: the model.
    dtype: of the weights beside it.
    longest: positions that programs reading it may use, which a `ModelSpec` does not tell.

  Raises:
    ConfigError: no family computes this combination; the message names what does not fit.
  """
  family = _family(spec)
  config = {
    'architectures': [family.architecture],
    'model_type': family.model_type,
    'vocab_size': spec.vocab_size,
    'hidden_size': spec.embed_dim,
    'intermediate_size': spec.mlp_dim,
    'num_hidden_layers': spec.num_layers,
    'num_attention_heads': spec.num_heads,
    'num_key_value_heads': spec.num_kv_heads,
    'head_dim': spec.head_dim,
    'rms_norm_eps': spec.norm_eps,
    'tie_word_embeddings': spec.tie_embeddings,
    'max_position_embeddings': longest,
    'torch_dtype': dtype,
    **{k: v for k, v in family.fixed.items() if k != 'use_mrope'},
    **positions(spec),
    **_windows(spec, family),
    **(_gemma(spec) if family.model_type.startswith('gemma') else {}),
  }
  wrong = families.contradictions(spec, families.from_config(config))
  require(
    not wrong,
    f'no published family computes this model; what differs of the nearest, {family.model_type}: '
    f'{"; ".join(wrong)}.',
  )
  return config


def positions(spec: ModelSpec) -> dict[str, Any]:
  """The rotary fields of the decoder's config.json."""
  return rope_fields.write(spec, 'rope_local_theta' in _family(spec).defaults)


def _family(spec: ModelSpec) -> families.Family:
  return next(f for f in families.FAMILIES if f.model_type == _type_of(spec))


def _gemma(spec: ModelSpec) -> dict[str, Any]:
  scale = spec.head_dim**-0.5 if spec.query_scale is None else spec.query_scale
  scalar = float(f'{scale**-2:.12g}')  # 168, not 168.00000000000003
  return {
    'attn_logit_softcapping': spec.attention_softcap,
    'final_logit_softcapping': spec.final_softcap,
    'query_pre_attn_scalar': int(scalar) if scalar == int(scalar) else scalar,
  }


def _windows(spec: ModelSpec, family: families.Family) -> dict[str, Any]:
  if 'sliding_window' not in family.defaults:
    return {}
  return layer_fields.write(spec, switched='pattern' not in family.defaults)


def _type_of(spec: ModelSpec) -> str:
  if spec.post_norms:
    return 'gemma3_text' if spec.qk_norm else 'gemma2'
  return 'qwen3' if spec.qk_norm else 'qwen2' if spec.attention_bias else 'llama'
