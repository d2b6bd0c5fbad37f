"""Updates of adapters beside a frozen base: what changes, what is differentiated, what is kept.

The inputs and the float64 oracle are those of the test of full updates.
"""

import functools
import re

import jax
import numpy as np
import optax
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.distill import packing, scoring, teachers
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.models import lora, model
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.train import state as states
from opsd_jax.train import step as steps
from opsd_jax.train.config import OptimizerConfig
from opsd_jax.train.state import TrainState
from tests.models.lora_test import added, make_adapters
from tests.models.transformer_test import QUICK, SPEC, flat, float64, make_params, one_device, relative_gap
from tests.train.sharded_step_test import (
  EMA,
  LENGTHS,
  MESHES,
  OPTIMIZER,
  PER_QUESTION,
  QUESTIONS,
  SAME,
  VALID,
  WIDTH,
  make_batch,
  oracle_token_loss,
  placed,
  score,
)

CONFIG = LoraConfig(rank=3, alpha=1.5)
TEACHERS = {'frozen': TeacherConfig(), 'ema': TeacherConfig(**EMA), 'live': TeacherConfig('live')}


def placed_adapters(mesh, config=CONFIG, seed=0):
  return jax.tree.map(
    lambda x, like: jax.device_put(np.array(x), like.sharding),
    make_adapters(config, seed=seed),
    lora.abstract(config, SPEC, mesh),
  )


def distill_step(teacher, optimizer, layout=None, config=CONFIG):
  return steps.make_distill_step(
    SPEC,
    ObjectiveConfig(chunk_tokens=32, implementation='chunked'),
    teacher,
    optimizer,
    valid_vocab=VALID,
    layout=layout,
    adapters=config,
  )


@functools.cache
def update(where, kind='frozen', micro_batches=1):
  """An update of adapters 0 beside weights 0; a frozen teacher is weights 1, else adapters 0 score."""
  mesh, teacher = MESHES[where](), TEACHERS[kind]
  prompts, seen, rollout = meshes.shard_rows(mesh, make_batch())
  base, other = placed(mesh, 0), placed(mesh, 1)
  trained, average = placed_adapters(mesh), placed_adapters(mesh, seed=2) if kind == 'ema' else None
  complete = functools.partial(lora.complete, CONFIG, base)
  with jax.set_mesh(mesh):
    plan = packing.everything(QUESTIONS, PER_QUESTION, WIDTH, parts=micro_batches)
    taught_by = teachers.params_for(teacher, other, complete(average), complete(trained))
    scores = score(taught_by, [seen], rollout, plan)
    layout = states.shardings(states.describe(trained, OPTIMIZER, teacher))
    state = TrainState(trained, OPTIMIZER.init(trained), average)
    # The teacher's head is the base's, except in the oracle's case of a teacher with other weights.
    head = model.head(SPEC, other) if kind == 'frozen' else None
    arguments = state, prompts, rollout, scores, head, base, plan
    step = distill_step(teacher, OPTIMIZER, layout).lower(*arguments).compile(QUICK)
    return step(*arguments)


def gradient(state):
  return state.optimizer[0].trace


def test_the_loss_and_its_gradient_are_those_of_the_merged_weights():
  state, report = update('one')
  np.testing.assert_allclose(report.token_loss, oracle_token_loss(at(make_adapters())), atol=SAME)
  rng = np.random.default_rng(5)
  direction = jax.tree.map(lambda x: rng.normal(size=x.shape), float64(make_adapters()))
  ahead, behind = (
    oracle_token_loss(at(jax.tree.map(lambda x, d, s=s: x + s * d, float64(make_adapters()), direction)))
    for s in (1e-5, -1e-5)
  )
  expected = (ahead - behind).sum() / 2e-5 / LENGTHS.sum()
  assert flat(gradient(state)) @ flat(direction) == pytest.approx(expected, rel=SAME)


def at(adapters):
  return added(make_params(SPEC), adapters, 0.5)


@pytest.mark.parametrize(
  ('where', 'kind', 'micro_batches'),
  [('cube', 'frozen', 2), pytest.param('cube', 'ema', 1, marks=pytest.mark.slow)],
)
def test_matches_one_device_and_one_part(where, kind, micro_batches):
  state, report = update(where, kind, micro_batches)
  expected, whole = update('one', kind)
  np.testing.assert_allclose(report.loss, whole.loss, rtol=SAME)
  assert relative_gap(gradient(state), gradient(expected)) < SAME
  assert relative_gap(state.params, expected.params) < SAME
  shapes = lora.abstract(CONFIG, SPEC, MESHES[where]())
  for tree in (state.params, gradient(state), *([state.teacher] if kind == 'ema' else [])):
    for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(shapes), strict=True):
      assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


@pytest.mark.slow
def test_the_average_is_of_the_adapters():
  state, _ = update('one', 'ema')
  old, new = float64(make_adapters(seed=2)), float64(state.params)
  assert relative_gap(state.teacher, jax.tree.map(lambda a, s: 0.75 * a + 0.25 * s, old, new)) < 1e-6


# A run's first updates at the published rank.


