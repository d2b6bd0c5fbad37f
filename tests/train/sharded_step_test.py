"""One update on eight devices (2 data · 2 fsdp · 2 tensor) equals the update on one.

The loss is also compared with float64 NumPy (the decoder of the model's tests and the definition of
KL), and the gradient with its central differences.
"""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from jax.experimental.pallas import tpu as pltpu

from opsd_jax import mesh as meshes
from opsd_jax.distill import packing, scoring
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.models import model
from opsd_jax.records import Prompts, Rollout
from opsd_jax.train import state as states
from opsd_jax.train import step as steps
from opsd_jax.train.state import TrainState
from tests.models.oracle import continuation_rows, float64
from tests.models.transformer_test import (
  QUICK,
  SPEC,
  cube,
  flat,
  make_params,
  one_device,
  quick_jit,
  relative_gap,
)

QUESTIONS, PER_QUESTION, WIDTH, VALID = 8, 2, 5, 17
ROWS = QUESTIONS * PER_QUESTION
LENGTHS = np.int32([5, 1, 3, 0, 2, 5, 4, 1, 1, 1, 5, 5, 2, 3, 1, 4])
MESHES = {'one': one_device, 'cube': cube}
# Devices add partial sums in another order than one device: some float32 roundings of 6e-8 in a
# chain of two layers and a softmax. Relative to the largest entry (measured: at most 2e-6); a lost
# or doubled shard is off by a factor.
SAME = 1e-5


# Inputs, on the host.


def make_prompts(width, seed):
  rng = np.random.default_rng(seed)
  return Prompts(
    ids=rng.integers(0, VALID, (QUESTIONS, width), np.int32),
    length=rng.integers(1, width + 1, QUESTIONS, np.int32),
    problem_id=np.arange(QUESTIONS, dtype=np.uint32),
  )


def make_batch():
  """The student's prompts, the teacher's, and rollouts of uneven lengths."""
  rng = np.random.default_rng(0)
  rollout = Rollout(
    ids=rng.integers(0, VALID, (ROWS, WIDTH), np.int32),
    length=LENGTHS,
    stopped=LENGTHS < WIDTH,
    raw_logp=rng.normal(-3, 1, (ROWS, WIDTH)).astype(np.float32),
    behaviour_logp=np.zeros((ROWS, WIDTH), np.float32),
    policy_version=np.zeros(ROWS, np.int32),
    rollout_index=np.tile(np.int32([0, 1]), QUESTIONS),
  )
  return make_prompts(4, 1), make_prompts(6, 2), rollout


def reordered(batch, order):
  """The batch with its questions in another order."""
  rows = (np.asarray(order)[:, None] * PER_QUESTION + np.arange(PER_QUESTION)).ravel()
  prompts, seen, rollout = batch
  by_question = jax.tree.map(lambda x: x[np.asarray(order)], (prompts, seen))
  return *by_question, jax.tree.map(lambda x: x[rows], rollout)


# One update.


# Momentum 0 keeps the last gradient in the optimiser's state, so it is read without a rounding.
OPTIMIZER = optax.sgd(1.0, momentum=0.0)
EMA = dict(kind='ema', ema_decay=0.75)


PROGRAMS = {}


def call(key, make, *arguments):
  """Runs the jitted function of `make()`, compiled once a key and without costly optimisation."""
  if key not in PROGRAMS:
    PROGRAMS[key] = make().lower(*arguments).compile(QUICK)
  return PROGRAMS[key](*arguments)


def distill_step(kind, implementation, params):
  """With an average the layout of the new state is given, as in a run; else the compiler chooses."""
  teacher = TeacherConfig(**EMA) if kind == 'ema' else TeacherConfig(kind)
  layout = states.shardings(states.describe(params, OPTIMIZER, teacher)) if kind == 'ema' else None
  return steps.make_distill_step(
    SPEC,
    ObjectiveConfig(chunk_tokens=32, implementation=implementation),
    teacher,
    OPTIMIZER,
    valid_vocab=VALID,
    layout=layout,
  )


def supervised_step():
  return steps.make_supervised_step(SPEC, OPTIMIZER, valid_vocab=VALID, chunk_tokens=32)


score = quick_jit(functools.partial(scoring.score_teacher, SPEC))


def placed(mesh, seed):
  """Fresh weights on a mesh: a step donates what it is given."""
  return jax.tree.map(
    lambda x, like: jax.device_put(np.array(x), like.sharding),
    make_params(SPEC, seed),
    model.abstract_params(SPEC, mesh),
  )


@dataclasses.dataclass
class Outcome:
  state: TrainState
  report: steps.StepReport

  @property
  def gradient(self):
    return self.state.optimizer[0].trace


