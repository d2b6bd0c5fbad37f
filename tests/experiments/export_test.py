"""A run's weights come out as a Hugging Face folder, whole, and mistakes are told in one line."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import export, recipes
from opsd_jax import config as configs
from opsd_jax.config import ConfigError, to_dict
from opsd_jax.experiment import Experiment
from opsd_jax.models import families, lora, model
from opsd_jax.models.folder import adapters, read, write
from opsd_jax.models.spec import ModelSpec, RopeScaling
from opsd_jax.models.weights import WeightsConfig
from tests.experiments import tiny
from tests.models.folder import make
from tests.models.transformer_test import count_up

SPEC = ModelSpec(num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32)
SHORT = (*tiny.ALONE, 'loop.updates=2', 'loop.evaluate_every=0', 'evaluate.samples=1', 'evaluate.batch=12')
LORA = ('lora.rank=2', 'lora.alpha=32', 'optimizer.learning_rate=0.1')


def train(workdir: pathlib.Path, *settings: str) -> pathlib.Path:
  done = tiny.call(tiny.command('train', workdir, (*SHORT, *settings)))
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.fixture(scope='module')
def full(tmp_path_factory) -> pathlib.Path:
  """A run of all weights, from a cold start."""
  return train(tmp_path_factory.mktemp('full') / 'run', 'cold_start.updates=2', 'model.dtype=bfloat16')


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> pathlib.Path:
  """A model's folder with what stands for a tokenizer."""
  folder = tmp_path_factory.mktemp('base') / 'model'
  write.save(folder, SPEC, make.params(SPEC))
  (folder / 'tokenizer.json').write_text('{"é": 1}')
  return folder


@pytest.fixture(scope='module')
def adapted(tmp_path_factory, base) -> pathlib.Path:
  """A run of adapters beside the weights of a folder."""
  settings = (f'model={base}', f'weights.path={base}', 'cold_start.updates=0', *LORA)
  return train(tmp_path_factory.mktemp('adapted') / 'run', *settings)


@pytest.fixture(scope='module')
def adapted_cold(tmp_path_factory) -> pathlib.Path:
  """A run of adapters beside the weights of a cold start."""
  return train(tmp_path_factory.mktemp('cold') / 'run', 'cold_start.updates=2', *LORA)


@pytest.fixture
def untrained(tmp_path) -> pathlib.Path:
  """A run that has only just begun."""
  experiment = dataclasses.replace(recipes.load('quickstart'), model=SPEC)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(to_dict(experiment)))
  return tmp_path / 'run'


def call(workdir, output, *flags) -> subprocess.CompletedProcess:
  command = [sys.executable, '-m', 'experiments.export', f'--checkpoint={workdir}', f'--output={output}']
  return tiny.call([*command, *flags])


def exported(workdir, output, *flags) -> str:
  done = call(workdir, output, *flags)
  assert done.returncode == 0, done.stderr
  return done.stdout


def trained(workdir, step=None):
  return export.read_trained(workdir, export.read_experiment(workdir), make.mesh(), step)


def load(folder):
  return read.load(folder, families.read(folder), make.mesh())


def test_weights_of_a_run(full, tmp_path):
  said = exported(full, tmp_path / 'out', '--dtype=float32')
  assert 'after 2 updates' in said and 'has no tokenizer' in said
  step, params = trained(full)
  assert step == 2
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / 'out'), params)
  assert dataclasses.replace(families.read(tmp_path / 'out'), dtype='bfloat16') == (
    export.read_experiment(full).model
  )


def test_dtype_is_that_of_the_run_unless_said(full, tmp_path):
  exported(full, tmp_path / 'out')
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['torch_dtype'] == 'bfloat16'
  assert {t.dtype.name for t in make.read_all(tmp_path / 'out').values()} == {'bfloat16'}


