"""GRPO's loss: advantages within a group of rollouts, and the clipped surrogate of a token.

Sources: GRPO (DeepSeekMath, arXiv 2402.03300, Eqs. 3 and 4); DAPO (arXiv 2503.14476) for bounds of the
ratio that differ, a mean over tokens, and groups that are drawn until their rewards differ.

Axis letters: Q questions, n rollouts of each, B = Q·n, T completion tokens.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.config import require, require_choice

_NOISE = 1e-4  # added to a group's spread
_FURTHEST = 20.0  # nats by which two log-probs of a token may differ before their ratio stops to grow


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
  """Reinforcement learning on verdicts: what `method=grpo` takes beside rollouts, optimiser and grades.

  The reward is 1 for a right answer and 0 for every other; of a program (`grade.rules=programs`) it is the
  share of its tests that it passes. The temperature of the loss is `objective.student_temperature`; set it to
  that of the sampler.

  Attributes:
    steps: optimiser steps on every batch of rollouts.
    old: whose log-probs the ratio is taken to: `scorer`, of the weights before the first of these steps in
      the program that steps, so that the first ratio is exactly 1; `sampler`, those that the sampler told.
    clip_low: the ratio counts as at least 1 less this where that makes the loss larger.
    clip_high: and as at most 1 more this (DAPO: 0.28).
    scale: a `group`'s advantages are divided by its standard deviation, or `none`.
    reduction: `sample_mean` over samples of each one's mean over tokens (GRPO), or `token_mean` over all
      tokens (DAPO).
    kl: weight of the divergence from the initial weights; 0 spares the pass that scores by them.
    estimator: of that divergence, both derived as they stand: `k3`, as published, whose mean gradient is
      that of KL(initial || student), or `k2`, of KL(student || initial).
    draws: batches of questions that an update may ask for, until it has `rollout.questions` whose rollouts
      do not all have one reward (DAPO); the other questions are not trained on. 1 trains on all.
  """

  steps: int = 1
  old: Literal['scorer', 'sampler'] = 'scorer'
  clip_low: float = 0.2
  clip_high: float = 0.2
  scale: Literal['group', 'none'] = 'group'
  reduction: Literal['sample_mean', 'token_mean'] = 'sample_mean'
  kl: float = 0.0
  estimator: Literal['k3', 'k2'] = 'k3'
  draws: int = 1


def validate(config: GrpoConfig) -> None:
  """Raises `ConfigError` for a loss that is not defined."""
  for field in ('steps', 'draws'):
    value = getattr(config, field)
    require(value > 0, f'grpo.{field} is {value}; it must be positive.')
  require_choice('grpo.old', config.old, ('scorer', 'sampler'))
  require_choice('grpo.scale', config.scale, ('group', 'none'))
  require_choice('grpo.reduction', config.reduction, ('sample_mean', 'token_mean'))
  require_choice('grpo.estimator', config.estimator, ('k3', 'k2'))
  require(0 < config.clip_low < 1, f'grpo.clip_low is {config.clip_low}; it must lie between 0 and 1.')
  require(config.clip_high > 0, f'grpo.clip_high is {config.clip_high}; it must be positive.')
  require(config.kl >= 0, f'grpo.kl is {config.kl}; it must not be negative.')


def advantages(rewards: np.ndarray, scale: str) -> np.ndarray:
  """float32 [Q, n], by how much each reward [Q, n] beats its group's mean; exactly 0 where all are equal.

  With `scale` group they are divided by the group's standard deviation (that of a sample, over n - 1).
  """
  rewards = np.asarray(rewards, np.float64)
  ahead = rewards - rewards.mean(1, keepdims=True)
  if scale == 'group':
    ahead = ahead / (rewards.std(1, ddof=1, keepdims=True) + _NOISE)
  return np.where(differ(rewards)[:, None], ahead, 0).astype(np.float32)


def differ(rewards: np.ndarray) -> np.ndarray:
  """bool [Q], whether the rewards [Q, n] of a group differ: else there is nothing to learn from it."""
  return rewards.max(1) > rewards.min(1)


def token_loss(
  config: GrpoConfig, logp: jax.Array, old: jax.Array, advantage: jax.Array, reference: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Loss of every token, and what is reported of it; all arrays have one shape.

  Args:
    config: bounds, and the weight of the divergence.
    logp: of the token by the weights that step, differentiable.
    old: by the weights that drew it.
    advantage: of its rollout.
    reference: by the initial weights; None where the divergence has no weight.
  """
  ratio = jnp.exp(_bounded(logp - old))
  clipped = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
  loss = -jnp.minimum(ratio * advantage, clipped * advantage)
  told = {'ratio': ratio, 'clip_fraction': (clipped * advantage < ratio * advantage).astype(jnp.float32)}
  if reference is None:
    return loss, told
  ahead = _bounded(reference - logp)
  value = jnp.exp(ahead) - ahead - 1 if config.estimator == 'k3' else ahead**2 / 2
  return loss + config.kl * value, told | {'reference_kl': value}


def _bounded(difference: jax.Array) -> jax.Array:
  """Of log-probs, so that its exponential is finite; without a gradient beyond the bounds."""
  return jnp.clip(difference, -_FURTHEST, _FURTHEST)
