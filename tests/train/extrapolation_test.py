"""Extrapolation: where candidates lie, which are accepted, and the nearest adapters, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.models import lora
from opsd_jax.models.lora import LoraConfig
from opsd_jax.train import extrapolation as lib
from opsd_jax.train.extrapolation import ControllerConfig
from tests.models.lora_test import make_adapters
from tests.models.transformer_test import SPEC, flat, float64, make_params, quick_jit

EFFOPD = ControllerConfig('effopd')


def test_a_search_ends_at_the_first_that_is_worse():
  tried = []

  def measure(factor, scores=(0.5, 0.6, 0.6, 0.7, 0.65, 0.9)):
    tried.append(factor)
    return scores[len(tried) - 1]

  found = lib.search(EFFOPD, measure)
  assert tried == [0, 2, 4, 6, 8]  # W + 2kΔ; the fifth candidate would have been better and is not asked.
  assert found.factor == 6 and found.score == 0.7 and found.scores == (0.5, 0.6, 0.6, 0.7, 0.65)


@pytest.mark.parametrize(
  ('accept', 'scores', 'factor', 'score'),
  [
    ('at_least', [0.5] * 6, 10, 0.5),
    ('above', [0.5] * 2, 0, 0.5),
    ('at_least', [0.5, 0.4], 0, 0.5),
    ('above', [0.5, 0.6, 0.6], 2, 0.6),
    ('above', [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 10, 0.6),
  ],
)
def test_what_is_accepted(accept, scores, factor, score):
  rest = iter(scores)
  found = lib.search(ControllerConfig('effopd', accept=accept), lambda _: next(rest))
  assert (found.factor, found.score) == (factor, score)
  assert next(rest, None) is None, 'every score was asked for'


def test_no_more_candidates_than_there_may_be():
  asked = []
  found = lib.search(ControllerConfig('effopd', candidates=2), lambda f: asked.append(f) or 0.5)
  assert asked == [0, 2, 4] and found.factor == 4


def test_when_it_happens():
  def times(**changes):
    return [t for t in range(1, 40) if lib.due(ControllerConfig(**changes), t)]

  assert times(kind='effopd') == times(kind='fixed') == [1, 2, 4, 8, 16, 32]
  assert times(kind='fixed', at=(3, 10)) == [3, 10] and times() == []


def test_candidates_lie_on_the_ray_from_the_anchor():
  """At 3Δ, 5Δ, ... 11Δ from it, which is where the factors 2, 2/3, 2/5, ... of the reference code lead."""
  params, anchor = make_params(SPEC, 0), make_params(SPEC, 1)
  w, a = float64(params), float64(anchor)
  theta, factor = w, 2.0
  for k in range(1, 6):
    found = flat(lib.extrapolate(EFFOPD, params, anchor, np.float32(2 * k)))
    theta = jax.tree.map(lambda x, y, f=factor: x + f * (x - y), theta, a)
    factor = factor / (1 + factor)
    on_the_ray = flat(a) + (2 * k + 1) * (flat(w) - flat(a))
    np.testing.assert_allclose(flat(theta), on_the_ray, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found, on_the_ray, rtol=1e-5, atol=1e-5)
  assert factor == pytest.approx(2 / 11)


def test_projections_alone():
  params, anchor = make_params(SPEC, 0), make_params(SPEC, 1)
  found = lib.extrapolate(
    ControllerConfig('effopd', parameters='projections'), params, anchor, np.float32(2.0)
  )
  moved = {
    '/'.join(k.key for k in path)
    for path, same in jax.tree_util.tree_leaves_with_path(
      jax.tree.map(lambda x, y: bool((x == y).all()), found, params)
    )
    if not same
  }
  attention = {f'layers/attention/{n}' for n in ('query', 'key', 'value', 'out')}
  assert moved == attention | {f'layers/mlp/{n}' for n in ('gate', 'up', 'down')}


# Adapters.

nearest_of = quick_jit(lib.extrapolate_adapters)


def product(pair, layer):
  """The matrix of one layer of one projection, float64."""
  a, b = np.float64(pair['a'][layer]), np.float64(pair['b'][layer])
  return a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[0], -1)


def each(adapters):
  return {(group, name): pair for group, pairs in adapters['layers'].items() for name, pair in pairs.items()}


@pytest.mark.parametrize(('rank', 'factor'), [(3, 2.0), (3, 10.0), (2, 6.0)])
def test_the_product_is_extrapolated_and_the_nearest_of_its_rank_is_taken(rank, factor):
  config = LoraConfig(rank=rank, targets=('query', 'out', 'down'))
  adapters, anchor = make_adapters(config, seed=0), make_adapters(config, seed=2)
  found, error = nearest_of(adapters, anchor, np.float32(factor))
  lost = whole = 0.0
  for place, pair in each(found).items():
    for layer in range(SPEC.num_layers):
      now, before = product(each(adapters)[place], layer), product(each(anchor)[place], layer)
      wanted = now + factor * (now - before)
      u, s, v = np.linalg.svd(wanted, full_matrices=False)
      assert s[rank:].max() > 0.01 * s[0], 'else there is nothing to lose'
      nearest = u[:, :rank] * s[:rank] @ v[:rank]
      np.testing.assert_allclose(product(pair, layer), nearest, atol=2e-5 * s[0])
      lost, whole = lost + (s[rank:] ** 2).sum(), whole + (s**2).sum()
  assert float(error) == pytest.approx(np.sqrt(lost / whole), rel=1e-4)
  for (place, pair), (_, old) in zip(each(found).items(), each(adapters).items(), strict=True):
    assert jax.tree.map(jnp.shape, pair) == jax.tree.map(jnp.shape, old)
    columns = pair['a'].reshape(SPEC.num_layers, -1, rank)
    gram = np.einsum('lir,lis->lrs', columns, columns)
    size = np.square(old['a']).sum(axis=tuple(range(1, old['a'].ndim))) / rank
    np.testing.assert_allclose(
      gram, size[:, None, None] * np.eye(rank), atol=1e-4 * size.max(), err_msg=place
    )


def test_from_fresh_adapters_nothing_is_lost_and_no_direction_dies():
  """The product of fresh ones is 0, so that three times the first step has the rank of the step."""
  config = LoraConfig(rank=2, targets=('query', 'out', 'down'))
  anchor = make_adapters(config, seed=2)
  anchor = {
    'layers': {g: {n: p | {'b': 0 * p['b']} for n, p in ps.items()} for g, ps in anchor['layers'].items()}
  }
  adapters = make_adapters(config)
  found, error = nearest_of(adapters, anchor, np.float32(2.0))
  assert float(error) < 1e-6
  for place, pair in each(found).items():
    for layer in range(SPEC.num_layers):
      wanted = 3 * product(each(adapters)[place], layer)
      np.testing.assert_allclose(product(pair, layer), wanted, atol=1e-5 * np.abs(wanted).max())
  nothing, _ = nearest_of(anchor, anchor, np.float32(2.0))
  for pair in each(nothing).values():
    assert not np.abs(pair['b']).max() and np.isfinite(pair['a']).all()
    assert np.abs(pair['a']).max(axis=tuple(range(1, pair['a'].ndim - 1))).min() > 0, 'they can learn'


def test_a_rank_above_the_width_of_a_matrix():
  config = LoraConfig(rank=20, targets=('key',))  # of 16 by 8
  adapters, anchor = make_adapters(config), make_adapters(config, seed=2)
  found, error = nearest_of(adapters, anchor, np.float32(4.0))
  assert float(error) == 0
  ((place, pair),) = each(found).items()
  now, before = product(each(adapters)[place], 0), product(each(anchor)[place], 0)
  wanted = now + 4 * (now - before)
  np.testing.assert_allclose(product(pair, 0), wanted, atol=1e-5 * np.abs(wanted).max())
  assert lora.size(config, SPEC) == sum(x.size for x in jax.tree.leaves(found))


# What is refused.


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(kind='effopt'), "controller.kind is 'effopt'"),
    (dict(accept='any'), "controller.accept is 'any'"),
    (dict(parameters='head'), "controller.parameters is 'head'"),
    (dict(moments='drop'), "controller.moments is 'drop'"),
    (dict(at=(4, 2)), r'controller.at is \(4, 2\)'),
    (dict(at=(0,)), r'controller.at is \(0,\)'),
    (dict(problems=0), 'controller.problems is 0.*controller.kind fixed'),
    (dict(candidates=0), 'controller.candidates is 0'),
    (dict(samples=0), 'controller.samples is 0'),
    (dict(factor=-1.0), 'controller.factor is -1.0'),
  ],
)
def test_what_is_no_controller(changes, words):
  with pytest.raises(ConfigError, match=words):
    lib.validate(ControllerConfig(**changes))


def test_the_defaults_are_those_of_the_paper():
  lib.validate(EFFOPD)
  assert (EFFOPD.candidates, EFFOPD.accept, EFFOPD.problems, EFFOPD.parameters) == (5, 'at_least', 50, 'all')
  assert EFFOPD.moments == 'keep' and ControllerConfig().kind == 'none'
