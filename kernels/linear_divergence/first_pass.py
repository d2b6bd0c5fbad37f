"""The first pass over the vocabulary: normalisers, statistics, the largest logits, means of the head.

Sums are kept relative to running maxima and rescaled when these rise (online softmax, Milakov and
Gimelshein, arXiv 1805.02867); so are the divergences' sums, whose summands are differences.

Where the head needs no gradient, the hidden states' comes out of the same pass, as attention does
(K = V = the head): for the KLs it is made of means of the head's rows under q and p,

  forward: E_q[w] - E_p[w];  reverse: E_q[g w] - E_q[g] E_q[w],  g = log q - log p.

These are differences of like numbers. They are summed as differences, of the distributions as
normalised so far: D = E_q[w] - E_p[w] turns into f_t D + (f_s - f_t) E_q[w] when the sums grow by
1 / f_s and 1 / f_t. Rounding of a narrow product then is relative to what tells the models apart.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels import logits as lib
from kernels import tiles
from kernels.linear_divergence import top_k
from kernels.linear_divergence.parts import FLOOR, Inputs, Norm, Plan, Tile, make_tile


class Side(NamedTuple):
  """One model's statistics, [B, T] each; d = logit - maximum, e = exp(d).

  Attributes:
    maximum: of the logits.
    total: sum of e.
    moment: sum of e·d.
    cross: sum of e·(d - d of the other model); None without one.
    best: id of the maximum, the lowest on ties.
    target: logit of the target.
    lowest: minimum of the logits.
  """

  maximum: jax.Array
  total: jax.Array
  moment: jax.Array
  cross: jax.Array | None
  best: jax.Array
  target: jax.Array
  lowest: jax.Array

  @property
  def norm(self) -> Norm:
    """What makes logits log-probabilities."""
    return Norm(self.maximum, jnp.log(self.total))


class Means(NamedTuple):
  """Rows of the head, times the soft-cap's slope, averaged [B, T, D]; None where nobody asks.

  Where devices share the vocabulary these are shares, of the rows that each has, and add up to the means.

  Attributes:
    student: E_q[w].
    difference: E_q[w] - E_p[w].
    gap: E_q[(log q - log p) w].
  """

  student: jax.Array | None = None
  difference: jax.Array | None = None
  gap: jax.Array | None = None


class Wants(NamedTuple):
  """What to look for; static.

  Attributes:
    student: whether the student's logits are needed.
    teacher: whether the teacher's are.
    student_k: how many of the student's largest logits, 0 for none.
    teacher_k: the same of the teacher.
    means: the fields of `Means` to fill.
  """

  student: bool
  teacher: bool
  student_k: int = 0
  teacher_k: int = 0
  means: tuple[str, ...] = ()


class Found(NamedTuple):
  """What a pass has found; None where it did not look."""

  student: Side | None = None
  teacher: Side | None = None
  student_top: top_k.Ranked | None = None
  teacher_top: top_k.Ranked | None = None
  means: Means = Means()


def run(plan: Plan, inputs: Inputs, wants: Wants) -> Found:
  """The pass over all of the vocabulary, on all devices that share it."""
  dtype = lib.at_least_float32(inputs.student.dtype)
  rows = inputs.targets.shape
  alone = plan.size <= plan.tile  # Then a sort of the one tile is the cheapest.
  ks = (wants.student_k, wants.teacher_k)

  def body(carry, start, size):
    sides, lists, means = carry
    tile = make_tile(plan, inputs, start, size, wants.student, wants.teacher)
    logits = (tile.student, tile.teacher)
    new = _advance(plan, sides, logits, tile, inputs.targets)
    means = _advance_means(means, sides, new, tile)
    return new, tuple(map(functools.partial(_insert, plan, alone, tile.ids), ks, lists, logits)), means

  empty = tuple(_empty(rows, dtype, wants.student and wants.teacher) for _ in ks)
  sides = tuple(side if wanted else None for side, wanted in zip(empty, wants[:2], strict=True))
  lists = tuple(None if alone or not k else top_k.empty(plan, rows, k, dtype) for k in ks)
  zeros = jnp.zeros((*rows, inputs.student.shape[-1]), dtype)
  means = Means(**{name: zeros for name in wants.means})
  sides, lists, means = tiles.sweep(body, (sides, lists, means), plan.size, plan.tile)
  if not alone:
    lists = tuple(top_k.rank(plan, kept, k) if k else None for k, kept in zip(ks, lists, strict=True))
  sides, means = _over_devices(plan, sides, means)
  # Padding of the vocabulary has probability 0.
  exists = inputs.targets < plan.vocab
  sides = tuple(x and x._replace(target=jnp.where(exists, x.target, -jnp.inf)) for x in sides)
  return Found(*sides, *lists, means)


def _insert(plan: Plan, alone: bool, ids: jax.Array, k: int, lists: top_k.Lists | None, logits: jax.Array):
  if not k:
    return None
  return top_k.of_tile(plan, logits, ids, k) if alone else top_k.insert(lists, logits, ids)


def _empty(rows: tuple[int, int], dtype: jnp.dtype, crossed: bool) -> Side:
  zeros = jnp.zeros(rows, dtype)
  return Side(
    zeros + FLOOR, zeros, zeros, zeros if crossed else None, jnp.zeros(rows, jnp.int32), zeros, zeros - FLOOR
  )


def _advance(plan: Plan, sides, logits, tile: Tile, targets: jax.Array):
  """Both sides' statistics with a tile's logits [B, T, n]."""
  tops = [x if x is None else x.max(-1) for x in logits]
  maxima = [x if x is None else jnp.maximum(side.maximum, x) for side, x in zip(sides, tops, strict=True)]
  rises = [x if x is None else x - side.maximum for side, x in zip(sides, maxima, strict=True)]
  depths = [x if x is None else x - m[..., None] for x, m in zip(logits, maxima, strict=True)]

  def one(this, other):
    side, x, depth = sides[this], logits[this], depths[this]
    if x is None:
      return None
    e, fade = jnp.exp(depth), jnp.exp(-rises[this])
    cross = side.cross
    if cross is not None:
      cross = fade * (cross - (rises[this] - rises[other]) * side.total)
      cross += (e * (depth - depths[other])).sum(-1)
    inside = (targets >= tile.ids[0]) & (targets <= tile.ids[-1])
    place = jnp.clip(targets - tile.ids[0], 0, x.shape[-1] - 1)
    at_target = jnp.take_along_axis(x, place[..., None], axis=-1)[..., 0]
    return Side(
      maximum=maxima[this],
      total=fade * side.total + e.sum(-1),
      moment=fade * (side.moment - rises[this] * side.total) + (e * depth).sum(-1),
      cross=cross,
      best=jnp.where(tops[this] > side.maximum, _first(x, tops[this], tile.ids), side.best),
      target=side.target + jnp.where(inside, at_target, 0.0),
      lowest=jnp.minimum(side.lowest, _lowest(x, tile)),
    )

  return one(0, 1), one(1, 0)


def _first(x: jax.Array, value: jax.Array, ids: jax.Array) -> jax.Array:
  """Lowest of `ids` at which x [B, T, n] equals value [B, T]."""
  return jnp.where(x == value[..., None], ids[None, None], jnp.iinfo(jnp.int32).max).min(-1)


def _lowest(x: jax.Array, tile: Tile) -> jax.Array:
  return (x if tile.valid is None else jnp.where(tile.valid[None, None], x, -FLOOR)).min(-1)


def _advance_means(means: Means, old, new, tile: Tile) -> Means:
  """The means with a tile of the head, under the distributions as normalised with that tile."""
  if means.student is None:
    return means
  norms = [side and side.norm for side in new]
  falls = [_fall(*pair) for pair in zip(old, new, strict=True)]
  log_q = norms[0].log(tile.student)
  q = jnp.exp(log_q)
  pull = lambda x: tiles.contract('btv,vd->btd', x * tile.slope, tile.head)  # noqa: E731
  (fade, fall), student = falls[0], means.student
  difference = gap = None
  if means.difference is not None:
    p = jnp.exp(norms[1].log(tile.teacher))
    faded = falls[1][0]
    difference = faded * means.difference + (fade - faded) * student + pull(q - p)
  if means.gap is not None:
    own = q * (log_q - norms[1].log(tile.teacher))
    gap = fade * (means.gap + (fall - falls[1][1]) * student) + pull(own)
  return Means(fade * student + pull(q), difference, gap)


def _fall(old: Side | None, new: Side | None) -> tuple[jax.Array, jax.Array] | None:
  """What an entry's probability has been multiplied by, and its log, [B, T, 1]."""
  if new is None:
    return None
  started = old.total > 0
  log_old = jnp.log(jnp.where(started, old.total, 1.0))
  fall = old.maximum - new.maximum + log_old - jnp.log(new.total)
  return jnp.where(started, jnp.exp(fall), 0.0)[..., None], jnp.where(started, fall, 0.0)[..., None]


