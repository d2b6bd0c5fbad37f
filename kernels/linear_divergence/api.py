"""Entry point of the divergence between two output layers; picks an implementation by name."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from kernels import checks
from kernels.linear_divergence import chunked, reference, sharded, tpu
from kernels.linear_divergence.spec import MODES, Divergence, DivergenceSpec, Mode

__all__ = [
  'Choice',
  'Divergence',
  'DivergenceSpec',
  'IMPLEMENTATIONS',
  'choose',
  'explain',
  'linear_divergence',
]

IMPLEMENTATIONS = {
  'reference': reference.linear_divergence,
  'chunked': chunked.linear_divergence,
  'tpu': tpu.linear_divergence,
}
# What None stands for: the first that supports a call.
_PREFERRED = ('tpu', 'chunked')


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
    implementation: a key of `IMPLEMENTATIONS`, several in order of preference, of which the first that
      supports the call is taken, or None for ('tpu', 'chunked').
    batch_axes: axes of the current mesh (`jax.set_mesh`, Auto axes) that the batch is laid out over.
      `tpu`, which XLA cannot partition, splits B over them where they divide it, T over the others,
      and takes whole heads; the other implementations ignore it.
    vocab_axes: axes of the current mesh that the heads' rows are laid out over. `chunked` in `memory`
      keeps them there where they divide V: devices exchange numbers per position, and the hidden
      states' gradient. The others leave it to XLA.

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
  name = _first(names, spec, arrays, asked=implementation is not None)
  call = IMPLEMENTATIONS[name]
  if name == 'tpu':
    settings = dict(chunk_tokens=chunk_tokens, mode=mode, weights=weights)
    result = sharded.over_rows(call, *arrays, targets, spec, **settings, batch_axes=batch_axes)
  elif name == 'reference':
    result = call(*arrays, targets, spec, chunk_tokens=chunk_tokens)
  else:
    settings = dict(chunk_tokens=chunk_tokens, mode=mode, weights=weights, statistics=statistics)
    result = call(*arrays, targets, spec, **settings, vocab_axes=vocab_axes)
  if statistics:
    return result
  return Divergence(result.loss, result.clip_fraction, clip_fallback=result.clip_fallback)


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
  return tuple(Choice(name, _lacks(name, spec, arrays, here)) for name in names)


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
  if name != 'tpu':
    return None
  backend = jax.default_backend()
  if here and backend != 'tpu':
    return f'this machine: the backend is {backend}, and the fused kernels are for tpu'
  return tpu.unsupported(spec, *arrays)


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
