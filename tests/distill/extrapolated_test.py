"""A teacher moved away from the initial weights: golden numbers, NumPy, the whole step, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, recipes
from opsd_jax.config import ConfigError
from opsd_jax.distill import extrapolated, packing, scoring
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.experiment import validate
from opsd_jax.models import model
from opsd_jax.train import step as steps
from opsd_jax.train.state import TrainState
from tests.distill.objective_test import HEAD, STUDENT, TEACHER
from tests.models.transformer_test import QUICK, SPEC, make_params, one_device, quick_jit, relative_gap
from tests.train.sharded_step_test import (
  LENGTHS,
  OPTIMIZER,
  PER_QUESTION,
  QUESTIONS,
  SAME,
  VALID,
  WIDTH,
  make_batch,
  placed,
  score,
)

SAMPLED = ObjectiveConfig(
  divergence='reverse_kl',
  support='sampled',
  student_temperature=1.1,
  teacher_temperature=1.1,
  chunk_tokens=32,
  implementation='chunked',
)
INITIAL = np.array([1.0, 0.3, -0.2, 0.5, 0.0])


def log_softmax(logits):
  return logits - np.logaddexp.reduce(logits)


def compare(token, strength, **changes):
  """Loss, what is known of it, and the gradient by the student's logits, of one token."""
  config = dataclasses.replace(SAMPLED, extrapolation=strength, **changes)
  initial = jnp.float32([[log_softmax(INITIAL / 1.1)[token]]])
  tokens, teacher = jnp.int32([[token]]), jnp.float32(TEACHER)[None, None]

  def total(student):
    loss, out = extrapolated.compare(
      student[None, None], HEAD, teacher, HEAD, tokens, initial, config, valid_vocab=5
    )
    return loss.sum(), out

  (loss, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.float32(STUDENT))
  return float(loss), out, gradient


def test_without_extrapolation_it_is_the_golden_gradient_of_the_sampled_token():
  loss, _, gradient = compare(0, 1.0)
  assert loss == pytest.approx(1.481776, abs=1e-5)
  np.testing.assert_allclose(gradient, [0.632950, -0.287711, -0.115916, -0.046702, -0.182621], atol=1e-5)


@pytest.mark.parametrize('token', range(5))
@pytest.mark.parametrize('strength', [0.5, 1.25, 2.0])
def test_value_and_gradient(token, strength):
  s, t, r = (log_softmax(x / 1.1) for x in (STUDENT, TEACHER, INITIAL))
  advantage = -((s[token] - r[token]) - strength * (t[token] - r[token]))
  loss, out, gradient = compare(token, strength)
  assert loss == pytest.approx(-advantage, abs=1e-5)
  np.testing.assert_allclose(gradient, -advantage * (np.eye(5)[token] - np.exp(s)) / 1.1, atol=1e-5)
  assert float(out.student_logp[0, 0]) == pytest.approx(s[token], abs=1e-5)
  assert float(out.teacher_logp[0, 0]) == pytest.approx(t[token], abs=1e-5)
  assert float(out.student_entropy[0, 0]) == pytest.approx(-(np.exp(s) * s).sum(), abs=1e-5)


def test_the_clip_of_a_token_ends_its_gradient():
  loss, out, gradient = compare(0, 1.25, token_clip=0.5)
  assert loss == 0.5 and float(out.loss[0, 0]) > 0.5 and not np.any(gradient)


# The step.


def make(strength, parts):
  """A step from weights 0, taught by weights 1: `(initial log-probs) -> (gradient, report)`."""
  prompts, seen, rollout = make_batch()
  plan = packing.everything(QUESTIONS, PER_QUESTION, WIDTH, parts=parts)
  teacher, config = placed(one_device(), 1), dataclasses.replace(SAMPLED, extrapolation=strength)
  made = steps.make_distill_step(SPEC, config, TeacherConfig(), OPTIMIZER, valid_vocab=VALID)
  programs = []
  scores = score(teacher, [seen], rollout, plan)

  def step(initial):
    params = placed(one_device(), 0)
    state = TrainState(params, OPTIMIZER.init(params), None)
    arguments = state, prompts, rollout, scores, model.head(SPEC, teacher), None, plan, None, initial
    programs.append(programs[0] if programs else made.lower(*arguments).compile(QUICK))
    state, report = programs[0](*arguments)
    return state.optimizer[0].trace, jax.tree.map(np.asarray, report)

  return step


def test_the_step_extrapolates():
  """From the teacher's own log-probs nothing is moved, whatever λ; from others the loss moves."""
  prompts, _, rollout = make_batch()
  gradient, kernel = make(1.0, 1)(None)
  student = rollout.raw_logp - kernel.logp_gap
  teacher = student - kernel.token_loss
  step = make(2.0, 4)
  same, report = step(np.float32(teacher))
  np.testing.assert_allclose(report.token_loss, kernel.token_loss, atol=SAME)
  assert relative_gap(same, gradient) < SAME
  score_tokens = quick_jit(functools.partial(scoring.score_tokens, SPEC, SAMPLED, VALID))
  initial = np.asarray(score_tokens(make_params(SPEC, 2), prompts, rollout))
  moved, report = step(initial)
  real = np.arange(WIDTH) < LENGTHS[:, None]
  expected = np.where(real, kernel.token_loss - (teacher - initial), 0)
  np.testing.assert_allclose(report.token_loss, expected, atol=SAME)
  assert relative_gap(moved, gradient) > 0.1


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (['objective.extrapolation=0'], 'objective.extrapolation is 0.0; it must be positive'),
    (
      ['objective.extrapolation=1.25'],
      "objective.support is 'full' and objective.divergence 'forward_kl'; set",
    ),
  ],
)
def test_what_is_refused(settings, words):
  with pytest.raises(ConfigError, match=words):
    validate(common.with_settings(recipes.load('quickstart'), settings))
