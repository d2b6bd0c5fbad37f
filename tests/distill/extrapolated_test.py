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
from tests.models.oracle import continuation_rows
from tests.models.transformer_test import QUICK, SPEC, flat, float64, make_params, one_device, quick_jit
from tests.train.sharded_step_test import (
  LENGTHS,
  OPTIMIZER,
  PER_QUESTION,
  QUESTIONS,
  SAME,
  VALID,
  WIDTH,
  differences,
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


@functools.cache
def program(strength, changes):
  """`(token, its initial log-prob) -> ((loss, what is known of it), gradient by the student's logits)`."""
  config = dataclasses.replace(SAMPLED, extrapolation=strength, **dict(changes))
  teacher = jnp.float32(TEACHER)[None, None]

  def total(student, token, initial):
    loss, out = extrapolated.compare(
      student[None, None], HEAD, teacher, HEAD, token, initial, config, valid_vocab=5
    )
    return loss.sum(), out

  return quick_jit(jax.value_and_grad(total, has_aux=True))


def compare(token, strength, **changes):
  """Loss, what is known of it, and the gradient by the student's logits, of one token."""
  initial = np.float32([[log_softmax(INITIAL / 1.1)[token]]])
  found = program(strength, tuple(changes.items()))(np.float32(STUDENT), np.int32([[token]]), initial)
  (loss, out), gradient = found
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


def sampled_log_probs(params, prompts, ids):
  """float64 [B, T] at the temperature of the loss."""
  hidden = continuation_rows(SPEC, params, prompts.ids, prompts.length, ids)
  logits = hidden @ float64(params['embedding'])[:VALID].T / 1.1
  log_q = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
  return np.take_along_axis(log_q, ids[..., None], -1)[..., 0]


def test_the_step_extrapolates():
  """Student 0, taught by weights 1 under their own prompts, with weights 2 for the initial ones; in parts."""
  prompts, seen, rollout = make_batch()
  plan = packing.everything(QUESTIONS, PER_QUESTION, WIDTH, parts=4)
  params, teacher = placed(one_device(), 0), placed(one_device(), 1)
  config = dataclasses.replace(SAMPLED, extrapolation=2.0)
  score_tokens = quick_jit(functools.partial(scoring.score_tokens, SPEC, config, VALID))
  initial = score_tokens(make_params(SPEC, 2), prompts, rollout)
  state = TrainState(params, OPTIMIZER.init(params), None)
  made = steps.make_distill_step(SPEC, config, TeacherConfig(), OPTIMIZER, valid_vocab=VALID)
  scores = score(teacher, [seen], rollout, plan)
  arguments = state, prompts, rollout, scores, model.head(SPEC, teacher), None, plan
  state, report = made.lower(*arguments, initial=initial).compile(QUICK)(*arguments, initial=initial)

  s, t, r = (
    sampled_log_probs(make_params(SPEC, seed), shown, rollout.ids)
    for seed, shown in ((0, prompts), (1, seen), (2, prompts))
  )
  value = np.where(np.arange(WIDTH) < LENGTHS[:, None], (s - r) - 2 * (t - r), 0)
  np.testing.assert_allclose(report.token_loss, value, atol=2 * SAME)
  assert float(report.loss) == pytest.approx(value.sum() / LENGTHS.sum(), rel=SAME)
  direction, expected = differences(
    lambda p: (value * sampled_log_probs(p, prompts, rollout.ids)).sum() / LENGTHS.sum()
  )
  assert flat(state.optimizer[0].trace) @ flat(direction) == pytest.approx(expected, rel=SAME)


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