@pytest.mark.slow
def test_an_earlier_step(full, adapted, tmp_path):
  done = call(full, tmp_path / 'out', '--step=1')
  assert done.returncode == 1 and 'has no checkpoint of step 1; it has [2]' in done.stderr
  done = call(full, tmp_path / 'out', '--step=best')
  assert done.returncode == 2 and 'no complete checkpoint yet (asked for: best)' in done.stderr
  exported(full, tmp_path / 'out', '--step=2')


def adapted_logits(base_params, config, trained_adapters, spec):
  tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
  params = lora.complete(config, base_params, trained_adapters)
  hidden, _ = jax.jit(lambda p: model.apply(spec, p, tokens, count_up(tokens), keep_kv=False))(params)
  return hidden @ model.head(spec, params).T


def test_merged_adapters(adapted, base, tmp_path):
  exported(adapted, tmp_path / 'out', '--merge_lora')
  assert (tmp_path / 'out' / 'tokenizer.json').read_bytes() == (base / 'tokenizer.json').read_bytes()
  assert (tmp_path / 'out' / 'config.json').read_bytes() == (base / 'config.json').read_bytes()
  config = export.read_experiment(adapted).lora
  _, found = trained(adapted)
  wanted = adapted_logits(load(base), config, found, SPEC)
  plain = adapted_logits(load(base), config, None, SPEC)
  actual = adapted_logits(load(tmp_path / 'out'), config, None, SPEC)
  np.testing.assert_allclose(actual, wanted, atol=1e-4 * np.std(wanted))
  assert np.abs(plain - wanted).max() > 0.01 * np.std(wanted), 'adapters that do nothing would merge anyhow'


@pytest.mark.slow
def test_merged_adapters_beside_a_cold_start(adapted_cold, tmp_path):
  done = call(adapted_cold, tmp_path / 'out')
  assert done.returncode == 2 and 'add --merge_lora' in done.stderr, 'alone they fit no folder'
  exported(adapted_cold, tmp_path / 'out', '--merge_lora')
  experiment = export.read_experiment(adapted_cold)
  cold = dataclasses.replace(experiment, lora=lora.LoraConfig(), optimizer=experiment.cold_start.optimizer)
  _, before = export.read_trained(adapted_cold / 'cold_start', cold, make.mesh())
  _, found = trained(adapted_cold)
  wanted = adapted_logits(before, experiment.lora, found, experiment.model)
  actual = adapted_logits(load(tmp_path / 'out'), experiment.lora, None, experiment.model)
  np.testing.assert_allclose(actual, wanted, atol=1e-4 * np.std(wanted))


def test_adapters_alone(adapted, base, tmp_path):
  exported(adapted, tmp_path / 'out')
  assert 'model.safetensors' not in os.listdir(tmp_path / 'out')
  done = call(adapted, tmp_path / 'other', '--dtype=float32')
  assert done.returncode == 2 and '--dtype: adapters are saved in float32' in done.stderr
  config, found = adapters.load(tmp_path / 'out', SPEC, make.mesh())
  assert (config.rank, config.alpha) == (2, 32.0)
  jax.tree.map(np.testing.assert_array_equal, found, trained(adapted)[1])
  settings = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert settings['base_model_name_or_path'] == str(base)


@pytest.mark.parametrize(
  'flags, message',
  [
    (('--merge_lora',), 'has no LoRA (lora.rank is 0), so there is nothing to merge'),
    (('--step=last',), '--step=last is not latest, best or a number of updates'),
    (('--base=/none/here',), "--base: '/none/here', which is named, is no folder"),
    (('--checkpoint=/none/here',), 'has no config.json; name the folder of a run'),
    (('--checkpoint=',), '--checkpoint is missing'),
    (('--output=',), '--output is missing'),
    (('--output=/proc/self',), 'exists and is not empty'),
  ],
)
def test_mistakes_are_one_line(untrained, tmp_path, flags, message):
  done = call(untrained, tmp_path / 'out', *flags)
  assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr, done.stderr
  assert done.stderr.count('\n') == 1 and not (tmp_path / 'out').exists()


