"""GRPO: its step against float64 NumPy, on one device and eight, what is drawn for it, and whole runs."""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest

from experiments import common, recipes
from opsd_jax import jsonlines
from opsd_jax import mesh as meshes
from opsd_jax.config import ConfigError
from opsd_jax.distill import packing, scoring
from opsd_jax.distill.config import ObjectiveConfig
from opsd_jax.experiment import build, validate
from opsd_jax.grade import grading
from opsd_jax.grade.config import GradeConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.records import Graded, Problem, Prompts, Rollout, Sampled, Verdict
from opsd_jax.train import cold_start, grpo, grpo_step
from opsd_jax.train import state as states
from opsd_jax.train.grpo_step import Batch
from opsd_jax.train.state import TrainState
from opsd_jax.train.surrogate import GrpoConfig
from tests.experiments import tiny
from tests.models.oracle import continuation_rows
from tests.models.transformer_test import QUICK, SPEC, flat, float64, make_params, quick_jit, relative_gap
from tests.train.engine_run_test import compiled_once  # noqa: F401
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
  log_softmax,
  make_batch,
  placed,
)
from tests.train.surrogate_test import transcribed

LOSS = ObjectiveConfig(student_temperature=0.9, chunk_tokens=32)
CONFIG = GrpoConfig(kl=0.1, clip_high=0.28)
PLAIN = GrpoConfig(reduction='token_mean', estimator='k2', kl=0.3)
ADVANTAGE = np.float32(np.random.default_rng(4).normal(size=ROWS))


def log_probs(params):
  """float64 [B, T], of the sampled tokens at the temperature of the loss."""
  prompts, _, rollout = make_batch()
  hidden = continuation_rows(SPEC, params, prompts.ids, prompts.length, rollout.ids)
  log_q = log_softmax(hidden @ float64(params['embedding'])[:VALID].T / 0.9)
  return np.take_along_axis(log_q, rollout.ids[..., None], -1)[..., 0]


@functools.cache
def known():
  """Log-probs by the weights before the step, some made unlike what they are, and by other weights."""
  off = np.random.default_rng(6).normal(0, 0.5, (ROWS, WIDTH))
  return log_probs(make_params(SPEC)) + off, log_probs(make_params(SPEC, 1))


def oracle(config, params, old, advantage=ADVANTAGE):
  """The loss [B, T] of every token times its weight, 0 on padding."""
  logp, total = log_probs(params), np.zeros((ROWS, WIDTH))
  for row, length in enumerate(LENGTHS):
    samples = 1 / (LENGTHS > 0).sum() / max(length, 1)
    weight = 1 / LENGTHS.sum() if config.reduction == 'token_mean' else samples
    for t in range(length):
      value, _ = transcribed(config, logp[row, t], old[row, t], advantage[row], known()[1][row, t])
      total[row, t] = weight * value
  return total


PROGRAMS = {}


def arguments(config, where='one', parts=1, **changes):
  """Of a step from weights 0; `changes` are of the batch."""
  mesh = MESHES[where]()
  prompts, _, rollout = meshes.shard_rows(mesh, make_batch())
  old, reference = (np.float32(x) for x in known())
  batch = Batch(rollout, *meshes.shard_rows(mesh, (ADVANTAGE, old)), np.bool_(False), None)
  batch = batch._replace(reference=meshes.shard_rows(mesh, reference) if config.kl else None)
  plan = packing.everything(QUESTIONS, PER_QUESTION, WIDTH, views=0, parts=parts)
  params = placed(mesh, 0)
  state = TrainState(params, OPTIMIZER.init(params), None)
  return state, prompts, batch._replace(**changes), None, plan


def program(config, where='one', parts=1):
  if (config, where, parts) not in PROGRAMS:
    given = arguments(config, where, parts)
    layout = states.shardings(given[0])
    made = grpo_step.make_step(SPEC, config, LOSS, OPTIMIZER, valid_vocab=VALID, layout=layout)
    PROGRAMS[config, where, parts] = made.lower(*given).compile(QUICK)
  return PROGRAMS[config, where, parts]


