"""Chunks of positions whose logits are stored: faster than `tpu` alone, in more memory.

A chunk's first pass makes both logits and stores what `tpu_speed_store` says, and where a loss needs
both normalisers first, its sums are taken from what is stored. `tpu_speed_gradient` then makes both
gradients, so that with 8TDV (6TDV for a frozen head) no product is made twice, whatever the loss.

The loss's cotangent is not known at that time. For a frozen head it is a factor of a position's
gradient; the head's gradient adds up positions, so that it takes their `weights` instead, and all is
scaled when the cotangent turns out to be a multiple of these, and made anew by `tpu_backward` if not.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_divergence import tpu_entries as entries
from kernels.linear_divergence import tpu_sides, tpu_speed_gradient, tpu_speed_store
from kernels.linear_divergence.spec import DivergenceSpec
from kernels.linear_divergence.tpu_backward import Rows
from kernels.linear_divergence.tpu_blocks import LANES

# Positions of a chunk, best first. The head's gradient is read and written once for each: with fewer
# positions that takes longer than the products.
_CHUNKS = (2048, 1024)
_CHUNKS_FROZEN = (2048, 1024, 512)
# Of positions times width, which VMEM holds as float32.
_LARGEST = 2**22
_SHARE = 0.1  # Of both models' float32 logits.
_SAME = 1e-5  # How near, of the largest, a cotangent must be to a multiple of the weights.


class Ahead(NamedTuple):
  """Gradients made before the loss's cotangent is known.

  Attributes:
    hidden: [N, D], of the losses times their weights.
    head: [V, D], the same, or None where nobody asks.
    weights: float32 [N], or None where all are 1.
  """

  hidden: jax.Array
  head: jax.Array | None
  weights: jax.Array | None


class Passes(NamedTuple):
  """What the loss, the results and another backward pass are made of, [N].

  Attributes:
    student: statistics.
    teacher: statistics.
    loss: of entries that need both normalisers; None where the statistics have it.
    changed: entries that a bound changed; None likewise.
    level: see `tpu_backward.Rows`.
  """

  student: tpu_sides.Side
  teacher: tpu_sides.Side
  loss: jax.Array | None
  changed: jax.Array | None
  level: jax.Array


def chunk(spec: DivergenceSpec, hidden: jax.Array, head: jax.Array, of_head: bool) -> int | None:
  """Positions of a chunk, or None where none is worth it within a tenth of the logits' memory.

  Args:
    spec: what to compare.
    hidden: the student's, [N, D].
    head: the student's, [V, D].
    of_head: whether the head's gradient is asked for.
  """
  (count, depth), vocab = hidden.shape, head.shape[0]
  if spec.support != 'full' or vocab < LANES:
    return None
  budget = _SHARE * 2 * 4 * count * vocab
  if of_head:
    budget -= sum(x.size * x.dtype.itemsize for x in jax.eval_shape(lambda: _empty(spec, head))[1:])
  for size in _CHUNKS if of_head else _CHUNKS_FROZEN:
    stored = size * vocab * 2 * hidden.dtype.itemsize
    if size <= count and size * depth <= _LARGEST and stored <= budget:
      return size
  return None


def _empty(spec, head):
  return tpu_speed_gradient.empty(head, spec.valid_vocab or head.shape[0])


def run(
  spec: DivergenceSpec,
  size: int,
  arrays,
  targets: jax.Array,
  weights: jax.Array | None,
  of_head: bool,
  wanted: tpu_sides.Wanted,
) -> tuple[Passes, Ahead]:
  """Results and gradients of N positions, `size` at a time.

  Args:
    spec: what to compare.
    size: from `chunk`.
    arrays: student's hidden states [N, D] and head [V, D], teacher's, whose head may be None.
    targets: int32 [N].
    weights: float32 [N], or None for 1.
    of_head: whether the head's gradient is asked for.
    wanted: which statistics, see `tpu_sides.wanted`.
  """
  student_hidden, head, teacher_hidden, teacher_head = arrays
  count = student_hidden.shape[0]
  steps = -(-count // size)

  def add(step, carry):
    passes, hidden_gradient, totals, memory = carry
    # The last chunk comes first and reaches back; what it has too much is left to the others.
    start = jnp.where(step == 0, count - size, (step - 1) * size)
    skip = jnp.where(step == 0, (steps - 1) * size - start, 0)
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size)  # noqa: E731
    place = lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), start, 0)  # noqa: E731
    student, teacher = cut(student_hidden), cut(teacher_hidden)
    some = (student, head, teacher, teacher_head)
    weight = jnp.ones(size, jnp.float32) if weights is None else cut(weights)
    weight = jnp.where(jnp.arange(size) < skip, 0.0, weight)
    new, part, totals, memory = _chunk(spec, wanted, some, cut(targets), weight, totals, memory, step == 0)
    return jax.tree.map(place, passes, new), place(hidden_gradient, part), totals, memory

  lane = jnp.zeros(count, jnp.float32)
  sides = tpu_sides.split(wanted, [lane] * wanted.count)
  sums = (None, None) if entries.linear(spec) else (lane, lane)
  totals = _empty(spec, head) if of_head else ()
  memory = tpu_speed_store.space(spec, arrays, size, wanted)
  carry = Passes(*sides, *sums, lane), jnp.zeros_like(student_hidden), totals, memory
  passes, hidden, totals, _ = jax.lax.fori_loop(0, steps, add, carry)
  # Arrays [N, 1] take 128 times their size on a TPU: they are this only here.
  passes = passes._replace(**{name: _columns(getattr(passes, name)) for name in ('student', 'teacher')})
  return passes, Ahead(hidden, totals[0] if of_head else None, weights)


def _columns(side: tpu_sides.Side) -> tpu_sides.Side:
  return jax.tree.map(lambda x: x[:, None], side)


def _chunk(spec, wanted, arrays, targets, weight, totals, memory, first):
  """One chunk's results, its hidden states' gradient, the totals of the head's, and the memory."""
  student, teacher, stored = tpu_speed_store.store(spec, arrays, targets, memory, wanted)
  log_total, log_total_teacher = jnp.log(student.total), jnp.log(teacher.total)
  norms = student.maximum, log_total, teacher.maximum, log_total_teacher
  if entries.linear(spec):
    loss = changed = None
    reverse_kl = jnp.zeros_like(log_total)
    if student.cross is not None:
      reverse_kl = student.cross / student.total - log_total + log_total_teacher
    level = entries.level(spec, reverse_kl[:, 0]) * jnp.ones_like(weight)
  else:
    vocab = arrays[1].shape[0]
    loss, level, changed = tpu_speed_store.sums(spec, stored, jnp.concatenate(norms, 1), vocab)
  rows = Rows(*(x[:, 0] for x in norms), level, weight / spec.student_temperature)
  hidden, totals = tpu_speed_gradient.add(spec, stored, rows, *arrays[:2], totals, first)
  student, teacher = jax.tree.map(lambda x: x[:, 0], (student, teacher))
  return Passes(student, teacher, loss, changed, level), hidden, totals, (stored.peaks, stored.gaps)


def settled(
  ahead: Ahead, cotangent: jax.Array, anew: Callable[[], tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array | None]:
  """Gradients of the hidden states and the head under the loss's cotangent [N].

  Args:
    ahead: what has been made.
    cotangent: float32 [N].
    anew: makes both gradients under the cotangent.
  """
  scale = lambda x, factor: (x.astype(jnp.float32) * factor).astype(x.dtype)  # noqa: E731
  if ahead.head is None:
    return scale(ahead.hidden, cotangent[:, None]), None
  weights = ahead.weights
  factor = (cotangent * weights).sum() / jnp.maximum((weights * weights).sum(), jnp.finfo(weights.dtype).tiny)
  same = jnp.abs(cotangent - factor * weights).max() <= _SAME * jnp.abs(cotangent).max()
  # A loop of at most one turn, whose results take the place of what there is.
  hidden, head, _ = jax.lax.while_loop(
    lambda carry: ~carry[2], lambda _: (*anew(), jnp.array(True)), (ahead.hidden, ahead.head, same)
  )
  factor = jnp.where(same, factor, 1.0)
  return scale(hidden, factor), tpu_speed_gradient.scaled(head, factor)
