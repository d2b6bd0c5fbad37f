"""Whose weights score: the initial ones, their moving average, the student's own, or another model's."""

import jax
import jax.numpy as jnp

from opsd_jax.distill.config import TeacherConfig
from opsd_jax.models import model
from opsd_jax.models.model import Params
from opsd_jax.models.spec import ModelSpec


def init(config: TeacherConfig, params: Params) -> Params | None:
  """What the train state carries for the teacher: the average, started at the initial weights.

  A frozen teacher is the run's initial weights, which the run holds anyway; it is not carried. Under
  LoRA `params` and the average are the adapters, and a frozen teacher is the base without them.
  """
  return jax.tree.map(jnp.copy, params) if config.kind == 'ema' else None


def params_for(
  config: TeacherConfig,
  initial: Params,
  average: Params | None,
  student: Params,
  external: Params | None = None,
) -> Params:
  """The tree that scores this update's rollouts; each is a whole model's."""
  return {'frozen': initial, 'ema': average, 'live': student, 'external': external}[config.kind]


def spec_for(config: TeacherConfig, student: ModelSpec) -> ModelSpec:
  """The shape of that tree's model."""
  return config.model if config.kind == 'external' else student


def external_head(config: TeacherConfig, external: Params, rows: int) -> jax.Array:
  """The LM head [rows, Dt] of an external teacher, with as many rows as the student's.

  Published sizes of one vocabulary pad it differently: rows that no token has are cut off, or are zeros.
  """
  head = model.head(config.model, external)
  if head.shape[0] == rows:
    return head
  return jnp.pad(head[:rows], ((0, max(rows - head.shape[0], 0)), (0, 0)))


def update(config: TeacherConfig, average: Params | None, student: Params) -> Params | None:
  """The average after an optimiser step: decay · average + (1 - decay) · student."""
  if average is None:
    return None
  decay = config.ema_decay
  return jax.tree.map(lambda a, s: decay * a + (1 - decay) * s, average, student)
