"""Importance weights against their definition in float64, their gradient, and what they do in an update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.distill import correction
from opsd_jax.distill.config import ObjectiveConfig, validate_objective

TOKEN = ObjectiveConfig(correction='token')
LOGPS = st.lists(st.floats(-60, 0, width=32), min_size=6, max_size=6)


def oracle(student, sampler, cap):
  """p / q, capped, in float64."""
  with np.errstate(over='ignore'):
    return np.minimum(np.exp(np.float64(student) - np.float64(sampler)), cap)


@given(LOGPS, LOGPS, st.sampled_from([0.5, 1.0, 2.0, 100.0]))
def test_by_definition(student, sampler, cap):
  student, sampler = (np.array(x, np.float32).reshape(2, 3) for x in (student, sampler))
  config = dataclasses.replace(TOKEN, correction_cap=cap)
  found = correction.factors(config, jnp.array(student), jnp.array(sampler))
  np.testing.assert_allclose(found, oracle(student, sampler, cap), rtol=1e-5)


def test_a_difference_beyond_all_numbers_is_capped():
  assert correction.factors(TOKEN, jnp.zeros((1, 1)), jnp.full((1, 1), -1e4)).tolist() == [[2.0]]


@given(LOGPS)
def test_the_same_weights_and_program_weigh_one(logp):
  logp = jnp.array(logp, jnp.float32).reshape(2, 3)
  assert (correction.factors(TOKEN, logp, logp) == 1).all()
  near = correction.factors(TOKEN, logp, logp + 1e-5)
  np.testing.assert_allclose(near, 1, atol=2e-5)


def test_the_weight_carries_no_gradient():
  """The derivative of sum(w · loss) is that of the same numbers w, held fixed."""
  rng = np.random.default_rng(0)
  student, sampler, loss = (jnp.array(-rng.exponential(size=(2, 3)), jnp.float32) for _ in range(3))

  def corrected(x):
    return jnp.sum(correction.factors(TOKEN, x, sampler) * x * loss)

  fixed = oracle(student, sampler, 2.0)
  np.testing.assert_allclose(jax.grad(corrected)(student), fixed * loss, rtol=1e-5)
  alone = jax.grad(lambda x: correction.factors(TOKEN, x, sampler).sum())(student)
  assert (alone == 0).all()


def test_a_sampled_loss_has_the_mean_that_the_current_weights_would_give():
  """Sum over q of w(y) f(y) = sum over p of f(y), where no weight is capped."""
  rng = np.random.default_rng(1)
  p, q = (np.log(rng.dirichlet(np.ones(8) * 5)) for _ in range(2))
  f = rng.normal(size=8)
  config = dataclasses.replace(TOKEN, correction_cap=1e6)
  weights = correction.factors(config, jnp.array(p[None]), jnp.array(q[None]))[0]
  assert np.abs(np.exp(p) - np.exp(q)).max() > 0.05
  assert np.sum(np.exp(q) * weights * f) == pytest.approx(np.sum(np.exp(p) * f), rel=1e-5)


def test_statistics():
  mask = jnp.array([[True, True, False], [True, False, False]])
  weights = correction.factors(TOKEN, jnp.log(jnp.array([[3.0, 0.5, 9], [2.0, 9, 9]])), jnp.zeros((2, 3)))
  found = correction.statistics(TOKEN, weights, mask)
  assert float(found['correction_weight']) == pytest.approx(2 + 0.5 + 2)
  assert float(found['correction_capped']) == 2


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(correction='sequence'), "objective.correction is 'sequence'"),
    (dict(correction_cap=0.0), 'objective.correction_cap is 0.0'),
    (dict(correction='token', statistics=False), 'objective.statistics=true'),
  ],
)
def test_bad_settings(change, message):
  with pytest.raises(ConfigError, match=message):
    validate_objective(ObjectiveConfig(**change), 50)
