"""One optimiser step against AdamW in float64 NumPy, and none where a number is not finite."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.distill.config import TeacherConfig
from opsd_jax.train import state as lib
from opsd_jax.train.config import OptimizerConfig

CONFIG = OptimizerConfig(
  learning_rate=0.1,
  schedule='linear',
  warmup_updates=2,
  decay_updates=4,
  beta1=0.8,
  beta2=0.9,
  epsilon=1e-3,
  weight_decay=0.05,
  clip_norm=1.0,
)
EMA = TeacherConfig('ema', ema_decay=0.7)
RATES = [0.05, 0.1, 0.1, 0.05]  # Two updates of warm-up, then down to 0 at update 4.


def tree(values):
  values = np.asarray(values, np.float32)
  return {'w': jnp.asarray(values[:4].reshape(2, 2)), 'b': jnp.asarray(values[4:])}


def flat(weights):
  return np.concatenate([np.asarray(weights['w'], np.float64).ravel(), np.asarray(weights['b'])])


START = np.array([0.5, -1.0, 2.0, 0.1, -0.3, 1.5])
# The norms of the first and the third are above 1, that of the second is not.
GRADIENTS = [
  np.array([3.0, -1.0, 0.5, 0.0, 2.0, -2.0]),
  np.array([0.1, 0.2, -0.3, 0.4, 0.0, 0.1]),
  np.array([-1.0, 4.0, 0.2, 0.3, 0.5, 0.6]),
  np.array([0.3, 0.1, 0.1, -0.9, 0.2, 0.2]),
]


def adamw(config, gradients, rates):
  """Weights after every step, float64: clip, moments, bias correction, decoupled decay."""
  weights, first, second, history = START.copy(), 0.0, 0.0, []
  for count, (gradient, rate) in enumerate(zip(gradients, rates), 1):
    norm = math.sqrt((gradient**2).sum())
    if config.clip_norm is not None and norm > config.clip_norm:
      gradient = gradient * config.clip_norm / norm
    first = config.beta1 * first + (1 - config.beta1) * gradient
    second = config.beta2 * second + (1 - config.beta2) * gradient**2
    root = np.sqrt(second / (1 - config.beta2**count))
    move = first / (1 - config.beta1**count) / (root + config.epsilon)
    weights = weights - rate * (move + config.weight_decay * weights)
    history.append(weights)
  return history


@functools.cache
def machinery(config=CONFIG, teacher=EMA):
  """A fresh state and a compiled step `(state, gradients, loss) -> (state, norms, stepped)`."""
  optimizer = lib.make_optimizer(config)
  step = jax.jit(functools.partial(lib.step, optimizer=optimizer, teacher=teacher))
  return lib.create(tree(START), optimizer, teacher), step


def test_steps_are_those_of_adamw():
  state, step = machinery()
  wanted = adamw(CONFIG, GRADIENTS, RATES)
  for gradient, weights, before in zip(GRADIENTS, wanted, [START, *wanted]):
    state, norms, stepped = step(state, tree(gradient), jnp.float32(1.0))
    assert bool(stepped)
    np.testing.assert_allclose(norms['grad_norm'], np.linalg.norm(gradient), rtol=1e-6)  # Before clipping.
    np.testing.assert_allclose(norms['update_norm'], np.linalg.norm(weights - before), rtol=1e-5)
    np.testing.assert_allclose(flat(state.params), weights, rtol=2e-6, atol=1e-6)
  assert np.abs(wanted[-1] - START).max() > 0.05


def test_without_clipping_and_decay():
  config = OptimizerConfig(learning_rate=0.01, clip_norm=None)
  state, step = machinery(config, TeacherConfig())
  for gradient in GRADIENTS[:3]:
    state, _, _ = step(state, tree(gradient), jnp.float32(0.0))
  wanted = adamw(config, GRADIENTS[:3], [0.01] * 3)[-1]
  np.testing.assert_allclose(flat(state.params), wanted, rtol=2e-6, atol=1e-6)
  assert state.teacher is None


def test_the_average_starts_at_the_student_and_follows_every_step():
  state, step = machinery()
  average = START
  np.testing.assert_array_equal(flat(state.teacher), flat(state.params))
  for gradient, weights in zip(GRADIENTS, adamw(CONFIG, GRADIENTS, RATES)):
    state, _, _ = step(state, tree(gradient), jnp.float32(1.0))
    average = 0.7 * average + 0.3 * weights
    np.testing.assert_allclose(flat(state.teacher), average, rtol=2e-6, atol=1e-6)


def poison(value):
  gradient = GRADIENTS[1].copy()
  gradient[3] = value
  return gradient


@pytest.mark.parametrize(
  ('gradient', 'loss'),
  [
    (poison(math.nan), 1.0),
    (poison(math.inf), 1.0),
    (poison(-math.inf), 1.0),
    (poison(1e30), 1.0),
    (GRADIENTS[1], math.nan),
    (GRADIENTS[1], math.inf),
  ],
)
def test_what_is_not_finite_changes_nothing(gradient, loss):
  fresh, step = machinery()
  before, _, _ = step(fresh, tree(GRADIENTS[0]), jnp.float32(1.0))
  after, _, stepped = step(before, tree(gradient), jnp.float32(loss))
  assert not bool(stepped)
  # Weights, both moments, the step count and the average.
  assert len(jax.tree.leaves(before)) == 10
  jax.tree.map(np.testing.assert_array_equal, after, before)
  resumed, _, stepped = step(after, tree(GRADIENTS[1]), jnp.float32(1.0))
  assert bool(stepped)
  wanted = adamw(CONFIG, GRADIENTS[:2], RATES)[-1]  # As if there had been no bad update.
  np.testing.assert_allclose(flat(resumed.params), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'rates'),
  [
    (dict(schedule='constant'), {0: 1.0, 1: 1.0, 1000: 1.0}),
    (dict(schedule='constant', warmup_updates=4), {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 99: 1.0}),
    (dict(schedule='linear', decay_updates=10), {0: 1.0, 5: 0.5, 9: 0.1, 10: 0.0, 50: 0.0}),
    (
      dict(schedule='linear', warmup_updates=2, decay_updates=10),
      {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 10: 0.0, 11: 0.0},
    ),
    (
      dict(schedule='cosine', warmup_updates=4, decay_updates=16),
      {0: 0.25, 2: 0.75, 3: 1.0, 4: 1.0, 8: 0.75, 10: 0.5, 12: 0.25, 16: 0.0, 40: 0.0},
    ),
  ],
)
def test_schedules_at_their_key_points(changes, rates):
  schedule = lib.schedule(OptimizerConfig(learning_rate=2e-3, **changes))
  found = {update: float(schedule(update)) for update in rates}
  assert found == pytest.approx({u: 2e-3 * r for u, r in rates.items()}, rel=1e-5, abs=1e-10)


def test_the_initial_weights_outlive_a_donated_state():
  """The frozen teacher is the tree that the state was made from."""
  initial, optimizer = tree(START), lib.make_optimizer(CONFIG)
  state = lib.create(initial, optimizer, EMA)
  step = jax.jit(functools.partial(lib.step, optimizer=optimizer, teacher=EMA), donate_argnums=0)
  step(state, tree(GRADIENTS[0]), jnp.float32(1.0))
  assert state.params['w'].is_deleted()
  np.testing.assert_array_equal(flat(initial), START.astype(np.float32))


def test_moments_and_average_are_float32():
  state, _ = machinery()
  assert {x.dtype for x in jax.tree.leaves((state.params, state.teacher))} == {jnp.dtype('float32')}
  wide = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
  assert len(wide) == 4 and all(x.dtype == jnp.float32 for x in wide)


def test_the_description_is_what_a_checkpoint_is_restored_into():
  state, _ = machinery()
  found = lib.describe(tree(START), lib.make_optimizer(CONFIG), EMA)
  assert jax.tree.structure(found) == jax.tree.structure(state)
  for shape, leaf in zip(jax.tree.leaves(found), jax.tree.leaves(state)):
    assert (shape.shape, shape.dtype, shape.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


def test_only_a_run_with_a_controller_has_a_place_for_its_anchor():
  """Checkpoints of other runs do not depend on whether there are controllers."""
  optimizer = lib.make_optimizer(CONFIG)
  plain, anchored = (lib.describe(tree(START), optimizer, EMA, anchored) for anchored in (False, True))
  assert not hasattr(plain, 'anchor') and jax.tree.structure(anchored.anchor) == jax.tree.structure(
    plain.params
  )
  made = lib.create(tree(START), optimizer, EMA, True)
  assert jax.tree.structure(made) == jax.tree.structure(anchored)
  np.testing.assert_array_equal(flat(made.anchor), START.astype(np.float32))


def test_a_step_that_overflows_is_not_taken():
  """Loss and gradient are finite, the step is not: 1e30 squared is beyond float32."""
  state, step = machinery(OptimizerConfig(learning_rate=1e30), TeacherConfig())
  after, norms, stepped = step(state, tree(GRADIENTS[0]), jnp.float32(1.0))
  assert not bool(stepped)
  assert np.isfinite(norms['grad_norm']) and np.isinf(norms['update_norm'])  # What a report can name.
  jax.tree.map(np.testing.assert_array_equal, after, state)