def step(config, where='one', parts=1, **changes):
  """State, report and log-probs of one step from weights 0."""
  with jax.set_mesh(MESHES[where]()):
    return program(config, where, parts)(*arguments(config, where, parts, **changes))


def gradient(state):
  return state.optimizer[0].trace


@pytest.mark.parametrize(
  'config', [CONFIG, pytest.param(PLAIN, marks=pytest.mark.slow)], ids=['grpo', 'dapo']
)
def test_loss_and_gradient_are_their_definition(config):
  state, report, logp = step(config)
  old = known()[0]
  np.testing.assert_allclose(report.loss, oracle(config, make_params(SPEC), old).sum(), atol=SAME)
  real = np.arange(WIDTH) < LENGTHS[:, None]
  np.testing.assert_allclose(
    np.where(real, logp, 0), np.where(real, log_probs(make_params(SPEC)), 0), atol=SAME
  )
  clipped = float(report.sums['clip_fraction']) / LENGTHS.sum()
  assert 0.1 < clipped < 0.9, 'some tokens are clipped and some are not'
  direction, expected = differences(lambda p: oracle(config, p, old).sum())
  assert flat(gradient(state)) @ flat(direction) == pytest.approx(expected, rel=SAME)


def test_the_first_of_several_steps_takes_its_ratio_to_itself():
  """The ratio is exactly 1, and the gradient that of -A log p: what was told as `old` does not matter."""
  state, report, logp = step(CONFIG, fresh=np.bool_(True))
  assert float(report.sums['ratio']) == LENGTHS.sum() and float(report.sums['clip_fraction']) == 0
  start = log_probs(make_params(SPEC))
  np.testing.assert_allclose(report.loss, oracle(CONFIG, make_params(SPEC), start).sum(), atol=SAME)
  direction, expected = differences(lambda p: oracle(CONFIG, p, start).sum())
  assert flat(gradient(state)) @ flat(direction) == pytest.approx(expected, rel=SAME)


@pytest.mark.parametrize('old', ['scorer', 'sampler'])
def test_two_steps_on_a_batch(old):
  """Both take their ratio to the weights before the first, or to what the sampler told."""
  seen, config = [], dataclasses.replace(CONFIG, steps=2, old=old)

  def compiled(weights, *rest):
    seen.append(jax.tree.map(np.array, weights.params))
    return program(CONFIG)(weights, *rest)

  with jax.set_mesh(MESHES['one']()):
    _, reports = grpo.take_steps(config, compiled, *arguments(CONFIG))
  before = log_probs(seen[0]) if old == 'scorer' else known()[0]
  assert len(seen) == len(reports) == 2 and relative_gap(seen[1], seen[0]) > 0.01
  for params, report in zip(seen, reports, strict=True):
    assert float(report.loss) == pytest.approx(oracle(CONFIG, params, before).sum(), rel=SAME, abs=SAME)


@pytest.mark.parametrize(('where', 'parts'), [('cube', 2), pytest.param('one', 4, marks=pytest.mark.slow)])
def test_matches_one_device_and_one_part(where, parts):
  state, report, logp = step(CONFIG, where, parts)
  expected, whole, alone = step(CONFIG)
  np.testing.assert_allclose(report.loss, whole.loss, rtol=SAME, atol=1e-6)
  np.testing.assert_allclose(logp, alone, atol=SAME)
  assert relative_gap(gradient(state), gradient(expected)) < SAME
  for name, total in whole.sums.items():
    np.testing.assert_allclose(report.sums[name], total, rtol=SAME, atol=SAME, err_msg=name)
  born = model.abstract_params(SPEC, MESHES[where]())
  for leaf, like in zip(jax.tree.leaves(state.params), jax.tree.leaves(born), strict=True):
    assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_groups_without_variance_change_nothing():
  """Nor does the divergence, from weights that are still the initial ones."""
  _, _, logp = step(CONFIG)
  nothing = np.zeros(ROWS, np.float32)
  state, report, _ = step(CONFIG, advantage=nothing, reference=np.asarray(logp))
  assert float(report.loss) == 0 == float(report.norms['grad_norm'])
  assert relative_gap(state.params, make_params(SPEC)) == 0


