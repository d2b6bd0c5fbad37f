"""Rotary positions as config.json tells them: two spellings, for all layers or by layer type."""

from typing import Any

from opsd_jax.config import require, require_choice
from opsd_jax.models.fields import Fields
from opsd_jax.models.spec import ModelSpec, RopeScaling

LAYER_TYPES = {'L': 'sliding_attention', 'G': 'full_attention'}
_COMMON = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'}
_LENGTH = 'original_max_position_embeddings'
# Field of RopeScaling -> name in the file, of every kind.
_NAMES: dict[str, dict[str, str]] = {
  'default': {},
  'linear': {'factor': 'factor'},
  'llama3': {
    'factor': 'factor',
    'original_length': _LENGTH,
    'low_frequency_factor': 'low_freq_factor',
    'high_frequency_factor': 'high_freq_factor',
  },
  'yarn': {
    'factor': 'factor',
    'original_length': _LENGTH,
    'beta_fast': 'beta_fast',
    'beta_slow': 'beta_slow',
    'attention_factor': 'attention_factor',
  },
}
_NEEDED = {'factor', 'low_frequency_factor', 'high_frequency_factor'}


def read(fields: Fields, theta: float, local_theta: float | None) -> dict[str, Any]:
  """The rotary fields of a `ModelSpec`.

  Args:
    fields: of the decoder, in the spelling of transformers 4 or 5.
    theta: base that the family takes where none is given.
    local_theta: the same for the local layers of a family where these have their own, else None.

  Raises:
    ConfigError: a kind of positions that we do not compute, or two spellings that disagree.
  """
  fields.fixed('partial_rotary_factor', 1.0)
  new, old = fields.mapping('rope_parameters'), fields.mapping('rope_scaling')
  where = f'{fields.where}: rope_parameters' if new else f'{fields.where}: rope_scaling'
  require(not (new and old), f'{fields.where} has rope_parameters and rope_scaling; keep one of them.')
  nested = bool(new) and set(new) <= set(LAYER_TYPES.values())
  require(
    nested or local_theta is None or not new,
    f'{where} is {new}; this family needs one entry for each of {", ".join(LAYER_TYPES.values())}.',
  )
  for name, entry in new.items() if nested else ():
    require(isinstance(entry, dict), f'{where}: {name} is {entry!r}, not an object; get the file again.')
  everywhere = new.get(LAYER_TYPES['G'], {}) if nested else new or old
  local = new.get(LAYER_TYPES['L']) if nested else None
  found: dict[str, Any] = {'rope_theta': _theta(fields, 'rope_theta', everywhere, theta)}
  found['rope_scaling'] = _scaling(fields, everywhere, where)
  if local_theta is not None or (local is not None and local != everywhere):
    require(
      _scaling(fields, local or {}, where) == RopeScaling(),
      f'{where} of local layers is {local}; only plain positions are computed there.',
    )
    default = found['rope_theta'] if local_theta is None else local_theta
    found['rope_local_theta'] = _theta(fields, 'rope_local_base_freq', local or {}, default)
  return found


def _theta(fields: Fields, legacy: str, parameters: dict[str, Any], default: float) -> float:
  """The base, which may stand in the new place or the old one."""
  inside = parameters.get('rope_theta')
  outside = fields.number(legacy, default if inside is None else inside)
  value = outside if inside is None else inside
  require(
    value == outside,
    f'{fields.where}: {legacy} is {outside}, but rope_parameters says {value}; keep one of them.',
  )
  return float(value)


def _scaling(fields: Fields, parameters: dict[str, Any], where: str) -> RopeScaling:
  parameters = {k: v for k, v in parameters.items() if v is not None}
  kind = parameters.get('rope_type', parameters.get('type', 'default'))
  require_choice(f'{where}.rope_type', kind, tuple(_NAMES))
  other = parameters.get('type', kind)
  require(other == kind, f'{where} has type {other!r} and rope_type {kind!r}; keep one of them.')
  inner = Fields(parameters, where)
  inner.fixed('partial_rotary_factor', 1.0)
  if kind == 'yarn':
    inner.fixed('truncate', True)
  values: dict[str, Any] = {}
  for field, name in _NAMES[kind].items():
    if field == 'original_length':
      values[field] = inner.integer(name, fields.get('max_position_embeddings'))
    elif name in parameters or field in _NEEDED:
      values[field] = float(inner.number(name))
  for name in _COMMON:
    inner.get(name)
  inner.finish()
  return RopeScaling(kind='none' if kind == 'default' else kind, **values)


def write(spec: ModelSpec, local: bool) -> dict[str, Any]:
  """The same as config.json fields, in the older spelling, which every version of transformers reads.

  `local`: whether local layers of the family have a base of their own.
  """
  fields: dict[str, Any] = {'rope_theta': spec.rope_theta}
  if spec.rope_scaling.kind != 'none':
    scaling = spec.rope_scaling
    named = {name: getattr(scaling, field) for field, name in _NAMES[scaling.kind].items()}
    fields['rope_scaling'] = {'rope_type': scaling.kind} | {k: v for k, v in named.items() if v is not None}
  if local and spec.rope_local_theta is not None:
    fields['rope_local_base_freq'] = spec.rope_local_theta
  return fields