def update(
  where, kind='frozen', micro_batches=1, teacher_seed=1, batch=None, implementation='chunked', **planned
):
  """An update of student 0, taught by the weights of `teacher_seed`; `planned` are settings of the plan."""
  mesh = MESHES[where]()
  plan = packing.everything(QUESTIONS, PER_QUESTION, WIDTH, parts=micro_batches)
  if planned:
    asked, told, drawn = make_batch() if batch is None else batch
    plan = packing.plan(asked, [told], drawn, shards=meshes.row_shards(mesh), **planned)
    plan = meshes.shard_rows(mesh, plan, axis=1)
  prompts, seen, rollout = meshes.shard_rows(mesh, make_batch() if batch is None else batch)
  params, teacher = placed(mesh, 0), placed(mesh, teacher_seed)
  with jax.set_mesh(mesh):
    scores = score(teacher, [seen], rollout, plan)
    head = model.head(SPEC, teacher) if kind == 'frozen' else None
    state = TrainState(params, OPTIMIZER.init(params), teacher if kind == 'ema' else None)
    make = functools.partial(distill_step, kind, implementation, params)
    key = (where, kind, micro_batches, implementation, *planned.items())
    return Outcome(*call(key, make, state, prompts, rollout, scores, head, None, plan))


@functools.cache
def on_one(teacher_seed=1):
  return update('one', teacher_seed=teacher_seed)


def assert_same_update(actual, expected):
  np.testing.assert_allclose(actual.report.loss, expected.report.loss, rtol=SAME)
  for name, norm in expected.report.norms.items():
    np.testing.assert_allclose(actual.report.norms[name], norm, rtol=SAME, err_msg=name)
  assert bool(actual.report.stepped) and int(actual.report.tokens) == LENGTHS.sum()
  assert actual.report.sums.keys() == expected.report.sums.keys()
  for name, total in expected.report.sums.items():
    # Sums over 43 tokens; those near 0 are sums of numbers of size 1 all the same.
    np.testing.assert_allclose(actual.report.sums[name], total, rtol=SAME, atol=SAME, err_msg=name)
  assert relative_gap(actual.gradient, expected.gradient) < SAME
  assert relative_gap(actual.state.params, expected.state.params) < SAME


@pytest.mark.parametrize(
  ('where', 'kind', 'micro_batches', 'teacher_seed'),
  [
    pytest.param('one', 'frozen', 2, 1, marks=pytest.mark.slow),
    pytest.param('cube', 'frozen', 1, 1, marks=pytest.mark.slow),
    ('cube', 'frozen', 2, 1),
    ('cube', 'ema', 2, 1),
    ('cube', 'live', 1, 0),
  ],
)
def test_matches_one_device_and_one_part(where, kind, micro_batches, teacher_seed):
  # With the same weights a frozen, an averaged and a live teacher say the same.
  actual, expected = update(where, kind, micro_batches, teacher_seed), on_one(teacher_seed)
  assert_same_update(actual, expected)
  gap = np.abs(np.asarray(actual.report.token_loss) - np.asarray(expected.report.token_loss))
  assert gap.max() < SAME
  check_layout(actual, where)
  if kind == 'ema':
    check_average(actual, where)
  else:
    assert actual.state.teacher is None


@pytest.mark.parametrize(
  ('where', 'kind', 'micro_batches', 'teacher_seed'),
  [
    pytest.param('one', 'frozen', 1, 1, marks=pytest.mark.slow),
    ('cube', 'frozen', 2, 1),
    pytest.param('cube', 'live', 1, 0, marks=pytest.mark.slow),  # one head, which another test of them has
  ],
)
def test_an_update_with_the_tpu_kernels_is_the_same(where, kind, micro_batches, teacher_seed):
  with pltpu.force_tpu_interpret_mode():
    actual = update(where, kind, micro_batches, teacher_seed, implementation='tpu')
    jax.block_until_ready(actual.state.params)
  assert_same_update(actual, on_one(teacher_seed))
  check_layout(actual, where)


def check_layout(outcome, where):
  """Weights, gradients and average lie where the weights were born: nothing became replicated."""
  born = model.abstract_params(SPEC, MESHES[where]())
  for tree in (outcome.state.params, outcome.gradient, outcome.state.teacher or {}):
    for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(born)):
      assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
  if where == 'cube':
    assert {s.data.shape for s in outcome.state.params['embedding'].addressable_shards} == {(10, 8)}


def check_average(outcome, where):
  """The average moved a quarter of the way to the new student."""
  expected = jax.tree.map(
    lambda a, s: 0.75 * a + 0.25 * s, float64(make_params(SPEC, 1)), float64(outcome.state.params)
  )
  assert relative_gap(outcome.state.teacher, expected) < 1e-6


