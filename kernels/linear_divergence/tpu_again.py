"""A second look at few rows on a TPU: as many steps as there are groups of them, none where none are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def look(
  certain: jax.Array,
  seen: tuple[jax.Array, ...],
  look: Callable[[jax.Array], tuple[jax.Array, ...]],
  group: int,
) -> tuple[jax.Array, ...]:
  """`seen` [N, ...] each, with what `look` finds in the place of rows that are not `certain`.

  Args:
    certain: bool [N].
    seen: results of the first pass.
    look: results [n, ...] of rows [n]; rows beyond the last are for it to leave alone.
    group: n, at most.
  """
  count = certain.shape[0]
  size = min(group, count)
  # The uncertain rows in order, then the number of rows, which is none. (A sort takes long to compile.)
  place = jnp.where(certain, count + size, jnp.cumsum(~certain) - 1)
  order = jnp.full(count + -count % size, count, jnp.int32)
  order = order.at[place].set(jnp.arange(count, dtype=jnp.int32), mode='drop')

  def body(step, seen):
    rows = jax.lax.dynamic_slice_in_dim(order, step * size, size)
    return tuple(x.at[rows].set(y, mode='drop') for x, y in zip(seen, look(rows), strict=True))

  # All devices take as many turns: a simulation waits for each of them in every kernel.
  turns = _greatest(-(-(~certain).sum() // size))
  return jax.lax.fori_loop(0, turns, body, seen)


def take(array: jax.Array, rows: jax.Array) -> jax.Array:
  """Rows [n] of an array [N, ...], zeros beyond the last."""
  return jnp.take(array, rows, axis=0, mode='fill', fill_value=0)


def _greatest(count: jax.Array) -> jax.Array:
  """Maximum over the devices of a `jax.shard_map` around this."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types or (), strict=True)
  axes = tuple(name for name, kind in kinds if kind is jax.sharding.AxisType.Manual)
  return jax.lax.pmax(count, axes) if axes else count
