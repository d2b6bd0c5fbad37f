"""An update with sample weights: its definition in float64, and that neither parts nor devices change it.

Inputs, oracle and tolerance are those of `sharded_step_test`. Whoever normalised weights or denominators over
a micro-batch or a device would be off by a tenth.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.distill import packing, weighing
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.train import step as steps
from opsd_jax.train.state import TrainState
from tests.distill import topk_reward_test, weighing_test
from tests.models.transformer_test import QUICK, SPEC, flat, make_params, quick_jit, relative_gap
from tests.train.sharded_step_test import (
  LENGTHS,
  MESHES,
  OPTIMIZER,
  PER_QUESTION,
  QUESTIONS,
  ROWS,
  SAME,
  VALID,
  WIDTH,
  differences,
  log_probs,
  make_batch,
  oracle_teacher,
  oracle_token_loss,
  placed,
  reordered,
  score,
)

slow = pytest.mark.slow
RENIO = WeighConfig(kind='renio', cap=1.5, threshold=0.3, source='pass')
OBJECTIVES = {
  'divergence': ObjectiveConfig(reduction='sample_mean', chunk_tokens=32, implementation='chunked'),
  'rewards': ObjectiveConfig(
    estimator='reward_topk',
    divergence='reverse_kl',
    support='union',
    k=3,
    reduction='sample_mean',
    chunk_tokens=32,
  ),
}


def two():
  return make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2])


@dataclasses.dataclass
class Outcome:
  weights: weighing.Weights
  state: TrainState
  report: steps.StepReport

  @property
  def gradient(self):
    return self.state.optimizer[0].trace


@functools.cache
def weigher():
  settings = dict(temperatures=(1.0, 1.0), softcaps=(None, None), valid_vocab=VALID, chunk_tokens=32)
  return quick_jit(functools.partial(weighing.from_states, RENIO, **settings))


@functools.cache
def update(where, micro_batches=1, objective='divergence', order=None, packed=False):
  """An update of student 0, taught by weights 1; every sample weighed beforehand."""
  mesh = (MESHES | {'two': two})[where]()
  batch = make_batch() if order is None else reordered(make_batch(), order)
  prompts, seen, rollout = meshes.shard_rows(mesh, batch)
  params, teacher = placed(mesh, 0), placed(mesh, 1)
  plan = packing.everything(QUESTIONS, PER_QUESTION, WIDTH, parts=micro_batches)
  if packed:
    plan = packing.plan(batch[0], [batch[1]], batch[2], packing='packed', micro_tokens=40)
  with jax.set_mesh(mesh):
    scores = score(teacher, [seen], rollout, plan)
    own = score(params, [prompts], rollout, plan.replace(teacher=(plan.student,)))
    states = [(x.hidden[0], model.head(SPEC, tree)) for x, tree in ((scores, teacher), (own, params))]
    weights = weigher()(rollout, plan, states[0], states[1])
    step = steps.make_distill_step(SPEC, OBJECTIVES[objective], TeacherConfig(), OPTIMIZER, valid_vocab=VALID)
    state = TrainState(params, OPTIMIZER.init(params), None)
    arguments = state, prompts, rollout, scores, model.head(SPEC, teacher), None, plan, weights.values
    return Outcome(jax.device_get(weights), *step.lower(*arguments).compile(QUICK)(*arguments))


@pytest.mark.parametrize(
  ('where', 'micro_batches', 'objective'),
  [
    pytest.param('two', 4, 'divergence', marks=slow),
    pytest.param('cube', 2, 'divergence', marks=slow),
    pytest.param('cube', 4, 'rewards', marks=slow),
    pytest.param('one', 2, 'divergence', marks=slow),
    ('one', 4, 'divergence'),
    pytest.param('one', 8, 'divergence', marks=slow),
    pytest.param('two', 1, 'divergence', marks=slow),
    pytest.param('two', 2, 'divergence', marks=slow),
    pytest.param('cube', 1, 'divergence', marks=slow),
    pytest.param('cube', 4, 'divergence', marks=slow),
    pytest.param('one', 4, 'rewards', marks=slow),
    pytest.param('two', 2, 'rewards', marks=slow),
    pytest.param('cube', 1, 'rewards', marks=slow),
  ],
)
def test_neither_parts_nor_devices_change_an_update(where, micro_batches, objective):
  actual, expected = update(where, micro_batches, objective), update('one', 1, objective)
  np.testing.assert_allclose(actual.weights.values, expected.weights.values, rtol=SAME)
  np.testing.assert_array_equal(actual.weights.selected, expected.weights.selected)
  np.testing.assert_allclose(actual.report.loss, expected.report.loss, rtol=SAME)
  np.testing.assert_allclose(actual.report.token_loss, expected.report.token_loss, atol=SAME)
  for name, total in expected.report.sums.items():
    np.testing.assert_allclose(actual.report.sums[name], total, rtol=SAME, atol=SAME, err_msg=name)
  assert relative_gap(actual.gradient, expected.gradient) < SAME
  assert relative_gap(actual.state.params, expected.state.params) < SAME


@slow
@pytest.mark.parametrize('objective', OBJECTIVES)
def test_packed_rows_make_the_same_update(objective):
  actual, expected = update('one', 1, objective, packed=True), update('one', 1, objective)
  np.testing.assert_allclose(actual.weights.values, expected.weights.values, rtol=SAME)
  np.testing.assert_allclose(actual.report.loss, expected.report.loss, rtol=SAME)
  assert relative_gap(actual.gradient, expected.gradient) < SAME


@slow
def test_the_order_of_questions_does_not_matter():
  order = (3, 0, 7, 1, 6, 2, 5, 4)
  moved, expected = update('cube', 2, order=order), update('one')
  rows = (np.array(order)[:, None] * PER_QUESTION + np.arange(PER_QUESTION)).ravel()
  np.testing.assert_allclose(moved.weights.values, expected.weights.values[rows], rtol=SAME)
  assert relative_gap(moved.gradient, expected.gradient) < SAME


# --- In float64.


@functools.cache
def oracle_weights():
  prompts, _, rollout = make_batch()
  sides = log_probs(make_params(SPEC), prompts, rollout.ids), oracle_teacher()
  student, teacher = (np.take_along_axis(x, rollout.ids[..., None], -1)[..., 0] for x in sides)
  ratio = student - teacher
  real = np.arange(WIDTH)[None] < LENGTHS[:, None]
  assert np.abs(ratio - RENIO.threshold)[real].min() > 1e-4, 'no rounding decides'
  return weighing_test.oracle(RENIO, ratio, LENGTHS.tolist())


def shares():
  """What a token's loss is multiplied by: its sample's weight over its length and the number of samples."""
  return oracle_weights()[0] / np.maximum(LENGTHS, 1) / (LENGTHS > 0).sum()


def test_weights_and_loss_by_definition():
  values, count = oracle_weights()
  found = update('one')
  np.testing.assert_allclose(found.weights.values, values, rtol=SAME)
  np.testing.assert_array_equal(found.weights.selected, count)
  assert values.max() > 1.3 and values[LENGTHS > 0].min() < 0.8 and values[LENGTHS == 0] == [0]
  kl = oracle_token_loss(make_params(SPEC))
  assert float(found.report.loss) == pytest.approx((shares() * kl.sum(1)).sum(), rel=SAME)
  assert float(found.report.sums['token_loss']) == pytest.approx(kl.sum(), rel=SAME)  # unweighted


def test_the_gradient_is_that_of_the_loss_with_its_weights_held():
  direction, expected = differences(lambda p: (shares() * oracle_token_loss(p).sum(1)).sum())
  assert flat(update('one').gradient) @ flat(direction) == pytest.approx(expected, rel=SAME)


def oracle_rewards(params, signals=None):
  """Ids and w · d of every token under student 0, and with them Σ w d log p [B, T] under `params`."""
  prompts, _, rollout = make_batch()
  student, teacher = log_probs(params, prompts, rollout.ids), oracle_teacher()
  config, loss = OBJECTIVES['rewards'], np.zeros((ROWS, WIDTH))
  signals = {} if signals is None else signals
  for b, t in np.ndindex(ROWS, WIDTH):
    if t < LENGTHS[b]:
      if (b, t) not in signals:
        ids, share, ratio = topk_reward_test.oracle(config, student[b, t], teacher[b, t])
        signals[b, t] = ids, share * ratio
      ids, signal = signals[b, t]
      loss[b, t] = (signal * student[b, t][ids]).sum()
  return signals, loss


def test_rewards_and_their_gradient_by_definition():
  found = update('one', 1, 'rewards')
  signals, _ = oracle_rewards(make_params(SPEC))
  loss = np.zeros((ROWS, WIDTH))
  for at, (_, signal) in signals.items():
    loss[at] = signal.sum()
  np.testing.assert_allclose(found.report.token_loss, loss, atol=SAME)
  assert float(found.report.loss) == pytest.approx((shares() * loss.sum(1)).sum(), rel=SAME)
  direction, expected = differences(lambda p: (shares() * oracle_rewards(p, signals)[1].sum(1)).sum())
  assert flat(found.gradient) @ flat(direction) == pytest.approx(expected, rel=SAME)
