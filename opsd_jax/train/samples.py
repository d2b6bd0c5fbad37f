"""What the samples of an update weigh: who is asked, what is said of it, what it costs.

Axis letters: B rollouts.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np

from opsd_jax.distill import signals, teachers, weighing
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.distill.weighing import Weights
from opsd_jax.models import lora, model
from opsd_jax.records import Graded, Plan, Prompts, Rollout, TeacherScores
from opsd_jax.train import ledger
from opsd_jax.train.setup import Setup


def make_weigher(setup: Setup, score: Callable[..., TeacherScores]) -> Callable[..., Weights | None]:
  """Makes `(student, teacher, prompts, rollout, scores, plan) -> Weights`, or None where all weigh alike.

  Student and teacher are whole trees, the rest is placed on the mesh; `score` is the compiled
  `scoring.score_teacher`, which reads the student's own view for `weigh.source=pass`.
  """
  config, spec, objective = setup.weigh, setup.spec, setup.objective
  if config.kind == 'none':
    return lambda *_: None
  taught_by = teachers.spec_for(setup.teacher, spec)
  compiled = jax.jit(
    functools.partial(
      weighing.from_states,
      config,
      temperatures=(objective.student_temperature, objective.teacher_temperature),
      softcaps=(spec.final_softcap, taught_by.final_softcap),
      valid_vocab=setup.exam.valid_vocab,
      chunk_tokens=objective.chunk_tokens,
    )
  )

  def weigher(
    student: model.Params,
    teacher: model.Params,
    prompts: Prompts,
    rollout: Rollout,
    scores: TeacherScores,
    plan: Plan,
  ) -> Weights:
    own = None
    if config.source == 'pass':
      read = score(spec, student, (prompts,), rollout, plan.replace(teacher=(plan.student,)))
      own = read.hidden[0], model.head(spec, student)
    return compiled(rollout, plan, (scores.hidden[0], model.head(taught_by, teacher)), own)

  return weigher


def describe(
  config: WeighConfig, weights: Weights | None, rollout: Rollout, graded: Graded
) -> dict[str, float]:
  """Scalars of an update, from the weights and the samples that were kept, on the host."""
  metrics = {} if config.keep == 'all' else {'kept': float(np.mean(np.asarray(rollout.length) > 0))}
  if weights is None:
    return metrics
  return metrics | weighing.statistics(weights, rollout.length, graded.correct)


def entry(setup: Setup, prompts: Prompts, rollout: Rollout, plan: Plan) -> ledger.Ledger:
  """What the weights took: the student's own pass, if there is one, and the teacher's LM head again."""
  config, taught_by = setup.weigh, teachers.spec_for(setup.teacher, setup.spec)
  if config.kind == 'none':
    return ledger.Ledger()
  return ledger.weigh_entry(
    setup.spec,
    prompts.length,
    rollout.length,
    lora.size(setup.lora, setup.spec),
    ledger.read_positions(plan, plan.student, prompts, rollout),
    student=config.source == 'pass',
    teacher=taught_by if signals.asks_teacher(config.kind) else None,
  )
