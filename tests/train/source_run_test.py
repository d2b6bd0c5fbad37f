"""Runs with another teacher, other sources and other privileges: what is scored, and what it takes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import common, recipes
from opsd_jax import jsonlines
from opsd_jax.experiment import build
from opsd_jax.train import cold_start, distill, external, sources, warm_start
from opsd_jax.train import config as train_room
from tests.experiments import tiny
from tests.models.transformer_test import one_device

ALONE = (*tiny.ALONE, 'loop.evaluate_every=0', 'loop.show_every=2', 'cold_start.updates=0', 'loop.updates=4')
WIDER = ('teacher.kind=external', 'teacher.model.embed_dim=24', 'teacher.model.num_layers=1')
WIDER += ('teacher.model.num_heads=2', 'teacher.model.num_kv_heads=1', 'teacher.model.head_dim=8')
WIDER += ('teacher.model.mlp_dim=40', 'teacher.model.vocab_size=26', 'teacher.model.final_softcap=5')
WIDER += ('views.teacher={problem}:', 'teacher_start.updates=2', 'teacher_start.batch=4')


@pytest.fixture(scope='module', autouse=True)
def quickly():
  """Most of the time would go into optimising programs that run once."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def workbench(*settings):
  setup = build(common.with_settings(recipes.load('quickstart'), [*ALONE, *settings]))
  return dataclasses.replace(setup, mesh=one_device())


def train(setup, folder, updates=None):
  """A run from random weights as a study has it; returns its weights and its metrics."""
  if updates is not None:
    setup = dataclasses.replace(setup, loop=dataclasses.replace(setup.loop, updates=updates))
  with jax.set_mesh(setup.mesh):
    own = setup.teacher.kind == 'external'
    teacher = external.prepare(setup, str(folder / 'teacher')).params if own else None
    initial = cold_start.initial_params(setup)
    start = warm_start.run(setup, str(folder), initial, 'test', teacher).params
    done = distill.run(setup, str(folder), start, external=teacher)
    jax.effects_barrier()
  rows = [{k: v for k, v in row.items() if k != 'time'} for row in jsonlines.read(folder / 'metrics.jsonl')]
  return done.params, rows


# GKD's mixture of solutions and rollouts, scored by a teacher of another width.

GKD = (*WIDER, 'source.kind=solutions', 'source.student_share=0.5', 'seed=1')


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
  """The workbench, what the teacher was given at every update, and the run's folder, weights and metrics."""
  setup, scored, folder = workbench(*GKD), [], tmp_path_factory.mktemp('whole')

  def score_teacher(spec, params, views, rollout, plan):
    jax.debug.callback(lambda *a: scored.append(a), rollout.ids, rollout.length, ordered=True)
    return plain(spec, params, views, rollout, plan)

  with pytest.MonkeyPatch.context() as patch:
    plain = distill.scoring.score_teacher
    patch.setattr(distill.scoring, 'score_teacher', score_teacher)
    trained, rows = train(setup, folder)
  return setup, scored, folder, trained, rows


def test_whose_turn_it_is_is_the_coins(mixture):
  setup, _, _, _, rows = mixture
  own = [sources.takes_own(setup.source, setup.seed, n) for n in range(4)]
  assert [row['own_rollouts'] for row in rows] == own and set(own) == {True, False}
  assert [row['total/sampled'] > 0 for row in rows] == np.maximum.accumulate(own).tolist()


def test_off_policy_updates_score_exactly_the_solutions_tokens(mixture):
  setup, scored, _, _, rows = mixture
  assert len(scored) == 4
  for number, (ids, length) in enumerate(scored):
    if rows[number]['own_rollouts']:
      continue
    problems = distill.problems_of_update(setup.splits.train, 4, setup.seed, number)
    for problem, row, n in zip(problems, ids, length, strict=True):
      wanted = [*setup.tokenizer.encode(problem.solution), setup.tokenizer.eos_ids[0]]
      assert row[:n].tolist() == wanted
    assert rows[number]['accuracy'] == 1 and rows[number]['tokens'] == length.sum()


def test_the_sampler_is_compared_where_it_drew_alone(mixture):
  for row in mixture[-1]:
    assert ('parity_gap' in row) == ('logp_gap' in row) == bool(row['own_rollouts'])
    assert row.get('parity_gap', 0) < 1e-5


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_alike(mixture, tmp_path):
  setup, _, _, trained, rows = mixture
  train(setup, tmp_path, updates=3)
  found, again = train(setup, tmp_path)
  assert again == rows
  jax.tree.map(np.testing.assert_array_equal, found, trained)


