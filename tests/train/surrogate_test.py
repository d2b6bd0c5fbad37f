"""GRPO's advantages and its loss with gradients, against float64 transcriptions of the papers' formulas."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.train import surrogate as lib
from opsd_jax.train.surrogate import GrpoConfig


def transcribed(config, logp, old, advantage, reference):
  """Value, and derivative by the token's log-prob, of one token at a time: float64, with branches."""
  ratio = np.exp(logp - old)
  low, high = 1 - config.clip_low, 1 + config.clip_high
  # The minimum of the two terms is the clipped one only where that is the pessimist's.
  if advantage >= 0:
    value, slope = (-high * advantage, 0.0) if ratio > high else (-ratio * advantage, -ratio * advantage)
  else:
    value, slope = (-low * advantage, 0.0) if ratio < low else (-ratio * advantage, -ratio * advantage)
  if config.kl:
    ahead = reference - logp
    if config.estimator == 'k3':
      value, slope = value + config.kl * (np.exp(ahead) - ahead - 1), slope + config.kl * (1 - np.exp(ahead))
    else:
      value, slope = value + config.kl * ahead**2 / 2, slope - config.kl * ahead
  return value, slope


numbers = st.floats(-3, 3).map(lambda x: round(x, 3))
tokens = st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=20)


@hypothesis.settings(max_examples=40)
@hypothesis.given(tokens, st.sampled_from([0.0, 0.5]), st.sampled_from(['k3', 'k2']))
def test_loss_and_gradient_of_a_token(rows, kl, estimator):
  config = GrpoConfig(kl=kl, estimator=estimator, clip_low=0.2, clip_high=0.28)
  logp, difference, advantage, ahead = np.array(rows).T
  ratio = np.exp(-difference)  # Where it is at a bound, float32 may see it on the other side.
  hypothesis.assume(np.abs(np.stack([ratio - 0.8, ratio - 1.28])).min() > 1e-5)
  old, reference = logp + difference, logp + ahead
  given = [np.float32(x) for x in (old, advantage)]

  def total(logp):
    loss, _ = lib.token_loss(config, logp, *given, np.float32(reference) if kl else None)
    return loss.sum(), loss

  (_, loss), slope = jax.value_and_grad(total, has_aux=True)(jnp.float32(logp))
  expected = [transcribed(config, *row) for row in zip(logp, old, advantage, reference)]
  scale = max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(loss, [e[0] for e in expected], atol=2e-6 * scale)
  np.testing.assert_allclose(slope, [e[1] for e in expected], atol=2e-6 * scale)


@pytest.mark.parametrize(
  ('ratio', 'advantage', 'loss', 'clipped'),
  [
    (1.5, 2.0, -2 * 1.28, 1),  # No more is gained by more.
    (1.2, 2.0, -2 * 1.2, 0),  # DAPO's upper bound is wider than GRPO's 1.2.
    (0.5, 2.0, -2 * 0.5, 0),  # A good token that lost weight is pulled back.
    (0.5, -2.0, 2 * 0.8, 1),
    (0.9, -2.0, 2 * 0.9, 0),
    (3.0, -2.0, 2 * 3.0, 0),  # A bad token that gained weight is pushed down, unbounded.
    (3.0, 0.0, 0.0, 0),
  ],
)
def test_where_the_ratio_is_clipped(ratio, advantage, loss, clipped):
  config = GrpoConfig(clip_high=0.28)
  old = jnp.float32(-1.3)
  found, told = lib.token_loss(config, old + jnp.log(jnp.float32(ratio)), old, jnp.float32(advantage), None)
  assert float(found) == pytest.approx(loss, abs=1e-6)
  assert float(told['clip_fraction']) == clipped and float(told['ratio']) == pytest.approx(ratio, rel=1e-6)
  assert 'reference_kl' not in told


def test_the_divergence_of_the_papers_is_never_negative_and_0_at_the_reference():
  reference = jnp.linspace(-9.0, 9.0, 37)
  zero = jnp.zeros_like(reference)
  for estimator in ('k3', 'k2'):
    config = GrpoConfig(kl=1.0, estimator=estimator)
    _, told = lib.token_loss(config, zero, zero, zero, reference)
    assert float(told['reference_kl'].min()) == 0 == float(told['reference_kl'][18])
    assert (told['reference_kl'][:18] > 0).all() and (told['reference_kl'][19:] > 0).all()


@pytest.mark.parametrize('apart', [-300.0, 300.0])
@pytest.mark.parametrize('advantage', [-1.0, 0.0, 1.0])
def test_log_probs_far_apart_stay_finite(apart, advantage):
  config = GrpoConfig(kl=0.1)

  def loss(logp):
    return lib.token_loss(config, logp, jnp.float32(0), jnp.float32(advantage), jnp.float32(0))[0]

  value, slope = jax.value_and_grad(loss)(jnp.float32(apart))
  assert np.isfinite(value) and np.isfinite(slope)


# Advantages.


@hypothesis.given(st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_advantages_are_those_of_the_paper(rewards):
  found = lib.advantages(np.array(rewards), 'group')
  for row, group in zip(found, rewards, strict=True):
    right = sum(group)
    mean = right / 4
    spread = ((right * (1 - mean) ** 2 + (4 - right) * mean**2) / 3) ** 0.5
    expected = [0.0 if right in (0, 4) else (r - mean) / (spread + 1e-4) for r in group]
    np.testing.assert_allclose(row, expected, rtol=1e-6)
  plain = lib.advantages(np.array(rewards), 'none')
  np.testing.assert_allclose(plain, np.array(rewards) - np.mean(rewards, 1, keepdims=True), atol=1e-7)


@pytest.mark.parametrize('scale', ['group', 'none'])
def test_a_group_without_variance_has_no_advantage(scale):
  """Also where the mean of equal rewards is rounded: 0.1 three times is not 0.3."""
  found = lib.advantages(np.full((3, 7), [[0.1], [0.7], [1.0]]), scale)
  assert not found.any() and found.dtype == np.float32
  assert lib.differ(np.array([[0.1, 0.1], [0, 1]])).tolist() == [False, True]


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(steps=0), 'grpo.steps is 0'),
    (dict(draws=0), 'grpo.draws is 0'),
    (dict(old='new'), "grpo.old is 'new'"),
    (dict(scale='batch'), "grpo.scale is 'batch'"),
    (dict(reduction='sum'), "grpo.reduction is 'sum'"),
    (dict(estimator='k1'), "grpo.estimator is 'k1'"),  # Derived as it stands it has no gradient on average.
    (dict(clip_low=1.0), 'grpo.clip_low is 1.0'),
    (dict(clip_high=0.0), 'grpo.clip_high is 0.0'),
    (dict(kl=-0.1), 'grpo.kl is -0.1'),
  ],
)
def test_what_is_refused(changes, words):
  with pytest.raises(ConfigError, match=words):
    lib.validate(GrpoConfig(**changes))
