"""The controller around updates: its order beside a transcription of the paper's, its state, its cost."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import common, export, recipes
from opsd_jax import jsonlines
from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.config import ConfigError
from opsd_jax.distill.config import TeacherConfig
from opsd_jax.experiment import build, validate
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import lora, model
from opsd_jax.models.lora import LoraConfig
from opsd_jax.train import cold_start, controller, distill, extrapolation, loop
from opsd_jax.train import state as states
from opsd_jax.train.config import Budget, LoopConfig, OptimizerConfig
from opsd_jax.train.extrapolation import ControllerConfig
from opsd_jax.train.ledger import Ledger
from opsd_jax.train.recorder import MetricsConfig
from tests.experiments import tiny
from tests.models.lora_test import make_adapters
from tests.models.transformer_test import SPEC, make_params, quick_jit, relative_gap
from tests.train.engine_run_test import compiled_once  # noqa: F401
from tests.train.sharded_step_test import MESHES, OPTIMIZER

ADAM = states.make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_updates=3))
START = np.array([1.0, -2.0, 0.5, 3.0])
TARGET = np.array([9.0, 4.0, -3.0, 3.5])
STEPS = np.random.default_rng(0).normal(0.3, 1, (40, 4)) * [1, 0.7, -0.4, 0.1]
TRAINED, ASKED = Ledger(sampled=7, flops=10), Ledger(sampled=50, prompt_sampler=20, flops=3)


def score(weights):
  """A made-up accuracy: how near the weights are, in steps of 5 % so that some are equal."""
  return round(-float(np.abs(np.asarray(weights, np.float64) - TARGET).sum()) * 2) / 40


def transcribed(updates, accept, start=START):
  """C.10 in float64, the way the reference code walks: events, and the weights after every update."""
  events, history = [], []
  anchor, weights = start.copy(), start.copy()
  for t in range(1, updates + 1):
    weights = weights + STEPS[t - 1]
    events.append(('update', t, weights))
    if t in (1, 2, 4, 8, 16, 32):
      best, value = weights, score(weights)
      events.append(('ask', t, weights))
      candidate, factor = weights, 2.0
      for _ in range(5):
        candidate = candidate + factor * (candidate - anchor)
        factor = factor / (1 + factor)
        events.append(('ask', t, candidate))
        now = score(candidate)
        if not (now >= value if accept == 'at_least' else now > value):
          break
        best, value = candidate, now
      weights = anchor = best
    history.append(weights)
  return events, history


def tree(weights):
  return {'w': jnp.asarray(weights, jnp.float32)}


def make_setup(config, **changes):
  """What the controller and the loop read of a `Setup`."""
  return types.SimpleNamespace(
    controller=config,
    lora=LoraConfig(),
    splits=types.SimpleNamespace(train=[f'problem {i}' for i in range(60)]),
    evaluate=types.SimpleNamespace(seed=3),
    checkpoint=CheckpointConfig(every=3, keep_last=1, asynchronous=False),
    metrics=MetricsConfig(tensorboard=False, progress='none'),
    loop=LoopConfig(),
    resolved={},
    **changes,
  )


class Run:
  """Updates that add known steps, around which a controller asks a made-up question."""

  def __init__(self, monkeypatch, config, optimizer=ADAM):
    self.events, self.setup, self.number = [], make_setup(config), 0
    self.layout = states.describe(tree(START), optimizer, TeacherConfig(), True)
    self.start = lambda: states.create(tree(START), optimizer, TeacherConfig(), True)
    monkeypatch.setattr(controller, 'ask', self.ask)
    self.update = controller.around(self.setup, None, optimizer, self.layout, self.step)

  def step(self, state, number):
    self.number = number + 1
    params = tree(np.asarray(state.params['w'], np.float64) + STEPS[number])
    self.events.append(('update', number + 1, np.asarray(params['w'])))
    return state.replace(params=params), loop.Outcome({'loss': 1.0}, TRAINED, True, {'update': 1.0})

  def ask(self, setup, initial, problems, trained):
    assert setup is self.setup and problems == controller.asked(setup)
    self.events.append(('ask', self.number, np.asarray(trained['w'])))
    return score(trained['w']), ASKED

  def go(self, folder, updates):
    work = loop.Work('opsd', str(folder), Budget('updates', updates), self.start, self.layout, self.update)
    return loop.run(work, self.setup)


@pytest.mark.parametrize('accept', ['at_least', 'above'])
def test_the_order_is_that_of_the_paper_step_by_step(monkeypatch, tmp_path, accept):
  run = Run(monkeypatch, ControllerConfig('effopd', accept=accept))
  finished = run.go(tmp_path, 20)
  events, history = transcribed(20, accept)
  assert [e[:2] for e in run.events] == [e[:2] for e in events]
  for ours, theirs in zip(run.events, events, strict=True):
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(finished.params['w'], history[-1], rtol=1e-5)
  asked = [e[1] for e in events if e[0] == 'ask']
  taken = [asked.count(t) for t in (1, 2, 4, 8, 16)]
  assert max(taken) > 2 and min(taken) == 2, 'some triggers accept, some refuse the first candidate'
  # What it took is in the ledger of the run, and once more by itself.
  assert finished.progress.controller == sum([ASKED] * len(asked), Ledger())
  assert finished.progress.ledger == sum([TRAINED] * 20, finished.progress.controller)
  rows = jsonlines.read(tmp_path / 'metrics.jsonl')
  assert [r['step'] for r in rows if 'controller/factor' in r] == [1, 2, 4, 8, 16]
  assert [r['controller/tried'] for r in rows if 'controller/tried' in r] == [n - 1 for n in taken]
  assert rows[-1]['total/controller_sampled'] == 50 * len(asked)
  assert rows[-1]['total/sampled'] == 20 * 7 + 50 * len(asked)
  assert all(
    r['controller/accuracy'] >= r['controller/accuracy_before'] for r in rows if 'controller/factor' in r
  )


@pytest.mark.parametrize('middle', [3, 4, 7])
def test_a_run_that_is_continued_between_triggers_is_the_same(monkeypatch, tmp_path, middle):
  """The anchor of the last trigger must come back, or the next Δ would be another."""
  whole = Run(monkeypatch, ControllerConfig('effopd')).go(tmp_path / 'whole', 10)
  Run(monkeypatch, ControllerConfig('effopd')).go(tmp_path / 'parts', middle)
  again = Run(monkeypatch, ControllerConfig('effopd'))
  finished = again.go(tmp_path / 'parts', 10)
  assert again.events[0][:2] == ('update', middle + 1)
  np.testing.assert_array_equal(finished.params['w'], whole.params['w'])
  assert finished.progress.ledger == whole.progress.ledger
  assert finished.progress.controller == whole.progress.controller
  ours, theirs = (jsonlines.read(tmp_path / f / 'metrics.jsonl') for f in ('parts', 'whole'))
  assert [r | {'time': 0} for r in ours] == [r | {'time': 0} for r in theirs]


def test_a_fixed_factor_asks_nobody(monkeypatch, tmp_path):
  run = Run(monkeypatch, ControllerConfig('fixed', factor=1.5, at=(2, 5)))
  finished = run.go(tmp_path, 6)
  assert {e[0] for e in run.events} == {'update'}
  second = START + STEPS[:2].sum(0)
  jumped = second + 1.5 * (second - START)
  fifth = jumped + STEPS[2:5].sum(0)
  expected = fifth + 1.5 * (fifth - jumped) + STEPS[5]
  np.testing.assert_allclose(finished.params['w'], expected, rtol=1e-5)
  assert finished.progress.controller == Ledger()
  assert [r.get('controller/factor') for r in jsonlines.read(tmp_path / 'metrics.jsonl')] == [
    None, 1.5, None, None, 1.5, None
  ]  # fmt: skip


# The state.


def trained_state(optimizer=ADAM, steps=4, anchor=START):
  """A state whose moments and counts are not fresh."""
  state = states.create(tree(START), optimizer, TeacherConfig(), True)
  for i in range(steps):
    state, _, _ = states.step(state, tree(STEPS[i]), jnp.float32(1), optimizer, TeacherConfig())
  return state.replace(anchor=tree(anchor))


def control(config, value=0.5, optimizer=ADAM):
  layout = states.describe(tree(START), optimizer, TeacherConfig(), True)
  return controller.make(config, LoraConfig(), optimizer, layout, lambda params: (value, ASKED))


def test_a_step_leaves_the_anchor_alone():
  np.testing.assert_array_equal(trained_state().anchor['w'], START.astype(np.float32))
  state = states.create(tree(START), ADAM, TeacherConfig(), True)
  stepped, _, _ = states.step(state, tree(STEPS[0]), jnp.float32(1), ADAM, TeacherConfig())
  np.testing.assert_array_equal(stepped.anchor['w'], START.astype(np.float32))
  assert (np.asarray(stepped.params['w']) != START).all()


def test_the_optimiser_does_not_hear_of_it():
  before = jax.tree.map(np.array, trained_state().optimizer)
  state, found = control(ControllerConfig('effopd'))(trained_state(), 8)
  assert found.metrics['controller/factor'] == 10
  jax.tree.map(np.testing.assert_array_equal, state.optimizer, before)


def part_of(state, kind):
  """The only part of an optimiser's state that is of this kind."""
  (found,) = (
    s for s in jax.tree.leaves(state.optimizer, is_leaf=lambda x: isinstance(x, kind)) if isinstance(s, kind)
  )
  return found


