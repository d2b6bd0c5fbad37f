"""Entry point of the divergence between two output layers; picks an implementation by name."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from kernels import checks
from kernels.linear_divergence import cached, chunked, gpu, reference, sharded, tpu, tpu_cached
from kernels.linear_divergence.spec import MODES, Divergence, DivergenceSpec, Mode, TeacherTopK

__all__ = [
  'Choice',
  'Divergence',
  'DivergenceSpec',
  'IMPLEMENTATIONS',
  'TeacherTopK',
  'choose',
  'explain',
  'linear_divergence',
  'linear_divergence_from_top_k',
]

IMPLEMENTATIONS = ('reference', 'chunked', 'tpu', 'gpu')
# What None stands for: the first that supports a call.
_PREFERRED = ('tpu', 'chunked')
# Not among them, and why.
_BY_NAME = {'gpu': "a measurement: no GPU has run it yet; ask for it with implementation='gpu'"}


class Choice(NamedTuple):
  """Whether an implementation can serve a call.

  Attributes:
    name: of the implementation.
    lacks: what it has not, and what to ask for instead; None where it serves.
  """

  name: str
  lacks: str | None


def linear_divergence(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array | None,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  chunk_tokens: int = 1024,
  mode: Mode = 'memory',
  weights: jax.Array | None = None,
  statistics: bool = True,
  implementation: str | Sequence[str] | None = None,
  batch_axes: tuple[str, ...] = (),
  vocab_axes: tuple[str, ...] = (),
) -> Divergence:
  """Divergence between the distributions that two heads make of two hidden states.

  Gradients flow from `loss` alone, to `student_hidden` and `student_head` alone, and nothing is
  computed for one that nobody asks for: a frozen head costs less. A head may be a float32 master
  while the hidden states are bfloat16: it is used in the type of the hidden states, its gradient is
  summed in its own.

  Args:
    student_hidden: [B, T, D].
    student_head: [V, D]; rows are vocabulary entries.
    teacher_hidden: [B, T, Dt].
    teacher_head: [V, Dt], or None for the student's head without gradient (a live teacher).
    targets: [B, T] integer ids in 0..valid_vocab - 1, also where the caller masks the position.
    spec: what to compare.
    chunk_tokens: logits held at once, in positions over the whole batch: `chunk_tokens`·V numbers of
      each model at most, or those of 128 entries or one time step. `chunked` alone needs to know.
    mode: `memory` computes logits again for the gradients and holds less than `chunk_tokens` allows;
      `speed` holds that many and makes the gradients at once. `tpu` holds a tenth of all logits' memory
      then, where that is enough to be faster, and without `weights` does so for a frozen head alone.
    weights: [B, T], what the losses will be multiplied by, up to one factor: with `speed` the head's
      gradient is then made at once too. It is right with any weights, or none, and slower.
    statistics: False leaves out all results that the loss does not need: they are None.
    implementation: one of `IMPLEMENTATIONS`, several in order of preference, of which the first that
      supports the call is taken, or None for ('tpu', 'chunked').
    batch_axes: axes of the current mesh (`jax.set_mesh`, Auto axes) that the batch is laid out over.
      `tpu` and `gpu`, which XLA cannot partition, split B over them where they divide it, and T over the
      others but those that the heads are split over; the other implementations ignore it.
    vocab_axes: axes of the current mesh that the heads' rows are laid out over. Where they divide V, `tpu`
      and `chunked` in `memory` leave the heads and their gradients there: devices exchange numbers per
      position, k of each device with a top-k, and the hidden states' gradient. Elsewhere `tpu` gathers
      whole heads, as `gpu` always does, and the others leave it to XLA.

  Returns:
    Results [B, T], float32 (float64 for float64 inputs).

  Raises:
    ValueError: a setting or a shape that cannot work; the message has the remedy.
  """
  teacher_head = student_head if teacher_head is None else teacher_head
  arrays = (student_hidden, student_head, teacher_hidden, teacher_head)
  names = _names(implementation)
  checks.choice('mode', mode, MODES)
  checks.chunk_tokens(chunk_tokens)
  _check_shapes(*arrays, targets)
  if weights is not None:
    checks.like_targets('weights', weights, targets)
  reference.validate(spec, student_head.shape[0])
  sharded.check_axes('batch_axes', batch_axes)
  sharded.check_axes('vocab_axes', vocab_axes)
  name = _first(names, spec, arrays, asked=implementation is not None)
  if name == 'reference':
    result = reference.linear_divergence(*arrays, targets, spec, chunk_tokens=chunk_tokens)
  elif name == 'chunked':
    settings = dict(chunk_tokens=chunk_tokens, mode=mode, weights=weights, statistics=statistics)
    result = chunked.linear_divergence(*arrays, targets, spec, **settings, vocab_axes=vocab_axes)
  else:

    def call(rows, heads, axes):
      student, teacher, targets, weights = rows
      own = (student, heads[0], teacher, heads[-1], targets, spec)
      if name == 'gpu':
        return gpu.linear_divergence(*own)
      settings = dict(mode=mode, weights=weights, statistics=statistics)
      return tpu.linear_divergence(*own, **settings, vocab_axes=axes)

    rows = (student_hidden, teacher_hidden, targets, weights)
    heads = (student_head,) if teacher_head is student_head else (student_head, teacher_head)
    split = dict(batch_axes=batch_axes, vocab_axes=vocab_axes if name == 'tpu' else ())
    result = sharded.over_devices(call, rows, heads, **split)
  if statistics:
    return result
  return Divergence(result.loss, result.clip_fraction, clip_fallback=result.clip_fallback)


def linear_divergence_from_top_k(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher: TeacherTopK,
  targets: jax.Array,
  spec: DivergenceSpec,
  *,
  chunk_tokens: int = 1024,
  statistics: bool = True,
  implementation: str | Sequence[str] | None = None,
  batch_axes: tuple[str, ...] = (),
  vocab_axes: tuple[str, ...] = (),
) -> Divergence:
  """`linear_divergence` from a teacher that is known by its top-k alone, with support `teacher_topk`.

  Equal to that of the teacher itself, in the results that the top-k tells; the others are None, see
  `Divergence`. A tail that is renormalised needs no product over the vocabulary without statistics.

  Args:
    student_hidden: [B, T, D].
    student_head: [V, D]; rows are vocabulary entries.
    teacher: ids and log-probabilities [B, T, k] with k of the spec; gets no gradient.
    targets: [B, T] integer ids in 0..valid_vocab - 1, for the statistics.
    spec: what to compare. The teacher's temperature and soft-cap are in its log-probabilities: 1.0 and None.
    chunk_tokens: as of `linear_divergence`.
    statistics: as of `linear_divergence`.
    implementation: as of `linear_divergence`; `choose` and `explain` say of `spec`, `student_hidden` and
      `student_head` which serves.
    batch_axes: as of `linear_divergence`.
    vocab_axes: as of `linear_divergence`, but `tpu` takes the whole head.

  Returns:
    Results [B, T], float32 (float64 for float64 inputs).

  Raises:
    ValueError: a setting or a shape that cannot work; the message has the remedy.
  """
  arrays = (student_hidden, student_head)
  names = _names(implementation)
  checks.chunk_tokens(chunk_tokens)
  checks.hidden_and_head('student_', *arrays)
  checks.targets_like(targets, student_hidden, 'student_hidden')
  reference.validate(spec, student_head.shape[0])
  sharded.check_axes('batch_axes', batch_axes)
  sharded.check_axes('vocab_axes', vocab_axes)
  cached.validate(spec, teacher, student_hidden)
  name = _first(names, spec, arrays, asked=implementation is not None)
  checks.require(
    name != 'gpu', "implementation is 'gpu', whose kernels need the teacher's hidden states; use 'chunked'."
  )
  if name == 'reference':
    result = cached.linear_divergence(*arrays, teacher, targets, spec)
  elif name == 'chunked':
    settings = dict(chunk_tokens=chunk_tokens, statistics=statistics, vocab_axes=vocab_axes)
    result = chunked.from_top_k(*arrays, teacher, targets, spec, **settings)
  else:

    def call(rows, head, _):
      student, teacher, targets = rows
      return tpu_cached.linear_divergence(student, head, teacher, targets, spec, statistics=statistics)

    rows = (student_hidden, teacher, targets)
    result = sharded.over_devices(call, rows, student_head, batch_axes=batch_axes)
  return result if statistics else Divergence(result.loss, result.clip_fraction)


def choose(spec: DivergenceSpec, *arrays: jax.Array) -> tuple[str, str]:
  """The implementation that None stands for, and why.

  Args:
    spec: what to compare.
    *arrays: hidden states and heads, as far as they are known; shapes and types suffice.
  """
  choices = explain(spec, *arrays)
  for choice in choices:
    if choice.lacks is None:
      break
  passed = [f'{c.name} lacks {c.lacks}' for c in choices[: choices.index(choice)]]
  why = '; '.join(passed) if passed else 'nothing that is asked for is missing'
  return choice.name, why


def explain(
  spec: DivergenceSpec, *arrays: jax.Array, implementation: str | Sequence[str] | None = None
) -> tuple[Choice, ...]:
  """What each implementation lacks for a call, in order of preference.

  Args:
    spec: what to compare.
    *arrays: hidden states and heads, as far as they are known; shapes and types suffice.
    implementation: as of `linear_divergence`.
  """
  names = _names(implementation)
  # A name that is asked for alone is meant wherever it can run, under an interpreter for example.
  here = len(names) > 1
  choices = [Choice(name, _lacks(name, spec, arrays, here)) for name in names]
  if implementation is None and jax.default_backend() == 'gpu':
    choices[:0] = [Choice(name, lack) for name, lack in _BY_NAME.items()]
  return tuple(choices)


def _names(implementation: str | Sequence[str] | None) -> tuple[str, ...]:
  if implementation is None:
    return _PREFERRED
  names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
  checks.require(bool(names), 'implementation is empty; name at least one, or pass None.')
  for name in names:
    checks.choice('implementation', name, IMPLEMENTATIONS)
  return names


def _lacks(name: str, spec: DivergenceSpec, arrays: Sequence[jax.Array], here: bool) -> str | None:
  """What an implementation has not of what a call needs, and, if it must run `here`, this backend."""
  if name not in ('tpu', 'gpu'):
    return None
  backend = jax.default_backend()
  if here and backend != name:
    return f'this machine: the backend is {backend}, and the fused kernels are for {name}'
  return {'tpu': tpu, 'gpu': gpu}[name].unsupported(spec, *arrays)


def _first(names: Sequence[str], spec: DivergenceSpec, arrays: Sequence[jax.Array], asked: bool) -> str:
  """The first of `names` that supports a call."""
  choices = explain(spec, *arrays, implementation=names if asked else None)
  for choice in choices:
    if choice.lacks is None:
      return choice.name
  reasons = ' '.join(
    f"implementation is {c.name!r}, which lacks {c.lacks}, or use 'chunked'." for c in choices
  )
  raise ValueError(reasons)


def _check_shapes(student_hidden, student_head, teacher_hidden, teacher_head, targets) -> None:
  checks.hidden_and_head('student_', student_hidden, student_head)
  checks.hidden_and_head('teacher_', teacher_hidden, teacher_head)
  checks.require(
    student_hidden.shape[:2] == teacher_hidden.shape[:2],
    f'student_hidden has shape {student_hidden.shape}, teacher_hidden {teacher_hidden.shape}: '
    '[batch, time] must be equal; gather both at the positions of the same completion tokens.',
  )
  checks.require(
    student_head.shape[0] == teacher_head.shape[0],
    f'student_head has {student_head.shape[0]} rows, teacher_head {teacher_head.shape[0]}: both '
    'must have one vocabulary; pad the smaller head and set valid_vocab.',
  )
  checks.targets_like(targets, student_hidden, 'student_hidden')
