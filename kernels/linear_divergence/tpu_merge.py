"""Heads whose rows devices share: what each found on its own, made that of the whole vocabulary.

The TPU kernels of a device see its own rows of the heads alone, and what they return is relative to
these: maxima, sums below them, the largest logits, sums of weighted rows. Here devices exchange a few
numbers of every position, and the kernels know nothing of it. Without mesh axes nothing is exchanged
and everything passes as it is. Per position, in float32:

- first pass: 2 maxima, 8 sums and 2 ids, without statistics those alone that the loss needs; with a top-k
  support k logits of both models and their ids from every device;
- second pass: 3 sums;
- gradients: the loss's cotangent. The hidden states' own gradient [N, D] is summed by `jax.shard_map`,
  and the head's stays where its rows are.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence.spec import DivergenceSpec
from kernels.linear_divergence.tpu_backward import Sparse
from kernels.linear_divergence.tpu_forward import First
from kernels.linear_divergence.tpu_second import Sums
from kernels.linear_divergence.tpu_sides import rescaled
from kernels.linear_divergence.tpu_top_k import TopK

_TINY = 1e-30  # Of a device whose entries have no probability.
_NOBODY = 2.0**24  # Above every id.


class Part(NamedTuple):
  """The rows of the heads that this device has.

  Attributes:
    axes: mesh axes over which the rows are split by hand; none where the heads are whole.
    rows: how many there are here.
    first: id of the first.
    vocab: valid ids of the whole vocabulary.
    end: int32 scalar, how many of the rows here are valid; None where nothing but ids below `vocab` is.
  """

  axes: tuple[str, ...]
  rows: int
  first: jax.Array | int
  vocab: int
  end: jax.Array | None


def part(spec: DivergenceSpec, axes: Sequence[str], rows: int) -> Part:
  """This device's part of a vocabulary of which it has `rows` rows."""
  axes = tuple(axes)
  if not axes:
    return Part((), rows, 0, spec.valid_vocab or rows, None)
  whole = rows * jax.lax.axis_size(axes)
  first = jax.lax.axis_index(axes) * rows
  vocab = spec.valid_vocab or whole
  # Padding may be all that a device has, or none of it.
  end = None if vocab == whole else jnp.clip(vocab - first, 0, rows)
  return Part(axes, rows, first, vocab, end)


def of_rows(spec: DivergenceSpec, part: Part) -> DivergenceSpec:
  """The spec that the kernels are given: which rows of a part are valid says `Part.end`."""
  return dataclasses.replace(spec, valid_vocab=None) if part.axes else spec


def own_ids(ids: jax.Array, part: Part) -> jax.Array:
  """Ids as places among this device's rows; -1, where no row is, for those of the others."""
  if not part.axes:
    return ids
  local = ids - jnp.asarray(part.first, ids.dtype)
  return jnp.where((local >= 0) & (local < part.rows), local, jnp.full_like(local, -1))


def first_pass(spec: DivergenceSpec, part: Part, own: First) -> First:
  """The first pass's results; a pull that was left apart is this device's share of the sum.

  Statistics are rescaled from the device's maxima to those of all. A share of the pull follows from
  the two sums that `tpu_pull` keeps, as when totals change within a device: with a and b what this
  turns q and p into, the sums F of (q - p)·w and P of p·w give a·F + (a - b)·P; for the reverse KL
  the sums F of q·(gap - mean gap)·w and Q of q·w give a·(F + (change of the mean gap)·Q). What is
  added is small where the models agree, and so is its rounding.
  """
  if not part.axes:
    return own
  sides = (own.student, own.teacher)
  tops = jax.lax.pmax(jnp.concatenate([side.maximum for side in sides], axis=1), part.axes)
  tops = (tops[:, :1], tops[:, 1:])
  rises = [side.maximum - top for side, top in zip(sides, tops, strict=True)]
  sums = _together(jax.lax.psum, part, [x._replace(maximum=None, best=None) for x in rescaled(sides, rises)])
  bests = [
    side.best if side.best is None else jnp.where(rise == 0, side.best + part.first, _NOBODY)
    for side, rise in zip(sides, rises, strict=True)
  ]
  bests = _together(jax.lax.pmin, part, bests)
  student, teacher = (
    side._replace(maximum=top, best=best) for side, top, best in zip(sums, tops, bests, strict=True)
  )
  pull = own.pull and _share(spec, sides, (student, teacher), rises, own.pull)
  return own._replace(
    student=student, teacher=teacher, top=own.top and _top_k(spec.k, part, own.top), pull=pull
  )


def _together(combine, part: Part, numbers):
  """`combine` over the devices of arrays [N, 1], those that there are, in one exchange."""
  arrays, structure = jax.tree.flatten(numbers)
  if not arrays:
    return numbers
  found = combine(jnp.concatenate(arrays, axis=1), part.axes)
  return structure.unflatten([found[:, place : place + 1] for place in range(len(arrays))])


def _share(spec: DivergenceSpec, old, new, rises, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
  """This device's share [N, D] of a KL's pull, from the sums that are relative to its own totals."""
  main, other = (x.astype(jnp.float32) for x in sums)
  kept, kept_teacher = (
    jnp.exp(rise) * before.total / after.total for rise, before, after in zip(rises, old, new, strict=True)
  )
  if spec.kind == 'forward_kl':
    share = kept * main + (kept - kept_teacher) * other
  else:
    mean, new_mean = (side.cross / side.total for side in (old[0], new[0]))
    share = kept * (main + (rises[0] - rises[1] + mean - new_mean) * other)
  return share.astype(sums[0].dtype)


def _top_k(k: int, part: Part, own: TopK) -> TopK:
  """The k largest of all devices' k largest, of equal ones those with the lowest ids."""
  ids = own.ids[:, :k]
  # Places that no logit has taken have ids below 0, and the lowest values.
  ids = jnp.where(ids < 0, _NOBODY, ids + part.first)
  found = jnp.stack([-own.values[:, :k], ids, own.others[:, :k]])
  found = jax.lax.all_gather(found, part.axes, axis=2, tiled=True)
  values, ids, others = (x[:, :k] for x in jax.lax.sort(tuple(found), dimension=1, num_keys=2))
  lanes = [(0, 0), (0, own.values.shape[1] - k)]
  return TopK(jnp.pad(-values, lanes), jnp.pad(ids, lanes, constant_values=-1.0), jnp.pad(others, lanes))


def second_pass(part: Part, own: Sums) -> Sums:
  """The second pass's results; a pull that was left apart is this device's share of the sum.

  Its sums are those of (g - level·q)·w and q·w with the level of the device's own entries, and the
  level is all that has to be set right.
  """
  if not part.axes:
    return own
  sums = jax.lax.psum(jnp.stack([own.loss, own.level, own.changed], axis=1), part.axes)
  loss, level, changed = (sums[:, place] for place in range(3))
  pull = None
  if own.pull is not None:
    main, other = (x.astype(jnp.float32) for x in own.pull)
    behind = own.level / jnp.maximum(own.mass, _TINY) - level
    pull = (main + behind[:, None] * other).astype(own.pull[0].dtype)
  return Sums(loss, level, changed, None, pull)


def own_sparse(sparse: Sparse | None, part: Part) -> Sparse | None:
  """The support's gradient where this device's rows are."""
  return sparse and sparse._replace(ids=own_ids(sparse.ids, part))


def cotangent(loss: jax.Array, axes: Sequence[str]) -> jax.Array:
  """The loss's cotangent [N]: `jax.shard_map` deals it out to the devices that share the vocabulary."""
  return jax.lax.psum(loss, tuple(axes)) if axes else loss
