"""Exact top-k of logits that come a tile at a time: binned lists with a certificate.

Every id belongs to one of a few hundred lists, in turn, that keep their `depth` largest logits. What a list
dropped is not above its last, so that the k best of all lists are the k best of the vocabulary
wherever the k-th is above the largest last one. Other rows, ties at k among them, are looked at
again, with a sort of every tile. (The certificate is tallax's; there for a sort in one kernel.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels import tiles
from kernels.linear_divergence.parts import FLOOR, Plan

NOBODY = -1  # Id of a place in a list that no logit has taken.


class Lists(NamedTuple):
  """Logits and their ids, the largest of every list first: [B, T, bins] for each place in a list."""

  values: tuple[jax.Array, ...]
  ids: tuple[jax.Array, ...]


class Ranked(NamedTuple):
  """The largest logits of every position.

  Attributes:
    values: [B, T, n], descending.
    ids: int32 [B, T, n]; `NOBODY` where the vocabulary has fewer.
    sure: bool [B, T], True where these are known to be the n largest, and no other equals the last.
    rest: [B, T], an upper bound of all other logits.
  """

  values: jax.Array
  ids: jax.Array
  sure: jax.Array
  rest: jax.Array


def empty(plan: Plan, rows: tuple[int, int], k: int, dtype: jnp.dtype) -> Lists:
  """Lists without entries, for the k largest: so many that few share one, but no more than a tile."""
  room = max(32, plan.tile // plan.depth // 32 * 32)
  bins = min(plan.bins, room, max(128, 8 * 2 ** (k - 1).bit_length()))
  values, ids = jnp.full((*rows, bins), FLOOR, dtype), jnp.full((*rows, bins), NOBODY, jnp.int32)
  return Lists((values,) * plan.depth, (ids,) * plan.depth)


def insert(lists: Lists, logits: jax.Array, ids: jax.Array) -> Lists:
  """The lists with the logits [B, T, n] of a tile at `ids` [n]."""
  bins = lists.values[0].shape[-1]
  missing = -logits.shape[-1] % bins
  logits = jnp.pad(logits, [(0, 0), (0, 0), (0, missing)], constant_values=FLOOR)
  ids = jnp.pad(ids, (0, missing), constant_values=NOBODY)

  values, names = list(lists.values), list(lists.ids)
  for start in range(0, logits.shape[-1], bins):
    value = jax.lax.slice_in_dim(logits, start, start + bins, axis=2)
    name = jnp.broadcast_to(ids[start : start + bins], value.shape)
    for place in range(len(values)):
      above = value > values[place]
      values[place], value = jnp.where(above, value, values[place]), jnp.where(above, values[place], value)
      names[place], name = jnp.where(above, name, names[place]), jnp.where(above, names[place], name)
  return Lists(tuple(values), tuple(names))


def rank(plan: Plan, lists: Lists, k: int) -> Ranked:
  """The k best of all lists, on all devices that share the vocabulary."""
  kept, names = (jnp.concatenate(x, axis=-1) for x in lists)
  bound = tiles.greatest(lists.values[-1].max(-1), plan.axes)
  values, places = jax.lax.top_k(kept, min(k + 1, kept.shape[-1]))
  ids = jnp.take_along_axis(names, places, axis=-1)
  return _cut(*_gathered(plan, values, ids), k, bound)


def of_tile(plan: Plan, logits: jax.Array, ids: jax.Array, k: int) -> Ranked:
  """The k best of a tile [B, T, n] that is this device's whole vocabulary."""
  values, places = jax.lax.top_k(logits, min(k + 1, logits.shape[-1]))
  bound = jnp.full(values.shape[:-1], FLOOR, values.dtype)
  ranked = _cut(*_gathered(plan, values, ids[places]), k, bound)
  # The sort has ranked equal logits by id already.
  return ranked._replace(sure=jnp.ones_like(ranked.sure))


def merge(best: tuple[jax.Array, jax.Array], logits: jax.Array, ids: jax.Array):
  """The k best (values, ids) [B, T, k] with a tile's; ids rise from tile to tile, so that ties rank."""
  values, names = best
  names = jnp.concatenate([names, jnp.broadcast_to(ids, logits.shape)], axis=-1)
  values, places = jax.lax.top_k(jnp.concatenate([values, logits], axis=-1), values.shape[-1])
  return values, jnp.take_along_axis(names, places, axis=-1)


def merged(plan: Plan, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
  """The k best of all devices that share the vocabulary, whose ids rise from device to device."""
  k = best[0].shape[-1]
  values, ids = _gathered(plan, *best)
  return values[..., :k], ids[..., :k]


def _gathered(plan: Plan, values: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Descending candidates of all devices, from those of each."""
  if not plan.axes:
    return values, ids
  gather = lambda x: jax.lax.all_gather(x, plan.axes, axis=x.ndim - 1, tiled=True)  # noqa: E731
  values, ids = gather(values), gather(ids)
  values, places = jax.lax.top_k(values, values.shape[-1])
  return values, jnp.take_along_axis(ids, places, axis=-1)


def _cut(values: jax.Array, ids: jax.Array, k: int, bound: jax.Array) -> Ranked:
  """The first k of descending candidates, `bound` being above whatever was dropped before."""
  missing = max(0, k + 1 - values.shape[-1])
  pad = lambda x, fill: jnp.pad(x, [(0, 0), (0, 0), (0, missing)], constant_values=fill)  # noqa: E731
  values, ids = pad(values, FLOOR), pad(ids, NOBODY)
  rest = jnp.maximum(bound, values[..., k])
  return Ranked(values[..., :k], ids[..., :k], values[..., k - 1] > rest, rest)