def test_log_probs_by_the_initial_weights():
  score = quick_jit(functools.partial(scoring.score_tokens, SPEC, LOSS, VALID))
  prompts, _, rollout = make_batch()
  plan = packing.plan(prompts, (), rollout, packing='packed', micro_tokens=40)
  real = np.arange(WIDTH) < LENGTHS[:, None]
  for how in (None, plan):
    found = score(make_params(SPEC, 1), prompts, rollout, how)
    np.testing.assert_allclose(np.where(real, found, 0), np.where(real, known()[1], 0), atol=SAME)


def test_shares_of_tests_are_rewards():
  """From programs that pass some of their tests to the loss and the gradient of the step."""
  shares = np.array([0, 0.5, 1, 0.5, 0, 1, 1, 1] * 2)  # of two tests, what the program of a row passes
  numbers = [str(n) for n in range(2)]
  answer = json.dumps({'inputs': numbers, 'outputs': numbers})
  texts = [f'```python\nn = int(input())\nprint(n if n < {2 * share} else "no")\n```' for share in shares]
  graded = grading.grade(texts, [answer] * ROWS, GradeConfig(rules='programs'))
  prompts, _, rollout = make_batch()
  rewards = grpo.Drawn([None] * QUESTIONS, prompts, rollout, graded).rewards()
  groups = shares.reshape(QUESTIONS, PER_QUESTION)
  np.testing.assert_array_equal(rewards, groups)
  spread = np.sqrt(((groups - groups.mean(1, keepdims=True)) ** 2).sum(1, keepdims=True) / (PER_QUESTION - 1))
  ahead = np.float32((groups - groups.mean(1, keepdims=True)) / (spread + 1e-4)).ravel()
  advantage = grpo.surrogate.advantages(rewards, 'group').ravel()
  np.testing.assert_allclose(advantage, ahead, rtol=1e-6)
  assert np.unique(np.abs(advantage).round(4)).size > 1 and (graded.correct != (shares > 0)).any()
  state, report, _ = step(CONFIG, advantage=advantage)
  old = known()[0]
  np.testing.assert_allclose(report.loss, oracle(CONFIG, make_params(SPEC), old, ahead).sum(), atol=SAME)
  direction, expected = differences(lambda p: oracle(CONFIG, p, old, ahead).sum())
  assert flat(gradient(state)) @ flat(direction) == pytest.approx(expected, rel=SAME)


# What is drawn.


def verdicts(rewards):
  return Graded(tuple(Verdict.CORRECT if r else Verdict.WRONG for r in np.ravel(rewards)))