def test_base_of_another_model(untrained, tmp_path):
  other = make.write(tmp_path / 'other', 'qwen3')
  done = call(untrained, tmp_path / 'out', f'--base={other}')
  assert done.returncode == 2 and 'is another model than the one to save' in done.stderr


def test_base_that_is_named(full, base, tmp_path):
  exported(full, tmp_path / 'out', f'--base={base}')
  assert 'tokenizer.json' in os.listdir(tmp_path / 'out')


def test_run_without_checkpoints(untrained, tmp_path):
  done = call(untrained, tmp_path / 'out')
  assert done.returncode == 1 and 'There are no checkpoints in' in done.stderr
  (untrained / 'checkpoints').mkdir()
  done = call(untrained, tmp_path / 'out')
  assert done.returncode == 2 and 'has no complete checkpoint yet (asked for: latest)' in done.stderr


def test_base_that_moved(adapted, base, tmp_path):
  moved = tmp_path / 'moved'
  base.rename(moved)
  try:
    done = call(adapted, tmp_path / 'out')
    assert done.returncode == 2 and 'which the run began from, is no folder' in done.stderr
  finally:
    moved.rename(base)


def test_weights_that_moved_are_merged(base, tmp_path):
  lost = tmp_path / 'lost'
  config = lora.LoraConfig(2)
  experiment = dataclasses.replace(
    recipes.load('quickstart'), model=SPEC, lora=config, weights=WeightsConfig(str(lost))
  )
  experiment = dataclasses.replace(
    experiment, cold_start=dataclasses.replace(experiment.cold_start, updates=0)
  )
  none = lora.init(config, SPEC, jax.random.key(0), make.mesh())  # adapters that change nothing yet
  found = export.merged('unused', experiment, make.mesh(), none, str(base))
  jax.tree.map(np.testing.assert_array_equal, found, load(base))
  with pytest.raises(ConfigError, match='lost'):
    export.merged('unused', experiment, make.mesh(), none, str(tmp_path))  # without weights


def test_adapters_alone_fit_the_base_as_it_is(adapted, base, tmp_path):
  longer = tmp_path / 'longer'
  shutil.copytree(base, longer)
  config = json.loads((base / 'config.json').read_text())
  (longer / 'config.json').write_text(
    json.dumps(config | {'rope_scaling': {'type': 'linear', 'factor': 2.0}})
  )
  done = call(adapted, tmp_path / 'out', f'--base={longer}')
  assert done.returncode == 2 and 'rope_scaling' in done.stderr and 'Add --merge_lora' in done.stderr


def test_adapters_beside_a_model_that_also_sees(tmp_path):
  seeing, plain = make.write(tmp_path / 'seeing', 'gemma3'), make.write(tmp_path / 'plain', 'gemma3_text')
  assert export._prefix(str(seeing)) == 'model.language_model.'
  assert export._prefix(str(plain)) == export._prefix(None) == 'model.'


def test_settings_survive_their_file(tmp_path):
  experiment = Experiment('x')
  changed = dataclasses.replace(
    experiment,
    model=dataclasses.replace(SPEC, rope_scaling=RopeScaling('yarn', 4.0, 8), sliding_window=3),
    lora=lora.LoraConfig(2, None, ('query', 'out')),
  )
  for kept in (experiment, changed):
    plain = json.loads(json.dumps(to_dict(kept)))
    assert configs.from_dict(Experiment, plain, 'x') == kept


@pytest.mark.parametrize(
  'text, message',
  [
    ('{', 'is not JSON'),
    ('[]', 'is no run of experiments.train'),
    ('{"model_type": "qwen3"}', 'is no run of experiments.train'),
    ('{"name": "x", "model": {"num_layer": 3}}', "model: setting 'num_layer' is unknown .*'num_layers'"),
  ],
)
def test_folder_of_something_else(tmp_path, text, message):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ConfigError, match=message):
    export.read_experiment(tmp_path)
