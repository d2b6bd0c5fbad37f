"""Rows and heads split over a device mesh by hand, for implementations that XLA cannot partition."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from kernels import checks
from kernels.linear_divergence.spec import Divergence

Tree = TypeVar('Tree')


def over_devices(
  call: Callable[[Tree, Tree, tuple[str, ...]], Divergence],
  rows: Tree,
  heads: Tree,
  *,
  batch_axes: Sequence[str],
  vocab_axes: Sequence[str] = (),
) -> Divergence:
  """`call(rows, heads, axes)` on each device's own rows and its own part of the heads.

  Results lie as the rows do. Heads are whole, and `axes` empty, where `vocab_axes` do not divide V.
  Without a mesh (`jax.set_mesh`), or on one device, this is the plain call.

  Args:
    call: gets arrays of the device; `axes` are those that share the heads' rows.
    rows: a tree of arrays [B, T, ...].
    heads: a tree of arrays [V, ...]. One that is used twice goes in once, so that `call` sees it.
    batch_axes: as of `api.linear_divergence`.
    vocab_axes: as of `api.linear_divergence`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = _free_axes(mesh)
  if math.prod(mesh.shape[axis] for axis in axes) == 1:
    return call(rows, heads, ())
  shared = _shared(jax.tree.leaves(heads)[0].shape[0], mesh, axes, vocab_axes)
  others = [axis for axis in axes if axis not in shared]
  own = PartitionSpec(*_layout(jax.tree.leaves(rows)[0].shape[:2], mesh, others, batch_axes))
  split = jax.shard_map(
    lambda rows, heads: call(rows, heads, shared),
    in_specs=(own, PartitionSpec(shared)),
    out_specs=own,
    axis_names=set(axes),
    check_vma=False,  # A pallas_call does not say over which axes its results vary.
  )
  return split(rows, heads)


def _free_axes(mesh: AbstractMesh) -> list[str]:
  """Axes that no `shard_map` around this call has split already; none without a mesh."""
  return [
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types or (), strict=True)
    if kind is not AxisType.Manual
  ]


def check_axes(name: str, wanted: Sequence[str]) -> None:
  """Raises a ValueError where the current mesh lacks an axis; without a mesh none is looked for."""
  mesh = jax.sharding.get_abstract_mesh()
  unknown = set(wanted) - set(mesh.axis_names)
  checks.require(
    mesh.empty or not unknown,
    f'{name} has {", ".join(sorted(unknown))}, which the mesh lacks; its axes are '
    f'{", ".join(mesh.axis_names)}.',
  )


def _shared(vocab: int, mesh: AbstractMesh, axes: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
  """Those of the wanted axes over which the heads' rows can be split: parts must be equal."""
  taken = tuple(axis for axis in wanted if axis in axes and mesh.shape[axis] > 1)
  return taken if vocab % math.prod(mesh.shape[axis] for axis in taken) == 0 else ()


def _layout(
  shape: Sequence[int], mesh: AbstractMesh, axes: Sequence[str], batch_axes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Mesh axes that split the batch and the time of rows [B, T]: each axis where it divides.

  The batch takes its own axes and time whatever is left; on an axis that neither can take, the
  devices do the same work.
  """
  sizes = list(shape)
  taken = ([], [])
  for dimension, wanted in enumerate((batch_axes, axes)):
    for axis in wanted:
      if axis in axes and axis not in taken[0] and sizes[dimension] % mesh.shape[axis] == 0:
        taken[dimension].append(axis)
        sizes[dimension] //= mesh.shape[axis]
  return tuple(taken[0]), tuple(taken[1])
