"""What an exported folder takes from the model that it was trained from."""

import fnmatch
import os
import shutil
from typing import Any

from opsd_jax import files
from opsd_jax.config import require
from opsd_jax.models import families
from opsd_jax.models.folder import describe, inventory
from opsd_jax.models.spec import ModelSpec

# Everything that is no weight and stays true of the new ones. A model card (README.md) does not.
COPIED = ('*.json', '*.jinja', '*.model', '*.tiktoken', 'merges.txt', 'vocab.txt')
COPIED += ('LICENSE*', 'NOTICE*', 'USE_POLICY*')
_LEFT = ('config.json', '*.index.json', 'adapter_*', 'trainer_state.json', 'training_args*')
_TEMPLATES = 'chat_templates'
# Every spelling of the rotary positions.
_POSITIONS = ('rope_scaling', 'rope_parameters', 'rope_theta', 'rope_local_base_freq')


def check(
  base: str | os.PathLike | None, spec: ModelSpec, shapes: dict[tuple[str, ...], tuple[int, ...]]
) -> inventory.Plan | None:
  """The base's tensors, if it has any.

  Raises:
    ConfigError: the base is no model's folder, or holds another model.
  """
  if base is None:
    return None
  config = families.read_json(base)
  wrong = families.contradictions(families.read(base), spec, allowed=('rope_scaling',))
  require(
    not wrong,
    f'the base {base} is another model than the one to save (in its config.json -> here): '
    f'{"; ".join(wrong)}. Name the folder that training began from, or none.',
  )
  if inventory.has_weights(base):
    return inventory.plan(base, spec, shapes)
  require(
    not families.is_multimodal(config),
    f'the base {base} has no weights; those of its parts that are no decoder are needed.',
  )
  return None


def copy(base: str | os.PathLike | None, folder: str, spec: ModelSpec, dtype: str) -> None:
  """Puts config.json and, of a base, the tokenizer's and other small files into a new folder."""
  if base is None:
    _write(folder, describe.to_config(spec, dtype))
    return
  for name in sorted(os.listdir(base)):
    if _wanted(name):
      shutil.copyfile(os.path.join(base, name), os.path.join(folder, name))
  if os.path.isdir(os.path.join(base, _TEMPLATES)):
    shutil.copytree(os.path.join(base, _TEMPLATES), os.path.join(folder, _TEMPLATES))
  config = families.read_json(base)
  changed = _with_positions(_with_dtype(config, dtype), spec)
  if changed == config:
    shutil.copyfile(os.path.join(base, 'config.json'), os.path.join(folder, 'config.json'))
  else:
    _write(folder, changed)


def _wanted(name: str) -> bool:
  kept = any(fnmatch.fnmatchcase(name, pattern) for pattern in COPIED)
  return kept and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _LEFT)


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
  """The same config for weights of another dtype, under whichever name it tells of that."""
  names = [name for name in ('dtype', 'torch_dtype') if name in config] or ['torch_dtype']
  changed = config | dict.fromkeys(names, dtype)
  for part, value in config.items():
    if isinstance(value, dict) and part.endswith('_config'):
      changed[part] = value | {n: dtype for n in ('dtype', 'torch_dtype') if n in value}
  return changed


def _with_positions(config: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
  """The same config with the rotary positions of `spec`, where those are others."""
  if families.from_config(config).rope_scaling == spec.rope_scaling:
    return config
  inside = families.is_multimodal(config)
  decoder = config['text_config'] if inside else config
  decoder = {k: v for k, v in decoder.items() if k not in _POSITIONS} | describe.positions(spec)
  changed = config | {'text_config': decoder} if inside else decoder
  wrong = families.contradictions(families.from_config(changed), spec)
  require(
    not wrong,
    f'model.rope_scaling is {spec.rope_scaling}, which the config.json of the base cannot tell (in it -> '
    f'here): {"; ".join(wrong)}. Export without a base.',
  )
  return changed


def _write(folder: str, config: dict[str, Any]) -> None:
  files.write_json(os.path.join(folder, 'config.json'), config)
