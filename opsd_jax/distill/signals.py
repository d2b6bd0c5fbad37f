"""What a token says about the rollout it is in: a pure function of what student and teacher said of it.

`SIGNALS` is the table of them. A name in it is a choice of `weigh.kind`; a recipe's file adds its own by
`register`.

Axis letters: B rollouts, T completion tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax


class Signal(NamedTuple):
  """A signal and whom it asks.

  Attributes:
    of: (student's log-probs of the sampled tokens, the teacher's, the student's entropies or None where the
      sampler told the log-probs) -> signal, all float32 [B, T]; positions do not see each other.
    asks_teacher: whether the teacher's LM head is read for it, which the ledger then counts.
  """

  of: Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
  asks_teacher: bool = True


def log_ratio(student_logp: jax.Array, teacher_logp: jax.Array, entropy: jax.Array | None) -> jax.Array:
  """log p_S - log p_T: what the student is surer of than the teacher (ReNIO)."""
  return student_logp - teacher_logp


def entropy_of(student_logp: jax.Array, teacher_logp: jax.Array, entropy: jax.Array | None) -> jax.Array:
  """The student's entropy; of a sampler that tells none, -log p of what was drawn, whose mean is the same."""
  return -student_logp if entropy is None else entropy


OTHERS = ('none', 'length')  # kinds of weights that are no signals
SIGNALS: dict[str, Signal] = {'renio': Signal(log_ratio), 'entropy': Signal(entropy_of, asks_teacher=False)}


def register(name: str, signal: Signal) -> None:
  """Makes a signal a choice of `weigh.kind`.

  Raises:
    ValueError: the name is taken: what other recipes mean by it must not change.
  """
  if name in (*OTHERS, *SIGNALS):
    raise ValueError(f'weigh.kind={name} is there already; choose another name.')
  SIGNALS[name] = signal


def asks_teacher(kind: str) -> bool:
  """Whether weights of this kind read the teacher's log-probs; kinds that are no signals do not."""
  return kind in SIGNALS and SIGNALS[kind].asks_teacher
