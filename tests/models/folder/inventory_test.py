"""A folder that is not the model, whole, is refused before anything big is read."""

import json
import pathlib
import struct

import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.models import families
from opsd_jax.models.folder import inventory, read
from tests.models.folder import make


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  return make.write(tmp_path / 'model', 'qwen2', files=3)


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch):
  def refuse(*_):
    raise AssertionError('a tensor was read')

  monkeypatch.setattr(read, '_piece', refuse)


def load(folder, name='qwen2', spec=None):
  read.load(folder, spec or make.spec(name), make.mesh())


def refused(folder, message, name='qwen2', spec=None):
  with pytest.raises(ConfigError, match=message):
    load(folder, name, spec)


def index_of(folder):
  return json.loads((folder / inventory.INDEX).read_text())


def rewrite(folder, change):
  """Changes the tensors and writes them anew, as one file."""
  held = make.read_all(folder)
  for path in folder.iterdir():
    path.unlink()
  change(held)
  return make.write(folder, 'qwen2', held)


def test_a_good_one_is_read(folder):
  with pytest.raises(AssertionError, match='a tensor was read'):
    load(folder)


def test_missing_shard(folder):
  (folder / 'model-00002-of-00003.safetensors').unlink()
  refused(folder, r'index.json names model-00002-of-00003.safetensors, which .* does not have')


def test_index_names_an_absent_file(folder):
  index = index_of(folder)
  index['weight_map']['model.norm.weight'] = 'elsewhere.safetensors'
  (folder / inventory.INDEX).write_text(json.dumps(index))
  refused(folder, 'names elsewhere.safetensors, which')


def test_index_puts_a_tensor_into_another_file(folder):
  index = index_of(folder)
  places = index['weight_map']
  places['model.norm.weight'] = next(f for f in places.values() if f != places['model.norm.weight'])
  (folder / inventory.INDEX).write_text(json.dumps(index))
  refused(folder, r'model-0000.-of-00003.safetensors lacks tensor model.norm.weight, which .*index.json says')


def test_tensor_in_two_files(folder):
  import safetensors.numpy

  path = folder / 'model-00003-of-00003.safetensors'
  held = safetensors.numpy.load_file(path) | {'model.embed_tokens.weight': np.ones((40, 24), np.float32)}
  safetensors.numpy.save_file(held, path)
  refused(folder, 'tensor model.embed_tokens.weight is in another file as well')


@pytest.mark.parametrize('text', ['{}', '{"weight_map": {}}', '[1]', '{'])
def test_broken_index(folder, text):
  (folder / inventory.INDEX).write_text(text)
  refused(folder, r'index.json (has no weight_map|holds no JSON object|cannot be read).*get the file again')


@pytest.mark.parametrize('left', [0, 7, 100, -1])
def test_truncated_file(folder, left):
  path = folder / 'model-00002-of-00003.safetensors'
  whole = path.read_bytes()
  path.write_bytes(whole[:left])
  refused(folder, rf'model-00002-of-00003.safetensors has {len(whole[:left])} bytes.* cut short')


def test_file_that_is_too_long(folder):
  with open(folder / 'model-00002-of-00003.safetensors', 'ab') as file:
    file.write(b'x')
  refused(folder, 'it is too long; get the file again')


def test_no_safetensors_at_all(folder):
  (folder / 'model-00001-of-00003.safetensors').write_bytes(b'PK\x03\x04' + b'\0' * 300)
  refused(folder, 'no safetensors file')


def test_git_lfs_pointer(folder):
  text = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 999\n'
  (folder / 'model-00001-of-00003.safetensors').write_text(text)
  refused(folder, 'is a Git LFS pointer .*`git lfs pull`')


@pytest.mark.parametrize(
  'head, message',
  [
    (b'nonsense', 'has a broken header'),
    (b'[]', 'header that is no object'),
    (b'{"a": {"dtype": "F32", "shape": [2]}}', 'header of tensor a is broken'),
    (
      b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
      r'shape \(2,\) has 4 bytes, expected 8',
    ),
    (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}', 'expected -4'),
  ],
)
def test_broken_header(tmp_path, head, message):
  make.write(tmp_path, 'qwen2')
  (tmp_path / 'model.safetensors').write_bytes(struct.pack('<Q', len(head)) + head + b'\0' * 4)
  refused(tmp_path, message)


def test_unreadable_file(folder):
  path = folder / 'model-00001-of-00003.safetensors'
  path.unlink()
  path.mkdir()
  refused(folder, 'names model-00001-of-00003.safetensors, which')


def test_wrong_shape(folder):
  def change(held):
    held['model.layers.1.mlp.up_proj.weight'] = np.zeros((32, 23), np.float32)

  refused(
    rewrite(folder, change),
    r'model.safetensors: tensor model.layers.1.mlp.up_proj.weight has shape \(32, 23\), expected \(32, 24\)',
  )


def test_missing_tensor(folder):
  refused(
    rewrite(folder, lambda held: held.pop('model.layers.2.self_attn.k_proj.bias')),
    'lacks tensor model.layers.2.self_attn.k_proj.bias, which the model described has',
  )


