"""From config.json to a ModelSpec: which published models we compute, and what tells them apart.

`folder/describe.py` is the way back. A file is read strictly: an architecture or a field that we do not
compute is refused by name, and never approximated.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from opsd_jax.config import ConfigError, nearest, require
from opsd_jax.models import layer_fields, rope_fields, spec
from opsd_jax.models.fields import Fields
from opsd_jax.models.sizes import SIZES
from opsd_jax.models.spec import ModelSpec

_GELU = 'gelu_pytorch_tanh'


@dataclasses.dataclass(frozen=True)
class Family:
  """One decoder architecture.

  Attributes:
    architecture: class in transformers.
    model_type: what config.json calls it.
    traits: fields of `ModelSpec` that all its models share.
    fixed: fields of config.json, and the one value of each that we compute.
    defaults: what transformers takes for a field that config.json leaves out; `pattern`: every how many
      layers one is global.
  """

  architecture: str
  model_type: str
  traits: Mapping[str, Any]
  fixed: Mapping[str, Any]
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_GEMMA_TRAITS = dict(activation='gelu_tanh', norm_plus_one=True, post_norms=True, scale_embedding=True)
_GEMMA_FIXED = dict(
  hidden_activation=_GELU, hidden_act=_GELU, attention_bias=False, use_bidirectional_attention=False
)
_GEMMA_DEFAULTS = dict(
  hidden_size=2304,
  intermediate_size=9216,
  num_hidden_layers=26,
  num_attention_heads=8,
  num_key_value_heads=4,
  head_dim=256,
  sliding_window=4096,
  tie_word_embeddings=True,
)
FAMILIES = (
  Family(
    'Qwen2ForCausalLM',
    'qwen2',
    dict(attention_bias=True, qk_norm=False),
    dict(hidden_act='silu', use_mrope=False, attention_bias=True),
    dict(sliding_window=4096),
  ),
  Family(
    'Qwen3ForCausalLM',
    'qwen3',
    dict(qk_norm=True),
    dict(hidden_act='silu', attention_bias=False),
    dict(head_dim=128, sliding_window=4096),
  ),
  Family(
    'LlamaForCausalLM',
    'llama',
    dict(qk_norm=False),
    dict(hidden_act='silu', attention_bias=False, mlp_bias=False),
  ),
  Family(
    'Gemma2ForCausalLM',
    'gemma2',
    dict(qk_norm=False, **_GEMMA_TRAITS),
    _GEMMA_FIXED,
    _GEMMA_DEFAULTS
    | dict(vocab_size=256000, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, pattern=2),
  ),
  Family(
    'Gemma3ForCausalLM',
    'gemma3_text',
    dict(qk_norm=True, **_GEMMA_TRAITS),
    _GEMMA_FIXED,
    _GEMMA_DEFAULTS | dict(vocab_size=262208, pattern=6, rope_theta=1e6, rope_local_theta=1e4),
  ),
)
# A model that also sees: the decoder is described inside, and is the Gemma 3 one.
_MULTIMODAL = Family('Gemma3ForConditionalGeneration', 'gemma3', {}, {})
_IMAGES = ('vision_config', 'mm_tokens_per_image', 'boi_token_index', 'eoi_token_index', 'image_token_index')
_IMAGES += ('boi_token_id', 'eoi_token_id', 'image_token_id')


def find(name: str) -> ModelSpec:
  """The model of a published size, or of a folder with a config.json.

  Raises:
    ConfigError: there is no such size or folder, or its model is not one of the families.
  """
  if name in SIZES:
    return SIZES[name]
  if os.path.isdir(name):
    return read(name)
  raise ConfigError(
    f'model is {name!r}, neither a published size nor a folder with a config.json.{nearest(name, SIZES)}'
  )


def read(folder: str | os.PathLike) -> ModelSpec:
  """The model of `folder`/config.json.

  Raises:
    ConfigError: no such file, or one that does not describe a model that we compute.
  """
  return from_config(read_json(folder), os.path.join(folder, 'config.json'))


def read_json(folder: str | os.PathLike, name: str = 'config.json') -> dict[str, Any]:
  """The object in a JSON file of a model's folder; `ConfigError` if there is none."""
  path = os.path.join(folder, name)
  require(os.path.isfile(path), f"{folder} has no {name}; name a model's folder.")
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except (OSError, ValueError) as error:
    raise ConfigError(f'{path} cannot be read: {error}; get the file again.') from error
  require(isinstance(value, dict), f'{path} holds no JSON object; get the file again.')
  return value


def is_multimodal(config: Mapping[str, Any]) -> bool:
  """Whether the decoder of this config.json is a part of a larger model."""
  return config.get('model_type') == _MULTIMODAL.model_type


def from_config(config: Mapping[str, Any], where: str = 'config.json') -> ModelSpec:
  """The model that the content of a config.json describes, in float32.

  Raises:
    ConfigError: it is not of a family that we compute, or has a field that we do not.
  """
  family = _family(config, where)
  found = _inner(config, where) if family is _MULTIMODAL else _decoder(Fields(config, where), family)
  spec.validate(found)
  return found


