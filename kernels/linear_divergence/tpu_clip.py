"""An upper bound on the entries of a forward KL in one pass: a certificate for most rows.

Entries p log(p / q) above a bound tau have a large p, and few are so large. The first pass keeps the
largest teacher logits of every row, two in each of 512 bins, with the student's logits there. With x
the largest p that found no place and c the least log q of the row, no entry without a place is above
max(0, x (log x - c)). Where this is at most tau, all that the bound changes is in the bins, and the
loss is the KL less what stands out there. Other rows are looked at again, `ROWS` at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence.spec import DivergenceSpec

ROWS = 512  # Rows without a certificate that take the second pass together.
_DEPTH = 2
_GROUPS = 4  # Bins of a row, in lanes of 128.


class Clip(NamedTuple):
  """What the bins of a row say, float32 [N, 1].

  Attributes:
    excess: by how much entries are above the bound, summed.
    mass: the teacher's probability of these entries.
    changed: how many they are.
    rest: the largest teacher logit that found no place.
    lowest: the least student logit.
  """

  excess: jax.Array
  mass: jax.Array
  changed: jax.Array
  rest: jax.Array
  lowest: jax.Array


def supports(spec: DivergenceSpec) -> bool:
  """Whether a spec is a forward KL with an upper bound above 0 alone."""
  bounded = spec.entry_clip_min is None and spec.entry_clip_max is not None and spec.entry_clip_max > 0
  return spec.support == 'full' and spec.kind == 'forward_kl' and bounded


def bytes_per_row() -> int:
  """VMEM for the bins of a row."""
  return 4 * lib.LANES * (2 * _DEPTH * _GROUPS + 2)


def scratch(blocks: lib.Blocks) -> list:
  """Bins of the teacher's logits and the student's there, level by level; rest and lowest of each lane."""
  wide, lanes = (pltpu.VMEM((blocks.block_rows, n), jnp.float32) for n in (_GROUPS * lib.LANES, lib.LANES))
  return [wide] * (2 * _DEPTH) + [lanes] * 2


def start(refs) -> None:
  """Empty bins."""
  values, others, (rest, lowest) = _parts(refs)
  for ref in (*values, rest):
    ref[...] = jnp.full(ref.shape, lib.FLOOR, jnp.float32)
  for ref in others:
    ref[...] = jnp.zeros(ref.shape, jnp.float32)
  lowest[...] = jnp.full(lowest.shape, -lib.FLOOR, jnp.float32)


def insert(refs, z_ref, u_ref) -> None:
  """Adds a tile: a bin's logits move down a level when a larger one comes."""
  value_refs, other_refs, (rest_ref, lowest_ref) = _parts(refs)
  rest, lowest = rest_ref[...], lowest_ref[...]
  count = z_ref.shape[1] // lib.LANES
  for group in range(min(_GROUPS, count)):
    bins = slice(group * lib.LANES, (group + 1) * lib.LANES)
    values, others = [ref[:, bins] for ref in value_refs], [ref[:, bins] for ref in other_refs]
    for place in range(group, count, _GROUPS):
      lanes = slice(place * lib.LANES, (place + 1) * lib.LANES)
      x, other = u_ref[:, lanes], z_ref[:, lanes]
      lowest = jnp.minimum(lowest, jnp.where(other > lib.FLOOR / 2, other, -lib.FLOOR))
      for level in range(_DEPTH):
        rises = x > values[level]
        values[level], x = jnp.where(rises, x, values[level]), jnp.where(rises, values[level], x)
        others[level], other = jnp.where(rises, other, others[level]), jnp.where(rises, others[level], other)
      rest = jnp.maximum(rest, x)
    for ref, x in zip((*value_refs, *other_refs), (*values, *others), strict=True):
      ref[:, bins] = x
  rest_ref[...], lowest_ref[...] = rest, lowest


def found(spec: DivergenceSpec, refs, student, teacher) -> Clip:
  """What the bins hold, from normalisers ([rows, 1] maximum, [rows, 1] sum relative to it) of both."""
  value_refs, other_refs, (rest, lowest) = _parts(refs)
  excess = mass = changed = 0.0
  for value_ref, other_ref in zip(value_refs, other_refs, strict=True):
    log_p = value_ref[...] - teacher[0] - jnp.log(teacher[1])
    log_q = other_ref[...] - student[0] - jnp.log(student[1])
    p = jnp.exp(log_p)
    value = p * (log_p - log_q)
    over = value > spec.entry_clip_max
    excess += lib.row_sum(jnp.where(over, value - spec.entry_clip_max, 0.0))
    mass += lib.row_sum(jnp.where(over, p, 0.0))
    changed += lib.row_sum(jnp.where(over, 1.0, 0.0))
  return Clip(excess, mass, changed, lib.row_max(rest[...]), lib.row_min(lowest[...]))


def certain(spec: DivergenceSpec, clip: Clip, norms: jax.Array) -> jax.Array:
  """Whether the bins hold all that the bound changes; bool [N]. `norms` [N, 4] as in `tpu_second`."""
  log_x = clip.rest[:, 0] - norms[:, 2] - norms[:, 3]
  log_least = clip.lowest[:, 0] - norms[:, 0] - norms[:, 1]
  # x (log x - c) rises with x as long as it is positive; below, 0 is the bound.
  return jnp.maximum(jnp.exp(log_x) * (log_x - log_least), 0.0) <= spec.entry_clip_max


def look_again(
  certain: jax.Array, seen: tuple[jax.Array, ...], look: Callable[[jax.Array], tuple[jax.Array, ...]]
) -> tuple[jax.Array, ...]:
  """`seen` [N] each, with what `look` finds in the place of rows that are not `certain`.

  Args:
    certain: bool [N].
    seen: results of the first pass.
    look: results [n] of rows [n]; rows beyond the last are for it to leave alone.
  """
  count = certain.shape[0]
  size = min(ROWS, count)
  # The uncertain rows in order, then the number of rows, which is none. (A sort takes long to compile.)
  place = jnp.where(certain, count + size, jnp.cumsum(~certain) - 1)
  order = jnp.full(count + -count % size, count, jnp.int32)
  order = order.at[place].set(jnp.arange(count, dtype=jnp.int32), mode='drop')

  def body(step, seen):
    rows = jax.lax.dynamic_slice_in_dim(order, step * size, size)
    return tuple(x.at[rows].set(y, mode='drop') for x, y in zip(seen, look(rows), strict=True))

  return jax.lax.fori_loop(0, pl.cdiv((~certain).sum(), size), body, seen)


def _parts(refs):
  return refs[:_DEPTH], refs[_DEPTH : 2 * _DEPTH], refs[2 * _DEPTH :]
