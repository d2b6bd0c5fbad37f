"""A model's weights from a Hugging Face folder, straight into their shardings.

One tensor is read at a time, and of that each process reads what its devices hold.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from opsd_jax.config import require_choice
from opsd_jax.models import model
from opsd_jax.models.folder import inventory
from opsd_jax.models.folder.names import Entry, Groups, from_file
from opsd_jax.models.folder.tensors import Stored
from opsd_jax.models.model import Params
from opsd_jax.models.spec import ModelSpec


def load(
  folder: str | os.PathLike, spec: ModelSpec, mesh: jax.sharding.Mesh, dtype: str = 'float32'
) -> Params:
  """The parameters in a folder, laid out as `model.abstract_params` says.

  Beside the parameters themselves, host memory holds no more than a tensor or two.

  Args:
    folder: config.json and safetensors files, whole or in shards.
    spec: the model, as `families.read(folder)` gives it; its `rope_scaling`, `dtype` and `remat` are free.
    mesh: where the parameters go.
    dtype: of the matrices; norm scales are float32, in which they are used.

  Raises:
    ConfigError: the folder does not hold this model, whole; nothing big has then been read.
  """
  require_choice('dtype', dtype, ('float32', 'bfloat16'))
  targets = leaves(model.abstract_params(spec, mesh))
  plan = inventory.plan(folder, spec, {path: leaf.shape for path, leaf in targets.items()})
  params: dict[str, Any] = {}
  for entry, stored in plan.leaves:
    target = targets[entry.path]
    kind = target.dtype if entry.path[-1] == 'scale' else jnp.dtype(dtype)
    where = params
    for name in entry.path[:-1]:
      where = where.setdefault(name, {})
    where[entry.path[-1]] = _read(entry, stored, target.shape, kind, target.sharding)
  return params


def leaves(tree: Params) -> dict[tuple[str, ...], Any]:
  """The leaves of a parameter tree by path."""
  return {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _read(
  entry: Entry, stored: list[Stored], shape: tuple[int, ...], dtype: Any, sharding: NamedSharding
) -> jax.Array:
  """One leaf, filled in place; a stacked one layer by layer."""
  layer_spec = PartitionSpec(*sharding.spec[1:]) if entry.stacked else sharding.spec
  inside = NamedSharding(sharding.mesh, _file_partition(entry, layer_spec))
  place = _placer(entry.groups, sharding, entry.stacked)
  leaf = jnp.zeros(shape, dtype, device=sharding)
  for layer, tensor in enumerate(stored):
    leaf = place(leaf, _piece(tensor, inside), layer)
    leaf.block_until_ready()  # else pieces queue up faster than they are used
  return leaf


@functools.lru_cache(256)
def _placer(groups: Groups, sharding: NamedSharding, stacked: bool) -> Callable[..., jax.Array]:
  """Puts a tensor into a leaf, or into one of its layers, in place; compiled once for leaves alike."""

  def place(leaf: jax.Array, piece: jax.Array, layer: jax.Array) -> jax.Array:
    piece = from_file(groups, piece, leaf.shape[1:] if stacked else leaf.shape).astype(leaf.dtype)
    # The leaf is written to even where it is replaced as a whole: else it might be the piece's own memory,
    # which on a CPU several devices can share.
    return (
      jax.lax.dynamic_update_slice(leaf, piece[None], (layer, *[0] * piece.ndim))
      if stacked
      else (jax.lax.dynamic_update_slice(leaf, piece, [0] * piece.ndim))
    )

  return jax.jit(place, donate_argnums=0, out_shardings=sharding)


def _file_partition(entry: Entry, spec: PartitionSpec) -> PartitionSpec:
  """How a tensor is split so that every device reads what it keeps: heads are split as a whole."""
  axes = [*spec, *[None] * (1 + max(axis for group in entry.groups for axis in group) - len(spec))]
  return PartitionSpec(*(axes[group[0]] for group in entry.groups))


def _piece(tensor: Stored, sharding: NamedSharding) -> jax.Array:
  """A tensor on the devices; each distinct part is read from the file once."""
  view, parts = tensor.view(), {}

  def part(index: tuple[slice, ...]) -> np.ndarray:
    key = tuple((s.start, s.stop) for s in index)
    if key not in parts:
      parts[key] = np.array(view[index])
    return parts[key]

  return jax.make_array_from_callback(tensor.shape, sharding, part)
