"""Counted randomness against brute force, and the settings that are refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from opsd_jax.config import ConfigError
from opsd_jax.rollout import sampling
from opsd_jax.rollout.config import SamplingConfig, drawable, validate_sampling

# Counted randomness.


def draw(seed, step, problems, rollouts, position):
  problems, rollouts = jnp.array(problems, jnp.uint32), jnp.array(rollouts, jnp.int32)
  return np.asarray(_uniforms(seed, step, problems, rollouts, position))


@jax.jit
def _uniforms(seed, step, problems, rollouts, position):
  keys = sampling.row_keys(seed, step, problems, rollouts)
  return sampling.uniforms(keys, position)


BASE = (7, 3, [11, 11, 2**32 - 1], [0, 1, 0], 5)


@pytest.mark.parametrize(
  ('which', 'value'),
  [(0, 8), (1, 4), (2, [12, 13, 14]), (3, [2, 3, 4]), (4, 6)],
  ids=['seed', 'step', 'problem', 'rollout', 'position'],
)
def test_every_count_changes_every_draw(which, value):
  changed = [*BASE[:which], value, *BASE[which + 1 :]]
  assert (draw(*BASE) != draw(*changed)).all()


def test_draws_depend_on_nothing_but_the_counts():
  seed, step, problems, rollouts, position = BASE
  order = [2, 0, 1]
  shuffled = draw(seed, step, [problems[i] for i in order], [rollouts[i] for i in order], position)
  np.testing.assert_array_equal(shuffled, draw(*BASE)[order])
  alone = draw(seed, step, problems[1:2], rollouts[1:2], position)
  np.testing.assert_array_equal(alone, draw(*BASE)[1:2])


def test_counts_are_not_confused_with_one_another():
  # 4 problems, rollouts, positions, steps and seeds: every combination has its own number.
  grid = np.stack(np.meshgrid(*[np.arange(4)] * 2), -1).reshape(-1, 2)
  draws = [
    draw(seed, step, grid[:, 0], grid[:, 1], position)
    for seed in range(4)
    for step in range(4)
    for position in range(4)
  ]
  # Of 1024 numbers on a grid of 2^23, a repeat has probability 0.06; mixed-up counts repeat many.
  assert len(set(np.concatenate(draws).tolist())) >= 1023


def test_draws_are_uniform_and_never_one():
  draws = draw(0, 0, np.arange(5000), np.zeros(5000, int), 0)
  assert draws.dtype == np.float32 and draws.min() >= 0 and draws.max() < 1
  assert scipy.stats.kstest(draws, 'uniform').pvalue > 1e-3


def test_positions_are_uncorrelated():
  draws = np.stack([draw(0, 0, np.arange(5000), np.zeros(5000, int), t) for t in range(3)])
  correlation = np.corrcoef(draws) - np.eye(3)
  assert np.abs(correlation).max() < 4 / np.sqrt(5000)  # four standard errors


# Settings.


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(temperature=-1.0), 's.temperature is -1.0; use 0 for greedy, or at least 0.0001.'),
    (dict(top_k=0), 's.top_k is 0; it must lie in 1..9'),
    (dict(top_k=10), 's.top_k is 10; it must lie in 1..9'),
    (dict(top_p=0.0), 's.top_p is 0.0; it must lie in (0, 1].'),
    (dict(top_p=1.1), 's.top_p is 1.1; it must lie in (0, 1].'),
    (dict(min_p=1.0), 's.min_p is 1.0; it must lie in [0, 1).'),
    (dict(max_tokens=0), 's.max_tokens is 0; it must be positive.'),
  ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(ConfigError, match=re.escape(message)):
    validate_sampling('s', SamplingConfig(**changes), 9)


def test_good_settings_pass():
  validate_sampling('s', SamplingConfig(temperature=0, top_k=9, top_p=1.0, min_p=0.5), 9)


def test_ids_without_a_row_are_control_tokens():
  assert drawable(9, 12, ()) == 9 and drawable(9, 8, {8}) == 8
  with pytest.raises(ConfigError, match=r'vocab_size is 7, but the tokenizer has 9 ids, of which \[7\]'):
    drawable(9, 7, {8})
