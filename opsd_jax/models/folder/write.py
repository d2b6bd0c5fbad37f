"""A model's weights as a Hugging Face folder, which appears under its name only when it is whole."""

import dataclasses
import functools
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax import files
from opsd_jax import mesh as meshes
from opsd_jax.config import require, require_choice
from opsd_jax.models.folder import base as bases
from opsd_jax.models.folder import describe, inventory, names, read, tensors
from opsd_jax.models.folder.names import Entry
from opsd_jax.models.folder.tensors import Stored
from opsd_jax.models.model import Params
from opsd_jax.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """What will be written: a layer of a leaf, or a tensor carried over from the base as it is."""

  kind: str
  shape: tuple[int, ...]
  size: int
  leaf: Any = None
  entry: Entry | None = None
  layer: int = 0
  carried: Stored | None = None


def save(
  folder: str | os.PathLike,
  spec: ModelSpec,
  params: Params,
  base: str | os.PathLike | None = None,
  *,
  dtype: str | None = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes safetensors and config.json, and of a base folder whatever else it has.

  Every process of a multi-process run makes the call; the first one writes. Rows of the vocabulary
  beyond the tokenizer's are kept.

  Args:
    folder: made by this call; may exist if it is empty.
    spec: of the model.
    params: parameter tree.
    base: folder of the model that this one was trained from. Its config.json and the files of its
      tokenizer are copied unchanged, but for the dtype and another `rope_scaling`; parts of it that
      are no decoder are carried over. None: config.json is written from `spec`, and there is no tokenizer.
    dtype: `float32` or `bfloat16`; none for that of the embedding.
    max_shard_bytes: of a file, unless one tensor is larger.

  Raises:
    ConfigError: the folder is not empty, or the base is not this model.
    ValueError: the tree is not that of the spec; adapters have to be merged first.
  """
  folder = os.path.abspath(folder)
  leaves = read.leaves(params)
  if leaves.keys() != {entry.path for entry in names.entries(spec)}:
    raise ValueError(f'these are not the parameters of {spec}: {sorted(leaves)}')
  dtype = str(leaves[('embedding',)].dtype) if dtype is None else dtype
  require_choice('dtype', dtype, ('float32', 'bfloat16'))
  found = check(folder, spec, {path: leaf.shape for path, leaf in leaves.items()}, base)
  shards = _shards(_listed(spec, leaves, np.dtype(jnp.dtype(dtype)), found), max_shard_bytes)
  partial = f'{folder}.incomplete'
  if jax.process_index() == 0:
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was interrupted
    os.makedirs(partial)
    bases.copy(base, partial, spec, dtype)
    _write_index(partial, shards)
  for file, shard in shards.items():
    _write_shard(os.path.join(partial, file), shard, np.dtype(jnp.dtype(dtype)))
  if jax.process_index() == 0:
    _publish(partial, folder)
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f'saved {folder}')


def check(
  folder: str | os.PathLike,
  spec: ModelSpec,
  shapes: dict[tuple[str, ...], tuple[int, ...]],
  base: str | os.PathLike | None = None,
) -> inventory.Plan | None:
  """What `save` refuses, before any weights are there; what the base holds, if it holds weights."""
  require_new(folder)
  if base is None:
    describe.to_config(spec)
  return bases.check(base, spec, shapes)


def require_new(folder: str | os.PathLike) -> None:
  """Raises `ConfigError` unless the folder is absent or empty."""
  empty = not os.path.exists(folder) or (os.path.isdir(folder) and not os.listdir(folder))
  require(empty, f'{folder} exists and is not empty; remove it, or choose another folder.')


def _listed(
  spec: ModelSpec, leaves: dict[tuple[str, ...], Any], dtype: np.dtype, found: inventory.Plan | None
) -> dict[str, _Tensor]:
  """Every tensor by its name, layer by layer."""
  prefix = 'model.' if found is None else found.prefix
  listed: dict[tuple[int, str], _Tensor] = {}
  for entry in names.entries(spec):
    leaf = leaves[entry.path]
    shape = entry.file_shape(leaf.shape[1 if entry.stacked else 0 :])
    size = int(np.prod(shape)) * dtype.itemsize
    for layer, name in enumerate(names.tensor_names(entry, spec, prefix)):
      # The embedding comes first, then the layers; the final norm and the head stand at the end.
      order = layer if entry.stacked else -1 if entry.path == ('embedding',) else spec.num_layers
      listed[order, name] = _Tensor(tensors.kind_of(dtype), shape, size, leaf, entry, layer)
  for stored in found.other if found else ():
    listed[spec.num_layers + 1, stored.name] = _Tensor(stored.kind, stored.shape, stored.size, carried=stored)
  return {name: listed[order, name] for order, name in sorted(listed, key=lambda key: key[0])}


def _shards(listed: dict[str, _Tensor], limit: int) -> dict[str, dict[str, _Tensor]]:
  """Tensors by file, in order."""
  parts: list[dict[str, _Tensor]] = [{}]
  for name, tensor in listed.items():
    if parts[-1] and sum(t.size for t in parts[-1].values()) + tensor.size > limit:
      parts.append({})
    parts[-1][name] = tensor
  if len(parts) == 1:
    return {inventory.SINGLE: parts[0]}
  return {f'model-{i + 1:05d}-of-{len(parts):05d}.safetensors': part for i, part in enumerate(parts)}


def _write_index(folder: str, shards: dict[str, dict[str, _Tensor]]) -> None:
  if len(shards) == 1:
    return
  index = {
    'metadata': {'total_size': sum(t.size for shard in shards.values() for t in shard.values())},
    'weight_map': {name: file for file, shard in shards.items() for name in shard},
  }
  files.write_json(os.path.join(folder, inventory.INDEX), index)


def _write_shard(path: str, shard: dict[str, _Tensor], dtype: np.dtype) -> None:
  """Every process brings its parts of every tensor; the first one writes them."""
  data = _gathered(shard, dtype)
  if jax.process_index() == 0:
    tensors.write_file(path, {name: (t.kind, t.shape, t.size) for name, t in shard.items()}, data)
  else:
    for _ in data:
      pass


def _gathered(shard: dict[str, _Tensor], dtype: np.dtype) -> Iterator[np.ndarray]:
  for tensor in shard.values():
    if tensor.carried is not None:
      yield tensor.carried.bytes()
    else:
      yield meshes.host(_to_file(tensor.entry.groups, tensor.entry.stacked, dtype, tensor.leaf, tensor.layer))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _to_file(
  groups: names.Groups, stacked: bool, dtype: np.dtype, leaf: jax.Array, layer: jax.Array
) -> jax.Array:
  if stacked:
    leaf = jax.lax.dynamic_index_in_dim(leaf, layer, 0, keepdims=False)
  return names.to_file(groups, leaf.astype(dtype))


def _publish(partial: str, folder: str) -> None:
  """Gives the finished folder its name."""
  if os.path.isdir(folder):
    os.rmdir(folder)  # empty, or this fails
  os.rename(partial, folder)
