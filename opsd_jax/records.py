"""What is handed from room to room.

Axis letters: Q questions, B rollouts (B = Q·n, row b belongs to question b // n), P prompt tokens,
T completion tokens, D hidden width, M teacher views, N micro-batches. Token ids are the truth: what
was sampled is what is scored, and masks come from lengths, never from comparing ids with a pad id.
"""

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
Role = Literal['student', 'teacher']


@dataclasses.dataclass(frozen=True)
class Problem:
  """One question, on the host. `meta` holds further text fields a view may show (`reference`, ...)."""

  id: str
  problem: str
  solution: str
  answer: str
  source: str
  meta: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Example:
  """One supervised row: the completion to imitate, under the student's or the teacher's view."""

  problem: Problem
  role: Role
  completion: str


@flax.struct.dataclass
class Prompts:
  """Rendered and tokenised prompts of one role, right-padded; one row a question.

  Attributes:
    ids: int32 [Q, P].
    length: int32 [Q], at least 1.
    problem_id: uint32 [Q], `stable_id` of the problem: the counter of the sampler's randomness.
  """

  ids: Array
  length: Array
  problem_id: Array


@flax.struct.dataclass
class Rollout:
  """Sampled completions, right-padded.

  Attributes:
    ids: int32 [B, T]; includes the EOS that ended the row.
    length: int32 [B], in tokens; positions at and after it are padding.
    stopped: bool [B], True where an EOS ended the row, False where its token budget did.
    raw_logp: float32 [B, T], log-prob of the token over the full vocabulary at the loss temperature.
    behaviour_logp: float32 [B, T], log-prob after temperature and truncation: what it was drawn from; NaN
      where a server does not tell.
    rollout_index: int32 [B], which of the question's rollouts this row is.
    policy_version: int32 [B], updates that the weights had taken which drew the row; -1 where no student did.
  """

  ids: Array
  length: Array
  stopped: Array
  raw_logp: Array
  behaviour_logp: Array
  rollout_index: Array
  policy_version: Array

  @property
  def mask(self) -> jax.Array:
    """bool [B, T], True on sampled tokens."""
    return length_mask(self.length, self.ids.shape[1])

  def cropped(self, width: int) -> 'Rollout':
    """The same rollouts padded to `width` columns; `width` must cover the longest row."""
    return self.replace(
      ids=self.ids[:, :width],
      raw_logp=self.raw_logp[:, :width],
      behaviour_logp=self.behaviour_logp[:, :width],
    )


class Sampled(NamedTuple):
  """Rollouts, and what the sampler went through to draw them; None where a server did.

  Attributes:
    rollout: B rows.
    prompt_positions: read before the first token, padding among them.
    token_positions: int32, steps times the rows of each, idle ones among them.
  """

  rollout: Rollout
  prompt_positions: int | None
  token_positions: Array | None


class Verdict(enum.StrEnum):
  """What a grader says of one completion. Only the first counts as right."""

  CORRECT = 'correct'
  WRONG = 'wrong'
  UNFORMATTED = 'unformatted'  # no final answer could be read
  GOLD_UNPARSABLE = 'gold_unparsable'  # the known answer itself could not be read: no completion can be right
  TIMEOUT = 'timeout'
  ERROR = 'error'  # the grader failed, or the program under test did not run


@dataclasses.dataclass(frozen=True)
class Graded:
  """Verdicts on B completions, on the host.

  Attributes:
    verdicts: of each completion.
    shares: what is right of each, from 0 to 1, where that is finer than the verdict: of a program, the share
      of its tests that it passes. None where right is right and all else wrong.
  """

  verdicts: tuple[Verdict, ...]
  shares: tuple[float, ...] | None = None

  @property
  def correct(self) -> np.ndarray:
    """bool [B]."""
    return np.array([v == Verdict.CORRECT for v in self.verdicts], bool)

  @property
  def reward(self) -> np.ndarray:
    """float64 [B], what reinforcement learning is to make larger: the shares, else 1 for what is right."""
    return np.float64(self.correct if self.shares is None else self.shares)

  def take(self, rows: Iterable[int]) -> 'Graded':
    """Those of some rows, in that order."""
    rows = [int(row) for row in rows]
    shares = None if self.shares is None else tuple(self.shares[row] for row in rows)
    return Graded(tuple(self.verdicts[row] for row in rows), shares)

  @property
  def answered(self) -> np.ndarray:
    """bool [B], False where no final answer could be read."""
    return np.array([v != Verdict.UNFORMATTED for v in self.verdicts], bool)


@dataclasses.dataclass(frozen=True)
class Shown:
  """One rollout as a person reads it: both prompts, and the sampled tokens with the loss at each.

  Without a teacher the prompt of one is empty.
  """

  problem: str
  student_prompt: str
  teacher_prompt: str
  tokens: list[str]
  loss: list[float]
  answer: str
  correct: bool


@flax.struct.dataclass
class TeacherScores:
  """The teacher's side of the comparison: constants that cross the jit boundary.

  Attributes:
    hidden: compute dtype [M, N, G, C, D], final hidden states that predict each token of the `Plan`.
  """

  hidden: Array


@flax.struct.dataclass
class PackedRows:
  """Where one role's prompts and completions stand in rows of S tokens, R rows a micro-batch.

  A question is one run of its row: its prompt without the last token, then the inputs of each of its
  completions, the first of which is that last token. It is all indices and no ids.

  Attributes:
    source: int32 [N, R, S], place of the token in the role's prompt ids [Q, P] and the completion ids
      [B, T] after them, both flattened.
    position: int32 [N, R, S], as in a sequence of its own.
    group: int32 [N, R, S], which question of its row, from 1 on; 0 on padding.
    branch: int32 [N, R, S], 0 in the prompt, 1 + rollout index in a completion.
  """

  source: Array
  position: Array
  group: Array
  branch: Array


@flax.struct.dataclass
class Reading:
  """How one role's model reads the sequences, and which of its states meet the LM head.

  Attributes:
    rows: packed rows; None for prompts read once a question and completions [B / N, T] after them.
    at: int32 [N, G, C], place of each projected state among those of its part of the rows, flattened;
      None for all states of [B / N, T] as they are.
  """

  rows: PackedRows | None
  at: Array | None


@flax.struct.dataclass
class Plan:
  """How an update's tokens are read: N micro-batches of G parts (along the mesh's rows) of C tokens.

  Student and teacher project the same tokens in the same order.

  Attributes:
    origin: int32 [N, G, C], place b·T + t of the token in the rollouts; B·T on padding.
    student: how the student reads.
    teacher: how the teacher reads, one a view.
  """

  origin: Array
  student: Reading
  teacher: tuple[Reading, ...]


def length_mask(length: Array, width: int) -> jax.Array:
  """bool [B, width], True before each row's `length` [B]."""
  return jnp.arange(width)[None, :] < jnp.asarray(length)[:, None]
