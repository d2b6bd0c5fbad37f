"""Which layers see only a window, as config.json tells it: by a list, a pattern or the first of them."""

from typing import Any

from opsd_jax.config import require
from opsd_jax.models.fields import Fields
from opsd_jax.models.rope_fields import LAYER_TYPES
from opsd_jax.models.spec import ModelSpec


def read(fields: Fields, default: int, pattern: int | None, layers: int) -> dict[str, Any]:
  """`sliding_window` and `layer_pattern` of a `ModelSpec`; empty where all layers see everything.

  Args:
    fields: of the decoder.
    default: window that the family takes where none is given.
    pattern: every how many layers one is global; None for a family (Qwen) whose windows are off unless
      switched on, and then begin at a layer.
    layers: how many there are.

  Raises:
    ConfigError: kinds of layers that we do not compute, or fields that contradict each other.
  """
  window = fields.optional_number('sliding_window', default)
  again = fields.optional_number('sliding_window_size', window)  # of published Gemma 2 files
  require(
    again == window,
    f'{fields.where}: sliding_window_size is {again}, but sliding_window is {window}; keep one of them.',
  )
  if pattern is None:
    first = fields.optional_number('max_window_layers', 28) or 0
    window = window if fields.flag('use_sliding_window', False) else None
    kinds = ['L' if window is not None and i >= first else 'G' for i in range(layers)]
  else:
    # The second name is that of a private attribute, which some versions of transformers wrote.
    pattern = fields.integer('sliding_window_pattern', fields.integer('_sliding_window_pattern', pattern))
    kinds = ['G' if (i + 1) % pattern == 0 else 'L' for i in range(layers)]
  kinds = _listed(fields, layers) or kinds
  if 'L' not in kinds:
    return {}
  require(window is not None, f'{fields.where} has local layers, but no sliding_window.')
  return {'sliding_window': int(window), 'layer_pattern': _shortest(''.join(kinds))}


def _listed(fields: Fields, layers: int) -> list[str] | None:
  """The kind of every layer, where config.json lists them."""
  types = fields.get('layer_types')
  if types is None:
    return None
  ours = {name: kind for kind, name in LAYER_TYPES.items()}
  require(
    isinstance(types, list) and all(isinstance(t, str) for t in types),
    f'{fields.where}: layer_types is {types!r}, not a list of names; get the file again.',
  )
  wrong = sorted(set(types) - set(ours))
  require(not wrong, f'{fields.where}: layer_types has {wrong}, which we do not compute (only {[*ours]}).')
  require(
    len(types) == layers,
    f'{fields.where}: layer_types has {len(types)} entries, but num_hidden_layers is {layers}.',
  )
  return [ours[name] for name in types]


def _shortest(kinds: str) -> str:
  """The shortest pattern that, repeated, gives these layers."""
  size = next(n for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))
  return kinds[:size]


def write(spec: ModelSpec, switched: bool) -> dict[str, Any]:
  """The same as config.json fields; `switched` for a family whose windows are off unless switched on."""
  kinds = ['L' if local else 'G' for local in spec.local_layers]
  if 'L' not in kinds and switched:
    return {}
  found = {'sliding_window': spec.sliding_window, 'layer_types': [LAYER_TYPES[k] for k in kinds]}
  if switched:
    found |= {'use_sliding_window': True, 'max_window_layers': kinds.index('L')}
  return found