def _inner(config: Mapping[str, Any], where: str) -> ModelSpec:
  """The decoder of a model that also sees."""
  outer = Fields(config, where)
  for name in ('architectures', 'model_type', *_IMAGES):
    outer.get(name)
  inner = outer.get('text_config')
  require(isinstance(inner, dict), f'{where}: text_config is {inner!r}, not an object; get the file again.')
  inner = {'model_type': 'gemma3_text'} | inner
  tied = outer.flag('tie_word_embeddings', inner.get('tie_word_embeddings', True))
  outer.finish()
  where = f'{where}: text_config'
  found = _decoder(Fields({'tie_word_embeddings': tied} | inner, where), _family(inner, where))
  require(found.tie_embeddings == tied, f'{where} contradicts tie_word_embeddings of the whole, {tied}.')
  require(found.final_softcap is None, f'{where}: final_logit_softcapping is set, which has no effect there.')
  return found


def _family(config: Mapping[str, Any], where: str) -> Family:
  known = (*FAMILIES, _MULTIMODAL)
  listed, kind = config.get('architectures') or [], config.get('model_type')
  require(
    isinstance(listed, list) and all(isinstance(n, str) for n in listed),
    f'{where}: architectures is {listed!r}, not a list of names; get the file again.',
  )
  require(
    kind is None or isinstance(kind, str), f'{where}: model_type is {kind!r}, not a name; get the file again.'
  )
  name = listed[0] if listed else None
  by_type = {f.model_type: f for f in known}
  family = {f.architecture: f for f in known}.get(name) if name else by_type.get(kind)
  asked = name or kind
  names = [f.architecture for f in known] if name else list(by_type)
  require(
    family is not None,
    f'{where}: the model is {asked!r}, which we do not compute.{nearest(str(asked), names)}',
  )
  require(
    config.get('model_type', family.model_type) == family.model_type,
    f'{where}: model_type is {config.get("model_type")!r}, but architectures is {listed}.',
  )
  return family


def _decoder(fields: Fields, family: Family) -> ModelSpec:
  for name in ('architectures', 'model_type'):
    fields.get(name)
  for name, value in family.fixed.items():
    fields.fixed(name, value)
  given = family.defaults

  def integer(name: str, *default: Any) -> int:
    return fields.integer(name, *([given[name]] if name in given else default))

  embed, heads = integer('hidden_size'), integer('num_attention_heads')
  shape = dict(
    vocab_size=integer('vocab_size'),
    num_layers=integer('num_hidden_layers'),
    embed_dim=embed,
    num_heads=heads,
    num_kv_heads=integer('num_key_value_heads', heads),
    head_dim=integer('head_dim', embed // heads),
    mlp_dim=integer('intermediate_size'),
    norm_eps=float(fields.number('rms_norm_eps', 1e-6)),
    tie_embeddings=fields.flag('tie_word_embeddings', given.get('tie_word_embeddings', False)),
  )
  shape |= rope_fields.read(fields, given.get('rope_theta', 1e4), given.get('rope_local_theta'))
  if 'sliding_window' in given:
    shape |= layer_fields.read(fields, given['sliding_window'], given.get('pattern'), shape['num_layers'])
  if family.model_type.startswith('gemma'):
    shape |= _gemma(fields, given, shape['head_dim'])
  fields.finish()
  if 'L' not in shape.get('layer_pattern', ''):
    shape['rope_local_theta'] = None  # given for layers that there are none of
  return ModelSpec(**family.traits, **shape)


def _gemma(fields: Fields, given: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
  scalar = fields.number('query_pre_attn_scalar', 256)
  require(scalar > 0, f'{fields.where}: query_pre_attn_scalar is {scalar}, not positive; get the file again.')
  names = {'attention_softcap': 'attn_logit_softcapping', 'final_softcap': 'final_logit_softcapping'}
  caps = {ours: fields.optional_number(name, given.get(name)) for ours, name in names.items()}
  caps = {ours: None if cap is None else float(cap) for ours, cap in caps.items()}
  return caps | {'query_scale': None if scalar == head_dim else scalar**-0.5}


def contradictions(ours: ModelSpec, theirs: ModelSpec, allowed: tuple[str, ...] = ()) -> list[str]:
  """Fields that differ, as 'name: ours -> theirs'; how a model is computed here never counts."""
  left_out = {'dtype', 'remat', 'sliding_window', 'layer_pattern', *allowed}
  found = [
    f'{f.name}: {getattr(ours, f.name)} -> {getattr(theirs, f.name)}'
    for f in dataclasses.fields(ours)
    if f.name not in left_out and getattr(ours, f.name) != getattr(theirs, f.name)
  ]
  windows = [[s.sliding_window if local else None for local in s.local_layers] for s in (ours, theirs)]
  if windows[0] != windows[1] and ours.num_layers == theirs.num_layers:
    found.append(f'sliding_window by layer: {windows[0]} -> {windows[1]}')
  return found
