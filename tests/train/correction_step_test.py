"""An update on rollouts that other weights drew: the loss, its gradient and what is said of the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opsd_jax.distill import objective, packing, scoring
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Rollout
from opsd_jax.train import step as steps
from opsd_jax.train.state import TrainState
from tests.models.transformer_test import QUICK, quick_jit

SPEC = ModelSpec(
  vocab_size=40, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16
)
VALID, LENGTHS = 37, np.int32([5, 3, 1, 4])
OPTIMIZER = optax.sgd(1.0, momentum=0.0)  # keeps the last gradient
CAP = 1.5


def batch():
  rng = np.random.default_rng(0)
  ids = rng.integers(0, VALID, (4, 5), np.int32)
  zeros = np.zeros(4, np.int32)
  raw = np.log(1 / VALID) + rng.normal(0, 0.7, ids.shape).astype(np.float32)
  rollout = Rollout(ids, LENGTHS, LENGTHS < 5, raw, np.zeros_like(raw), np.int32([0, 1, 0, 1]), zeros)
  prompts = [
    Prompts(rng.integers(0, VALID, (2, w), np.int32), np.int32([w, w - 1]), np.arange(2, dtype=np.uint32))
    for w in (4, 6)
  ]
  return *prompts, rollout


def update(config, micro_batches=1):
  prompts, told, rollout = batch()
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  shapes = model.abstract_params(SPEC, mesh)
  params, teacher = (
    jax.tree.map(
      lambda x, r=np.random.default_rng(k): jnp.asarray(r.normal(size=x.shape) / 4, x.dtype), shapes
    )
    for k in (0, 1)
  )
  plan = packing.everything(2, 2, rollout.ids.shape[1], parts=micro_batches)
  scores = quick_jit(functools.partial(scoring.score_teacher, SPEC))(teacher, (told,), rollout, plan)
  state = TrainState(params, OPTIMIZER.init(params), None)
  step = steps.make_distill_step(SPEC, config, TeacherConfig(), OPTIMIZER, valid_vocab=VALID)
  arguments = state, prompts, rollout, scores, model.head(SPEC, teacher), None, plan
  state, report = step.lower(*arguments).compile(QUICK)(*arguments)
  return jax.tree.map(np.asarray, (state.optimizer[0].trace, report))


CORRECTED = ObjectiveConfig(correction='token', correction_cap=CAP)


@pytest.fixture(scope='module')
def corrected():
  return update(CORRECTED)


def expected_factors(report):
  """Float64, from the log-probs that the update reports."""
  return np.minimum(np.exp(-np.asarray(report.logp_gap, np.float64)), CAP)


def test_the_loss_is_the_weighted_one(corrected):
  _, report = corrected
  factors = expected_factors(report)
  sampled = np.arange(5)[None, :] < LENGTHS[:, None]
  loss = np.asarray(report.token_loss, np.float64)
  assert report.loss == pytest.approx((factors * loss)[sampled].sum() / sampled.sum(), rel=1e-5)
  assert float(report.sums['correction_weight']) == pytest.approx(factors[sampled].sum(), rel=1e-5)
  capped = (factors[sampled] == CAP).sum()
  assert 0 < capped < sampled.sum() and float(report.sums['correction_capped']) == capped
  assert float(report.sums['token_loss']) == pytest.approx(loss[sampled].sum(), rel=1e-5)  # unweighted


def test_the_gradient_is_that_of_fixed_weights(corrected, monkeypatch):
  gradient, report = corrected
  fixed = expected_factors(report).astype(np.float32)
  plain = objective.token_weights
  monkeypatch.setattr(objective, 'token_weights', lambda *a: plain(*a) * fixed)
  found, other = update(ObjectiveConfig())
  assert other.loss == pytest.approx(report.loss, rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, found)
  assert max(np.abs(x).max() for x in jax.tree.leaves(gradient)) > 0.01


@pytest.mark.slow
def test_parts_do_not_change_it(corrected):
  gradient, report = corrected
  found, parts = update(CORRECTED, micro_batches=2)
  assert parts.loss == pytest.approx(report.loss, rel=1e-5)
  np.testing.assert_allclose(parts.logp_gap, report.logp_gap, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), found, gradient)