def test_the_step_is_the_gradient():
  outcome = on_one()
  expected = jax.tree.map(np.subtract, float64(make_params(SPEC)), float64(outcome.gradient))
  assert relative_gap(outcome.state.params, expected) < 1e-6
  norm = np.linalg.norm(flat(outcome.gradient))
  for name in ('grad_norm', 'update_norm'):
    assert float(outcome.report.norms[name]) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize(('where', 'micro_batches'), [('one', 2), ('cube', 1)])
def test_the_order_of_questions_does_not_matter(where, micro_batches):
  order = [3, 0, 7, 1, 6, 2, 5, 4]
  moved = update(where, micro_batches=micro_batches, batch=reordered(make_batch(), order))
  assert_same_update(moved, on_one())
  rows = (np.array(order)[:, None] * PER_QUESTION + np.arange(PER_QUESTION)).ravel()
  gap = np.asarray(moved.report.token_loss) - np.asarray(on_one().report.token_loss)[rows]
  assert np.abs(gap).max() < SAME


def test_two_teacher_views_are_refused():
  prompts, seen, rollout = make_batch()
  params = make_params(SPEC)
  scores = jax.eval_shape(functools.partial(scoring.score_teacher, SPEC), params, [seen] * 2, rollout)
  state = TrainState(params, OPTIMIZER.init(params), None)
  with pytest.raises(ValueError, match='compares with 1 teacher view, but 2 were scored'):
    distill_step('live', 'chunked', params).lower(state, prompts, rollout, scores, None)


# The oracle.


def log_softmax(logits):
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def log_probs(params, prompts, ids):
  """float64 [B, T, VALID] under a prompt and the same completion ids."""
  hidden = continuation_rows(SPEC, params, prompts.ids, prompts.length, ids)
  return log_softmax(hidden @ float64(params['embedding'])[:VALID].T)


@functools.cache
def oracle_teacher(seed=1):
  _, seen, rollout = make_batch()
  return log_probs(make_params(SPEC, seed), seen, rollout.ids)


def oracle_token_loss(params):
  """KL(teacher || student) [B, T] of every sampled token, 0 on padding."""
  prompts, _, rollout = make_batch()
  teacher, student = oracle_teacher(), log_probs(params, prompts, rollout.ids)
  kl = (np.exp(teacher) * (teacher - student)).sum(-1)
  return np.where(np.arange(WIDTH)[None] < LENGTHS[:, None], kl, 0)


def test_the_loss_is_its_definition():
  report, expected = on_one().report, oracle_token_loss(make_params(SPEC))
  np.testing.assert_allclose(report.token_loss, expected, atol=SAME)
  assert float(report.loss) == pytest.approx(expected.sum() / LENGTHS.sum(), rel=SAME)
  assert float(report.sums['token_loss']) == pytest.approx(expected.sum(), rel=SAME)


def differences(loss):
  """A random direction over the weights and the central difference of `loss` along it."""
  params, rng = float64(make_params(SPEC)), np.random.default_rng(5)
  direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
  ahead, behind = (jax.tree.map(lambda p, d, s=s: p + s * d, params, direction) for s in (1e-5, -1e-5))
  return direction, (loss(ahead) - loss(behind)) / 2e-5


def test_the_gradient_matches_differences_of_the_loss():
  direction, expected = differences(lambda p: oracle_token_loss(p).sum() / LENGTHS.sum())
  # Central differences are good to 1e-7 here, the float32 gradient to 1e-6 (measured).
  assert flat(on_one().gradient) @ flat(direction) == pytest.approx(expected, rel=SAME)


# The supervised step.


def supervised(where):
  mesh = MESHES[where]()
  prompts, _, rollout = make_batch()
  rows = Prompts(*(np.repeat(x, PER_QUESTION, 0) for x in (prompts.ids, prompts.length, prompts.problem_id)))
  batch = meshes.shard_rows(mesh, (rows, rollout.ids, LENGTHS))
  params = placed(mesh, 0)
  with jax.set_mesh(mesh):
    state = TrainState(params, OPTIMIZER.init(params), None)
    return Outcome(*call((where, 'supervised'), supervised_step, state, *batch))


def oracle_cross_entropy(params):
  prompts, _, rollout = make_batch()
  log_q = log_probs(params, prompts, rollout.ids)
  logp = np.take_along_axis(log_q, rollout.ids[..., None], -1)[..., 0]
  return -np.where(np.arange(WIDTH)[None] < LENGTHS[:, None], logp, 0).sum() / LENGTHS.sum()


def test_the_supervised_step_matches_one_device_and_its_definition():
  one, eight = supervised('one'), supervised('cube')
  assert_same_update(eight, one)
  check_layout(eight, 'cube')
  assert one.report.token_loss is None
  assert float(one.report.loss) == pytest.approx(oracle_cross_entropy(make_params(SPEC)), rel=SAME)
  direction, expected = differences(oracle_cross_entropy)
  assert flat(one.gradient) @ flat(direction) == pytest.approx(expected, rel=SAME)
