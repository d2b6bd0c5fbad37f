"""A whole update, on every kind of mesh, equals that of one device.

What is run is what a run does: prompts rendered, replayed rollouts, a plan, the teacher's states, the step.
One device reads prompts once a question and everything at a time; the others in either layout, in several
micro-batches. Gradients are read from the state of a plain SGD step, whose momentum of 0 keeps the last one,
so that no normalisation hides a difference.
"""

import contextlib
import dataclasses
import functools
import itertools
from typing import NamedTuple
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest

from experiments import common, recipes
from opsd_jax import mesh as meshes
from opsd_jax.data.source import problems_of_update
from opsd_jax.distill import views
from opsd_jax.distill.config import TeacherConfig
from opsd_jax.experiment import build
from opsd_jax.models import lora, model
from opsd_jax.records import Rollout, Sampled
from opsd_jax.train import distill, state
from tests.experiments import tiny
from tests.models.oracle import continuation_rows, float64
from tests.models.transformer_test import QUICK, flat, make_params, one_device, relative_gap

slow = pytest.mark.slow
# Devices add partial sums in another order: float32 roundings of 6e-8 in a chain of two layers and a softmax.
# Relative to the largest entry; measured over all that is below: at most 5e-6. A row that is lost, read twice
# or weighed by its own shard is off by a hundredth at least.
SAME = 1e-5
TOKENS = 10
OPTIMIZER = optax.sgd(1.0, momentum=0.0)
LAYOUTS = ('rows', 'packed')
MESHES = {'data': (8, 1, 1), 'fsdp': (1, 8, 1), 'tensor': (1, 1, 8), 'cube': (2, 2, 2)}

# On eight devices an axis of the first divides by any mesh axis; of the others some do not and stay whole.
SHAPES = {
  'even': dict(num_heads=8, num_kv_heads=8, head_dim=4, embed_dim=16, mlp_dim=24, vocab_size=32),
  'grouped': dict(num_heads=8, num_kv_heads=2, head_dim=4, embed_dim=24, mlp_dim=36, vocab_size=40),
  'odd': dict(num_heads=3, num_kv_heads=1, head_dim=6, embed_dim=18, mlp_dim=27, vocab_size=29),
}
OBJECTIVES = {
  'full': (),
  'topk': ('objective.support=student_topk', 'objective.k=5', 'objective.tail=bucket'),
  'sampled': ('objective.support=sampled', 'objective.divergence=reverse_kl'),
}
# Questions and rollouts of each. Neither 6 nor 5 rows divide by a number of row shards here; of 12 and 24
# rows the rows do and the questions do not; 16 questions make two micro-batches that divide.
BATCHES = ((3, 2), (5, 1), (6, 2), (3, 8), (16, 1))


class Case(NamedTuple):
  shape: str = 'even'
  objective: str = 'full'
  adapted: bool = False
  questions: int = 6
  per_question: int = 2


@functools.cache
def bench(case: Case):
  settings = [f'model.{name}={size}' for name, size in SHAPES[case.shape].items()]
  settings += [f'rollout.questions={case.questions}', f'rollout.per_question={case.per_question}']
  settings += [f'rollout.sampling.max_tokens={TOKENS}', 'loop.evaluate_every=0', 'loop.show_every=0']
  settings += ['model.num_layers=2', 'loop.parity_alarm=99', f'lora.rank={3 * case.adapted}']
  given = [*tiny.ALONE, 'cold_start.updates=0', *settings, *OBJECTIVES[case.objective]]
  return dataclasses.replace(
    build(common.with_settings(recipes.load('quickstart'), given)), mesh=one_device()
  )


def make_rollout(setup, lengths):
  """Completions that nobody drew, as a sampler hands them over."""
  rng, shape = np.random.default_rng(3), (len(lengths), TOKENS)
  return Rollout(
    ids=rng.integers(0, setup.exam.valid_vocab, shape).astype(np.int32),
    length=np.int32(lengths),
    stopped=np.asarray(lengths) < TOKENS,
    raw_logp=rng.normal(-3, 1, shape).astype(np.float32),
    behaviour_logp=np.zeros(shape, np.float32),
    rollout_index=np.tile(np.arange(setup.rollout.per_question, dtype=np.int32), setup.rollout.questions),
    policy_version=np.zeros(len(lengths), np.int32),
  )


def uneven(case: Case):
  """Some row has no token, some has all."""
  lengths = np.random.default_rng(case.questions).integers(1, TOKENS, case.questions * case.per_question)
  lengths[[1, -1]] = 0, TOKENS
  return tuple(lengths.tolist())


