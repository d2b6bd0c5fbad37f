"""Cross-entropy of given completions as an objective: its definition, its gradient, and who is not asked."""

import functools

import jax
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.distill import packing
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.train import step as steps
from opsd_jax.train.state import TrainState
from tests.models.transformer_test import QUICK, SPEC, flat, make_params
from tests.train.sharded_step_test import (
  LENGTHS,
  MESHES,
  OPTIMIZER,
  SAME,
  VALID,
  WIDTH,
  Outcome,
  assert_same_update,
  differences,
  log_softmax,
  make_batch,
  placed,
)
from tests.train.sharded_step_test import log_probs as log_probs_at_1

TEMPERATURE = 0.8


@functools.cache
def update(where, reduction='token_mean', temperature=1.0, **planned):
  mesh = MESHES[where]()
  asked, _, drawn = make_batch()
  plan = packing.plan(asked, (), drawn, shards=meshes.row_shards(mesh), **planned)
  prompts, rollout = meshes.shard_rows(mesh, (asked, drawn))
  params = placed(mesh, 0)
  config = ObjectiveConfig(
    'nll', reduction=reduction, student_temperature=temperature, chunk_tokens=32, statistics=False
  )
  with jax.set_mesh(mesh):
    step = steps.make_distill_step(SPEC, config, TeacherConfig(), OPTIMIZER, valid_vocab=VALID)
    state = TrainState(params, OPTIMIZER.init(params), None)
    arguments = state, prompts, rollout, None, None, None, meshes.shard_rows(mesh, plan, axis=1)
    return Outcome(*step.lower(*arguments).compile(QUICK)(*arguments))


def oracle_token_loss(params, temperature=1.0):
  """-log p(token) [B, T], 0 on padding."""
  prompts, _, rollout = make_batch()
  log_p = log_softmax(log_probs_at_1(params, prompts, rollout.ids) / temperature)
  logp = np.take_along_axis(log_p, rollout.ids[..., None], -1)[..., 0]
  return -np.where(np.arange(WIDTH)[None] < LENGTHS[:, None], logp, 0)


def token_mean(params):
  return oracle_token_loss(params).sum() / LENGTHS.sum()


def test_the_loss_is_the_cross_entropy_of_the_completions():
  report = update('one').report
  np.testing.assert_allclose(report.token_loss, oracle_token_loss(make_params(SPEC)), atol=SAME)
  assert float(report.loss) == pytest.approx(token_mean(make_params(SPEC)), rel=SAME)
  assert report.logp_gap is None
  np.testing.assert_allclose(report.sums['student_logp'], -report.sums['token_loss'], rtol=SAME)


def test_the_gradient_matches_differences_of_the_loss():
  direction, expected = differences(token_mean)
  assert flat(update('one').gradient) @ flat(direction) == pytest.approx(expected, rel=SAME)


@pytest.mark.slow
def test_packed_rows_on_eight_devices_make_the_same_update():
  assert_same_update(update('cube', packing='packed', micro_tokens=104), update('one'))


@pytest.mark.slow
def test_samples_may_count_alike_at_a_temperature():
  found = float(update('one', 'sample_mean', TEMPERATURE).report.loss)
  rows = oracle_token_loss(make_params(SPEC), TEMPERATURE).sum(1)[LENGTHS > 0] / LENGTHS[LENGTHS > 0]
  assert found == pytest.approx(rows.mean(), rel=SAME)