def test_the_teacher_is_wider_and_trained_on_clean_solutions(mixture):
  setup, _, folder, _, _ = mixture
  rows = jsonlines.read(folder / 'teacher' / 'metrics.jsonl')
  assert len(rows) == 2
  with jax.set_mesh(setup.mesh):
    params = external.prepare(setup, str(folder / 'teacher')).params  # found again
  assert params['embedding'].shape == (26, 24)
  stage = dataclasses.replace(setup, cold_start=setup.teacher_start)
  _, ids, length = cold_start.supervised_batch(stage, 0)
  problems = distill.problems_of_update(setup.splits.train, 4, setup.seed, 0)
  assert [setup.tokenizer.decode(i[:n].tolist()) for i, n in zip(ids, length)] == [
    p.solution for p in problems
  ]


def test_rows_of_a_cold_start_take_the_students_templates_in_turn():
  texts = "cold_start.student_texts=('{problem}:', '{problem}|:')"
  setup = workbench('cold_start.updates=1', 'cold_start.batch=4', 'cold_start.teacher_fraction=0.25', texts)
  prompts, _, _ = cold_start.supervised_batch(setup, 0)
  ends = [setup.tokenizer.decode(i[n - 2 : n].tolist()) for i, n in zip(prompts.ids, prompts.length)]
  assert [end == '|:' for end in ends] == [False, True, False, True]
  with pytest.raises(train_room.ConfigError, match=r'longer than views.student_tokens \(10\)'):
    workbench('cold_start.updates=1', 'cold_start.batch=4', texts, 'views.student_tokens=10')


# Imitation.


@pytest.mark.slow
def test_rejected_rollouts_teach_nothing_and_cost_tokens(tmp_path):
  """Random weights answer nothing rightly."""
  settings = ('source.kind=teacher', 'source.keep=correct', 'source.attempts=2', 'objective.estimator=nll')
  _, (row,) = train(workbench(*settings, 'loop.updates=1'), tmp_path)
  assert row['loss'] == row['tokens'] == row['grad_norm'] == row['total/scored_teacher'] == 0
  assert row['total/sampled'] > 0 == row['rows_scored']
  assert row['rejected_wrong'] == 2 * 4


@pytest.mark.slow
def test_rollouts_that_do_not_end_are_left_out_and_counted(tmp_path):
  """Random weights stop rarely within three tokens; what is left over is imitated."""
  settings = ('source.kind=teacher', 'source.reject.truncated=true', 'objective.estimator=nll')
  few = ('rollout.questions=32', 'rollout.sampling.max_tokens=24', 'loop.updates=1')
  _, (row,) = train(workbench(*settings, *few), tmp_path)
  assert 0 < row['rejected_truncated'] < 32
  assert row['rows_scored'] == 1 - row['rejected_truncated'] / 32
  assert row['tokens'] == row['total/scored_student'] == row['total/sampled'] - 24 * row['rejected_truncated']


@pytest.mark.slow
def test_a_warm_start_imitates_before_the_arm_distils(tmp_path):
  settings = ('warm_start.updates=2', 'warm_start.source.kind=solutions', 'warm_start.source.keep=all')
  setup = workbench(*settings, 'warm_start.source.attempts=1', 'loop.updates=1')
  _, rows = train(setup, tmp_path)
  warm = jsonlines.read(tmp_path / 'warm_start' / 'metrics.jsonl')
  assert len(warm) == 2 and len(rows) == 1
  assert warm[1]['loss'] < warm[0]['loss'], 'Adam at 1e-3 on the cross-entropy of a random model'
  assert warm[1]['total/sampled'] == 0 < warm[1]['total/scored_student'] and 'forward_kl' in rows[0]


# Privileges that are known after the rollouts, or written by the teacher.


@pytest.mark.slow
def test_feedback_is_read_once_a_row(tmp_path):
  view = ('views.teacher={problem}|{attempt}{feedback}:', 'views.feedback_wrong=-', 'views.teacher_tokens=64')
  setup = workbench(*view, 'rollout.per_question=2', 'rollout.sampling.max_tokens=12', 'loop.updates=1')
  _, (row,) = train(setup, tmp_path)
  assert row['forward_kl'] > 0 and row['tokens'] == row['total/sampled'] == row['total/scored_teacher']
  # Its own prompt for each of 8 rows: BOS, 9 characters of the question, a bar, the attempt, a mark, a colon.
  marks = row['total/prompt_teacher'] - 8 * (1 + 9 + 3)
  (shown,) = (tmp_path / 'rollouts').glob('*.json')
  assert row['rows_scored'] == 1
  assert 0 < marks <= row['tokens'] and json.loads(shown.read_text())


