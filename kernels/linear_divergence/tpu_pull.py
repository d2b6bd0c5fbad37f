"""The gradient of the hidden states from a pass that does not know the normalisers yet.

It is a sum of G·w over the vocabulary with w an entry's row of the head and G = d loss / d logit,
where G has totals in it that are known after the last tile only. As in attention, the sum is kept
with the totals so far and set right when these change (Dao, arXiv 2205.14135). Products of matrix
units take bfloat16, so that what is summed should be small where student and teacher agree: not q
and p with one sum each, but

  forward KL: the sums of (q - p)·w and of p·w;
  reverse KL: the sums of q·(gap - mean gap)·w and of q·w;
  with known normalisers: the sums of (g - level·q)·w and of q·w, the level so far,

where a change of the totals adds a multiple of the second sum to the first. At the end the first is
the gradient, rounded in proportion to itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence.spec import DivergenceSpec


class Norms(NamedTuple):
  """Of one model so far, [rows, 1]: maximum, sum of e = exp(logit - maximum), sum of e·gap.

  The gap is the own logit less its maximum, minus that of the other model; its sum may be None for a forward
  KL.
  """

  maximum: jax.Array
  total: jax.Array
  cross: jax.Array | None


_TINY = 1e-30  # Before the first tile a total is 0.


def supports(spec: DivergenceSpec) -> bool:
  """Whether `add_linear` has the loss: a KL without clips over the full vocabulary."""
  unclipped = spec.entry_clip_min is None and spec.entry_clip_max is None
  return spec.support == 'full' and spec.kind in ('forward_kl', 'reverse_kl') and unclipped


def bytes_per_row(hidden: jax.Array, results: int = 1) -> int:
  """VMEM for one row of the sums and of the results, two blocks of which are on their way.

  A float32 result of narrow hidden states takes no more: the first sum is made in its place.
  """
  return hidden.shape[1] * (2 * 4 + 2 * results * hidden.dtype.itemsize)


def scratch(blocks: lib.Blocks, hidden: jax.Array) -> list:
  """The two sums [rows, D]."""
  return [pltpu.VMEM((blocks.block_rows, hidden.shape[1]), jnp.float32)] * 2


def start(sums) -> None:
  """Empty sums."""
  for ref in sums:
    ref[...] = jnp.zeros(ref.shape, jnp.float32)


def add_linear(spec, blocks, norms, z_ref, u_ref, head_ref, sums, step, end=None) -> None:
  """Adds a tile of a KL to the sums.

  Args:
    spec: what to compare.
    blocks: how the arrays are cut.
    norms: ((student, teacher) before the tile, the same with it).
    z_ref: the student's shaped logits [rows, vocab].
    u_ref: the teacher's.
    head_ref: the student's head [vocab, D].
    sums: from `scratch`.
    step: which tile of the vocabulary.
    end: as in `tpu_blocks.tile_logits`.
  """
  (student, teacher), (new_student, new_teacher) = norms
  keep, keep_teacher = _kept(student, new_student), _kept(teacher, new_teacher)
  z, u = z_ref[...], u_ref[...]
  below, below_teacher = z - new_student.maximum, u - new_teacher.maximum
  if spec.kind == 'forward_kl':
    q, p = jnp.exp(z - mark(new_student)), jnp.exp(u - mark(new_teacher))
    g, second, mix = q - p, p, (keep, keep - keep_teacher, keep_teacher)
  else:
    rise, rise_teacher = (
      old.maximum - new.maximum for old, new in ((student, new_student), (teacher, new_teacher))
    )
    q = jnp.exp(below) * _inverse(new_student)
    mean, new_mean = (x.cross / jnp.maximum(x.total, _TINY) for x in (student, new_student))
    g, second = q * (below - below_teacher - new_mean), q
    mix = (keep, keep * (rise - rise_teacher + mean - new_mean), keep)
  slope = lib.softcap_slope(spec, z)
  add(blocks, mix, g * slope, second * slope, head_ref, sums, step, end)


def add(blocks, mix, g: jax.Array, second: jax.Array, head_ref, sums, step, end=None) -> None:
  """Sets the sums right for new totals, and adds the products of a tile.

  Args:
    blocks: how the arrays are cut.
    mix: [rows, 1] each: factor of the first sum, of the second in the first, and of the second.
    g: [rows, vocab], what the first sum weighs the head with.
    second: [rows, vocab], the same of the second.
    head_ref: [vocab, D].
    sums: from `scratch`.
    step: which tile of the vocabulary.
    end: as in `tpu_blocks.tile_logits`.
  """
  lib.forget_padding(blocks, head_ref, step, end)
  head = head_ref[...]
  own, of_first, of_second = mix
  first_sum, second_sum = (ref[...] for ref in sums)
  sums[0][...] = own * first_sum + of_first * second_sum + lib.contract(g.astype(head.dtype), head, (1, 0))
  sums[1][...] = of_second * second_sum + lib.contract(second.astype(head.dtype), head, (1, 0))


def bound(mass: jax.Array, sums) -> None:
  """Takes from the sums of a forward KL what entries do not add whose probability is `mass` [rows, 1].

  But for these entries' own p·w, which is not among the sums; see `tpu_clip`.
  """
  sums[0][...] = (1 - mass) * sums[0][...] - mass * sums[1][...]


def finish(spec: DivergenceSpec, out_refs, sums) -> None:
  """The gradient of the loss to the hidden states; where there is room for it, the second sum as well."""
  for out_ref, ref in zip(out_refs, sums, strict=False):
    out_ref[...] = (ref[...] / spec.student_temperature).astype(out_ref.dtype)


def mark(norms: Norms) -> jax.Array:
  """What a logit is above its log-probability so far, [rows, 1]."""
  return norms.maximum + jnp.log(norms.total)


def rounding(log_p: jax.Array, slope: jax.Array | float, dtype: jnp.dtype) -> jax.Array:
  """Relative error of the weight in the sum of p·w of a forward KL, from log p so far by `mark`."""
  weight = jnp.exp(log_p) * slope
  return (weight.astype(dtype).astype(jnp.float32) - weight) / jnp.maximum(weight, _TINY)


def _inverse(norms: Norms) -> jax.Array:
  return 1 / jnp.maximum(norms.total, _TINY)


def _kept(old: Norms, new: Norms) -> jax.Array:
  """What a probability so far is multiplied by when the normaliser becomes `new`."""
  return old.total * jnp.exp(old.maximum - new.maximum) * _inverse(new)
