"""The token ledger: every token that a model read or wrote, and the FLOPs it took: needed and computed."""

import dataclasses

import numpy as np

from opsd_jax.models.attention import own_pairs
from opsd_jax.models.flops import attention_flops, computed_flops, forward_flops, matmul_params
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Plan, Prompts, Reading, Rollout, Sampled

PHASES = ('rollout', 'student', 'teacher', 'weigh')

_BACKWARD = 3  # forward and backward together, in forwards


@dataclasses.dataclass(frozen=True)
class Ledger:
  """Cumulative counts of real tokens; padding is counted in `positions_*` and `spent_*` alone.

  Attributes:
    sampled: completion tokens drawn, EOS included.
    given: completion tokens that the data gave in place of them.
    scored_student: completion tokens that the student was trained on.
    scored_teacher: completion tokens that the teacher scored, over all views.
    scored_weigh: completion tokens that the student read once more, for the weights of samples.
    prompt_sampler: prompt tokens prefilled for sampling, once a question.
    prompt_student: prompt tokens read for the student's loss, once a question.
    prompt_teacher: prompt tokens read by the teacher, once a question and view.
    prompt_weigh: prompt tokens read with these, once a question.
    flops: model FLOPs of all that: forwards, and three forwards where gradients are taken, without what
      gradients of frozen weights would take.
    positions_rollout: positions computed by the sampler, padding and rows that had ended among them.
    positions_student: positions computed for the student's loss, padding among them.
    positions_teacher: positions computed for the teacher, padding among them.
    positions_weigh: positions computed for the weights of samples, padding among them.
    needed_rollout: the part of `flops` that is the sampler's, where `spent_rollout` is known too.
    needed_student: the part that is the student's, likewise.
    needed_teacher: the part that is the teacher's, likewise.
    needed_weigh: the part that the weights of samples took: the student's pass, the teacher's LM head again.
    spent_rollout: FLOPs of the positions computed by the sampler, masked attention among them.
    spent_student: the same of the student, and what is computed again for its gradients (`model.remat`);
      not what the divergence computes again.
    spent_teacher: the same of the teacher.
    spent_weigh: the same for the weights of samples.
  """

  sampled: int = 0
  given: int = 0
  scored_student: int = 0
  scored_teacher: int = 0
  scored_weigh: int = 0
  prompt_sampler: int = 0
  prompt_student: int = 0
  prompt_teacher: int = 0
  prompt_weigh: int = 0
  flops: int = 0
  positions_rollout: int = 0
  positions_student: int = 0
  positions_teacher: int = 0
  positions_weigh: int = 0
  needed_rollout: int = 0
  needed_student: int = 0
  needed_teacher: int = 0
  needed_weigh: int = 0
  spent_rollout: int = 0
  spent_student: int = 0
  spent_teacher: int = 0
  spent_weigh: int = 0

  @property
  def completions(self) -> int:
    """Tokens that a training drew or was given, however often it learned from them: what a budget counts."""
    return self.sampled + self.given or self.scored_student

  def __add__(self, other: 'Ledger') -> 'Ledger':
    names = [f.name for f in dataclasses.fields(self)]
    return Ledger(**{n: getattr(self, n) + getattr(other, n) for n in names})

  @property
  def utilisation(self) -> dict[str, float]:
    """FLOPs needed over FLOPs spent, by phase; a phase of which nothing is known is left out."""
    known = {phase: (getattr(self, f'needed_{phase}'), getattr(self, f'spent_{phase}')) for phase in PHASES}
    return {phase: needed / spent for phase, (needed, spent) in known.items() if spent}


