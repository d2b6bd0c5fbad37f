"""The same sampled tokens, read under the teacher's views."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Rollout, TeacherScores


def score_teacher(
  spec: ModelSpec, params: model.Params, views: Sequence[Prompts], rollout: Rollout
) -> TeacherScores:
  """Teacher hidden states for every sampled token, each view's prompt read once a question.

  Args:
    spec: the teacher's shape.
    params: the teacher's tree.
    views: M prompts of the same Q questions.
    rollout: B = Q·n rows; their ids enter as they were sampled.
  """
  hidden = [model.continuation_hidden(spec, params, v.ids, v.length, rollout.ids) for v in views]
  return TeacherScores(hidden=jax.lax.stop_gradient(jnp.stack(hidden)))
