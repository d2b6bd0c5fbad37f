"""The device mesh and the one table that maps logical axes onto it.

One program serves 1 CPU, 8 GPUs or a TPU pod slice: arrays name their axes by meaning (`batch`,
`heads`, ...), `RULES` says which mesh axes carry them, and XLA inserts the communication.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from opsd_jax.config import require

AXES = ('data', 'fsdp', 'tensor')

# Parameters shard `embed` over fsdp and the wide axes over tensor; activations shard rows over both
# data axes and keep their model width whole, so that the residual stream needs no collective.
RULES: dict[str | None, tuple[str, ...]] = {
  'batch': ('data', 'fsdp'),
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'vocab': ('tensor',),
  'layers': (),
  'length': (),
  'head_dim': (),
  'activation': (),
  'view': (),
  None: (),
}
# Of parameters that a decode loop reads at every token: whole along fsdp, so that no step gathers them.
DECODING = RULES | {'embed': ()}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; at most one may be -1, meaning all that remain.

  Attributes:
    data: replicas of the parameters.
    fsdp: shards of the parameters; rows are split over it too.
    tensor: shards of heads, MLP width and vocabulary.
  """

  data: int = 1
  fsdp: int = -1
  tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A ('data', 'fsdp', 'tensor') mesh over `devices` (default: all of them).

  Raises:
    ConfigError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [config.data, config.fsdp, config.tensor]
  require(
    sizes.count(-1) <= 1 and all(s == -1 or s > 0 for s in sizes),
    f'mesh is {config}: sizes must be positive, and at most one of them -1.',
  )
  known = math.prod(s for s in sizes if s != -1)
  sizes = [max(len(devices) // known, 1) if s == -1 else s for s in sizes]
  require(
    math.prod(sizes) == len(devices),
    f'mesh {dict(zip(AXES, sizes, strict=True))} needs {math.prod(sizes)} devices but '
    f'{len(devices)} are present; change mesh.data, mesh.fsdp or mesh.tensor.',
  )
  # Auto axes, said aloud: the default is Explicit, where top-k and gathers need annotations.
  kinds = (AxisType.Auto,) * 3
  try:
    return jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=devices)
  except (
    NotImplementedError
  ):  # a dimension of the torus must be shared by two axes, which JAX wants to be asked
    found = mesh_utils.create_device_mesh(tuple(sizes), devices, allow_split_physical_axes=True)
    return Mesh(found, AXES, axis_types=kinds)


def partition(
  mesh: Mesh | AbstractMesh,
  axes: Sequence[str | None],
  shape: Sequence[int],
  rules: Mapping[str | None, tuple[str, ...]] = RULES,
) -> PartitionSpec:
  """Where an array of `shape` with logical `axes` lives; an axis that does not divide stays whole."""
  spec = []
  for name, size in zip(axes, shape, strict=True):
    mesh_axes = rules[name]
    fits = mesh_axes and size % math.prod(mesh.shape[a] for a in mesh_axes) == 0
    spec.append(mesh_axes if fits else None)
  return PartitionSpec(*spec)


def sharding(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
  """`partition` bound to a mesh."""
  return NamedSharding(mesh, partition(mesh, axes, shape))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pins the layout of `x` inside jit. Needs `jax.set_mesh`; without a mesh it does nothing."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, partition(mesh, axes, x.shape))


def shard_rows(mesh: Mesh, tree: Any, axis: int = 0) -> Any:
  """Places host arrays on the mesh with one axis split as rows; each process holds all rows."""

  def place(x: Any) -> jax.Array:
    names = [None] * np.ndim(x)
    names[axis] = 'batch'
    where = sharding(mesh, names, np.shape(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

  return jax.tree.map(place, tree)


def row_shards(mesh: Mesh) -> int:
  """How many parts the rows of a batch are split into."""
  return math.prod(mesh.shape[axis] for axis in RULES['batch'])


def host(tree: Any) -> Any:
  """The whole value of every array as NumPy, on every process."""
  if jax.process_count() == 1:
    return jax.tree.map(np.asarray, tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