def _over_devices(plan: Plan, sides, means: Means):
  """The same under the whole vocabulary's normalisers: devices exchange numbers per position alone."""
  if not plan.axes:
    return sides, means
  maxima = [side and tiles.greatest(side.maximum, plan.axes) for side in sides]
  rises = [side and maximum - side.maximum for side, maximum in zip(sides, maxima, strict=True)]
  total = lambda x: tiles.total(x, plan.axes)  # noqa: E731

  def one(this, other):
    side = sides[this]
    if side is None:
      return None
    fade, best = jnp.exp(-rises[this]), jnp.where(rises[this] == 0, side.best, jnp.iinfo(jnp.int32).max)
    cross = side.cross
    if cross is not None:
      cross = total(fade * (cross - (rises[this] - rises[other]) * side.total))
    return Side(
      maximum=maxima[this],
      total=total(fade * side.total),
      moment=total(fade * (side.moment - rises[this] * side.total)),
      cross=cross,
      best=tiles.least(best, plan.axes),
      target=total(side.target),
      lowest=tiles.least(side.lowest, plan.axes),
    )

  new = one(0, 1), one(1, 0)
  if means.student is None:
    return new, means
  falls = [_fall(*pair) for pair in zip(sides, new, strict=True)]
  (fade, fall), faded, difference, gap = falls[0], falls[1], means.difference, means.gap
  if difference is not None:
    difference = faded[0] * difference + (fade - faded[0]) * means.student
  if gap is not None:
    gap = fade * (gap + (fall - faded[1]) * means.student)
  return new, Means(fade * means.student, difference, gap)