def test_moments_begin_anew_and_the_schedule_goes_on():
  state, _ = control(ControllerConfig('effopd', moments='reset'))(trained_state(), 8)
  adam, place = (part_of(state, kind) for kind in (optax.ScaleByAdamState, optax.ScaleByScheduleState))
  assert int(place.count) == 4 and int(adam.count) == 0  # Its bias is corrected as at the first step.
  assert not np.any(adam.mu['w']) and not np.any(adam.nu['w'])
  # The next step is as long as the first one of a run, at the learning rate of the fifth.
  before = np.array(state.params['w'])
  state, _, _ = states.step(state, tree(STEPS[9]), jnp.float32(1), ADAM, TeacherConfig())
  np.testing.assert_allclose(state.params['w'] - before, -0.1 * np.sign(STEPS[9]), rtol=1e-4)


def test_nothing_accepted_resets_nothing():
  config = ControllerConfig('effopd', accept='above', moments='reset')
  before = jax.tree.map(np.array, trained_state())
  state, found = control(config)(trained_state(), 8)
  assert found.metrics['controller/factor'] == 0 and found.spent == ASKED + ASKED
  jax.tree.map(np.testing.assert_array_equal, state.optimizer, before.optimizer)
  np.testing.assert_array_equal(state.params['w'], before.params['w'])
  np.testing.assert_array_equal(state.anchor['w'], before.params['w'])  # Moved to the accepted weights.


