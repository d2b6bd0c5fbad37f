"""One update of Rethinking OPD does what the published code does, in its order but for two passes.

The order (reconstructed from thunlp/OPD) is `PUBLISHED`. Its student reads the rollouts two or three times
at the same weights: without gradient for its 16 most probable ids, once more for the teacher's ids where the
support has them, and with gradient. Ours reads them once, with gradient; ids, weights and log-ratios are
taken from that pass and held. So the passes without gradient are not there, and rewards come after the pass
that the published code ends with. The problems' order is drawn from the seed; the published code takes that
of its file.

That this is no other update is tested as well: the published steps, each with a pass of its own, in float64.
"""

import jax
import numpy as np
import pytest

from opsd_jax.data.source import problems_of_update
from opsd_jax.distill import reading, topk_reward
from opsd_jax.models.spec import ModelSpec
from opsd_jax.train import distill, external, sources, state
from opsd_jax.train import step as steps
from tests.experiments import model_folder
from tests.models.oracle import continuation_rows, float64
from tests.train.sharded_step_test import log_softmax
from tests.train.step_order_test import Recorder, around, optimizer_that_tells, prepared, quickly, run

PUBLISHED = [
  'problems',
  'sample',
  'student, no gradient: its 16 ids',
  'teacher',
  "student, no gradient: the teacher's ids",  # where the support has them
  'rewards',
  'diagnostics',
  'student, gradient',
  'clip by norm',
  'adamw',
]
PROMPTS = ['student prompts', 'teacher prompts']  # the published code has them in its file
OURS = ['problems', *PROMPTS, 'sample', 'teacher', 'student, gradient', 'ids', 'rewards', 'diagnostics']
OURS += ['clip by norm', 'adamw']

# 330 rows, of which the student's 320 count: an external teacher pads its vocabulary otherwise.
TEACHER = ModelSpec(
  vocab_size=330, num_layers=1, embed_dim=24, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=40
)
RATE = 1e-2  # the published one is lost in the roundings of float32
SETTINGS = (
  'teacher.weights.published=none',
  'teacher.model.dtype=float32',
  'data.fields=default',
  'data.fields.answer=Answer',
  'rollout.per_question=2',
  f'optimizer.learning_rate={RATE}',
)
SUPPORTS = ('student_topk', 'teacher_topk', 'intersection', 'union', 'symmetric_difference')


def tapped(record, patch, taught_by):
  """Puts the recorder between the parts of an update."""
  note = record.note
  around(patch, distill, 'problems_of_update', lambda *_: note('problems'))
  around(patch, distill.views, 'student_batch', lambda *_: note(PROMPTS[0]))
  around(patch, distill.views, 'teacher_batch', lambda *_: note(PROMPTS[1]))

  def sampled(drawn, spec, params, prompts, *_):
    rollout = drawn.rollout
    values = dict(ids=rollout.ids, length=rollout.length, prompts=prompts.ids, lengths=prompts.length)
    note('sample', weights=params, **values)

  around(patch, sources.decode, 'sample', after=sampled)

  def read(spec, params, inputs):
    name = 'teacher' if spec == taught_by else 'student, gradient'
    note(name)
    jax.debug.callback(lambda ran: record.keep(name, ran=ran), inputs.tokens[0].shape[0])

  around(patch, distill.scoring, 'score_teacher')  # another function, so that no earlier trace serves it
  around(patch, reading, 'states', read)
  around(patch, topk_reward, 'choose', lambda *_: note('ids'))
  around(patch, topk_reward, 'shares', lambda *_: note('rewards'))
  around(patch, topk_reward, 'overlaps', lambda *_: note('diagnostics'))
  for name, attribute in (('clip by norm', 'clip_by_global_norm'), ('adamw', 'adamw')):
    patch.setattr(state.optax, attribute, optimizer_that_tells(record, name, getattr(state.optax, attribute)))
  make = steps.make_distill_step

  def make_distill_step(*args, **more):
    compiled = make(*args, **more)

    def step(weights, *rest):
      record.keep('before', weights=weights.params)
      after, report = compiled(weights, *rest)
      told = dict(loss=report.loss, each=report.token_loss, norms=report.norms, sums=report.sums)
      record.keep('after', weights=after.params, **told)
      return after, report

    return step

  patch.setattr(distill.step, 'make_distill_step', make_distill_step)