@dataclasses.dataclass(frozen=True)
class Computed:
  """What a program goes through once, padding included.

  Attributes:
    positions: that meet the weights.
    pairs: of a position and a key that it is compared with, visible or not.
    projected: positions that meet the LM head.
  """

  positions: int
  pairs: int
  projected: int

  def forward(self, spec: ModelSpec, adapters: int) -> int:
    """FLOPs of one forward pass with as many weights of adapters."""
    return computed_flops(spec, self.positions, self.pairs, self.projected) + 2 * adapters * self.positions

  def backward(self, spec: ModelSpec, adapters: int) -> int:
    """FLOPs of forward and backward, with what the model computes again in between."""
    frozen = _frozen_flops(spec, self.positions, self.projected) if adapters else 0
    body = Computed(self.positions, self.pairs, 0).forward(spec, adapters)
    if not spec.post_norms:  # Nothing but the sum reads what a block's last product makes.
      body -= 2 * spec.num_layers * spec.embed_dim * spec.mlp_dim * self.positions
    attention = attention_flops(spec, self.pairs)
    # Scores are made a third time where their block is differentiated.
    again = {'none': 0, 'dots': attention, 'full': body + attention // 2}[spec.remat]
    return _BACKWARD * self.forward(spec, adapters) - frozen + again


def padded_positions(prompts: tuple[int, int], completions: tuple[int, int], projected: int) -> Computed:
  """Prompts [Q, P] read but for their last token, then completions [B, T] after them."""
  (questions, width), (rows, steps) = prompts, completions
  before = max(width - 1, 1)
  pairs = questions * own_pairs(before) + rows * (steps * before + own_pairs(steps))
  return Computed(questions * before + rows * steps, pairs, projected)


def read_positions(plan: Plan, how: Reading, prompts: Prompts, rollout: Rollout) -> Computed:
  """What one role's model goes through under the plan."""
  if how.rows is None:
    return padded_positions(prompts.ids.shape, rollout.ids.shape, plan.origin.size)
  positions, width = how.rows.source.size, how.rows.source.shape[-1]
  return Computed(positions, positions // width * own_pairs(width), plan.origin.size)


def sampled_positions(prompts: Prompts, sampled: Sampled) -> Computed | None:
  """What the sampler went through; None for a server's.

  Every token is counted with all keys of its prompt and of the rollout's columns, which is more than
  attention reads, as it stops at the longest row of the time.
  """
  if sampled.token_positions is None:
    return None
  before, budget = max(prompts.ids.shape[1] - 1, 1), sampled.rollout.ids.shape[1]
  read, decoded = int(sampled.prompt_positions), int(sampled.token_positions)
  prefilled = read * own_pairs(before) // before
  return Computed(read + decoded, prefilled + decoded * (before + budget), decoded)


def _read_flops(spec: ModelSpec, prompts: np.ndarray, completions: np.ndarray, adapters: int) -> int:
  """FLOPs to read each prompt once and its completions [Q, n] after it, projecting completions only.

  Every token meets the weights of the `adapters` as well, whose number that is.
  """
  prefill = forward_flops(spec, np.zeros_like(prompts), prompts - 1, with_head=False)
  before = np.repeat((prompts - 1)[:, None], completions.shape[1], axis=1)
  low_rank = 2 * adapters * int((prompts - 1).sum() + completions.sum())
  return prefill + forward_flops(spec, before.ravel(), completions.ravel(), with_head=True) + low_rank


def _frozen_flops(spec: ModelSpec, positions: int, projected: int) -> int:
  """FLOPs that gradients of all weights but the adapters would take: a product a weight and position."""
  return 2 * (matmul_params(spec) * positions + spec.vocab_size * spec.embed_dim * projected)


def rollout_entry(
  spec: ModelSpec,
  prompt_length: np.ndarray,
  length: np.ndarray,
  adapters: int = 0,
  computed: Computed | None = None,
) -> Ledger:
  """Sampling completions of `length` [B] after prompts of `prompt_length` [Q].

  `adapters` is the number of their weights (`lora.size`), 0 where the model has none; `computed` what the
  program went through, None where that is not known.
  """
  completions = np.asarray(length).reshape(len(prompt_length), -1)
  flops = _read_flops(spec, np.asarray(prompt_length), completions, adapters)
  tokens = Ledger(sampled=int(completions.sum()), prompt_sampler=int(prompt_length.sum()), flops=flops)
  if computed is None:
    return tokens
  return tokens + _computed('rollout', flops, computed.positions, computed.forward(spec, adapters))


def student_entry(
  spec: ModelSpec,
  prompt_length: np.ndarray,
  length: np.ndarray,
  adapters: int = 0,
  computed: Computed | None = None,
) -> Ledger:
  """Training on the completions; where there are `adapters`, all other weights are frozen."""
  prompts, completions = np.asarray(prompt_length), np.asarray(length).reshape(len(prompt_length), -1)
  read = int((prompts - 1).sum() + completions.sum())
  frozen = _frozen_flops(spec, read, int(completions.sum())) if adapters else 0
  flops = _BACKWARD * _read_flops(spec, prompts, completions, adapters) - frozen
  tokens = Ledger(scored_student=int(completions.sum()), prompt_student=int(prompt_length.sum()), flops=flops)
  if computed is None:
    return tokens
  return tokens + _computed('student', flops, computed.positions, computed.backward(spec, adapters))


def teacher_entry(
  spec: ModelSpec,
  prompt_length: np.ndarray,
  length: np.ndarray,
  adapters: int = 0,
  computed: Computed | None = None,
) -> Ledger:
  """Scoring the completions under one teacher view; a frozen teacher has no `adapters`."""
  completions = np.asarray(length).reshape(len(prompt_length), -1)
  flops = _read_flops(spec, np.asarray(prompt_length), completions, adapters)
  tokens = Ledger(scored_teacher=int(completions.sum()), prompt_teacher=int(prompt_length.sum()), flops=flops)
  if computed is None:
    return tokens
  return tokens + _computed('teacher', flops, computed.positions, computed.forward(spec, adapters))


def weigh_entry(
  spec: ModelSpec,
  prompt_length: np.ndarray,
  length: np.ndarray,
  adapters: int,
  computed: Computed,
  *,
  student: bool,
  teacher: ModelSpec | None,
) -> Ledger:
  """Weighing the samples, before any gradient.

  Args:
    spec: the student's shape.
    prompt_length: int [Q].
    length: int [B].
    adapters: number of the student's.
    computed: what the student goes through in a pass.
    student: whether it takes one.
    teacher: whose hidden states meet the LM head once more for it; None for nobody's.
  """
  prompts, completions = np.asarray(prompt_length), np.asarray(length).reshape(len(prompt_length), -1)
  count, head = int(completions.sum()), 0 if teacher is None else 2 * teacher.vocab_size * teacher.embed_dim
  needed, spent, positions, tokens = head * count, head * computed.projected, 0, Ledger()
  if student:
    needed += _read_flops(spec, prompts, completions, adapters)
    spent += computed.forward(spec, adapters)
    positions, tokens = computed.positions, Ledger(scored_weigh=count, prompt_weigh=int(prompts.sum()))
  return tokens + Ledger(flops=needed) + _computed('weigh', needed, positions, spent)


def _computed(phase: str, needed: int, positions: int, spent: int) -> Ledger:
  """What a phase needed beside what its program went through."""
  counts = {'positions': positions, 'needed': needed, 'spent': spent}
  return Ledger(**{f'{name}_{phase}': count for name, count in counts.items()})
