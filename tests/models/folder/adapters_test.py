"""Adapters in PEFT's format: the files by hand, what is refused, and that a save is whole or absent."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from opsd_jax.config import ConfigError
from opsd_jax.models import lora
from opsd_jax.models.folder import adapters as lib
from opsd_jax.models.lora import LoraConfig
from tests.models.lora_test import CONFIG, make_adapters
from tests.models.transformer_test import SPEC, cube, one_device

Q = 'base_model.model.model.layers.1.self_attn.q_proj'


@pytest.fixture
def folder(tmp_path):
  """A saved adapter of three projections."""
  config = dataclasses.replace(CONFIG, targets=('query', 'out', 'down'))
  lib.save(tmp_path / 'saved', config, make_adapters(config), base='some/model')
  return tmp_path / 'saved'


def tensors_of(folder):
  return safetensors.numpy.load_file(folder / lib.TENSORS)


def settings_of(folder):
  return json.loads((folder / lib.CONFIG).read_text())


def rewrite(folder, tensors=None, **settings):
  if tensors is not None:
    safetensors.numpy.save_file(tensors, folder / lib.TENSORS)
  (folder / lib.CONFIG).write_text(json.dumps(settings_of(folder) | settings))


def load(folder, spec=SPEC):
  return lib.load(folder, spec, one_device())


def test_the_files_are_those_of_peft(folder):
  assert sorted(path.name for path in folder.iterdir()) == [
    'adapter_config.json',
    'adapter_model.safetensors',
  ]
  settings, tensors = settings_of(folder), tensors_of(folder)
  assert settings['peft_type'] == 'LORA' and settings['task_type'] == 'CAUSAL_LM'
  assert (settings['r'], settings['lora_alpha'], settings['bias']) == (3, 1.5, 'none')
  assert settings['target_modules'] == ['q_proj', 'o_proj', 'down_proj']
  assert settings['base_model_name_or_path'] == 'some/model'
  assert len(tensors) == 2 * 3 * 2  # layers, projections, factors
  layers = make_adapters(dataclasses.replace(CONFIG, targets=('query', 'out', 'down')))['layers']
  pair = jax.tree.map(lambda x: np.asarray(x[1]), layers['attention']['query'])
  assert tensors[f'{Q}.lora_A.weight'].shape == (3, 16) and tensors[f'{Q}.lora_B.weight'].shape == (16, 3)
  for head in range(4):
    rows = tensors[f'{Q}.lora_B.weight'][4 * head : 4 * head + 4]
    np.testing.assert_array_equal(rows, pair['b'][:, head].T)
  out = np.asarray(layers['attention']['out']['a'][0])
  name = 'base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight'
  np.testing.assert_array_equal(tensors[name][2], out[:, :, 2].ravel())


@pytest.mark.parametrize('mesh', [one_device, cube])
def test_what_was_saved_is_loaded(tmp_path, mesh):
  lib.save(tmp_path / 'all', CONFIG, jax.device_put(make_adapters()))
  config, found = lib.load(tmp_path / 'all', SPEC, mesh())
  assert config == CONFIG
  jax.tree.map(np.testing.assert_array_equal, found, make_adapters())
  shapes = lora.abstract(CONFIG, SPEC, mesh())
  assert all(a.sharding == b.sharding for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(shapes)))


def test_sharded_adapters_are_saved_whole(tmp_path):
  like = lora.abstract(CONFIG, SPEC, cube())
  sharded = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), make_adapters(), like)
  lib.save(tmp_path / 'cube', CONFIG, sharded)
  lib.save(tmp_path / 'one', CONFIG, make_adapters())
  assert (tmp_path / 'cube' / lib.TENSORS).read_bytes() == (tmp_path / 'one' / lib.TENSORS).read_bytes()


def test_no_alpha_is_twice_the_rank(tmp_path):
  config = LoraConfig(4)
  lib.save(tmp_path / 'x', config, make_adapters(config))
  assert settings_of(tmp_path / 'x')['lora_alpha'] == 8
  assert lora.scale(load(tmp_path / 'x')[0]) == 2


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_narrow_tensors_become_float32(folder, dtype):
  rewrite(folder, {k: v.astype(jax.numpy.dtype(dtype)) for k, v in tensors_of(folder).items()})
  _, found = load(folder)
  a = found['layers']['attention']['query']['a']
  assert a.dtype == np.float32
  np.testing.assert_array_equal(a[1].T, np.float32(tensors_of(folder)[f'{Q}.lora_A.weight']))


@pytest.mark.parametrize('prefix', ['model.language_model.', 'language_model.model.'])
def test_the_decoder_of_a_model_that_also_sees(tmp_path, prefix):
  lib.save(tmp_path / 'x', CONFIG, make_adapters(), prefix=prefix)
  assert all(name.startswith(f'base_model.model.{prefix}layers.') for name in tensors_of(tmp_path / 'x'))
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / 'x')[1], make_adapters())
  targets = re.compile(settings_of(tmp_path / 'x')['target_modules'])  # PEFT asks for a full match
  assert targets.fullmatch(f'{prefix}layers.0.self_attn.q_proj')
  assert not targets.fullmatch('model.vision_tower.encoder.layers.0.self_attn.q_proj')


# What is refused.


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('use_rslora', True),
    ('use_dora', True),
    ('alpha_pattern', {'q_proj': 4}),
    ('rank_pattern', {'q_proj': 4}),
    ('modules_to_save', ['lm_head']),
    ('bias', 'all'),
    ('fan_in_fan_out', True),
    ('layers_to_transform', [0]),
    ('layer_replication', [[0, 2]]),
    ('lora_bias', True),
    ('some_option_of_tomorrow', {'x': 1}),
    ('init_lora_weights', 'pissa'),
    ('peft_type', 'LOHA'),
    ('r', None),
    ('lora_alpha', 0),
  ],
)
def test_options_that_change_the_mathematics(folder, name, value):
  rewrite(folder, **{name: value})
  with pytest.raises(ConfigError, match=f'{lib.CONFIG}.*{name} is .*{str(value)[:4]}'.replace('[', r'\[')):
    load(folder)


def test_options_that_do_not(folder):
  rewrite(
    folder,
    lora_dropout=0.1,
    init_lora_weights='gaussian',
    alpha_pattern={},
    revision='main',
    use_qalora=False,
  )
  load(folder)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(embed_dim=20), r'lora_A.weight, shape \(3, 24\) is|lora_.*shape \(.*20.*\) is expected'),
    (dict(num_layers=1), r'of layers.1.*shape none is expected and \(.*\) found'),
    (dict(num_layers=3), r'of layers.2.*shape \(.*\) is expected and none found'),
    (dict(num_heads=2), r'of layers.0.self_attn.*shape .*8.* is expected and .*16.* found'),
  ],
)
def test_an_adapter_for_another_base(folder, changes, message):
  with pytest.raises(ConfigError, match='the adapter is for another base') as caught:
    load(folder, dataclasses.replace(SPEC, **changes))
  assert lib.TENSORS in str(caught.value)
  with pytest.raises(ConfigError, match=message):
    load(folder, dataclasses.replace(SPEC, **changes))


def test_tensors_that_are_no_projection(folder):
  tensors = tensors_of(folder)
  rewrite(folder, tensors | {'base_model.model.lm_head.lora_A.weight': np.zeros((3, 16), np.float32)})
  with pytest.raises(ConfigError, match='lm_head.lora_A.weight is not of q_proj'):
    load(folder)
  rewrite(folder, {k: v for k, v in tensors.items() if k != f'{Q}.lora_A.weight'})
  with pytest.raises(ConfigError, match=r'of layers.1.self_attn.q_proj.lora_A.weight.*\(3, 16\).*none found'):
    load(folder)
  rewrite(folder, {})
  with pytest.raises(ConfigError, match='holds no tensors'):
    load(folder)


def test_files_that_are_missing_or_broken(folder, tmp_path):
  with pytest.raises(ConfigError, match='adapter_config.json cannot be read'):
    load(tmp_path)
  whole = (folder / lib.TENSORS).read_bytes()
  (folder / lib.TENSORS).write_bytes(whole[:-8])
  with pytest.raises(ConfigError, match=f'{lib.TENSORS} has'):
    load(folder)
  (folder / lib.TENSORS).unlink()
  with pytest.raises(ConfigError, match='safe_serialization'):
    load(folder)


# Writing.


def test_a_folder_that_holds_something_is_left_alone(folder):
  before = tensors_of(folder).keys()
  with pytest.raises(ConfigError, match='a folder of their own'):
    lib.save(folder, CONFIG, make_adapters())
  assert tensors_of(folder).keys() == before


def test_an_interrupted_save_leaves_no_folder(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError('the disk is full')

  with monkeypatch.context() as patch:
    patch.setattr(lib.files, 'write_json', fail)
    with pytest.raises(OSError, match='full'):
      lib.save(tmp_path / 'x', CONFIG, make_adapters())
  assert not (tmp_path / 'x').exists()
  (tmp_path / 'x').mkdir()  # an empty folder may be there
  lib.save(tmp_path / 'x', CONFIG, make_adapters())
  assert [path.name for path in tmp_path.iterdir()] == ['x']
  load(tmp_path / 'x')