@pytest.fixture(
  scope='module', params=[SUPPORTS[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SUPPORTS[1:])]
)
def seen(request, tmp_path_factory):
  """Two updates of the recipe with a support: the workbench, the teacher's weights, and what was recorded."""
  folder, record = tmp_path_factory.mktemp(request.param), Recorder()
  with quickly(), pytest.MonkeyPatch.context() as patch:
    teacher = model_folder.write_model(folder / 'teacher', TEACHER, seed=1)
    whose = f'teacher.model={teacher}', f'teacher.weights.path={teacher}'
    support = f'objective.support={request.param}'
    setup = prepared('rethinking_opd_qwen3_1p7b', folder, *whose, *SETTINGS, support)
    with jax.set_mesh(setup.mesh):
      params = external.prepare(setup, str(folder / 'none')).params
    tapped(record, patch, setup.teacher.model)
    run(setup, folder, params)
  return setup, jax.tree.map(np.array, params), record


def once(names):
  """Each name where it stood first; a program may be traced more than once."""
  return list(dict.fromkeys(names))


def test_the_order_of_an_update(seen):
  _, _, record = seen
  starts = [i for i, name in enumerate(record.calls) if name == 'problems']
  assert len(starts) == 2, 'one batch of rollouts an update'
  assert once(record.calls[: starts[1]]) == OURS


def test_the_order_is_the_published_one_but_for_what_is_named(seen):
  _, _, record = seen
  moved = [name for name in PUBLISHED if 'no gradient' not in name]
  moved.insert(moved.index('rewards'), moved.pop(moved.index('student, gradient')))
  own = [*PROMPTS, 'ids']
  assert [name for name in once(record.calls) if name not in own] == moved


def test_both_models_read_the_rollouts_once_an_update(seen):
  _, _, record = seen
  for name in ('teacher', 'student, gradient'):
    assert len(record.given[name]) == 2


def test_the_problems_come_in_an_order_drawn_from_the_seed(seen):
  setup, _, record = seen
  for number, drawn in enumerate(record.given['sample']):
    problems = problems_of_update(setup.splits.train, 4, setup.seed, number)
    prompts = distill.views.student_batch(setup.views, problems, setup.tokenizer)
    assert prompts.ids.tolist() == drawn['prompts'].tolist() and len(drawn['ids']) == 8


def test_rollouts_are_drawn_from_the_weights_that_are_stepped(seen):
  _, _, record = seen
  for drawn, before in zip(record.given['sample'], record.given['before'], strict=True):
    jax.tree.map(np.testing.assert_array_equal, drawn['weights'], before['weights'])


# The published steps, one by one.


def logits(setup, spec, params, drawn):
  """float64 [B, T, V] of a model that reads the same prompts and completions."""
  hidden = continuation_rows(spec, params, drawn['prompts'], drawn['lengths'], drawn['ids'])
  head = params['embedding' if spec.tie_embeddings else 'head']
  return hidden @ float64(head)[: setup.exam.valid_vocab].T


