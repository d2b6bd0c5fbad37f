"""An experiment over seeds, from the command line: what varies, and means that are those of its seeds."""

import json

import pytest

from experiments import recipes
from opsd_jax.config import flatten
from opsd_jax.experiment import build, with_control
from tests.experiments import tiny


@pytest.mark.slow
def test_two_seeds_with_problems_of_their_own(tmp_path):
  root = tmp_path / 'seeds'
  command = tiny.command('seeds', root, tiny.ALONE, '--seeds=3,4,03', '--vary_data', '--target=0.001')
  done = tiny.call(command)
  assert done.returncode == 0, done.stderr
  results = json.loads((root / 'results.json').read_text())
  assert [one['seed'] for one in results['seeds']] == [3, 4]
  shown = [one['opsd']['sampled_accuracy'] for one in results['seeds']]
  assert results['mean']['opsd']['sampled']['value'] == pytest.approx(sum(shown) / 2)
  configs = [flatten_json(root / f'seed_{seed}' / 'config.json') for seed in (3, 4)]
  assert [one['seed'] for one in configs] == [one['data.chains.seed'] for one in configs] == [3, 4]
  assert (root / 'report.html').exists() and (root / 'curves.png').exists()
  assert 'points behind OPSD' in done.stdout and 'level 8 %' in done.stdout
  again = tiny.call(command)
  assert again.returncode == 0 and json.loads((root / 'results.json').read_text()) == results


def flatten_json(path):
  saved = json.loads(path.read_text())
  return saved | {'data.chains.seed': saved['data']['chains']['seed']}


@pytest.mark.parametrize(
  ('flag', 'said'), [('--seeds=', '--seeds is empty'), ('--target=80', '--target is 80')]
)
def test_flags_that_cannot_work(tmp_path, flag, said):
  done = tiny.call(tiny.command('seeds', tmp_path / 'seeds', tiny.ALONE, flag))
  assert done.returncode == 2 and said in done.stderr
  assert not (tmp_path / 'seeds').exists()


def test_problems_that_cannot_vary(tmp_path):
  files = (*tiny.ALONE, 'data.source=files', f'data.path={tmp_path}')
  done = tiny.call(tiny.command('seeds', tmp_path / 'seeds', files, '--vary_data'))
  assert done.returncode == 2 and 'whatever the seed' in done.stderr


def test_every_method_starts_from_the_same_base_and_is_asked_the_same():
  experiment = recipes.load('misconceptions')
  arms = {control.name: with_control(experiment, control) for control in experiment.controls}
  assert {'renio', 'effopd', 'opd_topk', 'cold_start_opd', 'sft', 'grpo', 'gkd'} < set(arms)
  for arm in arms.values():
    changed = {key for key, value in flatten(arm).items() if value != flatten(experiment).get(key)}
    assert not [k for k in changed if k.startswith(('data.', 'model.', 'evaluate.', 'cold_start.', 'seed'))]
    assert arm.rollout.questions * arm.rollout.per_question == 64
  setup = build(experiment)
  assert [one.name for one in setup.retention] == ['dialect']
  assert all(p.problem.startswith(',') for p in setup.retention[0].problems)
