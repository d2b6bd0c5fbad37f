"""A second look at few positions: as many steps as the fullest row needs, none where none do."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from kernels.linear_divergence.parts import take_rows

Tree = TypeVar('Tree')


def where(flags: jax.Array, look: Callable[[jax.Array], Tree], results: Tree, group: int) -> Tree:
  """`results` with those of `look` at the positions that `flags` names.

  Positions are gathered along time, so that a batch laid out over devices stays so.

  Args:
    flags: bool [B, T].
    look: from time steps [B, n] to a tree of arrays [B, n, ...].
    results: the tree of arrays [B, T, ...].
    group: n.
  """
  batch, time = flags.shape
  order = jnp.argsort(~flags, axis=1, stable=True).astype(jnp.int32)
  order = jnp.pad(order, [(0, 0), (0, -time % group)], constant_values=time)
  most = flags.sum(1).max()

  def step(carry):
    i, results = carry
    places = jax.lax.dynamic_slice_in_dim(order, i * group, group, axis=1)
    wanted = take_rows(flags, places)

    def put(old, new):
      kept = take_rows(old, places)
      new = jnp.where(wanted.reshape(*wanted.shape, *[1] * (new.ndim - 2)), new, kept)
      return old.at[jnp.arange(batch)[:, None], places].set(new, mode='drop')

    return i + 1, jax.tree.map(put, results, look(places))

  return jax.lax.while_loop(lambda carry: carry[0] * group < most, step, (jnp.int32(0), results))[1]
