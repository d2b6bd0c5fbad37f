"""Exact streaming top-k of rows inside a TPU kernel: from bins, or by turns where these do not do.

The k largest of the bins of a row are its k largest logits if the k-th is above all that found no place
there. The few other rows, ties at k among them, are looked at again with lists of k logits, into
which every tile's are inserted one by one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import tpu_bins
from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence.spec import DivergenceSpec


class TopK(NamedTuple):
  """The k largest logits of the ranked side, in any order: float32 [N, 128], k lanes in use.

  Attributes:
    values: logits of the ranked side.
    ids: where they are.
    others: logits of the other side there.
  """

  values: jax.Array
  ids: jax.Array
  others: jax.Array


def bins(spec: DivergenceSpec, block_vocab: int, *, others: int) -> tpu_bins.Shape:
  """Bins for the top-k of a spec from tiles as wide as this."""
  groups = tpu_bins.groups(block_vocab)
  return tpu_bins.Shape(groups, tpu_bins.depth(spec.k, groups * lib.LANES), ids=True, others=others)


def choose(k: int, bins: tpu_bins.Bins, top) -> jax.Array:
  """Moves the k largest of the bins into the lists, in descending order; the bins lose them.

  Args:
    k: how many.
    bins: with ids.
    top: references to the lists' values, ids, and other numbers if the bins have any, [rows, 128] each.

  Returns:
    1 where a row's lists are known to be its top-k, else 0, [rows, 1].
  """
  groups = [slice(start, start + lib.LANES) for start in range(0, bins.values[0].shape[1], lib.LANES)]
  lane = jax.lax.broadcasted_iota(jnp.int32, top[0].shape, 1)
  for ref in top:
    ref[...] = jnp.zeros(ref.shape, jnp.float32)

  def turn(number, _):
    best = lib.row_max(_reduced(jnp.maximum, [bins.values[0][:, group] for group in groups]))
    names = [tpu_bins.ids(bins.blocks[0][:, group]) for group in groups]
    # Of equal logits the lowest id: within a bin these stand in the order of their ids.
    tied = [
      jnp.where(bins.values[0][:, group] == best, name, -lib.FLOOR)
      for group, name in zip(groups, names, strict=True)
    ]
    first = lib.row_min(_reduced(jnp.minimum, tied))
    hits = [name == first for name in names]
    found = [best, first]
    for field in bins.others:
      others = [field[0][:, group] for group in groups]
      found.append(lib.row_sum(sum(jnp.where(*pair, 0.0) for pair in zip(hits, others, strict=True))))
    for ref, value in zip(top, found, strict=True):
      ref[...] = jnp.where(lane == number, value, ref[...])
    for hit, group in zip(hits, groups, strict=True):
      _remove(bins, hit, group)
    return best

  last = jax.lax.fori_loop(0, k, turn, jnp.zeros((top[0].shape[0], 1), jnp.float32))
  return jnp.where(last > lib.row_max(bins.rest[...]), 1.0, 0.0)


def _reduced(operation, values):
  result = values[0]
  for value in values[1:]:
    result = operation(result, value)
  return result


def _remove(bins: tpu_bins.Bins, hit: jax.Array, group: slice) -> None:
  """Takes the first logit out of the bins of a group that were hit."""
  empties = lib.FLOOR, -1.0, *[0.0] * len(bins.others)
  for refs, empty in zip(bins.fields, empties, strict=True):
    for place, ref in enumerate(refs):
      below = refs[place + 1][:, group] if place + 1 < len(refs) else empty
      ref[:, group] = jnp.where(hit, below, ref[:, group])


def start(k: int, values_ref, ids_ref) -> None:
  """Empty lists: k lanes below every logit with ids of their own, the others never the minimum."""
  lane = jax.lax.broadcasted_iota(jnp.int32, values_ref.shape, 1)
  values_ref[...] = jnp.where(lane < k, lib.FLOOR, -lib.FLOOR)
  ids_ref[...] = -1.0 - lane.astype(jnp.float32)


def insert(values_ref, ids_ref, ranked_ref, ids: jax.Array) -> None:
  """Moves a tile's logits into the lists, row maxima first, until no row has one that belongs there.

  Args:
    values_ref: reference to the lists' logits, [rows, 128].
    ids_ref: reference to their ids.
    ranked_ref: reference to the logits to rank, [rows, vocab]; those taken are overwritten.
    ids: the vocabulary ids of the tile, above all that were inserted before.

  The expected number of turns falls with the number of tiles seen, as k over it. Equal logits rank
  by id, the lowest first, as in `jax.lax.top_k`.
  """

  def wanted(best):
    # Compared before it is reduced: a NaN in one row must not stop the others.
    return jnp.max(jnp.where(best > lib.row_min(values_ref[...]), 1.0, 0.0))

  def move(carry):
    _, best = carry
    ranked, values, list_ids = ranked_ref[...], values_ref[...], ids_ref[...]
    minimum = lib.row_min(values)
    taken = best > minimum
    first = lib.first(ranked, best, ids)
    hit = (ids == first) & taken
    last = lib.row_max(jnp.where(values == minimum, list_ids, lib.FLOOR))
    slot = (list_ids == last) & taken
    values_ref[...] = jnp.where(slot, best, values)
    ids_ref[...] = jnp.where(slot, first, list_ids)
    ranked = jnp.where(hit, lib.FLOOR, ranked)
    ranked_ref[...] = ranked
    best = lib.row_max(ranked)
    return wanted(best), best

  best = lib.row_max(ranked_ref[...])
  jax.lax.while_loop(lambda carry: carry[0] > 0, move, (wanted(best), best))