PUBLISHED = LoraConfig(rank=64, alpha=128)
ADAM = states.make_optimizer(OptimizerConfig(learning_rate=1e-2))


class Run:
  """Updates beside a base of their own, by a frozen teacher; the compiled step serves them all."""

  def __init__(self):
    self.base = placed(one_device(), 0)
    self.fresh = lora.init(PUBLISHED, SPEC, jax.random.key(3), one_device())
    self.step = None

  def start(self):
    return states.create(self.fresh, ADAM, TEACHERS['frozen'])

  def update(self, state, privileged):
    prompts, seen, rollout = meshes.shard_rows(one_device(), make_batch())
    complete = functools.partial(lora.complete, PUBLISHED, self.base)
    trees = complete(state.teacher), complete(state.params)
    teacher = teachers.params_for(TEACHERS['frozen'], self.base, *trees)
    assert teacher is self.base, 'adapters off, and no memory of its own'
    scores = score(teacher, [seen if privileged else prompts], rollout)
    arguments = state, prompts, rollout, scores, None, self.base
    make = functools.partial(distill_step, TEACHERS['frozen'], ADAM, config=PUBLISHED)
    self.step = self.step or make().lower(*arguments).compile(QUICK)
    return self.step(*arguments)


@pytest.fixture(scope='module')
def run():
  return Run()


def test_an_update_changes_the_adapters_and_nothing_else(run):
  before = jax.tree.map(np.array, run.base)
  pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(run.base)]
  state, a = run.start(), [np.asarray(run.fresh['layers']['mlp']['down']['a'])]
  for _ in range(2):
    state, report = run.update(state, privileged=True)
    assert bool(report.stepped) and float(report.loss) > 0.01
    a.append(np.array(state.params['layers']['mlp']['down']['a']))
  assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(run.base)] == pointers
  jax.tree.map(np.testing.assert_array_equal, run.base, before)
  pairs = {**state.params['layers']['attention'], **state.params['layers']['mlp']}
  assert len(pairs) == 7
  for name, pair in pairs.items():
    assert pair['a'].shape[-1] == 64 == pair['b'].shape[1]
    assert np.abs(np.asarray(pair['b'])).max() > 1e-2, name
  np.testing.assert_array_equal(a[0], a[1])  # While b is 0, nothing depends on a.
  assert (a[1] != a[2]).all()


def test_without_privilege_fresh_adapters_have_nothing_to_learn_from_the_base(run):
  """The frozen teacher is the base with its adapters off: the student is equal to it at first alone."""
  state, report = run.update(run.start(), privileged=False)
  assert float(np.abs(report.token_loss).max()) == 0
  for _ in range(2):
    state, report = run.update(state, privileged=True)
  _, report = run.update(state, privileged=False)
  assert float(report.loss) > 1e-4


@pytest.mark.parametrize('kind', TEACHERS)
def test_the_state_has_the_size_of_the_adapters(kind):
  adapters = lora.abstract(PUBLISHED, SPEC, one_device())
  state = states.describe(adapters, ADAM, TEACHERS[kind])
  by_hand = 2 * 64 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 24))  # L · r · (in + out)
  sizes = [
    sum(x.size for x in jax.tree.leaves(tree) if x.ndim)
    for tree in (state.params, state.optimizer, state.teacher)
  ]
  assert sizes == [by_hand, 2 * by_hand, by_hand if kind == 'ema' else 0]


# What is not differentiated: matrices of unlike sizes, so that a product is known by its size.

SIZES = ModelSpec(
  vocab_size=101,
  num_layers=2,
  embed_dim=22,
  num_heads=2,
  num_kv_heads=1,
  head_dim=14,
  mlp_dim=37,
  tie_embeddings=False,
)


def products(config):
  """Elements of every matrix product in the compiled update."""
  spec, mesh, optimizer = SIZES, one_device(), optax.sgd(1e-3)
  prompts, _, rollout = make_batch()
  base = model.abstract_params(spec, mesh)
  trained = lora.abstract(config, spec, mesh) if config.rank else base
  state = states.describe(trained, optimizer, TEACHERS['live'])
  scores = jax.eval_shape(functools.partial(scoring.score_teacher, spec), base, (prompts,), rollout)
  step = steps.make_distill_step(
    spec,
    ObjectiveConfig(chunk_tokens=16, implementation='chunked'),
    TEACHERS['live'],
    optimizer,
    valid_vocab=99,
    adapters=config,
  )
  text = step.lower(state, prompts, rollout, scores, None, base).compile(QUICK).as_text()
  shapes = re.findall(r'= \w+\[([\d,]+)\]\S* dot\(', text)
  return {int(np.prod([int(n) for n in shape.split(',')])) for shape in shapes}


def test_neither_the_head_nor_the_base_gets_a_gradient():
  d, n, k, h, f, v = 22, 2, 1, 14, 37, 99  # Rows of the head beyond the valid vocabulary are left alone.
  weights = {d * n * h, d * k * h, d * f, v * d}
  assert weights <= products(LoraConfig()), 'they would be seen'
  found = products(LoraConfig(3))
  assert not weights & found
  assert {d * 3, n * h * 3, k * h * 3, f * 3} <= found