def drawn(names, rewards, width=3):
  """Rollouts whose tokens tell the question and which of its rollouts it is."""
  rows = np.arange(len(names) * 2)
  ids = np.array([10 * int(names[row // 2][1:]) + row % 2 for row in rows], np.int32)
  grid = np.zeros((len(rows), width), np.float32)
  rollout = Rollout(
    ids=np.tile(ids[:, None], (1, width)),
    length=np.full(len(rows), width, np.int32),
    stopped=np.ones(len(rows), bool),
    raw_logp=grid,
    behaviour_logp=grid,
    rollout_index=np.int32(rows % 2),
    policy_version=np.zeros(len(rows), np.int32),
  )
  prompts = Prompts(
    np.int32([[int(n[1:])] for n in names]), np.ones(len(names), np.int32), np.arange(len(names))
  )
  problems = [Problem(n, n, '', '', 'test') for n in names]
  return grpo.Drawn(problems, prompts, rollout, verdicts(rewards))


ALIKE, MIXED = [1, 1], [0, 1]


def test_without_dynamic_sampling_groups_are_taken_as_they_come():
  everything = drawn(['q1', 'q2', 'q3'], [ALIKE, MIXED, [0, 0]])
  found = grpo.choose(everything, 3, mixed=False)
  assert [p.id for p in found.problems] == ['q1', 'q2', 'q3'] and found.graded == everything.graded
  assert found.rollout.length.tolist() == [3] * 6


def test_dynamic_sampling_takes_the_first_whose_rewards_differ():
  everything = drawn(['q1', 'q2', 'q3', 'q4', 'q5', 'q6'], [ALIKE, MIXED, [0, 0], MIXED, ALIKE, MIXED])
  found = grpo.choose(everything, 2, mixed=True)
  assert [p.id for p in found.problems] == ['q2', 'q4']
  assert found.rollout.ids[:, 0].tolist() == [20, 21, 40, 41] and found.prompts.ids.tolist() == [[2], [4]]
  assert found.rewards().tolist() == [[0, 1], [0, 1]] and found.rollout.length.tolist() == [3] * 4


def test_shares_stay_with_their_rollouts():
  shares = (0.2, 0.2, 0.0, 0.6, 1.0, 1.0, 0.4, 0.8)
  parts = [drawn([f'q{i}', f'q{i + 1}'], np.zeros((2, 2))) for i in (1, 3)]
  parts = [
    one._replace(graded=dataclasses.replace(one.graded, shares=shares[at : at + 4]))
    for one, at in zip(parts, (0, 4))
  ]
  everything = grpo._together(parts)
  assert everything.rewards().tolist() == [[0.2, 0.2], [0, 0.6], [1, 1], [0.4, 0.8]]
  found = grpo.choose(everything, 2, mixed=True)
  assert [p.id for p in found.problems] == ['q2', 'q4'] and found.rewards().tolist() == [[0, 0.6], [0.4, 0.8]]


def test_where_too_few_differ_others_fill_the_shape_and_are_not_trained_on():
  everything = drawn(['q1', 'q2', 'q3', 'q4'], [ALIKE, MIXED, [0, 0], ALIKE])
  found = grpo.choose(everything, 3, mixed=True)
  assert [p.id for p in found.problems] == ['q2', 'q1', 'q3']
  assert found.rollout.length.tolist() == [3, 3, 0, 0, 0, 0]


class Draws:
  """Rounds of two questions each, whose rewards are known, through the program's own functions."""

  def __init__(self, monkeypatch, rounds, draws):
    self.asked, self.rounds = [], rounds
    config = types.SimpleNamespace(
      grpo=GrpoConfig(draws=draws), seed=0, spec=SPEC, tokenizer=None, views=None
    )
    config.rollout = types.SimpleNamespace(questions=2)
    config.splits = types.SimpleNamespace(train=None)
    config.lora = types.SimpleNamespace(rank=0)
    self.setup = config
    monkeypatch.setattr(grpo, 'problems_of_update', self.problems)
    monkeypatch.setattr(grpo.views, 'student_batch', lambda *_: self.now.prompts)
    monkeypatch.setattr(grpo.distill, 'roll_out', lambda *_: Sampled(self.now.rollout, None, None))
    monkeypatch.setattr(grpo.distill, 'grade', lambda *_: self.now.graded)

  def problems(self, train, count, seed, turn):
    self.asked.append(turn)
    self.now = self.rounds[len(self.asked) - 1]
    return self.now.problems

  def draw(self, number):
    return grpo.draw(self.setup, None, None, number)


def test_rounds_are_drawn_until_there_are_enough_groups(monkeypatch):
  rounds = [
    drawn(['q1', 'q2'], [ALIKE, MIXED], width=2),
    drawn(['q3', 'q4'], [ALIKE, ALIKE], width=4),
    drawn(['q5', 'q6'], [ALIKE, MIXED], width=3),
    drawn(['q7', 'q8'], [MIXED, MIXED]),
  ]
  all_rounds = Draws(monkeypatch, rounds, draws=5)
  everything, spent = all_rounds.draw(7)
  assert all_rounds.asked == [35, 36, 37]  # A function of the update alone, so that a run resumes anywhere.
  assert spent.sampled == 4 * (2 + 4 + 3)  # All that was drawn was paid for.
  assert (
    everything.rollout.ids.shape == (12, 4)
    and everything.rollout.length.tolist() == [2] * 4 + [4] * 4 + [3] * 4
  )
  assert [p.id for p in grpo.choose(everything, 2, True).problems] == ['q2', 'q6']


def test_no_more_rounds_than_there_may_be(monkeypatch):
  rounds = [drawn(['q1', 'q2'], [ALIKE, ALIKE])] * 3
  all_rounds = Draws(monkeypatch, rounds, draws=2)
  everything, _ = all_rounds.draw(0)
  assert all_rounds.asked == [0, 1] and len(everything.problems) == 4
  assert not grpo.choose(everything, 2, True).rollout.length.any()


# Whole runs.

SETTINGS = (
  *tiny.ALONE,
  'method=grpo',
  'rollout.per_question=4',
  'rollout.sampling.max_tokens=12',
  'cold_start.updates=0',
  'optimizer.learning_rate=0.01',
  'loop.evaluate_every=0',
  'loop.show_every=2',
  'checkpoint.every=100',
  'grpo.steps=2',
  'grpo.kl=0.05',
  'grpo.draws=2',
)


def lively(setup, problems, sampled):
  """Verdicts by the sampled ids, since an untrained model is never right."""
  return verdicts(np.asarray(sampled.ids[:, 0]) % 3 == 0)


def train(folder, updates, *changes):
  settings = [*SETTINGS, f'loop.updates={updates}', *changes]
  setup = build(common.with_settings(recipes.load('quickstart'), settings))
  setup = dataclasses.replace(setup, mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
  with jax.set_mesh(setup.mesh):
    return grpo.run(setup, str(folder), cold_start.initial_params(setup))


@pytest.mark.slow
def test_a_run_is_the_same_when_it_is_continued(monkeypatch, tmp_path):
  monkeypatch.setattr(grpo.distill, 'grade', lively)
  whole = train(tmp_path / 'whole', 3)
  train(tmp_path / 'parts', 2)
  parts = train(tmp_path / 'parts', 3)
  jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
  ours, theirs = (jsonlines.read(tmp_path / f / 'metrics.jsonl') for f in ('parts', 'whole'))
  assert [r | {'time': 0} for r in ours] == [r | {'time': 0} for r in theirs]
  first = theirs[0]
  assert first['reference_kl'] > 0, 'of the second step: the first is at the initial weights'
  assert abs(first['ratio'] - 1) < 0.2 and first['ratio'] != 1
  assert first['logp_gap'] > first['parity_gap'] < 1e-5  # The meter is read before the weights step.
  trained = [r['tokens'] for r in theirs]
  assert theirs[-1]['total/scored_student'] == 2 * sum(trained)  # Two steps on every batch.
  assert theirs[-1]['total/scored_teacher'] == sum(trained)  # One pass by the initial weights.
  assert theirs[-1]['total/sampled'] >= sum(trained) and {r['draws'] for r in theirs} <= {1, 2}
  assert (tmp_path / 'whole' / 'rollouts' / '000001.json').exists()


@pytest.mark.slow
def test_a_run_of_adapters_with_a_controller(monkeypatch, tmp_path):
  monkeypatch.setattr(grpo.distill, 'grade', lively)
  settings = ('lora.rank=2', 'controller.kind=effopd', 'controller.problems=4', 'grpo.draws=1')
  done = train(tmp_path, 2, *settings)
  rows = jsonlines.read(tmp_path / 'metrics.jsonl')
  assert done.progress.updates == 2 and all('controller/rank_error' in r for r in rows)


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (['method=grpo'], 'rollout.per_question is 1; set at least 2'),
    (
      ['method=grpo', 'rollout.per_question=4', 'rollout.sampling.temperature=0'],
      'rollout.sampling.temperature is 0',
    ),
    (
      ['method=grpo', 'rollout.per_question=4', 'teacher.kind=ema'],
      "teacher.kind is 'ema'.*teacher.kind=frozen",
    ),
    (['method=grpo', 'rollout.per_question=4', 'weigh.keep=correct'], "set it to 'all'"),
    (['method=grpo', 'rollout.per_question=4', 'weigh.kind=length'], "set it to 'none'"),
    (['method=grpo', 'rollout.per_question=4', 'source.kind=solutions'], "set it to 'student'"),
    (
      [
        'method=grpo',
        'rollout.per_question=4',
        'grpo.steps=2',
        'loop.updates=50',
        'optimizer.schedule=linear',
      ]
      + ['optimizer.decay_updates=99'],
      'optimizer.decay_updates is 99.*takes 100 updates',
    ),
  ],
)
def test_what_cannot_be_combined(settings, words):
  with pytest.raises(ConfigError, match=words):
    validate(common.with_settings(recipes.load('quickstart'), settings))