@pytest.mark.parametrize(
  'name', ['model.layers.0.self_attn.o_proj.bias', 'model.layers.3.mlp.up_proj.weight', 'score.weight']
)
def test_surplus_tensor(folder, name):
  def change(held):
    held[name] = np.zeros(24, np.float32)

  refused(rewrite(folder, change), f'has tensor {name}, which the model described does not have')


def test_head_that_is_missing(folder):
  refused(rewrite(folder, lambda held: held.pop('lm_head.weight')), 'lacks tensor lm_head.weight')


def test_no_embedding(folder):
  refused(
    rewrite(folder, lambda held: held.pop('model.embed_tokens.weight')),
    'has none of the tensors model.embed_tokens.weight, language_model',
  )


def test_vision_beside_a_model_that_does_not_see(folder):
  def change(held):
    held['vision_tower.x'] = np.zeros(2, np.float32)

  refused(rewrite(folder, change), 'has tensor vision_tower.x')


@pytest.mark.parametrize('dtype', ['int8', 'int32', 'uint8', 'bool'])
def test_type_that_is_no_float(folder, dtype):
  def change(held):
    name = 'model.layers.1.mlp.up_proj.weight'
    held[name] = held[name].astype(dtype)

  refused(rewrite(folder, change), 'up_proj.weight is of type .*, expected one of F64, F32, F16, BF16')


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('num_hidden_layers', 4, 'lacks tensor model.layers.3.self_attn.q_proj.weight'),
    ('num_hidden_layers', 2, 'has tensor model.layers.2.input_layernorm.weight.* and 8 more'),
    ('intermediate_size', 33, r'gate_proj.weight has shape \(32, 24\), expected \(33, 24\)'),
    ('num_key_value_heads', 4, r'k_proj.weight has shape \(12, 24\), expected \(24, 24\)'),
    ('vocab_size', 41, r'embed_tokens.weight has shape \(40, 24\), expected \(41, 24\)'),
    ('tie_word_embeddings', True, 'tensor lm_head.weight is not model.embed_tokens.weight, although config'),
  ],
)
def test_config_that_contradicts_the_tensors(folder, field, value, message):
  config = json.loads((folder / 'config.json').read_text()) | {field: value}
  (folder / 'config.json').write_text(json.dumps(config))
  refused(folder, message, spec=families.read(folder))


@pytest.mark.parametrize(
  'name, changes, message',
  [
    ('qwen2', dict(rope_theta=2e4), r'rope_theta: 20000.0 -> 10000.0'),
    ('qwen2', dict(rms_norm_eps=1e-6), r'norm_eps: 1e-06 -> 1e-05'),
    (
      'qwen2',
      dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
      'sliding_window by layer',
    ),
  ],
)
def test_spec_that_is_not_that_of_the_folder(tmp_path, name, changes, message):
  make.write(tmp_path, name, **changes)
  refused(tmp_path, f'another model than the one described .*{message}.*--set=model=')


def test_positions_may_be_stretched(tmp_path):
  import dataclasses

  from opsd_jax.models.spec import RopeScaling

  make.write(tmp_path, 'qwen2')
  spec = dataclasses.replace(make.spec('qwen2'), rope_scaling=RopeScaling('yarn', 4.0, 32), remat='full')
  with pytest.raises(AssertionError, match='a tensor was read'):
    load(tmp_path, spec=spec)


def test_folders_without_weights(tmp_path):
  refused(tmp_path / 'none', 'none is no folder')
  (tmp_path / 'pytorch_model.bin').write_text('')
  refused(tmp_path, 'PyTorch files only; save the model once as safetensors')
  (tmp_path / 'pytorch_model.bin').rename(tmp_path / 'x.gguf')
  refused(tmp_path, 'has neither model.safetensors nor .*it holds x.gguf')
  (tmp_path / 'x.gguf').unlink()
  refused(tmp_path, 'it holds nothing')


def test_two_models_in_one_folder(folder):
  make.write(folder, 'qwen2')
  refused(folder, 'remove the one that is not the model')


def test_unknown_dtype(folder):
  with pytest.raises(ConfigError, match="dtype is 'float16'"):
    read.load(folder, make.spec('qwen2'), make.mesh(), 'float16')


def test_a_head_of_its_own_beside_a_config_that_ties_it(tmp_path, monkeypatch):
  held = make.tensors('qwen3')
  same = held['model.embed_tokens.weight']
  monkeypatch.setattr(inventory, '_COMPARED', 3 * 4 * 24)  # three rows
  equal = make.write(tmp_path / 'equal', 'qwen3', held | {'lm_head.weight': same.copy()})
  with pytest.raises(AssertionError, match='a tensor was read'):
    load(equal, 'qwen3')
  other = same.copy()
  other[-1, -1] += 1
  for head in (other, same[:-1].copy()):
    folder = make.write(tmp_path / 'other', 'qwen3', held | {'lm_head.weight': head})
    refused(folder, 'model.safetensors: tensor lm_head.weight is not model.embed_tokens.weight', 'qwen3')
