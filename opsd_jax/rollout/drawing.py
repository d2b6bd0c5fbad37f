"""From hidden states to a token, without sorting the vocabulary and where possible without its logits.

Temperature first, then top-k, top-p and min-p, each on what the one before left: together they keep the
logits at and above one threshold a row. One uniform a row picks a block of 128 ids from the blocks'
masses, then an entry of the block. What is kept mostly lies in the few blocks with the largest maxima,
and a threshold above all other blocks' maxima proves that it does; else all logits are looked at.

Axis letters: B rows, V vocabulary, D width, N blocks of 128 ids, C candidate blocks.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.rollout import blocks as lib
from opsd_jax.rollout import thresholds
from opsd_jax.rollout.blocks import Blocks, Scales, Vocabulary
from opsd_jax.rollout.config import SamplingConfig

_CANDIDATES = 64  # blocks that are looked at first


class Law(NamedTuple):
  """What is drawn from, as traced float32 scalars: a new value compiles nothing."""

  temperature: jax.Array  # 0 is greedy
  top_p: jax.Array
  min_p: jax.Array
  loss_temperature: jax.Array


@dataclasses.dataclass(frozen=True)
class Truncation:
  """Which truncations there are; static.

  Attributes:
    top_k: as in `SamplingConfig`.
    top_p: whether there is one.
    min_p: whether there is one.
  """

  top_k: int | None
  top_p: bool
  min_p: bool


class Token(NamedTuple):
  """One token a row."""

  id: jax.Array  # int32 [B]
  raw_logp: jax.Array  # float32 [B], over the full vocabulary at the loss's temperature
  behaviour_logp: jax.Array  # float32 [B], of what it was drawn from; 0 where greedy


def law_of(config: SamplingConfig, loss_temperature: float) -> Law:
  """The numbers of a sampling config."""
  return Law(*map(np.float32, (config.temperature, config.top_p, config.min_p, loss_temperature)))


def truncation_of(config: SamplingConfig) -> Truncation:
  """The rest of a sampling config."""
  return Truncation(config.top_k, config.top_p < 1, config.min_p > 0)


def draw(
  hidden: jax.Array,
  head: jax.Array,
  uniform: jax.Array,
  law: Law,
  truncation: Truncation,
  *,
  softcap: float | None,
  valid_vocab: int | None,
) -> Token:
  """The token whose slice of the truncated distribution's CDF holds the uniform; inside jit.

  Ties at a threshold are all kept, and a token of probability 0 is never drawn. At temperature 0 it is
  the first of the most probable.

  Args:
    hidden: [B, D]; products with the head are summed in float32.
    head: [V, D], read in the dtype of `hidden`.
    uniform: float32 [B] in [0, 1).
    law: of the distribution.
    truncation: which truncations there are.
    softcap: of the logits, or None.
    valid_vocab: ids at and beyond it are never drawn and have no part in any sum; None for V.
  """
  vocabulary = lib.vocabulary(head.shape[0], valid_vocab, softcap)
  if truncation.top_k is not None and truncation.top_k >= vocabulary.valid:
    truncation = dataclasses.replace(truncation, top_k=None)
  with_tiles = functools.partial(_draw, vocabulary, truncation, True)
  at_once = functools.partial(_draw, vocabulary, truncation, False)
  if vocabulary.parts > 1:
    return at_once(hidden, head, uniform, law)
  return jax.lax.platform_dependent(hidden, head, uniform, law, cpu=with_tiles, default=at_once)


def _draw(
  vocabulary: Vocabulary, truncation: Truncation, tiled: bool, hidden, head, uniform, law: Law
) -> Token:
  greedy = law.temperature == 0
  loss = 1 / law.loss_temperature
  scales = Scales(jnp.where(greedy, loss, 1 / jnp.where(greedy, 1, law.temperature)), loss)
  truncates = truncation.top_k is not None or truncation.top_p or truncation.min_p
  mass = not truncates or (truncation.top_p and truncation.top_k is None)
  keep = truncates or not tiled
  blocks = lib.read(vocabulary, hidden, head, scales, tiled=tiled, mass=mass, keep=keep)
  if truncates:
    cut = functools.partial(_cut, truncation, law, scales.behaviour)
    slot = _truncated(blocks, cut, truncation, tiled, jnp.broadcast_to(greedy, uniform.shape), uniform)
  else:
    sums = _sums(blocks.largest, blocks.mass, scales.behaviour)
    slot = _slot(sums, jnp.full(uniform.shape, -jnp.inf), uniform)
  block = jnp.where(greedy, jnp.argmax(blocks.largest, axis=1), slot.block)
  logits = _take(blocks.logits, block) if keep else lib.entries(vocabulary, hidden, head, block)
  entry = jnp.where(greedy, jnp.argmax(logits, axis=1), _entry(logits, slot, scales.behaviour))
  logit = _take(logits, entry)
  behaviour = jnp.where(greedy, 0.0, logit * scales.behaviour - slot.log_mass)
  raw = logit * loss - _log_mass(_sums(blocks.largest, blocks.loss_mass, loss))
  return Token(vocabulary.ids(block, entry), raw, behaviour)


class _Sums(NamedTuple):
  """Masses of blocks on one scale."""

  mass: jax.Array  # float32 [B, N], sums of exp(scale·(logit - largest))
  top: jax.Array  # float32 [B], scale·largest of the row


class _Slot(NamedTuple):
  """Where the uniform falls."""

  block: jax.Array  # int32 [B]
  part: jax.Array  # float32 [B] in [0, 1], of the block's mass
  threshold: jax.Array  # float32 [B], of the logits
  log_mass: jax.Array  # float32 [B], of all that is kept


def _sums(largest, mass, scale) -> _Sums:
  top = jnp.max(largest, axis=1)
  return _Sums(mass * jnp.exp((largest - top[:, None]) * scale), top * scale)


def _log_mass(sums: _Sums) -> jax.Array:
  return jnp.log(jnp.sum(sums.mass, axis=1)) + sums.top


def _slot(sums: _Sums, threshold, uniform) -> _Slot:
  """The inverse CDF over blocks; two levels keep float32 sums short."""
  ends = jnp.cumsum(sums.mass, axis=1)
  target = uniform * ends[:, -1]
  block = _first_above(ends, target, sums.mass > 0)
  start = jnp.where(block > 0, _take(ends, jnp.maximum(block - 1, 0)), 0)
  part = (target - start) / _take(sums.mass, block)
  return _Slot(block.astype(jnp.int32), part, threshold, _log_mass(sums))


def _entry(logits, slot: _Slot, scale) -> jax.Array:
  """The inverse CDF inside a block [B, 128], on the scale of its own largest, which is therefore present."""
  weights = _weights(logits, slot.threshold[:, None], jnp.max(logits, axis=1, keepdims=True), scale)
  ends = jnp.cumsum(weights, axis=1)
  return _first_above(ends, slot.part * ends[:, -1], weights > 0)


def _weights(logits, threshold, largest, scale) -> jax.Array:
  return jnp.where(logits >= threshold, jnp.exp((logits - largest) * scale), 0)


def _take(x, index) -> jax.Array:
  """x[b, index[b]] of every row."""
  index = index.reshape(index.shape + (1,) * (x.ndim - 1))
  return jnp.take_along_axis(x, index, axis=1)[:, 0]


def _first_above(ends: jax.Array, target: jax.Array, present: jax.Array) -> jax.Array:
  """First present index whose cumulative sum exceeds `target` [B], the last present one if none does.

  Backends add prefixes in different orders, so a sum may grow by a rounding at an entry of no mass,
  and none may exceed the target: looking at present entries alone is what excludes the others.
  """
  above = present & (ends > target[:, None])
  last = present.shape[-1] - 1 - jnp.argmax(present[:, ::-1], axis=-1)
  return jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)


def _truncated(blocks: Blocks, cut, truncation: Truncation, tiled: bool, settled, uniform) -> _Slot:
  """The slot in what truncation leaves, from candidate blocks in every row that they certainly serve."""
  largest = jnp.max(blocks.largest, axis=1)
  nothing = jnp.full_like(largest, -jnp.inf)
  count = truncation.top_k or _CANDIDATES
  if count >= blocks.largest.shape[1]:
    return cut(blocks, largest, nothing, uniform)
  if count > _CANDIDATES:
    slot = _Slot(jnp.zeros(largest.shape, jnp.int32), nothing, nothing, nothing)
  else:
    slot, served = _from_candidates(blocks, cut, count, largest, uniform)
    settled = settled | served
  given = blocks, largest, nothing, uniform
  if tiled:
    return _row_by_row(cut, slot, settled, given)
  return jax.lax.cond(jnp.all(settled), lambda: slot, lambda: _where(settled, slot, cut(*given)))


def _where(condition: jax.Array, slot: _Slot, other: _Slot) -> _Slot:
  """Row by row: what serves a row does not depend on its batch-mates."""
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), slot, other)


def _from_candidates(blocks: Blocks, cut, count: int, largest, uniform) -> tuple[_Slot, jax.Array]:
  """The slot if only the `count` blocks with the largest maxima hold what is kept, and whether they do."""
  # Without a barrier XLA merges the slices below into the top-k, and a CPU then sorts; with one for both
  # results jaxlib 0.10.2 aborts where the blocks are split over devices.
  best, where = map(jax.lax.optimization_barrier, jax.lax.top_k(blocks.largest, count + 1))
  where, beyond = jnp.sort(where[:, :count], axis=1), best[:, count]
  few = jnp.take_along_axis(blocks.logits, where[:, :, None], axis=1)
  slot = cut(blocks._replace(logits=few), largest, beyond, uniform)
  return slot._replace(block=_take(where, slot.block)), slot.threshold > beyond


def _row_by_row(cut, slot: _Slot, settled: jax.Array, given) -> _Slot:
  """`cut` for the rows that are not settled, one after the other: the logits of one stay in a CPU's cache."""

  def settle(state):
    slot, settled = state
    row = jnp.argmin(settled)
    one = cut(*jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), given))
    slot = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, row, 0), slot, one)
    return slot, settled.at[row].set(True)

  return jax.lax.while_loop(lambda x: ~jnp.all(x[1]), settle, (slot, settled))[0]


def _cut(truncation: Truncation, law: Law, scale, blocks: Blocks, largest, low, uniform) -> _Slot:
  """Truncates and draws from the logits in `blocks`; no threshold is sought below `low` [B].

  The logits may be those of a few blocks; the masses, where there are any, are those of all.
  """
  logits, threshold = blocks.logits, low
  weights = _weights(logits, -jnp.inf, largest[:, None, None], scale)
  if truncation.top_k is not None:
    limit = jnp.full_like(largest, truncation.top_k)
    threshold = thresholds.least(logits, jnp.ones_like(logits), limit, threshold)
  if truncation.top_p:
    if blocks.mass is None:
      total = jnp.sum(jnp.where(logits >= threshold[:, None, None], weights, 0), axis=(1, 2))
    else:
      total = jnp.sum(_sums(blocks.largest, blocks.mass, scale).mass, axis=1)
    threshold = thresholds.least(logits, weights, law.top_p * total, threshold)
  if truncation.min_p:
    threshold = jnp.maximum(threshold, largest + jnp.log(law.min_p) / scale)
  kept = jnp.where(logits >= threshold[:, None, None], weights, 0)
  return _slot(_Sums(jnp.sum(kept, axis=2), largest * scale), threshold, uniform)
