"""The same sampled tokens, read under the teacher's views."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from opsd_jax.distill import packing, reading
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Plan, Prompts, Rollout, TeacherScores


def score_teacher(
  spec: ModelSpec, params: model.Params, views: Sequence[Prompts], rollout: Rollout, plan: Plan | None = None
) -> TeacherScores:
  """Teacher hidden states for every planned token, each view's prompt read once a question.

  Args:
    spec: the teacher's shape.
    params: the teacher's tree.
    views: M prompts of the same Q questions.
    rollout: B = Q·n rows; their ids enter as they were sampled.
    plan: which tokens, and how they are read; None for `packing.everything`.
  """
  plan = everything(views[0], rollout, len(views)) if plan is None else plan
  hidden = [
    _read(spec, params, reading.prepare(how, plan.origin.shape[0], seen, rollout))
    for how, seen in zip(plan.teacher, views, strict=True)
  ]
  return TeacherScores(hidden=jax.lax.stop_gradient(jnp.stack(hidden)))


def everything(prompts: Prompts, rollout: Rollout, views: int = 1) -> Plan:
  """The plan of all positions in one micro-batch, known from shapes."""
  questions, (rows, width) = prompts.ids.shape[0], rollout.ids.shape
  return packing.everything(questions, rows // questions, width, views)


def _read(spec: ModelSpec, params: model.Params, inputs: reading.Inputs) -> jax.Array:
  """[N, G, C, D], a micro-batch at a time."""
  return jax.lax.map(lambda part: reading.states(spec, params, part), inputs)
