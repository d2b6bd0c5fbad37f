"""The recipes of programs, from rows with tests to rewards: what is graded, what is kept, what is refused."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from experiments import common, data_check, recipes
from experiments.sitting import exam
from opsd_jax import jsonlines
from opsd_jax.config import ConfigError
from opsd_jax.data import cleaning, source
from opsd_jax.data.config import DataConfig
from opsd_jax.distill import weighing
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.evaluate import protocols
from opsd_jax.experiment import build
from opsd_jax.grade.config import GradeConfig
from opsd_jax.grade.programs import judge
from opsd_jax.records import Problem, Rollout, Verdict
from opsd_jax.train import cold_start, distill, grpo
from opsd_jax.train.step import StepReport
from tests.experiments import model_folder, real_text
from tests.models.transformer_test import one_device

TESTS = json.dumps({'inputs': ['1', '2', '3', '4'], 'outputs': ['2', '4', '6', '8']})
PROGRAMS = ['print(2 * int(input()))', 'n = int(input())\nprint(2 * n if n % 2 else 0)', 'print(', '']
SHARES = [1.0, 0.5, 0.0, 0.0]
TINY = (
  'weights.published=none',
  'data.test_problems=2',
  'data.validation_problems=2',
  'data.contamination.action=off',
  'rollout.questions=2',
  'rollout.per_question=2',
)


def texts():
  return [f'```python\n{program}\n```' if program else 'No.' for program in PROGRAMS]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """Settings of a tiny model with random weights, and of a tokenizer that knows any text."""
  folder = tmp_path_factory.mktemp('model')
  real_text.write_tokenizer(folder)
  sizes = dataclasses.asdict(model_folder.SPEC)
  shape = ('vocab_size', 'num_layers', 'embed_dim', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim')
  return [f'tokenizer.path={folder}', *(f'model.{name}={sizes[name]}' for name in shape)]


def experiment(name, model, folder, tests=TESTS, settings=()):
  rows = [
    {'problem': f'Read {i}. Double it.', 'deepseek_solution': PROGRAMS[0], 'test_cases': tests}
    for i in range(12)
  ]
  model_folder.write_lines(folder / 'train.jsonl', rows)
  return common.with_settings(recipes.load(name), [*model, f'data.path={folder}', *TINY, *settings])


def test_rollouts_are_graded_by_the_tests_of_their_problems(model, tmp_path):
  setup = build(experiment('renio_code_qwen3_1p7b', model, tmp_path))
  problems = [setup.splits.train[i] for i in (0, 1)]
  assert [p.answer for p in problems] == [TESTS] * 2
  ids = [setup.tokenizer.encode(text) for text in texts()]
  width, zeros = max(map(len, ids)), np.zeros((4, max(map(len, ids))), np.float32)
  padded = np.array([row + [0] * (width - len(row)) for row in map(list, ids)], np.int32)
  length = np.array(list(map(len, ids)), np.int32)
  rollout = Rollout(padded, length, length > 0, zeros, zeros, length, length)
  graded = distill.grade(setup, problems, rollout)
  assert graded.reward.tolist() == SHARES
  assert graded.verdicts == (Verdict.CORRECT, Verdict.WRONG, Verdict.WRONG, Verdict.UNFORMATTED)
  for keep, rows in (('correct', [0]), ('incorrect', [1, 2, 3])):
    assert np.flatnonzero(weighing.kept(WeighConfig(keep=keep), graded)).tolist() == rows
  step = StepReport(np.float32(0), {}, True, {}, 1, None)
  report = distill.describe(step, rollout, graded)
  assert report['reward'] == np.mean(SHARES) and report['accuracy'] == 0.25 and report['graded_errors'] == 0
  failed = dataclasses.replace(graded, verdicts=(*graded.verdicts[:3], Verdict.ERROR))
  assert distill.describe(step, rollout, failed)['graded_errors'] == 0.25
  assert 'graded_errors' not in distill.describe(step, rollout, dataclasses.replace(failed, shares=None))


@pytest.mark.parametrize('name', ['renio_code_qwen3_1p7b', 'renio_code_grpo_qwen3_1p7b'])
def test_problems_without_tests_are_refused(model, tmp_path, name):
  with pytest.raises(ConfigError, match='line 1: .*data.fields.tests.*holds no tests: not one test'):
    build(experiment(name, model, tmp_path, []))
  model_folder.write_lines(
    tmp_path / 'train.jsonl', [{'problem': f'p{i}', 'solution': 's', 'answer': '42'} for i in range(12)]
  )
  answers = common.with_settings(
    recipes.load(name), [*model, f'data.path={tmp_path}', *TINY, 'data.fields=default']
  )
  with pytest.raises(ConfigError) as caught:
    build(answers)
  for word in (
    "grade.rules is 'programs'",
    "problem 'train/",
    'no tests',
    'data.fields.tests',
    'other rules',
  ):
    assert word in str(caught.value)


def test_rows_that_cannot_be_trained_on_are_counted_when_the_data_is_prepared(tmp_path):
  called = json.dumps({'fn_name': 'twice', 'inputs': [[1]], 'outputs': [2]})
  good = {'problem': 'Double it.', 'deepseek_solution': 's', 'test_cases': TESTS, 'starter_code': None}
  rows = [
    good,
    good | {'test_cases': '{"inputs": [], "outputs": []}'},
    good | {'test_cases': called},
    good | {'test_cases': called, 'starter_code': 'def twice(n):'},
    good | {'deepseek_solution': None},
  ]
  model_folder.write_lines(tmp_path / 'train.jsonl', rows)
  fields = recipes.load('renio_code_qwen3_1p7b').data.fields
  problems = source.open_problems(DataConfig(source='files', path=str(tmp_path), fields=fields), 'train')
  kept, faults = data_check.readable(problems)
  assert [p.problem for p in kept] == ['Double it.', 'Double it.\n\ndef twice(n):']
  words = [('line 2', 'not one test'), ('line 3', "'twice'"), ('line 5', 'deepseek_solution')]
  assert len(faults) == 3 and all(w in f for f, some in zip(faults, words) for w in some), faults


def test_one_problem_with_other_tests_is_a_copy_and_no_contradiction(tmp_path):
  tests = (TESTS, json.dumps({'inputs': ['5'], 'outputs': ['10']}))
  problems = [Problem(f'train/{i}', 'Double it.', '', text, 'ours') for i, text in enumerate(tests)]
  left, report = cleaning.clean_problems(problems, recipes.load('renio_code_qwen3_1p7b').data, {})
  assert [p.id for p in left] == ['train/0'] and report.kept == 1


def test_mathematics_has_no_tests(model, tmp_path):
  with pytest.raises(ConfigError, match="has no field 'test_cases'.*data.fields.tests"):
    wrong = experiment('renio_code_qwen3_1p7b', model, tmp_path)
    model_folder.write_lines(
      tmp_path / 'train.jsonl', [{'problem': 'p', 'deepseek_solution': 's', 'answer': '1'}]
    )
    build(wrong)


def test_a_machine_that_runs_no_programs_is_found_first(model, tmp_path, monkeypatch):
  given = experiment('renio_code_qwen3_1p7b', model, tmp_path)
  (tmp_path / 'train.jsonl').unlink()

  def refuse(*_):
    raise ConfigError('no programs here')

  monkeypatch.setattr(judge, 'find_walls', refuse)
  with pytest.raises(ConfigError, match='no programs here'):
    build(given)


def test_mathematics_asked_of_such_a_run_has_the_rules_of_its_protocol():
  subject = types.SimpleNamespace(grade=GradeConfig(rules='programs', workers=3), where='runs/mine')
  found = exam.grading('run', subject, protocols.RENIO, 'run')
  assert found == dataclasses.replace(subject.grade, rules=protocols.RENIO.rules)


@pytest.mark.slow
def test_grpo_learns_from_shares(model, tmp_path, monkeypatch):
  settings = ('loop.updates=1', 'loop.evaluate_every=0', 'optimizer.decay_updates=2', 'lora.rank=2')
  settings += ('rollout.sampling.max_tokens=8', 'views.student_tokens=512', 'model.remat=none')
  given = experiment('renio_code_grpo_qwen3_1p7b', model, tmp_path, settings=settings)
  setup = dataclasses.replace(build(given), mesh=one_device())
  monkeypatch.setattr(distill.accuracies, 'decode_rollout', lambda *_: texts())
  with jax.set_mesh(setup.mesh):
    grpo.run(setup, str(tmp_path / 'run'), cold_start.initial_params(setup))
  (row,) = jsonlines.read(tmp_path / 'run' / 'metrics.jsonl')
  assert row['reward'] == np.mean(SHARES) and row['alike_groups'] == 0.5 and row['update_norm'] > 0