@pytest.mark.slow
def test_the_teachers_analysis_is_drawn_and_paid_for(tmp_path):
  view = ('views.analysis={problem}|{reference}:', 'views.analysis_tokens=6', 'views.teacher=|{problem}:')
  setup = workbench(*view, 'views.teacher_tokens=40', 'loop.updates=1')
  _, (row,) = train(setup, tmp_path)
  written = row['total/sampled'] - row['tokens']
  assert 0 < written <= 4 * 6
  stops = row['total/prompt_teacher'] - 4 * (1 + 9 + 1 + 8 + 1 + 1 + 9 + 1)
  assert written - 4 <= stops <= written, 'all that was written, but for an EOS'


# What cannot be sound.


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (['source.student_share=0.5'], 'source.student_share is 0.5, but source.kind is student'),
    (
      ['source.kind=teacher', 'source.student_share=1'],
      r'source.student_share is 1.0; it must lie in \[0, 1',
    ),
    (['source.kind=solutions', 'source.keep=correct'], "source.keep is 'correct', but source.kind is"),
    (['source.kind=teacher', 'source.attempts=2'], 'no rollout is rejected'),
    (['source.attempts=0'], 'source.attempts is 0'),
    (['source.kind=solutions', 'source.reject.line_times=5'], 'source.reject is set, but source.kind is'),
    (
      ['source.kind=teacher', 'source.reject.block_times=1'],
      'source.reject.block_times is 1; set at least 2',
    ),
    (
      ['warm_start.updates=1', 'warm_start.source.reject.line_chars=0'],
      'warm_start.source.reject.line_chars is 0',
    ),
    (['objective.estimator=nll'], "the student's own rollouts are among what it would imitate"),
    (
      ['objective.estimator=nll', 'source.kind=teacher', 'source.student_share=0.5'],
      'the mean of that gradient is 0',
    ),
    (
      ['objective.estimator=nll', 'source.kind=solutions', 'weigh.kind=renio'],
      "weigh.kind is 'renio', but objective.estimator is 'nll', which asks no teacher",
    ),
    (
      ['objective.estimator=nll', 'source.kind=solutions', 'objective.token_clip=1'],
      'objective.token_clip is 1.0, which objective.estimator=nll does not have',
    ),
    (
      ['source.kind=solutions', 'weigh.kind=length', 'weigh.scope=micro', 'weigh.micro=8']
      + ['rollout.questions=4', 'rollout.per_question=4'],
      'weigh.micro is 8; it must be above 1, where every sample weighs 1, and divide the 4 samples',
    ),
    (
      ['views.analysis={attempt}', 'views.analysis_tokens=4'],
      r'views.analysis shows \{attempt\}, but it is written before any rollout',
    ),
    (['source.kind=solutions', 'weigh.kind=renio'], "weigh.source is 'sampler', but source.kind is 'solu"),
    (['source.kind=solutions', 'objective.support=sampled'], "objective.support is 'sampled', an estimate"),
    (['source.kind=teacher', 'objective.correction=token'], "objective.correction is 'token', which needs"),
    (['warm_start.updates=1', 'lora.rank=2'], 'warm_start.updates is 1, which trains all weights'),
    (['warm_start.updates=1', 'warm_start.source.kind=student'], "warm_start.source.keep is 'correct'"),
    (['teacher.kind=external'], 'its weights would be random'),
    ([*WIDER, 'teacher.model.vocab_size=19'], 'teacher.model.vocab_size is 19, but the student draws 20 ids'),
    ([*WIDER, 'teacher.model.num_heads=3', 'teacher.model.num_kv_heads=2'], 'teacher.model.num_heads is 3'),
    ([*WIDER, 'teacher.weights.path=/none'], "teacher.weights.path is '/none', which is no folder"),
    (['teacher.kind=ema', 'teacher.weights.path=/none'], "is made of the student's own weights"),
    (['views.teacher={problem}|{sibling}:'], 'rollout.per_question is 1; raise it to 2'),
    (['views.teacher={problem}|{feedback}:'], 'views.feedback_right and views.feedback_wrong are empty'),
    (['views.teacher={problem}|{attempt}:'], 'does not hold a completion of rollout.sampling.max_tokens'),
    (
      ['views.teacher={problem}|{attempt}:', 'source.kind=solutions'],
      r'shows {attempt} of a rollout of the student, but source.kind is .solutions.',
    ),
  ],
)
def test_impossible_combinations_name_the_remedy(settings, words):
  with pytest.raises(train_room.ConfigError, match=words):
    common.with_settings(recipes.load('quickstart'), [*tiny.ALONE, *settings])
