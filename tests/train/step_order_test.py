"""One update of OPSD does what the published code does, in its order, with the weights of that moment.

The order (reconstructed from siyan-zhao/OPSD): draw problems and build both prompts; sample from the
current weights; put the same completion ids under both prompts; the student with, the teacher without
gradient; divide by the temperature, clip entries, sum, average over tokens; clip the gradient by its norm;
AdamW; the moving average, if there is one, last. Two recipes on a tiny model are recorded while they run:
frozen teacher and clipped entries (March 2026), and an EMA teacher (January 2026).
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import common, recipes
from opsd_jax.distill import scoring, teachers
from opsd_jax.distill.config import ObjectiveConfig
from opsd_jax.experiment import build
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.train import cold_start, distill, sources, state
from opsd_jax.train import step as steps
from tests.experiments import model_folder
from tests.models.transformer_test import SPEC, make_params, quick_jit
from tests.train.sharded_step_test import make_batch

SETTINGS = (
  'weights.published=none',
  'model.dtype=float32',
  'data.test_problems=4',
  'data.validation_problems=4',
  'views.student_tokens=256',
  'views.teacher_tokens=768',
  'rollout.questions=4',
  'rollout.sampling.max_tokens=12',
  'grade.rules=text',
  'grade.answer=boxed',
  'optimizer.clip_norm=0.001',  # below every gradient's
  'loop.updates=2',
  'loop.evaluate_every=0',
  'loop.show_every=0',
  'metrics.tensorboard=false',
  'metrics.progress=none',
)
RECIPES = ('opsd_qwen3_1p7b', 'opsd_2026_01_qwen3_4b_ema')
ORDER = ['problems', 'student prompts', 'teacher prompts', 'sample', 'teacher', 'student']
ORDER += ['entries', 'clip by norm', 'adamw', 'average']


class Recorder:
  """What was called, in order, and what it was given; a list an update."""

  def __init__(self):
    self.calls, self.given = [], {}

  def note(self, name, **values):
    if self.calls[-1:] != [name]:  # a program may be traced more than once
      self.calls.append(name)
    self.keep(name, **values)

  def keep(self, name, **values):
    if values:
      self.given.setdefault(name, []).append(jax.tree.map(np.array, values))


def optimizer_that_tells(record, name, plain):
  """An optax transformation that notes when it is traced, and the gradients that it gets."""

  def make(*args, **more):
    inner = optax.with_extra_args_support(plain(*args, **more))

    def update(grads, *rest, **extra):
      record.note(name)
      told = dict(norm=optax.tree.norm(grads), grads=grads)
      jax.debug.callback(lambda told: record.keep(name, **told), told, ordered=True)
      return inner.update(grads, *rest, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)

  return make


def around(patch, owner, attribute, before=None, after=None):
  """Calls `before` with what a function of ours is given, and `after` with its result and that."""
  plain = getattr(owner, attribute)

  def call(*args, **more):
    if before:
      before(*args, **more)
    result = plain(*args, **more)
    if after:
      after(result, *args)
    return result

  patch.setattr(owner, attribute, call)


def tapped(record, patch):
  """Puts the recorder between the parts of an update."""
  note = record.note
  around(patch, distill, 'problems_of_update', lambda *_: note('problems'))
  around(patch, distill.views, 'student_batch', lambda *_: note('student prompts'))
  around(patch, distill.views, 'teacher_batch', lambda *_: note('teacher prompts'))

  def sampled(drawn, spec, params, prompts, *_):
    rollout = drawn.rollout
    note('sample', weights=params.lora, ids=rollout.ids, length=rollout.length, prompts=prompts.ids)

  around(patch, sources.decode, 'sample', after=sampled)

  def scored(spec, params, views, rollout, *_):
    note('teacher')
    own = params.lora if hasattr(params, 'lora') else {}
    values = dict(weights=own, ids=rollout.ids, length=rollout.length, prompts=views[0].ids)
    jax.debug.callback(lambda values: record.keep('teacher', **values), values, ordered=True)

  around(patch, distill.scoring, 'score_teacher', scored)

  def compared(*args, **more):
    config = next(a for a in (*args, *more.values()) if isinstance(a, ObjectiveConfig))
    note('entries', clip=np.inf if config.entry_clip_max is None else config.entry_clip_max)

  around(patch, steps.objective, 'compare', compared)
  for name, attribute in (('clip by norm', 'clip_by_global_norm'), ('adamw', 'adamw')):
    patch.setattr(state.optax, attribute, optimizer_that_tells(record, name, getattr(state.optax, attribute)))
  around(patch, teachers, 'update', lambda *_: note('average'))
  make = distill.step.make_distill_step

  def make_distill_step(*args, **more):
    compiled = make(*args, **more)

    def step(weights, prompts, rollout, *rest):
      note('student', before=weights.params, ids=rollout.ids, length=rollout.length, prompts=prompts.ids)
      averages = [] if weights.teacher is None else [jax.tree.map(np.array, weights.teacher)]
      after, report = compiled(weights, prompts, rollout, *rest)
      averages += [] if after.teacher is None else [after.teacher]
      told = dict(loss=report.loss, each=report.token_loss, norms=report.norms)
      record.keep('after', weights=after.params, averages=averages, **told)
      return after, report

    return step

  patch.setattr(distill.step, 'make_distill_step', make_distill_step)


def prepared(name, folder, *more):
  """A recipe on a tiny model and a few problems, on one device."""
  model = model_folder.write_model(folder / 'model')
  many = [
    dict(problem=f'What is {i} + 1?', solution=f'It is {i} + 1 = {i + 1}.', Answer=str(i + 1))
    for i in range(24)
  ]
  (folder / 'data').mkdir()
  model_folder.write_lines(folder / 'data' / 'train.jsonl', many)
  settings = [*common.model_settings(str(model)), f'data.path={folder / "data"}', *SETTINGS, *more]
  setup = build(common.with_settings(recipes.load(name), settings))
  return dataclasses.replace(setup, mesh=make_mesh(MeshConfig(), jax.devices()[:1]))


@contextlib.contextmanager
def quickly():
  """Without costly optimisation of programs that run twice."""
  quick = 'jax_disable_most_optimizations'
  before = jax.config.values[quick]
  jax.config.update(quick, True)
  try:
    yield
  finally:
    jax.config.update(quick, before)


def run(setup, folder, external=None):
  """The recipe's updates."""
  with jax.set_mesh(setup.mesh):
    distill.run(setup, str(folder / 'run'), cold_start.initial_params(setup), external=external)
    jax.effects_barrier()