class Outcome(NamedTuple):
  weights: state.TrainState
  report: object
  metrics: dict
  scores: object

  @property
  def gradient(self):
    return self.weights.optimizer[0].trace


def placed(values, like):
  return jax.tree.map(lambda x, to: jax.device_put(np.array(x), to.sharding), values, like)


def adapters(setup):
  """None of them 0, unlike fresh ones, which would give half of them no gradient."""
  rng, described = np.random.default_rng(7), lora.abstract(setup.lora, setup.spec, one_device())
  return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), described)


@contextlib.contextmanager
def observed():
  """Records what the step and the scorer return; programs are compiled without costly optimisation."""
  seen, make_step, jit = {}, distill.step.make_distill_step, jax.jit

  def recorded(name, function):
    def call(*arguments, **more):
      seen[name] = function(*arguments, **more)
      return seen[name]

    return call

  def make(*arguments, **more):
    return recorded('step', make_step(*arguments, **more))

  def quick(function, **more):
    compiled = jit(function, compiler_options=QUICK, **more)
    return recorded('scores', compiled) if function is distill.scoring.score_teacher else compiled

  with mock.patch.object(distill.step, 'make_distill_step', make), mock.patch.object(jax, 'jit', quick):
    yield seen


@functools.cache
def machinery(case: Case, where: str | None, packing: str, micro_tokens: int | None):
  """A function of the lengths that does update 0 with fresh weights."""
  setup = bench(case)
  mesh = one_device() if where is None else meshes.make_mesh(meshes.MeshConfig(*MESHES[where]))
  loop = dataclasses.replace(setup.loop, packing=packing, micro_tokens=micro_tokens)
  setup = dataclasses.replace(setup, mesh=mesh, loop=loop)
  rollouts = {}

  def replayed(_setup):
    return lambda params, prompts, number: Sampled(rollouts['now'], None, None)

  with jax.set_mesh(mesh), observed() as seen, mock.patch.object(distill, 'source', replayed):
    initial = placed(make_params(setup.spec), model.abstract_params(setup.spec, mesh))
    trained = (
      placed(adapters(setup), lora.abstract(setup.lora, setup.spec, mesh)) if case.adapted else initial
    )
    layout = state.describe(trained, OPTIMIZER, setup.teacher)
    update = distill._make_update(setup, initial, OPTIMIZER, layout, '', 'opsd')

  def run(lengths):
    rollouts['now'] = make_rollout(setup, lengths)
    with jax.set_mesh(mesh):
      weights, done = update(state.create(trained, OPTIMIZER, setup.teacher), 0)
    # Weights are on the devices, where their layout is looked at.
    return Outcome(weights, meshes.host(seen['step'][1]), done.metrics, seen['scores'])

  return run


@functools.cache
def on_one(case: Case, lengths=None):
  return machinery(case, None, 'rows', None)(lengths or uneven(case))


def assert_same(actual, expected, lengths):
  np.testing.assert_allclose(actual.report.loss, expected.report.loss, rtol=SAME)
  np.testing.assert_allclose(actual.report.token_loss, expected.report.token_loss, atol=SAME, rtol=SAME)
  real = np.arange(TOKENS) < np.asarray(lengths)[:, None]  # on padding it may be anything
  gaps = [outcome.report.logp_gap[real] for outcome in (actual, expected)]
  np.testing.assert_allclose(*gaps, atol=SAME, rtol=SAME)
  assert int(actual.report.tokens) == sum(lengths) and bool(actual.report.stepped)
  for name, total in expected.report.sums.items():
    np.testing.assert_allclose(actual.report.sums[name], total, rtol=SAME, atol=SAME, err_msg=name)
  if any(lengths):
    assert relative_gap(actual.gradient, expected.gradient) < SAME
  assert relative_gap(actual.weights.params, expected.weights.params) < SAME
  assert actual.metrics.keys() == expected.metrics.keys()


def check(where, packing, case):
  actual = machinery(case, where, packing, 40)(uneven(case))
  assert_same(actual, on_one(case), uneven(case))
  return actual