def stored(support, student, teacher):
  """Ids [B, T, n] at which there are rewards, those rewards, and the overlap [B, T] of the two sets of 16.

  Step by step: the student's log-probs and ids; the teacher's at these and its own; the student's at the
  teacher's; weights and rewards, which are 0 at ids that the support leaves out.
  """
  mine, theirs = (np.argsort(-x, axis=-1, kind='stable')[..., :16] for x in (student, teacher))
  in_theirs, in_mine = (
    (mine[..., None] == theirs[..., None, :]).any(-1),
    (theirs[..., None] == mine[..., None, :]).any(-1),
  )
  ids, counted = {
    'student_topk': (mine, in_theirs | True),
    'teacher_topk': (theirs, in_mine | True),
    'intersection': (mine, in_theirs),
    'union': (np.concatenate([mine, theirs], -1), np.concatenate([in_theirs | True, ~in_mine], -1)),
    'symmetric_difference': (np.concatenate([mine, theirs], -1), np.concatenate([~in_theirs, ~in_mine], -1)),
  }[support]
  log_p, log_q = (np.take_along_axis(x, ids, -1) for x in (student, teacher))
  weights = np.where(counted, np.exp(log_p), 0.0)
  if support != 'symmetric_difference':
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
  return ids, -weights * (log_p - log_q), in_theirs.mean(-1)


@pytest.fixture(scope='module')
def published(seen):
  """Ids, rewards, overlap and mask of the first update."""
  setup, teacher, record = seen
  drawn, before = record.given['sample'][0], record.given['before'][0]['weights']
  width = drawn['ids'].shape[1]
  student, taught = (
    log_softmax(logits(setup, *of, drawn)) for of in ((setup.spec, before), (setup.teacher.model, teacher))
  )
  mask = np.arange(width)[None] < drawn['length'][:, None]
  return *stored(setup.objective.support, student, taught), mask


def test_rewards_are_those_of_three_passes(seen, published):
  _, _, record = seen
  ids, rewards, overlap, mask = published
  told = record.given['after'][0]
  each = np.where(mask, -rewards.sum(-1), 0)[:, : told['each'].shape[1]]
  assert np.abs(each).max() > 1e-3
  np.testing.assert_allclose(told['each'], each, atol=2e-6)
  assert told['loss'] == pytest.approx(each.sum() / mask.sum(), rel=1e-4, abs=1e-7)
  assert told['sums']['overlap'] == pytest.approx((mask * overlap).sum(), rel=1e-5)


def flat(tree):
  return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def test_the_gradient_is_that_of_another_pass_at_the_stored_ids(seen, published):
  """Of the mean over tokens of -reward · ratio; the ratio to the same weights is 1, and has log p's slope."""
  setup, _, record = seen
  ids, rewards, _, mask = published
  drawn, before = record.given['sample'][0], float64(record.given['before'][0]['weights'])
  direction = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape), before)

  def loss(step):
    moved = jax.tree.map(lambda x, d: x + step * d, before, direction)
    logs = np.take_along_axis(log_softmax(logits(setup, setup.spec, moved, drawn)), ids, -1)
    return -(rewards * logs).sum(-1)[mask].mean()

  expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
  assert flat(record.given['clip by norm'][0]['grads']) @ flat(direction) == pytest.approx(expected, rel=1e-4)


def test_the_gradient_is_clipped_by_its_norm_and_adamw_steps(seen):
  """The first step moves weights by the rate against their gradient's sign, and by 0.01 of themselves."""
  setup, _, record = seen
  whole, clipped = (record.given[name][0] for name in ('clip by norm', 'adamw'))
  bound = setup.optimizer.clip_norm
  assert whole['norm'] == pytest.approx(record.given['after'][0]['norms']['grad_norm'], rel=1e-6)
  assert whole['norm'] > 2 * bound
  slope = flat(whole['grads']) * bound / np.linalg.norm(flat(whole['grads']))
  np.testing.assert_allclose(flat(clipped['grads']), slope, rtol=1e-4, atol=1e-12)
  before, after = (flat(record.given[name][0]['weights']) for name in ('before', 'after'))
  expected = -RATE * (slope / (np.abs(slope) + 1e-8) + 0.01 * before)
  assert setup.optimizer.weight_decay == 0.01 and (before == 1).any() and (slope != 0).mean() > 0.5
  np.testing.assert_allclose(after - before, expected, rtol=1e-3, atol=2e-6)