# The average of the other one makes its order the longer; what differs besides is the clip of entries.
@pytest.fixture(scope='module', params=[pytest.param(RECIPES[0], marks=pytest.mark.slow), *RECIPES[1:]])
def seen(request, tmp_path_factory):
  """Two updates of a recipe, recorded."""
  folder, record = tmp_path_factory.mktemp(request.param), Recorder()
  with quickly(), pytest.MonkeyPatch.context() as patch:
    setup = prepared(request.param, folder)
    tapped(record, patch)
    run(setup, folder)
  return setup, record


def leaves(tree, name='b'):
  """The arrays of that name of every adapter, float64."""
  pairs = [pair for group in tree['layers'].values() for pair in group.values()]
  return np.concatenate([np.float64(pair[name]).ravel() for pair in pairs])


def test_the_order_of_an_update(seen):
  _, record = seen
  assert record.calls[: len(ORDER)] == ORDER
  after = record.calls[len(ORDER) :]
  assert [name for name in after if name in ORDER[:4] + ['student']] == ORDER[:4] + ['student']


def test_entries_are_clipped_where_the_recipe_has_it(seen):
  setup, record = seen
  clip = 0.05 if setup.teacher.kind == 'frozen' else np.inf
  assert {float(one['clip']) for one in record.given['entries']} == {clip}


def test_rollouts_are_drawn_from_the_weights_of_that_moment(seen):
  _, record = seen
  first, second = record.given['sample']
  trained = record.given['after']
  for drawn, given in zip((first, second), record.given['student'], strict=True):
    assert (leaves(drawn['weights']) == leaves(given['before'])).all()
  assert (leaves(second['weights']) == leaves(trained[0]['weights'])).all()
  assert not leaves(first['weights']).any() and leaves(second['weights']).all(), 'adapters begin at 0'


def test_the_same_completion_ids_stand_under_two_prompts(seen):
  _, record = seen
  for drawn, student, teacher in zip(*(record.given[n] for n in ('sample', 'student', 'teacher'))):
    for row, n in enumerate(drawn['length']):
      assert n == student['length'][row] == teacher['length'][row] > 0
      for scored in (student, teacher):
        assert scored['ids'][row, :n].tolist() == drawn['ids'][row, :n].tolist()
    assert student['prompts'].tolist() == drawn['prompts'].tolist()
    assert student['prompts'].shape != teacher['prompts'].shape


def test_the_teacher_is_the_one_of_the_recipe(seen):
  setup, record = seen
  first, second = record.given['teacher']
  if setup.teacher.kind == 'frozen':
    assert first['weights'] == second['weights'] == {}, 'adapters off, at every update'
    return
  assert not leaves(first['weights']).any(), 'the average begins at the initial weights'
  assert (leaves(second['weights']) == leaves(record.given['after'][0]['averages'][-1])).all()


def test_the_average_moves_after_the_step(seen):
  setup, record = seen
  for update in record.given['after']:
    if setup.teacher.kind == 'frozen':
      assert update['averages'] == []
      continue
    old, new = map(leaves, update['averages'])
    expected = 0.999 * old + 0.001 * leaves(update['weights'])
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-12)
    assert np.abs(new - old).min() > 0, 'an average of the weights before the step would stay at 0'


def test_the_gradient_is_clipped_by_its_norm_before_the_step(seen):
  setup, record = seen
  whole = [float(one['norm']) for one in record.given['clip by norm']]
  clipped = [float(one['norm']) for one in record.given['adamw']]
  reported = [float(one['norms']['grad_norm']) for one in record.given['after']]
  assert min(whole) > 0.002 and whole == pytest.approx(reported, rel=1e-6)
  assert clipped == pytest.approx([setup.optimizer.clip_norm] * 2, rel=1e-5)


def test_the_first_step_is_adamws(seen):
  """Whatever the gradient, every weight that has one moves by the learning rate."""
  setup, record = seen
  moved = np.abs(leaves(record.given['after'][0]['weights']))
  assert moved.max() <= setup.optimizer.learning_rate * 1.001
  assert np.median(moved) == pytest.approx(setup.optimizer.learning_rate, rel=1e-2)


def test_the_loss_is_the_mean_over_tokens(seen):
  _, record = seen
  for update, drawn in zip(record.given['after'], record.given['sample'], strict=True):
    assert update['loss'] == pytest.approx(update['each'].sum() / drawn['length'].sum(), rel=1e-4, abs=1e-8)


def test_the_teachers_pass_has_no_gradient():
  prompts, seen, rollout = make_batch()

  def total(params):
    hidden = scoring.score_teacher(SPEC, params, [seen], rollout).hidden
    return jnp.sum(jnp.square(hidden.astype(jnp.float32)))

  value, gradient = quick_jit(jax.value_and_grad(total))(make_params(SPEC))
  assert float(value) > 0 and not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
