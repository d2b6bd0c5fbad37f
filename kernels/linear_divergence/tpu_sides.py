"""Both models' running sums in a TPU kernel, a lane at a time: those that the results need and no others.

Sums are kept relative to running maxima and rescaled when these rise (online softmax, Milakov and
Gimelshein, arXiv 1805.02867), here also for the entropy and the divergences: every summand is a
difference to the maximum, so that logits of hundreds lose no digits. Each of the 128 lanes of a row is
a stream of its own until the last tile, so that none of this moves numbers across lanes.

A sum costs up to three instructions for each logit, beside the products only where the matrix units
take as long. Which are made is static: what is not wanted has no memory and is None.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence import tpu_entries as entries
from kernels.linear_divergence.spec import DivergenceSpec


class Side(NamedTuple):
  """One distribution's statistics, float32; d = logit - maximum, e = exp(d). What is not wanted is None.

  Outside the kernel [N, 1] each. Inside, lanes [rows, 128] that each see every 128th entry.

  Attributes:
    maximum: of the shaped logits.
    total: sum of e.
    moment: sum of e·d.
    cross: sum of e·(d - d of the other side).
    best: id of the maximum, the lowest on ties; in a lane, the number of its block of 128 ids.
    target: logit of the target.
  """

  maximum: jax.Array
  total: jax.Array
  moment: jax.Array | None = None
  cross: jax.Array | None = None
  best: jax.Array | None = None
  target: jax.Array | None = None


class Wanted(NamedTuple):
  """Fields of `Side` that are made, in its order; `maximum` and `total` are among them."""

  student: tuple[str, ...]
  teacher: tuple[str, ...]

  @property
  def count(self) -> int:
    """How many they are."""
    return len(self.student) + len(self.teacher)


EVERYTHING = Wanted(Side._fields, Side._fields)


def wanted(spec: DivergenceSpec, *, statistics: bool, clip: bool = False) -> Wanted:
  """What a first pass is to make.

  Args:
    spec: what to compare.
    statistics: whether all results are wanted, or those alone that the loss needs.
    clip: whether an upper bound is taken off the unbounded KL, see `tpu_clip`; else bounded losses, as
      the JSD, have a pass of their own.
  """
  if statistics:
    return EVERYTHING
  from_sums = spec.support == 'full' and (clip or entries.linear(spec))
  forward, reverse = entries.shares(spec) if from_sums else (0.0, 0.0)
  target = ('target',) * (spec.support == 'sampled')
  return Wanted(*(('maximum', 'total', *('cross',) * bool(share), *target) for share in (reverse, forward)))


def empty(wanted: Wanted) -> list[float]:
  """What lanes hold before the first tile, as long as `flat`."""
  return [lib.FLOOR if name == 'maximum' else 0.0 for names in wanted for name in names]


def flat(sides: tuple[Side, Side]) -> list[jax.Array]:
  """What is there of both sides, one after the other."""
  return jax.tree.leaves(sides)


def split(wanted: Wanted, values: Sequence[jax.Array]) -> tuple[Side, Side]:
  """Both sides from `flat`, or from longer lists."""
  values = iter(values)
  return tuple(Side(**{name: next(values) for name in names}) for names in wanted)


def of_lanes(wanted: Wanted, stats: jax.Array) -> tuple[Side, Side]:
  """Both sides [N, 1] from the first lanes of [N, 128]."""
  return split(wanted, [stats[:, lane : lane + 1] for lane in range(wanted.count)])


def update(
  sides: tuple[Side, Side], z_ref, u_ref, targets: jax.Array, first_block: jax.Array, joint: bool
) -> tuple[Side, Side]:
  """Lanes of both sides with a tile added.

  Args:
    sides: lanes before it.
    z_ref: the student's shaped logits [rows, vocab].
    u_ref: the teacher's.
    targets: int32 [rows, 1].
    first_block: number of the tile's first block of 128 ids.
    joint: whether sums are relative to the maximum over all lanes.
  """
  groups = [slice(start, start + lib.LANES) for start in range(0, z_ref.shape[1], lib.LANES)]
  lane = jax.lax.broadcasted_iota(jnp.int32, (z_ref.shape[0], lib.LANES), 1)
  tops = [side.maximum for side in sides]
  bests, found = [side.best for side in sides], [side.target for side in sides]
  for number, group in enumerate(groups):
    hit = lane == targets - (first_block + number) * lib.LANES
    block = (first_block + number).astype(jnp.float32)
    for one, ref in enumerate((z_ref, u_ref)):
      x = ref[:, group]
      # The first of equal maxima stays: only a larger one moves it.
      if bests[one] is not None:
        bests[one] = jnp.where(x > tops[one], block, bests[one])
      tops[one] = jnp.maximum(tops[one], x)
      if found[one] is not None:
        found[one] = jnp.where(hit, x, found[one])
  levels, before = tops, [side.maximum for side in sides]
  if joint:
    levels, before = ([jnp.broadcast_to(lib.row_max(x), x.shape) for x in xs] for xs in (tops, before))
  after = rescaled(sides, [old - new for old, new in zip(before, levels, strict=True)])
  for group in groups:
    below = [ref[:, group] - level for ref, level in zip((z_ref, u_ref), levels, strict=True)]
    gap = below[0] - below[1]
    after = [_added(side, d, x) for side, d, x in zip(after, below, (gap, -gap), strict=True)]
  return tuple(
    side._replace(maximum=top, best=best, target=target)
    for side, top, best, target in zip(after, tops, bests, found, strict=True)
  )


def _added(side: Side, below: jax.Array, gap: jax.Array) -> Side:
  """Sums of a side with one more entry in every lane: its d, and d - d of the other side."""
  weight = jnp.exp(below)
  return side._replace(
    total=side.total + weight,
    moment=_made(side.moment, lambda x: x + weight * below),
    cross=_made(side.cross, lambda x: x + weight * gap),
  )


def rescaled(sides: Sequence[Side], rises: Sequence[jax.Array | None]) -> list[Side]:
  """Sums of both sides relative to maxima from which their own lie `rises` up, None for those themselves."""
  if rises[0] is None:
    return list(sides)
  gap = rises[0] - rises[1]
  return [_rescaled(side, rise, x) for side, rise, x in zip(sides, rises, (gap, -gap), strict=True)]


def _rescaled(side: Side, rise: jax.Array, gap: jax.Array) -> Side:
  scale = jnp.exp(rise)
  total = scale * side.total
  return side._replace(
    total=total,
    moment=_made(side.moment, lambda x: scale * x + total * rise),
    cross=_made(side.cross, lambda x: scale * x + total * gap),
  )


def _made(x: jax.Array | None, change: Callable[[jax.Array], jax.Array]) -> jax.Array | None:
  return None if x is None else change(x)


def combined(sides: tuple[Side, Side], joint: bool) -> tuple[Side, Side]:
  """Both sides' statistics [rows, 1] from those of every lane."""
  tops = [lib.row_max(side.maximum) for side in sides]
  # How far a lane's own reference lies below the row's; what a lane without entries holds goes to 0.
  rises = [None if joint else side.maximum - top for side, top in zip(sides, tops, strict=True)]
  return tuple(
    Side(
      top,
      lib.row_sum(side.total),
      _made(side.moment, lib.row_sum),
      _made(side.cross, lib.row_sum),
      _made(side.best, lambda best, own=side.maximum, top=top: _id(own, best, top)),
      _made(side.target, lib.row_sum),
    )
    for side, top in zip(rescaled(sides, rises), tops, strict=True)
  )


def _id(maximum: jax.Array, best: jax.Array, top: jax.Array) -> jax.Array:
  """The lowest id [rows, 1] whose lane has the row's maximum."""
  lane = jax.lax.broadcasted_iota(jnp.int32, best.shape, 1).astype(jnp.float32)
  return lib.row_min(jnp.where(maximum == top, best * lib.LANES + lane, -lib.FLOOR))
