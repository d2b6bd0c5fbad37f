"""An upper bound on the entries of a forward KL in one pass: a certificate for most rows.

Entries p log(p / q) above a bound tau have a large p, and few are so large. The first pass keeps the
largest teacher logits of every row, two in each of 512 bins, with the student's logits there. With x
the largest p that found no place and c the least log q of the row, no entry without a place is above
max(0, x (log x - c)). Where this is at most tau, all that the bound changes is in the bins, and the
loss is the KL less what stands out there. Other rows are looked at again, `ROWS` at a time.

The gradient of the hidden states on the way: with M the probability of the bounded entries, it is
(1 - M)·E_q[w] - E_p[w] + sum of p·w over these, for w the head's rows. `tpu_pull` has the sums of
(q - p)·w and of p·w; the last sum is of rows that are gathered, at most `KEPT` for a position. Where M
is close to 1 it cancels against M·E_p[w], which has seen p rounded: the roundings are kept as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import tpu_bins, tpu_columns, tpu_pull, tpu_top_k
from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence.spec import DivergenceSpec

ROWS = 512  # Rows without a certificate that take the second pass together.
KEPT = 8  # Bounded entries of a row that a gradient on the way allows for.


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


class Kept(NamedTuple):
  """Bounded entries of a row, float32 [N, KEPT], the most probable first.

  Attributes:
    p: the teacher's probability, 0 where there is no entry.
    ids: where.
    z: the student's shaped logit.
    rounding: the relative error of p as the pass has weighed the head with it.
  """

  p: jax.Array
  ids: jax.Array
  z: jax.Array
  rounding: jax.Array


def supports(spec: DivergenceSpec) -> bool:
  """Whether a spec is a forward KL with an upper bound above 0 alone."""
  bounded = spec.entry_clip_min is None and spec.entry_clip_max is not None and spec.entry_clip_max > 0
  return spec.support == 'full' and spec.kind == 'forward_kl' and bounded


def bins(block_vocab: int, pull: bool) -> tpu_bins.Shape:
  """Bins of the teacher's logits and the student's there, from tiles as wide as this.

  With `pull` also of their ids and of `tpu_pull.mark` when they came, which tells how their weights were
  rounded; these are fewer and deeper, for VMEM is short there.
  """
  if pull:
    return tpu_bins.Shape(tpu_bins.groups(block_vocab, 2), depth=3, ids=True, others=2)
  return tpu_bins.Shape(tpu_bins.groups(block_vocab), depth=2, ids=False, others=1)


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
  for value_ref, other_ref in zip(bins.values, bins.others[0], strict=True):
    log_p = value_ref[...] - teacher[0] - jnp.log(teacher[1])
    log_q = other_ref[...] - student[0] - jnp.log(student[1])
    p = jnp.exp(log_p)
    value = p * (log_p - log_q)
    over = value > spec.entry_clip_max
    excess += lib.row_sum(jnp.where(over, value - spec.entry_clip_max, 0.0))
    mass += lib.row_sum(jnp.where(over, p, 0.0))
    changed += lib.row_sum(jnp.where(over, 1.0, 0.0))
  return Clip(excess, mass, changed, lib.row_max(bins.rest[...]), lib.row_min(lowest_ref[...]))


def keep(spec: DivergenceSpec, bins: tpu_bins.Bins, student, teacher, refs, dtype) -> list[jax.Array]:
  """The fields of `Kept`, [rows, 1] for each entry in turn; the bins are lost.

  Args:
    spec: what to compare.
    bins: of a shape for a pull.
    student: maximum and sum relative to it, [rows, 1] each.
    teacher: the same.
    refs: scratch memory [rows, 128] for each field.
    dtype: of the head.
  """
  for place, ref in enumerate(bins.values):
    log_p = ref[...] - teacher[0] - jnp.log(teacher[1])
    log_q = bins.others[0][place][...] - student[0] - jnp.log(student[1])
    p = jnp.exp(log_p)
    slope = lib.softcap_slope(spec, bins.others[0][place][...])
    mark_ref = bins.others[1][place]
    mark_ref[...] = tpu_pull.rounding(ref[...] - mark_ref[...], slope, dtype)
    ref[...] = jnp.where(p * (log_p - log_q) > spec.entry_clip_max, p, 0.0)
  # In order again: a bin's second may be bounded where its first is not.
  for first, second in ((0, 1), (1, 2), (0, 1)):
    swap = bins.values[second][...] > bins.values[first][...]
    for field in bins.fields:
      upper, lower = field[first][...], field[second][...]
      field[first][...], field[second][...] = jnp.where(swap, lower, upper), jnp.where(swap, upper, lower)
  tpu_top_k.choose(KEPT, bins, refs)
  lane = jax.lax.broadcasted_iota(jnp.int32, refs[0].shape, 1)
  return [lib.row_sum(jnp.where(lane == n, ref[...], 0.0)) for ref in refs for n in range(KEPT)]


def correct(
  spec: DivergenceSpec, pull: jax.Array, mass: jax.Array, kept: 'Kept', head: jax.Array
) -> jax.Array:
  """The gradient of the hidden states [N, D], of the head's type, with what bounded entries add.

  Args:
    spec: what to compare.
    pull: float32 [N, D], without these.
    mass: their probability [N, 1].
    kept: of the first pass.
    head: the student's [V, D].
  """
  # Where the pass has taken their rounded weights away, as much is given back.
  weights = kept.p * lib.softcap_slope(spec, kept.z) * (1 + mass * kept.rounding) / spec.student_temperature
  high = weights.astype(head.dtype).astype(jnp.float32)
  both = jnp.concatenate([high, weights - high], axis=1)
  ids = jnp.tile(kept.ids.astype(jnp.int32), (1, 2))
  return tpu_columns.pull(both, head, ids, head.dtype, pull)


def certain(spec: DivergenceSpec, clip: Clip, norms: jax.Array) -> jax.Array:
  """Whether the bins hold all that the bound changes; bool [N]. `norms` [N, 4] as in `tpu_second`."""
  log_x = clip.rest[:, 0] - norms[:, 2] - norms[:, 3]
  log_least = clip.lowest[:, 0] - norms[:, 0] - norms[:, 1]
  # x (log x - c) rises with x as long as it is positive; below, 0 is the bound.
  return jnp.maximum(jnp.exp(log_x) * (log_x - log_least), 0.0) <= spec.entry_clip_max