def chosen():
  """Every mesh with every layout and objective; shapes, batches and adapters take turns among them."""
  for turn, (where, packing, objective) in enumerate(itertools.product(MESHES, LAYOUTS, OBJECTIVES)):
    shape = list(SHAPES)[(turn + turn // 3) % 3]
    yield where, packing, Case(shape, objective, bool((turn + turn // 6) % 2), *BATCHES[turn % 5])


def test_turns_leave_nothing_out():
  met = {where: [(packing, *case) for w, packing, case in chosen() if w == where] for where in MESHES}
  for cases in met.values():
    columns = [set(column) for column in zip(*cases)][:4]
    assert columns == [set(LAYOUTS), set(SHAPES), set(OBJECTIVES), {False, True}]
    assert len({(packing, adapted) for packing, _, _, adapted, *_ in cases}) == 4
    assert {case[-2:] for case in cases} == set(BATCHES)


def test_an_update_on_a_cube_is_that_of_one_device():
  actual = check('cube', 'packed', Case())
  check_state(actual.weights, 'cube', adapted=False)
  assert parts(actual.scores.hidden) == 4, 'rows of both data axes'


@slow
@pytest.mark.parametrize(('where', 'packing', 'case'), list(chosen()))
def test_an_update_is_that_of_one_device(where, packing, case):
  actual = check(where, packing, case)
  if case.shape == 'even':
    check_state(actual.weights, where, case.adapted)
    data, fsdp, _ = MESHES[where]
    assert packing == 'rows' or parts(actual.scores.hidden) == data * fsdp


@slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(st.lists(st.integers(0, TOKENS), min_size=12, max_size=12))
@hypothesis.example([0] * 12)
@hypothesis.example([0, TOKENS] * 6)
@hypothesis.example([0] * 11 + [1])
def test_any_lengths(lengths):
  """12 rows of 6 questions: on the cube a device has 3 rows, so that two questions are torn apart."""
  actual = machinery(Case(), 'cube', 'rows', 40)(lengths)
  assert_same(actual, on_one(Case(), tuple(lengths)), lengths)
  if not any(lengths):
    assert actual.report.loss == 0 == np.abs(flat(actual.gradient)).max()


# What one device does is what the definition says.


def log_probs(setup, prompts, ids):
  hidden = continuation_rows(setup.spec, make_params(setup.spec), prompts.ids, prompts.length, ids)
  logits = hidden @ float64(make_params(setup.spec)['embedding'])[: setup.exam.valid_vocab].T
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_one_device_computes_the_definition():
  """KL(teacher || student) in float64, of the same weights under two views; the mean over real tokens."""
  setup, lengths = bench(Case()), np.array(uneven(Case()))
  problems = problems_of_update(setup.splits.train, setup.rollout.questions, setup.seed, 0)
  ids = make_rollout(setup, lengths).ids
  student = log_probs(setup, views.student_batch(setup.views, problems, setup.tokenizer), ids)
  teacher = log_probs(setup, views.teacher_batch(setup.views, problems, setup.tokenizer)[0], ids)
  kl = np.where(np.arange(TOKENS) < lengths[:, None], (np.exp(teacher) * (teacher - student)).sum(-1), 0)
  report = on_one(Case()).report
  np.testing.assert_allclose(report.token_loss, kl, atol=SAME)
  assert float(report.loss) == pytest.approx(kl.sum() / lengths.sum(), rel=SAME)


# What is split.


def parts(array):
  """Into how many different parts an array is split."""
  return array.size / np.prod(array.sharding.shard_shape(array.shape))


def check_state(tree, where, adapted):
  """No array beyond a norm's is whole on an axis of the mesh that splits its kind."""
  _, fsdp, tensor = MESHES[where]
  seen = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    *_, module, name = [getattr(key, 'key', key) for key in path]
    if leaf.size <= 2 * 16:  # norms and counts
      continue
    seen += 1
    if adapted:  # one side of a pair has the width, the other heads or the MLP
      expected = tensor if (name == 'a') == (module in ('out', 'down')) else fsdp
    else:
      expected = fsdp * tensor
    assert parts(leaf) == expected, path
  return seen


@pytest.mark.parametrize('adapted', [False, True])
@pytest.mark.parametrize('where', MESHES)
def test_moments_and_averages_are_split_as_the_weights(where, adapted):
  """Of the optimiser of real runs, with an average and a controller's anchor."""
  setup = bench(Case(adapted=adapted))
  mesh = meshes.make_mesh(meshes.MeshConfig(*MESHES[where]))
  described = (
    lora.abstract(setup.lora, setup.spec, mesh) if adapted else model.abstract_params(setup.spec, mesh)
  )
  trained = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, np.float32), x.sharding), described)
  optimizer = state.make_optimizer(setup.optimizer)
  made = state.create(trained, optimizer, TeacherConfig('ema', ema_decay=0.9), anchored=True)
  matrices = 14 if adapted else 8  # seven projections; and the embedding
  assert check_state(made, where, adapted) == 5 * matrices
