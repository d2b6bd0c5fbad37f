"""Exact streaming top-k of rows inside a TPU kernel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import tpu_blocks as lib


class TopK(NamedTuple):
  """The k largest logits of the ranked side, in any order: float32 [N, 128], k lanes in use."""

  values: jax.Array
  ids: jax.Array
  others: jax.Array


def start(k: int, top: TopK) -> None:
  """Empty lists: k lanes below every logit with ids of their own, the others never the minimum."""
  lane = jax.lax.broadcasted_iota(jnp.int32, top.values.shape, 1)
  top.values[...] = jnp.where(lane < k, lib.FLOOR, -lib.FLOOR)
  top.ids[...] = -1.0 - lane.astype(jnp.float32)
  top.others[...] = jnp.zeros(top.others.shape, jnp.float32)


def insert(top: TopK, ranked_ref, other_ref, ids: jax.Array) -> None:
  """Moves a tile's logits into the lists, row maxima first, until no row has one that belongs there.

  Args:
    top: references to the lists, [rows, 128] each.
    ranked_ref: reference to the logits to rank, [rows, vocab]; those taken are overwritten.
    other_ref: reference to the other side's.
    ids: the vocabulary ids of the tile, above all that were inserted before.

  The expected number of turns falls with the number of tiles seen, as k over it. Equal logits rank
  by id, the lowest first, as in `jax.lax.top_k`.
  """

  def wanted(best):
    # Compared before it is reduced: a NaN in one row must not stop the others.
    return jnp.max(jnp.where(best > lib.row_min(top.values[...]), 1.0, 0.0))

  def move(carry):
    _, best = carry
    ranked, values, list_ids = ranked_ref[...], top.values[...], top.ids[...]
    minimum = lib.row_min(values)
    taken = best > minimum
    first = lib.first(ranked, best, ids)
    hit = (ids == first) & taken
    last = lib.row_max(jnp.where(values == minimum, list_ids, lib.FLOOR))
    slot = (list_ids == last) & taken
    top.values[...] = jnp.where(slot, best, values)
    top.ids[...] = jnp.where(slot, first, list_ids)
    top.others[...] = jnp.where(slot, lib.row_sum(jnp.where(hit, other_ref[...], 0.0)), top.others[...])
    ranked = jnp.where(hit, lib.FLOOR, ranked)
    ranked_ref[...] = ranked
    best = lib.row_max(ranked)
    return wanted(best), best

  best = lib.row_max(ranked_ref[...])
  jax.lax.while_loop(lambda carry: carry[0] > 0, move, (wanted(best), best))
