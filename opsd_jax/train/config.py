"""How weights step and how long a run goes on."""

import dataclasses
import math
from typing import Literal

from opsd_jax.config import ConfigError, require, require_choice
from opsd_jax.distill.config import ObjectiveConfig
from opsd_jax.distill.packing import PACKINGS, Packing
from opsd_jax.distill.signals import SIGNALS
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.train import rejection
from opsd_jax.train.rejection import RejectConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with a warm-up and a decay, after clipping the global gradient norm.

  Attributes:
    learning_rate: peak.
    schedule: `constant`, or `linear` or `cosine` decay to 0 over `decay_updates`.
    warmup_updates: updates of linear growth to the peak; the first takes peak / warmup_updates.
    decay_updates: updates after which a decaying schedule reaches 0, warm-up included.
    beta1: decay of the first moment.
    beta2: decay of the second moment.
    epsilon: added to the root of the second moment.
    weight_decay: decoupled.
    clip_norm: bound on the global gradient norm, or none.
  """

  learning_rate: float = 1e-3
  schedule: Literal['constant', 'linear', 'cosine'] = 'constant'
  warmup_updates: int = 0
  decay_updates: int = 0
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float | None = 1.0


@dataclasses.dataclass(frozen=True)
class ColdStartConfig:
  """Supervised training that makes weights before distillation: the student's, or an external teacher's.

  Attributes:
    updates: 0 leaves the weights as they are.
    batch: rows of an update.
    teacher_fraction: share of rows under the teacher's view with a clean solution.
    clean: the other rows have clean solutions too; else digit chains give them their misconception.
    student_texts: templates that these other rows take in turn; empty for `views.student` alone.
    optimizer: of this stage.
  """

  updates: int = 0
  batch: int = 96
  teacher_fraction: float = 0.5
  clean: bool = False
  student_texts: tuple[str, ...] = ()
  optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """Whose completions an update learns from.

  Attributes:
    kind: `student`: its own rollouts; `solutions`: texts of the data, one a question; `teacher`: its rollouts
      under its view, drawn as `rollout.sampling` says.
    student_share: share of the updates that take the student's own rollouts all the same (lambda of GKD,
      arXiv 2306.13649): a coin an update, counted by (seed, update).
    completion: template of a solution's text; an EOS follows it.
    keep: `correct` leaves the teacher's wrong rollouts out of the loss (rejection), `all` does not.
    attempts: times that a rollout is drawn at most before it is left out, with `correct` or `reject`.
    reject: other rules by which the teacher's rollouts are left out, whether they are right or not.
  """

  kind: Literal['student', 'solutions', 'teacher'] = 'student'
  student_share: float = 0.0
  completion: str = '{solution}'
  keep: Literal['all', 'correct'] = 'all'
  attempts: int = 1
  reject: RejectConfig = RejectConfig()

  @property
  def rejects(self) -> bool:
    """Whether any rollout may be left out."""
    return self.keep != 'all' or bool(rejection.asked(self.reject))


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """An arm's own supervised updates before it distils: the off-policy cold start of "Rethinking OPD" (5.1).

  They imitate completions by cross-entropy. A frozen teacher is then the weights that this leaves.

  Attributes:
    updates: 0 for none.
    source: of the completions; not the student.
    optimizer: of this stage.
  """

  updates: int = 0
  source: SourceConfig = SourceConfig(kind='teacher', keep='correct', attempts=3)
  optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """A distillation run.

  Attributes:
    updates: optimiser steps, unless `budget` says otherwise.
    budget: `updates:N`, `tokens:N` (sampled) or `minutes:X`; the run stops after the update that
      reaches it. None means `updates`.
    max_updates: updates after which the run stops whatever its budget, or none.
    packing: how sequences are laid out for scoring: `rows`, a prompt once a question and completions
      padded to the longest; `packed`, as many questions with their completions in a row as fit.
    micro_tokens: positions, padding included, that a model reads at a time when scoring, over all
      devices, but no less than a question on each; none for all at once. The loss does not depend on it.
    evaluate_every: updates between accuracies on validation problems; 0 for never.
    show_every: updates between rollouts written out token by token, the first among them; 0 for never.
    max_bad_updates: non-finite updates in a row after which the run stops.
    parity_alarm: mean absolute difference between sampler and scorer, in nats a token over rollouts of the
      current weights, above which an update warns; none for 1e-3 in float32 and 0.1 in bfloat16.
  """

  updates: int = 100
  budget: str | None = None
  max_updates: int | None = None
  packing: Packing = 'rows'
  micro_tokens: int | None = None
  evaluate_every: int = 0
  show_every: int = 0
  max_bad_updates: int = 3
  parity_alarm: float | None = None


@dataclasses.dataclass(frozen=True)
class Budget:
  """When a run has done enough: `limit` updates, sampled tokens or minutes, or `max_updates` updates."""

  unit: Literal['updates', 'tokens', 'minutes']
  limit: float
  max_updates: int | None = None

  def fraction(self, updates: int, tokens: int, seconds: float) -> float:
    """How much of the budget is spent; 1 or more ends the run."""
    spent = {'updates': updates, 'tokens': tokens, 'minutes': seconds / 60}[self.unit] / self.limit
    return spent if self.max_updates is None else max(spent, updates / self.max_updates)


def parse_budget(config: LoopConfig) -> Budget:
  """The budget of a run.

  Raises:
    ConfigError: not of the form `tokens:N`, `updates:N` or `minutes:X` with a positive number.
  """
  if config.budget is None:
    return Budget('updates', config.updates, config.max_updates)
  unit, _, amount = config.budget.partition(':')
  try:
    limit = float(amount.replace('_', ''))
    if unit not in ('updates', 'tokens', 'minutes') or not 0 < limit < math.inf:
      raise ValueError
  except ValueError:
    raise ConfigError(
      f'the budget is {config.budget!r}; write tokens:N, updates:N or minutes:X with a positive number.'
    ) from None
  return Budget(unit, limit, config.max_updates)


def validate_optimizer(name: str, config: OptimizerConfig) -> None:
  """Raises `ConfigError` for an optimiser that cannot step."""
  require(config.learning_rate > 0, f'{name}.learning_rate is {config.learning_rate}; it must be positive.')
  require_choice(f'{name}.schedule', config.schedule, ('constant', 'linear', 'cosine'))
  require(
    config.warmup_updates >= 0, f'{name}.warmup_updates is {config.warmup_updates}; it must not be negative.'
  )
  require(
    config.schedule == 'constant' or config.decay_updates > config.warmup_updates,
    f'{name}.decay_updates is {config.decay_updates}; a {config.schedule} schedule needs it larger than '
    f'{name}.warmup_updates ({config.warmup_updates}).',
  )
  for field in ('beta1', 'beta2'):
    require(
      0 <= getattr(config, field) < 1, f'{name}.{field} is {getattr(config, field)}; it must lie in [0, 1).'
    )
  require(
    config.clip_norm is None or config.clip_norm > 0,
    f'{name}.clip_norm is {config.clip_norm}; it must be positive, or none.',
  )
  require(config.epsilon > 0, f'{name}.epsilon is {config.epsilon}; it must be positive.')
  require(config.weight_decay >= 0, f'{name}.weight_decay is {config.weight_decay}; it must not be negative.')


def validate_decay(name: str, config: OptimizerConfig, updates: int) -> None:
  """A decaying schedule must not reach 0 before the run ends: the rest would be paid for in vain."""
  require(
    config.schedule == 'constant' or config.decay_updates >= updates,
    f'{name}.decay_updates is {config.decay_updates}, but the run takes {updates} updates and would go on at '
    'learning rate 0; raise it to that.',
  )


def validate_cold_start(config: ColdStartConfig, name: str = 'cold_start') -> None:
  """Raises `ConfigError` for a cold start, set under `name`, that cannot run."""
  require(config.updates >= 0, f'{name}.updates is {config.updates}; it must not be negative.')
  require(config.batch > 0, f'{name}.batch is {config.batch}; it must be positive.')
  require(
    0 <= config.teacher_fraction <= 1,
    f'{name}.teacher_fraction is {config.teacher_fraction}; a share lies in 0..1.',
  )
  validate_optimizer(f'{name}.optimizer', config.optimizer)
  validate_decay(f'{name}.optimizer', config.optimizer, config.updates)


def validate_source(config: SourceConfig, name: str = 'source') -> None:
  """Raises `ConfigError` for completions, set under `name`, that cannot be had."""
  require_choice(f'{name}.kind', config.kind, ('student', 'solutions', 'teacher'))
  require_choice(f'{name}.keep', config.keep, ('all', 'correct'))
  require(
    0 <= config.student_share < 1,
    f'{name}.student_share is {config.student_share}; it must lie in [0, 1). For the student alone set '
    f'{name}.kind=student.',
  )
  require(
    config.kind != 'student' or config.student_share == 0,
    f'{name}.student_share is {config.student_share}, but {name}.kind is student, which takes its rollouts '
    f'always; name the other source (solutions or teacher) in {name}.kind.',
  )
  require(
    config.keep == 'all' or config.kind == 'teacher',
    f"{name}.keep is 'correct', but {name}.kind is {config.kind!r}; only a teacher's rollouts are rejected.",
  )
  require(
    config.reject == RejectConfig() or config.kind == 'teacher',
    f'{name}.reject is set, but {name}.kind is {config.kind!r}; only rollouts of a teacher are rejected. Set '
    f'{name}.kind=teacher, or leave the rules out.',
  )
  rejection.validate(config.reject, f'{name}.reject')
  require(config.attempts > 0, f'{name}.attempts is {config.attempts}; it must be positive.')
  require(
    config.attempts == 1 or config.rejects,
    f'{name}.attempts is {config.attempts}, but no rollout is rejected; set {name}.keep=correct or a rule '
    f'of {name}.reject.',
  )


def validate_warm_start(config: WarmStartConfig, lora_rank: int) -> None:
  """Raises `ConfigError` for a warm start that cannot run."""
  require(config.updates >= 0, f'warm_start.updates is {config.updates}; it must not be negative.')
  if not config.updates:
    return
  require(
    lora_rank == 0,
    f'warm_start.updates is {config.updates}, which trains all weights, but lora.rank is {lora_rank}; set '
    'lora.rank=0, or warm_start.updates=0.',
  )
  validate_source(config.source, 'warm_start.source')
  require(
    config.source.kind != 'student' and config.source.student_share == 0,
    "warm_start.source takes the student's own rollouts, and imitating those teaches nothing on average; set "
    'warm_start.source.kind to solutions or teacher, and warm_start.source.student_share=0.',
  )
  validate_optimizer('warm_start.optimizer', config.optimizer)
  validate_decay('warm_start.optimizer', config.optimizer, config.updates)


def validate_agreement(source: SourceConfig, objective: ObjectiveConfig, weigh: WeighConfig) -> None:
  """Raises `ConfigError` for a loss, or weights, that are not sound on completions of that source."""
  if objective.estimator == 'nll':
    require(
      source.kind != 'student' and source.student_share == 0,
      "objective.estimator is 'nll', but the student's own rollouts are among what it would imitate: the "
      'mean of that gradient is 0. Set source.kind=solutions or source.kind=teacher, and '
      'source.student_share=0.',
    )
    require(
      weigh.kind == 'none',
      f"weigh.kind is {weigh.kind!r}, but objective.estimator is 'nll', which asks no teacher; set "
      'weigh.kind=none.',
    )
  if source.kind == 'student':
    return
  require(
    weigh.kind not in SIGNALS or weigh.source == 'pass',
    f'weigh.source is {weigh.source!r}, but source.kind is {source.kind!r}, of whose completions no student '
    'told log-probs; set weigh.source=pass.',
  )
  require(
    objective.support != 'sampled' or objective.estimator != 'divergence',
    f"objective.support is 'sampled', an estimate for rollouts drawn from the student, but source.kind is "
    f'{source.kind!r}; take the full vocabulary or a top-k.',
  )
  require(
    objective.correction == 'none',
    f'objective.correction is {objective.correction!r}, which needs the log-probs of what drew the tokens '
    f'as a student, but source.kind is {source.kind!r}; set objective.correction=none.',
  )


def validate_loop(config: LoopConfig, widest: int) -> None:
  """Raises `ConfigError` for a run that cannot go on or end.

  `widest` is the number of positions that one question may take, its completions among them.
  """
  require(config.updates > 0, f'loop.updates is {config.updates}; it must be positive.')
  require(
    config.max_updates is None or config.max_updates > 0,
    f'loop.max_updates is {config.max_updates}; it must be positive, or none.',
  )
  parse_budget(config)
  require(
    config.micro_tokens is None or config.micro_tokens >= widest,
    f'loop.micro_tokens is {config.micro_tokens}, but a question may take {widest} positions: the longer of '
    'views.student_tokens and views.teacher_tokens, less one, and rollout.per_question times '
    'rollout.sampling.max_tokens; raise it to that, or use none.',
  )
  require_choice('loop.packing', config.packing, PACKINGS)
  for field in ('evaluate_every', 'show_every'):
    require(
      getattr(config, field) >= 0, f'loop.{field} is {getattr(config, field)}; it must not be negative.'
    )
  require(
    config.max_bad_updates > 0, f'loop.max_bad_updates is {config.max_bad_updates}; it must be positive.'
  )
  require(
    config.parity_alarm is None or config.parity_alarm > 0,
    f'loop.parity_alarm is {config.parity_alarm}; it must be positive, or none.',
  )
