"""The passes over the vocabulary on a GPU: statistics of all losses, and sums that need both normalisers.

Each stretch of the vocabulary has running sums of its own, relative to its own maxima; the few numbers
per row that the stretches leave behind are put together by XLA.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.linear_divergence import gpu_tiles as lib
from kernels.linear_divergence import tpu_entries as entries
from kernels.linear_divergence.gpu_config import Config
from kernels.linear_divergence.spec import DivergenceSpec


class Side(NamedTuple):
  """One distribution's statistics, float32 [N]; d = logit - maximum, e = exp(d).

  Attributes:
    maximum: of the shaped logits.
    total: sum of e.
    moment: sum of e·d.
    cross: sum of e·(d - d of the other side).
    best: id of the maximum, the lowest on ties.
    target: logit of the target.
  """

  maximum: jax.Array
  total: jax.Array
  moment: jax.Array
  cross: jax.Array
  best: jax.Array
  target: jax.Array


class Sums(NamedTuple):
  """Float32 [N]: the loss, the level of its gradient (see `tpu_entries`), entries that a bound changed."""

  loss: jax.Array
  level: jax.Array
  changed: jax.Array


_EMPTY = Side(lib.FLOOR, 0.0, 0.0, 0.0, 0.0, 0.0)
_NONE, _BEYOND = -1, 2**30  # No entry's number in a tile.


def statistics(config: Config, spec: DivergenceSpec, vocab: int, models, targets: jax.Array) -> list[Side]:
  """Student's and teacher's statistics over the first `vocab` entries.

  Args:
    config: how to cut.
    spec: temperatures and soft-caps.
    vocab: entries that are not padding of the head.
    models: hidden states [N, D] and head [V, D] of student and teacher.
    targets: int32 [N].
  """
  count = targets.shape[0]

  def start(tile, refs):
    del refs
    return [lib.filled(x, tile.shape[:1]) for x in (*_EMPTY, *_EMPTY)]

  def add(tile, refs, logits, carried):
    sides = Side(*carried[: len(_EMPTY)]), Side(*carried[len(_EMPTY) :])
    target = tile.load(refs[0], 0) - tile.start
    # Behind a barrier: a compiler may join a temperature's product and a difference to the maximum into
    # one rounding, and then the maximum's own difference is not 0.
    parts = [
      (part, jax.lax.optimization_barrier(lib.shaped(spec, raw)))
      for part, raw in tile.parts(config.part, logits)
    ]
    student, teacher = _grown(tile, parts, sides, target)
    return [*student, *teacher]

  def finish(tile, refs, carried, segment):
    for index, value in enumerate(carried):
      refs[1][segment, index, pl.ds(tile.rows, tile.shape[0])] = value

  out = [lambda segments: jax.ShapeDtypeStruct((segments, 2 * len(_EMPTY), count), jnp.float32)]
  name = 'linear_divergence_statistics'
  (parts,) = lib.run(config, vocab, models, [targets[None]], out, start, add, finish, name=name)
  return _together(Side(*jnp.split(x, 6, axis=1)) for x in jnp.split(parts, 2, axis=1))


def _grown(tile: lib.Tile, parts, sides, target: jax.Array) -> list[Side]:
  """Statistics of both sides with one tile more.

  Args:
    tile: the tile.
    parts: some columns of the tile, and their logits of both sides, as often as need be.
    sides: the statistics before.
    target: int32 [rows], its place in the tile.
  """
  least = 0 if tile.repeated is None else tile.repeated
  here = (target >= least) & (target < tile.shape[1])
  target = jnp.where(here, target, jnp.full_like(target, _NONE))
  maxima = []
  for i, side in enumerate(sides):
    top = functools.reduce(jnp.maximum, [logits[i] for _, logits in parts])
    maxima.append(jnp.maximum(side.maximum, top.max(axis=1)))
  steps = [side.maximum - maximum for side, maximum in zip(sides, maxima, strict=True)]
  # These take the place of the logits: both at once would not fit into registers, nor would both sides' sums.
  far = [
    (part, [x - part.of_rows(maximum) for x, maximum in zip(logits, maxima, strict=True)])
    for part, logits in parts
  ]
  result = []
  for i, side in enumerate(sides):
    summands = (_summands(part, x[i], x[1 - i], target) for part, x in far)
    total, moment, cross, first, hit = functools.reduce(_joined, summands)
    scale = jnp.exp(steps[i])
    first = (first.min(axis=1) + tile.start).astype(jnp.float32)
    result.append(
      Side(
        maximum=maxima[i],
        total=scale * side.total + total.sum(axis=1),
        moment=scale * (side.moment + side.total * steps[i]) + moment.sum(axis=1),
        cross=scale * (side.cross + side.total * (steps[i] - steps[1 - i])) + cross.sum(axis=1),
        best=jnp.where(maxima[i] > side.maximum, first, side.best),
        target=side.target + hit.sum(axis=1) + jnp.where(here, maxima[i], jnp.zeros_like(maxima[i])),
      )
    )
  return result


def _summands(part: lib.Tile, far: jax.Array, other: jax.Array, target: jax.Array) -> list[jax.Array]:
  """What columns of a tile add to a side's total, moment and cross, places of maxima, the target's d."""
  columns = part.columns()
  # Entries that an earlier tile had change no maximum, and add nothing.
  e = part.fresh(jnp.exp(far), 0.0)
  first = jnp.where(far == 0, columns, jnp.full_like(columns, _BEYOND))
  hit = jnp.where(columns == part.of_rows(target), far, jnp.zeros_like(far))
  return [e, e * far, e * (far - other), first, hit]


def _joined(left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
  """Summands of some columns and of others, column by column."""
  total, moment, cross, first, hit = zip(left, right, strict=True)
  added = [a + b for a, b in (total, moment, cross)]
  return [*added, jnp.minimum(*first), hit[0] + hit[1]]


def _together(sides) -> list[Side]:
  """Statistics [N] from those [stretches, 1, N] of the stretches."""
  sides = [Side(*(x[:, 0] for x in side)) for side in sides]
  maxima = [side.maximum.max(axis=0) for side in sides]
  steps = [side.maximum - maximum[None] for side, maximum in zip(sides, maxima, strict=True)]
  result = []
  for i, side in enumerate(sides):
    scale = jnp.exp(steps[i])
    cross = side.cross + side.total * (steps[i] - steps[1 - i])
    first = jnp.argmax(side.maximum, axis=0)[None]
    result.append(
      Side(
        maximum=maxima[i],
        total=(scale * side.total).sum(axis=0),
        moment=(scale * (side.moment + side.total * steps[i])).sum(axis=0),
        cross=(scale * cross).sum(axis=0),
        best=jnp.take_along_axis(side.best, first, axis=0)[0],
        target=side.target.sum(axis=0),
      )
    )
  return result


def sums(config: Config, spec: DivergenceSpec, vocab: int, models, norms: jax.Array) -> Sums:
  """Sums over the first `vocab` entries of a loss that needs both normalisers.

  Args:
    config: how to cut.
    spec: what to compare.
    vocab: entries that are not padding of the head.
    models: hidden states [N, D] and head [V, D] of student and teacher.
    norms: float32 [4, N]: student's maximum and log of the sum relative to it, then the teacher's.
  """
  fields = len(Sums._fields)

  def start(tile, refs):
    del refs
    return [lib.filled(0.0, tile.shape[:1])] * fields

  def add(tile, refs, logits, carried):
    norms, summed = lib.norms_of(tile, refs[0]), [None] * fields
    for part, raw in tile.parts(config.part, logits):
      log_p, log_q = lib.log_probabilities(part, norms, *lib.shaped(spec, raw))
      for index, value in enumerate(entries.clipped(spec, log_p, log_q)):
        if value is not None:
          value = part.fresh(value, 0.0)
          summed[index] = value if summed[index] is None else summed[index] + value
    return [x if part is None else x + part.sum(axis=1) for x, part in zip(carried, summed, strict=True)]

  def finish(tile, refs, carried, segment):
    for index, value in enumerate(carried):
      refs[1][segment, index, pl.ds(tile.rows, tile.shape[0])] = value

  out = [lambda segments: jax.ShapeDtypeStruct((segments, fields, norms.shape[1]), jnp.float32)]
  name = 'linear_divergence_entries'
  (parts,) = lib.run(config, vocab, models, [norms], out, start, add, finish, name=name)
  return Sums(*parts.sum(axis=0))
