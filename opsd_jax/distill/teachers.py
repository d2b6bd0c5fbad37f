"""Whose weights score: the initial ones, their moving average, or the student's own."""

import jax
import jax.numpy as jnp

from opsd_jax.distill.config import TeacherConfig
from opsd_jax.models.model import Params


def init(config: TeacherConfig, params: Params) -> Params | None:
  """What the train state carries for the teacher: the average, started at the initial weights.

  A frozen teacher is the run's initial weights, which the run holds anyway; it is not carried. Under
  LoRA `params` and the average are the adapters, and a frozen teacher is the base without them.
  """
  return jax.tree.map(jnp.copy, params) if config.kind == 'ema' else None


def params_for(config: TeacherConfig, initial: Params, average: Params | None, student: Params) -> Params:
  """The tree that scores this update's rollouts; each is a whole model's."""
  return {'frozen': initial, 'ema': average, 'live': student}[config.kind]


def update(config: TeacherConfig, average: Params | None, student: Params) -> Params | None:
  """The average after an optimiser step: decay · average + (1 - decay) · student."""
  if average is None:
    return None
  decay = config.ema_decay
  return jax.tree.map(lambda a, s: decay * a + (1 - decay) * s, average, student)