def test_a_donated_state_loses_its_weights_and_not_its_anchor():
  step = jax.jit(
    lambda s: states.step(s, tree(STEPS[0]), jnp.float32(1), ADAM, TeacherConfig())[0], donate_argnums=0
  )
  state, _ = control(ControllerConfig('effopd'))(trained_state(), 8)
  accepted = np.array(state.params['w'])
  np.testing.assert_array_equal(step(state).anchor['w'], accepted)


PAIRS = LoraConfig(rank=3, targets=('query', 'down'))
nearest = quick_jit(extrapolation.extrapolate_adapters)


def on(where, tree, like):
  return jax.tree.map(lambda x, s: jax.device_put(np.array(x), s.sharding), tree, like(MESHES[where]()))


def adapters_on(where, seed=0):
  return on(where, make_adapters(PAIRS, seed=seed), functools.partial(lora.abstract, PAIRS, SPEC))


def weights_on(where, seed=0):
  return on(where, make_params(SPEC, seed), functools.partial(model.abstract_params, SPEC))


def act(config, adapters, params, anchor, scores, optimizer=OPTIMIZER):
  """The state after a trigger, and what was found."""
  layout = states.describe(params, optimizer, TeacherConfig(), True)
  rest = iter(scores)
  made = controller.make(config, adapters, optimizer, layout, lambda p: (next(rest), ASKED))
  return made(states.create(params, optimizer, TeacherConfig(), True).replace(anchor=anchor), 1)


@pytest.mark.parametrize('where', ['one', 'cube'])
def test_adapters_are_extrapolated_by_their_product(where):
  wanted, error = nearest(make_adapters(PAIRS), make_adapters(PAIRS, seed=2), np.float32(2))
  after, found = act(
    ControllerConfig('effopd'), PAIRS, adapters_on(where), adapters_on(where, 2), [0.1, 0.2, 0.1]
  )
  assert (
    found.metrics['controller/rank_error'] == pytest.approx(float(error), rel=1e-4) and float(error) > 0.01
  )
  for name in ('attention', 'mlp'):
    for pair, other in zip(after.params['layers'][name].values(), wanted['layers'][name].values()):
      product, expected = (np.einsum('lir,lro->lio', *flattened(p)) for p in (pair, other))
      np.testing.assert_allclose(product, expected, atol=1e-4)
  assert_laid_out(after, adapters_on(where))
  jax.tree.map(np.testing.assert_array_equal, after.anchor, after.params)


def flattened(pair):
  """a [L, in, r] and b [L, r, out], float64."""
  a, b = np.asarray(pair['a'], np.float64), np.asarray(pair['b'], np.float64)
  return a.reshape(a.shape[0], -1, a.shape[-1]), b.reshape(*b.shape[:2], -1)


def assert_laid_out(state, like):
  for tree in (state.params, state.anchor):
    for leaf, other in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True):
      assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)


