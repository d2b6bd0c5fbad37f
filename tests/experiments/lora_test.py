"""A run that trains adapters: killed and continued, from a model's folder, and what the check says of it."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, recipes
from opsd_jax.checkpoint.store import open_store
from opsd_jax.config import ConfigError, to_dict
from opsd_jax.experiment import build
from opsd_jax.models import lora
from opsd_jax.models.folder import read
from opsd_jax.train import cold_start, state
from tests.experiments import model_folder, real_text, tiny
from tests.experiments.resume_test import lines, start_and_kill, without_times

ADAPTERS = ('lora.rank=4', 'teacher.kind=ema', 'optimizer.learning_rate=0.01')
SETTINGS = (*tiny.ALONE, *ADAPTERS)


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> pathlib.Path:
  """A run that nothing interrupted."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  done = tiny.call(tiny.command('train', folder, SETTINGS))
  assert done.returncode == 0, done.stderr
  return folder


@pytest.mark.slow  # as a run of all weights does, which `resume_test` kills at six moments
def test_a_killed_run_equals_the_uninterrupted_one(whole, tmp_path):
  folder = tmp_path / 'killed'
  command = tiny.command('train', folder, SETTINGS)
  assert start_and_kill(folder, lambda: lines(folder) == 3, command)
  done = tiny.call(command)
  assert done.returncode == 0, done.stderr
  for run in ('cold_start', '.'):
    ours, theirs = (without_times(f / run / 'metrics.jsonl') for f in (folder, whole))
    assert ours == theirs, run
  ours, theirs = (json.loads((f / 'results.json').read_text()) for f in (folder, whole))
  assert ours | {'seconds': 0} == theirs | {'seconds': 0}


@pytest.mark.slow
def test_a_checkpoint_holds_the_adapters_alone(whole):
  experiment = common.with_settings(recipes.load('quickstart'), SETTINGS)
  setup = build(experiment)
  shapes = lora.abstract(setup.lora, setup.spec, setup.mesh)
  layout = state.describe(shapes, state.make_optimizer(setup.optimizer), setup.teacher)
  with open_store(whole / 'checkpoints', setup.checkpoint, read_only=True) as store:
    step, found, _ = store.restore(layout)
  assert step == 6
  assert len(jax.tree.leaves(found.params)) == 14 == len(jax.tree.leaves(found.teacher))
  assert all(np.asarray(pair['b']).any() for pair in found.params['layers']['mlp'].values())


@pytest.mark.slow
def test_the_sampler_the_scorer_and_the_student_are_one_model(whole):
  rows = without_times(whole / 'metrics.jsonl')
  assert all(
    row['logp_gap'] < 1e-5 for row in rows
  )  # float32 rounding; a base without adapters is off by 0.01
  assert all(row['update_norm'] > 0 for row in rows)


# From a model's folder.


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  """A model's folder, and what it takes beside `--model` to run `gsm8k_tiny` on it."""
  folder = tmp_path_factory.mktemp('model')
  ours = [s for s in real_text.settings(folder) if not s.startswith(('model.', 'tokenizer.'))]
  return str(model_folder.write_model(folder / 'base')), ours


def experiment_of(setting, *more):
  folder, ours = setting
  return common.with_settings(recipes.load('gsm8k_tiny'), [*common.model_settings(folder), *ours, *more])


def test_a_folder_gives_shape_weights_and_tokenizer(setting, tmp_path):
  folder, _ = setting
  experiment = experiment_of(setting)
  assert experiment.weights.path == experiment.tokenizer.path == folder
  assert experiment.model.embed_dim == model_folder.SPEC.embed_dim
  assert common.model_settings('qwen3-0.6b') == ['model=qwen3-0.6b']


def test_a_folder_of_ones_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'model').mkdir()
  names = ('model', 'weights.path', 'tokenizer.path')
  assert common.model_settings('~/model') == [f'{name}={tmp_path}/model' for name in names]


@pytest.mark.parametrize(('rank', 'dtype'), [(0, 'float32'), (4, 'bfloat16')])
def test_training_begins_from_the_folder(setting, tmp_path, rank, dtype):
  """Masters are float32; a base that stays as it is has the compute dtype."""
  setup = build(experiment_of(setting, f'lora.rank={rank}', 'model.dtype=bfloat16'))
  found = cold_start.run(setup, str(tmp_path)).params
  wanted = read.load(setting[0], setup.spec, setup.mesh)
  assert found['embedding'].dtype == jnp.dtype(dtype)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), found, wanted)


@pytest.mark.slow
def test_a_run_from_a_folder(setting, tmp_path):
  folder, ours = setting
  ours = (*ours, 'lora.rank=4', 'model.dtype=bfloat16', 'loop.updates=2', 'evaluate.samples=1')
  done = tiny.call(
    tiny.command('train', tmp_path / 'run', ours, f'--model={folder}', experiment='gsm8k_tiny')
  )
  assert done.returncode == 0, done.stderr
  config = json.loads((tmp_path / 'run/config.json').read_text())
  assert config['weights']['path'] == folder and config['lora']['rank'] == 4
  assert lines(tmp_path / 'run') == 2


def test_weights_of_another_model_are_refused(setting):
  for change in ('model.embed_dim=64', 'model.rope_theta=5', 'model.qk_norm=false'):
    with pytest.raises(ConfigError, match=f'holds another model.*--set=model={setting[0]}') as caught:
      experiment_of(setting, change)
    assert change.split('=')[0].removeprefix('model.') in str(caught.value)
  experiment_of(setting, 'model.dtype=bfloat16', 'model.remat=full')
  with pytest.raises(ConfigError, match="weights.path is '/nowhere', which is no folder"):
    experiment_of(setting, 'weights.path=/nowhere')


def test_the_check_shows_the_memory_of_adapters():
  done = tiny.call(tiny.command('check', None, SETTINGS, '--problems=1'))
  for text in (
    'adapters, gradients and Adam moments (float32)',
    'base of the adapters, which is the frozen teacher too (float32)',
    'average of an EMA teacher (adapters)',
  ):
    assert text in done.stdout, (text, done.stdout, done.stderr)


def test_other_adapters_are_another_experiment(tmp_path):
  first, second = (
    common.with_settings(recipes.load('quickstart'), [*tiny.ALONE, f'lora.rank={rank}']) for rank in (4, 8)
  )
  common.claim_workdir(str(tmp_path), first)
  assert json.loads((tmp_path / 'config.json').read_text()) == to_dict(first)
  with pytest.raises(ConfigError, match='another experiment.*lora.rank: 4 -> 8'):
    common.claim_workdir(str(tmp_path), second)
