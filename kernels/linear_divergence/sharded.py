"""Rows split over a device mesh by hand, for implementations that XLA cannot partition itself."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from kernels import checks
from kernels.linear_divergence.spec import Divergence, DivergenceSpec, Mode


def over_rows(
  implementation: Callable[..., Divergence],
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  chunk_tokens: int,
  mode: Mode,
  weights: jax.Array | None,
  batch_axes: Sequence[str],
) -> Divergence:
  """`implementation` on each device's own rows, with whole heads; results lie as the rows do.

  Without a mesh (`jax.set_mesh`), or on one device, this is the plain call.

  Args: as `api.linear_divergence`.
  """
  call = functools.partial(implementation, chunk_tokens=chunk_tokens, mode=mode)
  mesh = jax.sharding.get_abstract_mesh()
  axes = _free_axes(mesh)
  _check_axes(batch_axes, mesh)
  if math.prod(mesh.shape[axis] for axis in axes) == 1:
    return call(student_hidden, student_head, teacher_hidden, teacher_head, targets, spec, weights=weights)
  rows = PartitionSpec(*_layout(targets.shape, mesh, axes, batch_axes))
  # A shared head goes in once, so that the implementation sees that it is shared.
  own_head = () if teacher_head is student_head else (teacher_head,)

  def body(student_hidden, teacher_hidden, targets, weights, student_head, *own_head):
    teacher_head = own_head[0] if own_head else student_head
    return call(student_hidden, student_head, teacher_hidden, teacher_head, targets, spec, weights=weights)

  heads = (student_head, *own_head)
  split = jax.shard_map(
    body,
    in_specs=(rows,) * 4 + (PartitionSpec(),) * len(heads),
    out_specs=rows,
    axis_names=set(axes),
    check_vma=False,  # A pallas_call does not say over which axes its results vary.
  )
  return split(student_hidden, teacher_hidden, targets, weights, *heads)


def _free_axes(mesh: AbstractMesh) -> list[str]:
  """Axes that no `shard_map` around this call has split already; none without a mesh."""
  return [
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types or (), strict=True)
    if kind is not AxisType.Manual
  ]


def _check_axes(batch_axes: Sequence[str], mesh: AbstractMesh) -> None:
  unknown = set(batch_axes) - set(mesh.axis_names)
  checks.require(
    mesh.empty or not unknown,
    f'batch_axes has {", ".join(sorted(unknown))}, which the mesh lacks; its axes are '
    f'{", ".join(mesh.axis_names)}.',
  )


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