def test_new_factors_have_no_moments():
  adapters = make_adapters(PAIRS)
  after, _ = act(
    ControllerConfig('effopd'), PAIRS, adapters, make_adapters(PAIRS, seed=2), [0.1, 0.2, 0.1], ADAM
  )
  state, _, _ = states.step(after, adapters, jnp.float32(1), ADAM, TeacherConfig())
  layout = states.describe(adapters, ADAM, TeacherConfig(), True)
  again = controller.make(ControllerConfig('fixed'), PAIRS, ADAM, layout, None)(state, 2)[0]
  adam, place = (part_of(again, kind) for kind in (optax.ScaleByAdamState, optax.ScaleByScheduleState))
  assert int(place.count) == 1 and int(adam.count) == 0
  assert not any(np.any(x) for x in jax.tree.leaves((adam.mu, adam.nu)))


def test_on_several_devices_all_weights_stay_where_they_are():
  after, found = act(
    ControllerConfig('effopd'), LoraConfig(), weights_on('cube'), weights_on('cube', 1), [0.1, 0.2, 0.3, 0.2]
  )
  assert found.metrics['controller/factor'] == 4
  expected = extrapolation.extrapolate(ControllerConfig(), make_params(SPEC), make_params(SPEC, 1), 4.0)
  assert relative_gap(after.params, expected) < 1e-6
  assert_laid_out(after, weights_on('cube'))


# Questions.


def test_the_questions_are_training_problems_and_always_the_same():
  found = controller.asked(make_setup(ControllerConfig('effopd', problems=20)))
  assert len(set(found)) == 20 and found == controller.asked(
    make_setup(ControllerConfig('effopd', problems=20))
  )
  assert found != [f'problem {i}' for i in range(20)]
  with pytest.raises(ConfigError, match='controller.problems is 61, but there are only 60'):
    controller.asked(make_setup(ControllerConfig('effopd', problems=61)))


# A whole run.

SETTINGS = (
  *tiny.ALONE,
  'cold_start.updates=0',
  'optimizer.learning_rate=0.01',
  'rollout.sampling.max_tokens=12',
  'evaluate.sampling.max_tokens=12',
  'loop.evaluate_every=0',
  'loop.show_every=0',
  'checkpoint.every=100',
  'controller.kind=effopd',
  'controller.problems=10',
)


def train(folder, updates):
  setup = build(common.with_settings(recipes.load('quickstart'), [*SETTINGS, f'loop.updates={updates}']))
  setup = dataclasses.replace(setup, mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
  with jax.set_mesh(setup.mesh):
    return setup, distill.run(setup, str(folder), cold_start.initial_params(setup))


@pytest.mark.slow
def test_a_run_with_a_real_model(tmp_path):
  setup, done = train(tmp_path, 3)
  rows = jsonlines.read(tmp_path / 'metrics.jsonl')
  # Of an untrained model every answer is wrong, so that each candidate is as good as the one before.
  assert [r.get('controller/factor') for r in rows] == [10, 10, None]
  questions = sum(1 + r['controller/tried'] for r in rows if 'controller/tried' in r) * 10
  assert questions <= done.progress.controller.sampled <= questions * 12
  drawn = sum(r['tokens'] for r in rows)
  assert rows[-1]['total/sampled'] == drawn + done.progress.controller.sampled
  assert done.progress.ledger.scored_student == drawn
  # Who reads its checkpoints knows of the anchor.
  experiment = common.with_settings(recipes.load('quickstart'), SETTINGS)
  step, params = export.read_trained(str(tmp_path), experiment, setup.mesh)
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, params, done.params)


@pytest.mark.slow
def test_a_run_with_a_real_model_goes_on_as_if_it_had_not_stopped(tmp_path):
  _, whole = train(tmp_path / 'whole', 4)
  train(tmp_path / 'parts', 3)
  _, parts = train(tmp_path / 'parts', 4)
  jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
  ours, theirs = (jsonlines.read(tmp_path / f / 'metrics.jsonl') for f in ('parts', 'whole'))
  assert [r | {'time': 0} for r in ours] == [r | {'time': 0} for r in theirs]


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (['controller.kind=effopd', 'controller.problems=0'], 'controller.problems is 0'),
    (
      ['controller.kind=effopd', 'lora.rank=4', 'teacher.kind=ema'],
      "controller.kind is 'effopd'.*set teacher.kind=frozen",
    ),
  ],
)
def test_what_a_run_cannot_combine(settings, words):
  with pytest.raises(ConfigError, match=words):
    validate(common.with_settings(recipes.load('quickstart'), settings))


def test_more_questions_than_there_are_problems():
  settings = [*tiny.ALONE, 'controller.kind=effopd', 'controller.problems=201']
  with pytest.raises(ConfigError, match='controller.problems is 201, but only 200 training problems'):
    build(common.with_settings(recipes.load('quickstart'), settings))
