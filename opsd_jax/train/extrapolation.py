"""Weights beyond those that training reached: which are tried, which are taken, how they are made.

EffOPD (arXiv 2605.11739, section 4.1) goes on along Δ = W - A, from the anchor A through the weights W of
this update: it asks W + 2kΔ for k = 1, 2, ... the same few questions and takes the last that answers them no
worse than the one before. AlphaOPD, its baseline (of arXiv 2510.00553), goes on without asking.

Axis letters: L layers, r rank.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from opsd_jax.config import require, require_choice
from opsd_jax.models.lora import PROJECTIONS, Adapters
from opsd_jax.models.model import Params

_STRIDE = 2.0  # between candidates, in Δ


@dataclasses.dataclass(frozen=True)
class ControllerConfig:
  """Extrapolation of the weights after some of the updates. The rest of the run does not know of it.

  Under LoRA it is the product of the adapters that is extrapolated. That has twice their rank; the nearest
  product of their rank is taken, what is lost is recorded, and the moments, which belong to the old
  factors, begin anew.

  Attributes:
    kind: `none`; `effopd`: candidates W + 2kΔ, accepted by asking; `fixed`: W + factor·Δ, taken unasked. This
      stands in AlphaOPD's place and is not its predictor, which is not reproduced: that regresses the first
      left singular vector of every matrix's update, times its value, on the benchmark accuracies of early
      checkpoints (partial least squares, one component) and inverts the fit at an accuracy set by hand. Which
      checkpoints and which accuracy it had in distillation is not known, and the released script
      (AlphaRLBuildPerdictModel.py) reads factors that it never loads. Its numbers cannot be expected of
      `fixed`.
    at: updates after which it happens; empty for 1, 2, 4, 8, ... (as published).
    candidates: largest k.
    accept: a candidate's accuracy must be `at_least` the last accepted one (the paper), or `above` it (the
      reference code).
    factor: of `fixed`.
    parameters: `all`, or the `projections` of attention and MLP alone (the reference code takes the norms
      inside of attention and after it, too).
    moments: `keep` the optimiser's moments when a candidate is taken (as published), or `reset` them; the
      schedule of the learning rate goes on in both cases.
    problems: training problems that every candidate is asked, the same throughout.
    samples: completions of each, drawn with the same random numbers for every candidate.
    temperature: at which they are drawn, 0 for greedy; none for that of `evaluate.sampling`, which decides
      the rest.
  """

  kind: Literal['none', 'effopd', 'fixed'] = 'none'
  at: tuple[int, ...] = ()
  candidates: int = 5
  accept: Literal['at_least', 'above'] = 'at_least'
  factor: float = 2.0
  parameters: Literal['all', 'projections'] = 'all'
  moments: Literal['keep', 'reset'] = 'keep'
  problems: int = 50
  samples: int = 1
  temperature: float | None = None


def validate(config: ControllerConfig) -> None:
  """Raises `ConfigError` for a controller that could not choose."""
  require_choice('controller.kind', config.kind, ('none', 'effopd', 'fixed'))
  require_choice('controller.accept', config.accept, ('at_least', 'above'))
  require_choice('controller.parameters', config.parameters, ('all', 'projections'))
  require_choice('controller.moments', config.moments, ('keep', 'reset'))
  require(
    all(a > 0 for a in config.at) and list(config.at) == sorted(set(config.at)),
    f'controller.at is {config.at}; updates must be positive and ascending.',
  )
  for field in ('candidates', 'samples'):
    value = getattr(config, field)
    require(value > 0, f'controller.{field} is {value}; it must be positive.')
  require(
    config.problems > 0,
    f'controller.problems is {config.problems}, so that no candidate could be asked; it must be positive, or '
    'controller.kind fixed.',
  )
  require(config.factor > 0, f'controller.factor is {config.factor}; it must be positive.')


def due(config: ControllerConfig, updates: int) -> bool:
  """Whether weights are extrapolated after so many updates."""
  if config.kind == 'none':
    return False
  return updates in config.at if config.at else updates & (updates - 1) == 0


class Search(NamedTuple):
  """What a search found.

  Attributes:
    factor: of Δ beyond the weights that it began with: 0, or 2k of the last accepted candidate.
    scores: of the weights that it began with, then of every candidate tried.
  """

  factor: float
  scores: tuple[float, ...]

  @property
  def score(self) -> float:
    """Of what was taken."""
    return self.scores[round(self.factor / _STRIDE)]


def search(config: ControllerConfig, measure: Callable[[float], float]) -> Search:
  """Tries candidates in order until one is not accepted (EffOPD, section 4.1, steps 3 and 4).

  Args:
    config: how many, and what is accepted.
    measure: accuracy of W + factor·Δ; first asked for factor 0.
  """
  taken, scores = 0.0, [measure(0.0)]
  for k in range(1, config.candidates + 1):
    scores.append(measure(_STRIDE * k))
    before, now = scores[-2:]
    if now < before or (now == before and config.accept == 'above'):
      break
    taken = _STRIDE * k
  return Search(taken, tuple(scores))


def extrapolate(config: ControllerConfig, params: Params, anchor: Params, factor: jax.Array) -> Params:
  """W + factor·(W - A) in float32; parameters that the config leaves out stay at W."""

  def one(path: tuple[Any, ...], w: jax.Array, a: jax.Array) -> jax.Array:
    moves = config.parameters == 'all' or getattr(path[-1], 'key', None) in PROJECTIONS
    return w + factor * (w - a) if moves else w

  return jax.tree_util.tree_map_with_path(one, params, anchor)


def extrapolate_adapters(
  adapters: Adapters, anchor: Adapters, factor: jax.Array
) -> tuple[Adapters, jax.Array]:
  """Adapters of the same rank whose product is nearest to (1 + factor)·a b - factor·a₀ b₀.

  Nearest in the Frobenius norm of every matrix (Eckart-Young), by a singular value decomposition of as
  many rows and columns as twice the rank. The new a's columns are orthogonal and as large as the old a.

  Args:
    adapters: a [L, in, r] and b [L, r, out] of every projection.
    anchor: a₀ and b₀.
    factor: how far beyond.

  Returns:
    The adapters, and the share of the norm that they lack, over all matrices together.
  """
  layers, lost, whole = {}, jnp.float32(0), jnp.float32(0)
  for group, pairs in adapters['layers'].items():
    layers[group] = {}
    for name, pair in pairs.items():
      inputs = len(PROJECTIONS[name].inputs)
      new, values = _nearest(_flat(pair, inputs), _flat(anchor['layers'][group][name], inputs), factor)
      layers[group][name] = {k: new[k].reshape(pair[k].shape) for k in pair}
      rank = pair['a'].shape[-1]
      lost, whole = lost + jnp.sum(values[:, rank:] ** 2), whole + jnp.sum(values**2)
  return {'layers': layers}, jnp.sqrt(lost / jnp.maximum(whole, jnp.finfo(jnp.float32).tiny))


def _flat(pair: dict[str, jax.Array], inputs: int) -> dict[str, jax.Array]:
  """a as [L, in, r] and b as [L, r, out]."""
  a, b = pair['a'], pair['b']
  width = math.prod(a.shape[1 : 1 + inputs])
  return {'a': a.reshape(a.shape[0], width, -1), 'b': b.reshape(*b.shape[:2], -1)}


def _nearest(
  pair: dict[str, jax.Array], anchor: dict[str, jax.Array], factor: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
  """The new pair of one projection, and all singular values [L, at most 2r] of what it is nearest to."""
  rank = pair['a'].shape[-1]
  with jax.default_matmul_precision('highest'):
    left = jnp.concatenate([pair['a'], anchor['a']], axis=2)
    right = jnp.concatenate([(1 + factor) * pair['b'], -factor * anchor['b']], axis=1)
    inner, outer = jnp.linalg.qr(left), jnp.linalg.qr(jnp.swapaxes(right, 1, 2))
    u, values, v = jnp.linalg.svd(inner.R @ jnp.swapaxes(outer.R, 1, 2), full_matrices=False)
    a, b = inner.Q @ u[:, :, :rank], values[:, :rank, None] * v[:, :rank] @ jnp.swapaxes(outer.Q, 1, 2)
  # As large as before: Adam's steps are of one size whatever the weights, so that theirs matters.
  size = jnp.sqrt(jnp.sum(pair['a'] ** 2, axis=(1, 2), keepdims=True) / rank)
  missing = rank - a.shape[2]  # Of a matrix that is narrower than the rank.
  return {
    'a': jnp.pad(size * a, ((0, 0), (0, 0), (0, missing))),
    'b': jnp.pad(b / size, ((0, 0), (0, missing), (0, 0))),
  }, values
