"""Adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors.

Its tensors are, per layer and projection, lora_A [r, in] and lora_B [out, r], heads flattened.
"""

import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from opsd_jax import files
from opsd_jax import mesh as meshes
from opsd_jax.config import require
from opsd_jax.models import lora
from opsd_jax.models.folder import adapter_settings, tensors
from opsd_jax.models.folder.names import PREFIXES
from opsd_jax.models.lora import PROJECTIONS, Adapters, LoraConfig
from opsd_jax.models.spec import ModelSpec

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
WHOLE, PART = 'model.', 'model.language_model.'  # where transformers has the decoder, alone and as a part
_MODULES = {'attention': 'self_attn', 'mlp': 'mlp'}
_PROJECTION = {(_MODULES[p.group], p.module): name for name, p in PROJECTIONS.items()}
_NAME = re.compile(
  rf'base_model\.model\.(?:{"|".join(map(re.escape, PREFIXES))})'
  r'(layers\.\d+\.(\w+)\.(\w+)\.lora_[AB]\.weight)'
)


def save(
  folder: str | os.PathLike, config: LoraConfig, adapters: Adapters, *, base: str = '', prefix: str = WHOLE
) -> None:
  """Writes adapters as PEFT reads them; until they are complete the folder is not there.

  Every process of a multi-process run makes the call; the first one writes.

  Args:
    folder: must be absent or empty.
    config: of the adapters.
    adapters: as `lora.init` makes them.
    base: name or folder of the model that they belong to.
    prefix: where that model has its decoder, a key of `names.PREFIXES`.

  Raises:
    ConfigError: the folder holds something.
  """
  folder = pathlib.Path(os.path.abspath(folder))
  require(
    not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
    f'adapters go to a folder of their own, but {folder} holds something; choose another.',
  )
  held = meshes.host(adapters)
  if jax.process_index() != 0:
    return
  beside = folder.with_name(f'{folder.name}.incomplete')
  shutil.rmtree(beside, ignore_errors=True)  # of a save that was interrupted
  beside.mkdir(parents=True)
  named = {f'base_model.model.{prefix}{name}': tensor for name, tensor in _tensors(held)}
  heads = {name: (tensors.kind_of(t.dtype), t.shape, t.nbytes) for name, t in named.items()}
  tensors.write_file(os.fspath(beside / TENSORS), heads, named.values())
  files.write_json(beside / CONFIG, adapter_settings.describe(config, base, prefix != WHOLE))
  os.replace(beside, folder)


def _pairs(adapters: Adapters) -> Iterator[tuple[str, dict[str, Any]]]:
  """Every projection's name below a layer, such as `self_attn.q_proj`, and its a and b."""
  for group, pairs in adapters['layers'].items():
    for name, pair in pairs.items():
      yield f'{_MODULES[group]}.{PROJECTIONS[name].module}', pair


def _tensors(adapters: Adapters) -> Iterator[tuple[str, np.ndarray]]:
  """Names from `layers.` on, and tensors."""
  for module, pair in _pairs(adapters):
    for layer, (a, b) in enumerate(zip(pair['a'], pair['b'], strict=True)):
      where = f'layers.{layer}.{module}'
      yield f'{where}.lora_A.weight', np.ascontiguousarray(a.reshape(-1, a.shape[-1]).T)
      yield f'{where}.lora_B.weight', np.ascontiguousarray(b.reshape(b.shape[0], -1).T)


def load(folder: str | os.PathLike, spec: ModelSpec, mesh: jax.sharding.Mesh) -> tuple[LoraConfig, Adapters]:
  """Reads an adapter of PEFT's, or of ours; float32, laid out as `lora.abstract` says.

  Raises:
    ConfigError: a file is missing or broken, the adapter is for another model, or it has an option
      that changes what an adapter computes.
  """
  settings = adapter_settings.read(os.path.join(folder, CONFIG))
  path = os.path.join(folder, TENSORS)
  require(os.path.isfile(path), f'{folder} has no {TENSORS}; let PEFT save with safe_serialization=True.')
  held = tensors.read_header(path)
  names = _names(path, list(held))
  targets = {_PROJECTION[_NAME.fullmatch(full).group(2, 3)] for full in names.values()}
  targets = tuple(name for name in PROJECTIONS if name in targets)
  config = LoraConfig(settings['r'], float(settings['lora_alpha']), targets)
  described = lora.abstract(config, spec, mesh)
  _check_shapes(path, {name: held[full].shape for name, full in names.items()}, described)
  return config, _stacked(described, lambda name: held[names[name]].view())


def _names(path: str, found: list[str]) -> dict[str, str]:
  """Names from `layers.` on -> full ones."""
  names = {}
  for full in found:
    match = _NAME.fullmatch(full)
    known = match is not None and match.group(2, 3) in _PROJECTION
    require(known, f'{path}: {full} is not of {", ".join(p.module for p in PROJECTIONS.values())}.')
    names[match.group(1)] = full
  require(bool(names), f'{path} holds no tensors.')
  return names


def _check_shapes(path: str, found: dict[str, tuple[int, ...]], described: Adapters) -> None:
  """The tensors are those of this model, no more and no fewer, each of its shape."""
  wanted = {}
  for module, pair in _pairs(described):
    a, b = pair['a'].shape, pair['b'].shape
    for layer in range(a[0]):
      wanted[f'layers.{layer}.{module}.lora_A.weight'] = (a[-1], math.prod(a[1:-1]))
      wanted[f'layers.{layer}.{module}.lora_B.weight'] = (math.prod(b[2:]), b[1])
  for name in sorted(wanted.keys() | found.keys()):
    expected, actual = wanted.get(name, 'none'), found.get(name, 'none')
    require(
      expected == actual,
      f'{path}: the adapter is for another base: of {name}, shape {expected} is expected and {actual} found.',
    )


def _stacked(described: Adapters, read: Callable[[str], np.ndarray]) -> Adapters:
  """The tensors over layers, in our layout, on the devices."""

  def place(module: str, part: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    names = [f'layers.{layer}.{module}.lora_{part.upper()}.weight' for layer in range(like.shape[0])]
    whole = np.stack([read(name).T for name in names]).astype(np.float32).reshape(like.shape)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: whole[index])

  layers = {}
  for group, pairs in described['layers'].items():
    layers[group] = {
      name: {part: place(f'{_MODULES[group]}.{PROJECTIONS[name].module}', part, pair[part]) for part in pair}
      for name, pair in pairs.items()
    }
  return {'layers': layers}
