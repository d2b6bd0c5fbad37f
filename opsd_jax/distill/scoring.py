"""The same sampled tokens, read under the teacher's views, or once more as the student reads them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kernels.linear_logprob.api import LogProb, linear_logprob
from opsd_jax.distill import packing, reading
from opsd_jax.distill.config import ObjectiveConfig
from opsd_jax.mesh import constrain
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Plan, Prompts, Rollout, TeacherScores


@jax.named_scope('teacher')
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


@jax.named_scope('teacher')
def score_tokens(
  spec: ModelSpec,
  config: ObjectiveConfig,
  valid_vocab: int,
  params: model.Params,
  prompts: Prompts,
  rollout: Rollout,
  plan: Plan | None = None,
) -> jax.Array:
  """float32 [B, T], log-probs of the sampled tokens as the student reads and scores them.

  On padding they are anything.

  Args:
    spec: the model's shape.
    config: the student's temperature, and how many positions' logits are held at a time.
    valid_vocab: ids at and beyond it are padding of the head.
    params: whose log-probs.
    prompts: the student's.
    rollout: their continuations.
    plan: which tokens, and how they are read; None for `packing.everything`.
  """
  plan = everything(prompts, rollout, views=0) if plan is None else plan
  inputs = reading.prepare(plan.student, plan.origin.shape[0], prompts, rollout)
  ids = reading.gather(rollout.ids, plan.origin)

  def score(part: tuple[reading.Inputs, jax.Array]) -> jax.Array:
    return token_logprobs(spec, config, valid_vocab, params, *part).logp

  return reading.scatter(jax.lax.map(score, (inputs, ids)), plan.origin, rollout.ids.shape)


def token_logprobs(
  spec: ModelSpec,
  config: ObjectiveConfig,
  valid_vocab: int,
  params: model.Params,
  inputs: reading.Inputs,
  ids: jax.Array,
) -> LogProb:
  """Of the tokens [G, C] of one micro-batch, at the student's temperature; differentiable."""
  return linear_logprob(
    reading.states(spec, params, inputs),
    constrain(model.head(spec, params), 'vocab', None),
    ids,
    temperature=config.student_temperature,
    softcap=spec.final_softcap,
    valid_vocab=valid_vocab,
    chunk_tokens=config.chunk_tokens,
  )


def everything(prompts: Prompts, rollout: Rollout, views: int = 1) -> Plan:
  """The plan of all positions in one micro-batch, known from shapes."""
  questions, (rows, width) = prompts.ids.shape[0], rollout.ids.shape
  return packing.everything(questions, rows // questions, width, views)


def _read(spec: ModelSpec, params: model.Params, inputs: reading.Inputs) -> jax.Array:
  """[N, G, C, D], a micro-batch at a time."""
  return jax.lax.map(lambda part: reading.states(spec, params, part), inputs)
