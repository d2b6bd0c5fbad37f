"""Logits are capped alike by the sampler, the objective, the supervised loss and the preflight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opsd_jax.analyze import preflight
from opsd_jax.distill import scoring
from opsd_jax.distill.config import ObjectiveConfig, Softcaps, TeacherConfig, divergence_spec
from opsd_jax.models import model
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.train import state, step
from tests.models.oracle import row_logits
from tests.models.transformer_test import UNTIED, make_params, make_rows

SPEC = dataclasses.replace(UNTIED, final_softcap=1.0)
VOCAB = SPEC.vocab_size
IDS, LENGTH, TAIL = make_rows([2, 4], 1, 5)
PROMPTS = Prompts(IDS, LENGTH, np.arange(2, dtype=np.uint32))


def copied(params):
  return jax.tree.map(jnp.copy, params)  # an update takes over what it is given


def oracle_logp(spec=SPEC):
  """float64 [2, 5], log-probabilities of the completions under teacher forcing."""
  rows = []
  for prompt, length, tail in zip(IDS, LENGTH, TAIL):
    logits = row_logits(spec, make_params(UNTIED), np.concatenate([prompt[:length], tail[:-1]]))[length - 1 :]
    logits = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    rows.append(logits[np.arange(5), tail])
  return np.stack(rows)


def test_the_kernel_caps_both_models():
  spec = divergence_spec(ObjectiveConfig(), VOCAB, Softcaps(30.0, 20.0))
  assert (spec.student_softcap, spec.teacher_softcap) == (30.0, 20.0)
  assert divergence_spec(ObjectiveConfig(), VOCAB).student_softcap is None


def test_the_supervised_loss_is_that_of_the_oracle():
  optimizer = optax.sgd(0.1)
  update = step.make_supervised_step(SPEC, optimizer, valid_vocab=VOCAB)
  start = state.create(copied(make_params(UNTIED)), optimizer, TeacherConfig())
  _, report = update(start, PROMPTS, TAIL, np.int32([5, 5]))
  assert float(report.loss) == pytest.approx(-oracle_logp().mean(), rel=1e-5)
  assert abs(oracle_logp().mean() - oracle_logp(UNTIED).mean()) > 0.01


def test_the_update_scores_what_the_sampler_drew():
  params, optimizer = make_params(UNTIED), optax.sgd(0.1)
  sampling = SamplingConfig(max_tokens=5)
  rollout = decode.generate(SPEC, params, PROMPTS, sampling, eos_ids=(), per_question=2)
  scores = jax.jit(scoring.score_teacher, static_argnums=0)(SPEC, params, (PROMPTS,), rollout)
  update = step.make_distill_step(SPEC, ObjectiveConfig(), TeacherConfig(), optimizer, valid_vocab=VOCAB)
  start, head = state.create(copied(params), optimizer, TeacherConfig()), jnp.copy(model.head(SPEC, params))
  _, report = update(start, PROMPTS, rollout, scores, head)
  sums = {name: float(value) for name, value in report.sums.items()}
  assert sums['logp_gap'] < 1e-4
  # The teacher is the student: both logits are capped, or the divergence would not be 0.
  assert abs(float(report.loss)) < 1e-6
  assert sums['teacher_logp'] == pytest.approx(sums['student_logp'], rel=1e-5)


def test_the_preflight_reads_the_same():
  mean = preflight._mean_logp(SPEC, make_params(UNTIED), PROMPTS, TAIL, np.int32([5, 5]), VOCAB)
  np.testing.assert_allclose(mean, oracle_logp().mean(1), rtol=1e-5)
