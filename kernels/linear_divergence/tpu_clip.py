"""An upper bound on the entries of a forward KL in one pass: a certificate for most rows.

Entries p log(p / q) above a bound tau have a large p, and few are so large. The first pass keeps the
largest teacher logits of every row, two in each of 512 bins, with the student's logits there. With x
the largest p that found no place and c the least log q of the row, no entry without a place is above
max(0, x (log x - c)). Where this is at most tau, all that the bound changes is in the bins, and the
loss is the KL less what stands out there. Other rows are looked at again, `ROWS` at a time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import tpu_bins
from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence.spec import DivergenceSpec

ROWS = 512  # Rows without a certificate that take the second pass together.
_DEPTH = 2


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


def bins(block_vocab: int) -> tpu_bins.Shape:
  """Bins of the teacher's logits and the student's there, from tiles as wide as this."""
  return tpu_bins.Shape(tpu_bins.groups(block_vocab), _DEPTH, ids=False, others=True)


def start(lowest_ref) -> None:
  """No student's logit yet."""
  lowest_ref[...] = jnp.full(lowest_ref.shape, -lib.FLOOR, jnp.float32)


def insert(lowest_ref, z_ref) -> None:
  """Lowers the least student logit of every lane [rows, 128] to those of a tile."""
  lowest = lowest_ref[...]
  for place in range(0, z_ref.shape[1], lib.LANES):
    z = z_ref[:, place : place + lib.LANES]
    lowest = jnp.minimum(lowest, jnp.where(z > lib.FLOOR / 2, z, -lib.FLOOR))
  lowest_ref[...] = lowest


def found(spec: DivergenceSpec, bins: tpu_bins.Bins, lowest_ref, student, teacher) -> Clip:
  """What the bins hold, from normalisers ([rows, 1] maximum, [rows, 1] sum relative to it) of both."""
  excess = mass = changed = 0.0
  for value_ref, other_ref in zip(bins.values, bins.others, strict=True):
    log_p = value_ref[...] - teacher[0] - jnp.log(teacher[1])
    log_q = other_ref[...] - student[0] - jnp.log(student[1])
    p = jnp.exp(log_p)
    value = p * (log_p - log_q)
    over = value > spec.entry_clip_max
    excess += lib.row_sum(jnp.where(over, value - spec.entry_clip_max, 0.0))
    mass += lib.row_sum(jnp.where(over, p, 0.0))
    changed += lib.row_sum(jnp.where(over, 1.0, 0.0))
  return Clip(excess, mass, changed, lib.row_max(bins.rest[...]), lib.row_min(lowest_ref[...]))


def certain(spec: DivergenceSpec, clip: Clip, norms: jax.Array) -> jax.Array:
  """Whether the bins hold all that the bound changes; bool [N]. `norms` [N, 4] as in `tpu_second`."""
  log_x = clip.rest[:, 0] - norms[:, 2] - norms[:, 3]
  log_least = clip.lowest[:, 0] - norms[:, 0] - norms[:, 1]
  # x (log x - c) rises with x as long as it is positive; below, 0 is the bound.
  return jnp.maximum(jnp.exp(log_x) * (log_x - log_least), 0.0) <= spec.entry_clip_max
