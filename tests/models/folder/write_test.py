"""What is saved is what was loaded, and a folder appears only when it is whole."""

import dataclasses
import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.models import families
from opsd_jax.models.folder import inventory, read, tensors, write
from opsd_jax.models.spec import RopeScaling
from tests.models.folder import make


def same(ours: dict, theirs: dict) -> None:
  assert ours.keys() == theirs.keys()
  for name in ours:
    assert ours[name].dtype == theirs[name].dtype, name
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize('name', make.CONFIGS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_round_trip_is_exact(tmp_path, name, dtype):
  prefix = 'language_model.model.' if name == 'gemma3' else 'model.'
  held = make.tensors(name, ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype, prefix)
  base = make.write(tmp_path / 'base', name, held, files=2)
  spec = make.spec(name)
  params = read.load(base, spec, make.mesh(1, 2, 2), dtype)
  write.save(tmp_path / 'saved', spec, params, base, max_shard_bytes=20_000)
  same(make.read_all(tmp_path / 'saved'), held)
  again = read.load(tmp_path / 'saved', spec, make.mesh(2, 4, 1), dtype)
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize('name', [name for name in make.CONFIGS if name != 'gemma3'])
def test_without_a_base_the_config_is_written(tmp_path, name):
  spec = make.spec(name)
  params = make.params(spec, 1, 2, 1)
  write.save(tmp_path / 'saved', spec, params)
  assert families.read(tmp_path / 'saved') == spec
  assert sorted(os.listdir(tmp_path / 'saved')) == ['config.json', 'model.safetensors']
  same(
    {n: np.zeros(t.shape) for n, t in make.read_all(tmp_path / 'saved').items()},
    {n: np.zeros(t.shape) for n, t in make.tensors(name).items()},
  )
  again = read.load(tmp_path / 'saved', spec, make.mesh(1, 1, 2))
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_shards_index_and_metadata(tmp_path):
  import safetensors

  spec, limit = make.spec('qwen2'), 15_000
  params = make.params(spec)
  write.save(tmp_path / 'saved', spec, params, max_shard_bytes=limit)
  index = json.loads((tmp_path / 'saved' / inventory.INDEX).read_text())
  files = sorted(set(index['weight_map'].values()))
  count = len(files)
  assert count > 2 and files == [f'model-{i + 1:05d}-of-{count:05d}.safetensors' for i in range(count)]
  total = 0
  for file in files:
    with safetensors.safe_open(tmp_path / 'saved' / file, framework='numpy') as opened:
      assert opened.metadata() == {'format': 'pt'}
      held = {name: opened.get_tensor(name) for name in opened.keys()}
    assert held.keys() == {name for name, place in index['weight_map'].items() if place == file}
    size = sum(t.nbytes for t in held.values())
    assert size <= limit
    total += size
  assert index['metadata']['total_size'] == total
  assert next(iter(index['weight_map'])) == 'model.embed_tokens.weight'


def test_a_tensor_above_the_limit_gets_its_own_file(tmp_path):
  spec = make.spec('llama')
  params = make.params(spec)
  write.save(tmp_path / 'saved', spec, params, max_shard_bytes=1)
  assert len(list((tmp_path / 'saved').glob('*.safetensors'))) == len(make.tensors('llama'))
  read.load(tmp_path / 'saved', spec, make.mesh())


@pytest.fixture
def base(tmp_path):
  """A base folder with everything that such folders have."""
  folder = make.write(tmp_path / 'base', 'qwen3', torch_dtype='bfloat16', use_cache=True)
  texts = ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json', 'chat_template.jinja')
  for name in (*texts, 'merges.txt', 'vocab.json', 'LICENSE', 'README.md', 'adapter_config.json', 'x.bin'):
    (folder / name).write_text(f'{{"this is": "{name} é"}}')
  (folder / 'tokenizer.model').write_bytes(bytes(range(256)))
  (folder / 'chat_templates').mkdir()
  (folder / 'chat_templates' / 'tools.jinja').write_text('{{ messages }}')
  (folder / 'original').mkdir()
  return folder


def test_small_files_of_the_base_come_along(tmp_path, base):
  spec = families.read(base)
  params = read.load(base, spec, make.mesh())
  write.save(tmp_path / 'saved', spec, params, base, dtype='bfloat16')
  saved = tmp_path / 'saved'
  left = {'README.md', 'adapter_config.json', 'x.bin', 'original'}
  assert set(os.listdir(saved)) == set(os.listdir(base)) - left
  for path in saved.rglob('*'):
    if path.is_file() and path.name != 'model.safetensors':
      assert path.read_bytes() == (base / path.relative_to(saved)).read_bytes(), path
  assert {t.dtype for t in make.read_all(saved).values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_config_of_the_base_is_told_the_dtype(tmp_path, base):
  spec = families.read(base)
  write.save(tmp_path / 'saved', spec, read.load(base, spec, make.mesh()), base)
  ours, theirs = (json.loads((f / 'config.json').read_text()) for f in (tmp_path / 'saved', base))
  assert ours == theirs | {'torch_dtype': 'float32'} and list(ours) == list(theirs)


def test_dtype_of_inner_configs(tmp_path):
  inner = make.CONFIGS['gemma3']['text_config'] | dict(dtype='bfloat16')
  base = make.write(tmp_path / 'base', 'gemma3', text_config=inner, dtype='bfloat16')
  spec = families.read(base)
  write.save(tmp_path / 'saved', spec, read.load(base, spec, make.mesh()), base)
  config = json.loads((tmp_path / 'saved' / 'config.json').read_text())
  assert config['dtype'] == config['text_config']['dtype'] == 'float32'


YARN = RopeScaling('yarn', 4.0, 32, attention_factor=1.25)


@pytest.mark.parametrize('name', ['qwen3', 'gemma3_text', 'gemma3'])
@pytest.mark.parametrize('newer', [False, True])
def test_positions_of_a_run_that_stretched_them(tmp_path, name, newer):
  plain = {'rope_type': 'default', 'rope_theta': 5e5}
  if newer:
    local = {'rope_type': 'default', 'rope_theta': 1e4}
    by_layer = {'full_attention': plain, 'sliding_attention': local}
    rope = {'rope_parameters': plain if name == 'qwen3' else by_layer}
  else:
    rope = {'rope_theta': 5e5}
  inner = make.CONFIGS[name].get('text_config', {}) | rope
  base = make.write(tmp_path / 'base', name, **({'text_config': inner} if name == 'gemma3' else rope))
  spec = dataclasses.replace(families.read(base), rope_scaling=YARN)
  write.save(tmp_path / 'saved', spec, read.load(base, spec, make.mesh()), base)
  assert families.read(tmp_path / 'saved') == spec
  same(make.read_all(tmp_path / 'saved'), make.read_all(base))
  # And back to what the base of that one is without.
  back = dataclasses.replace(spec, rope_scaling=RopeScaling())
  write.save(tmp_path / 'back', back, read.load(base, back, make.mesh()), tmp_path / 'saved')
  assert families.read(tmp_path / 'back') == back == families.read(base)


def test_parts_that_are_no_decoder_are_carried_over(tmp_path):
  held = make.tensors('gemma3', prefix='model.language_model.')
  odd = {
    'model.vision_tower.x': np.arange(5, dtype=np.int8),
    'model.vision_tower.y': np.ones((2, 2), 'float16'),
  }
  held = {n: t for n, t in held.items() if n.startswith('model.')} | odd
  base = make.write(tmp_path / 'base', 'gemma3', held)
  spec = make.spec('gemma3')
  params = jax.tree.map(lambda x: x + 1, read.load(base, spec, make.mesh()))
  write.save(tmp_path / 'saved', spec, params, base, max_shard_bytes=20_000)
  wanted = {n: t if n in odd else t + np.float32(1) for n, t in held.items()}
  same(make.read_all(tmp_path / 'saved'), wanted)


def test_base_without_weights(tmp_path, base):
  (base / 'model.safetensors').rename(tmp_path / 'weights')
  spec = families.read(base)
  params = make.params(spec)
  write.save(tmp_path / 'saved', spec, params, base)
  jax.tree.map(np.testing.assert_array_equal, read.load(tmp_path / 'saved', spec, make.mesh()), params)
  seeing = make.write(tmp_path / 'seeing', 'gemma3')
  (seeing / 'model.safetensors').unlink()
  with pytest.raises(ConfigError, match='has no weights; those of its parts that are no decoder are needed'):
    write.save(tmp_path / 'other', make.spec('gemma3'), params_of('gemma3'), seeing)


def params_of(name):
  return make.params(make.spec(name))


def test_base_of_another_model(tmp_path, base):
  spec = dataclasses.replace(families.read(base), norm_eps=1e-3)
  with pytest.raises(ConfigError, match='base .* is another model .*norm_eps: 1e-05 -> 0.001'):
    write.save(tmp_path / 'saved', spec, params_of('qwen3'), base)
  with pytest.raises(ConfigError, match='has no config.json'):
    write.save(tmp_path / 'saved', spec, params_of('qwen3'), tmp_path)
  assert not (tmp_path / 'saved').exists()


def test_a_model_of_no_family(tmp_path):
  spec = dataclasses.replace(make.spec('qwen3'), attention_softcap=3.0)
  with pytest.raises(ConfigError, match='no published family .*qwen3: attention_softcap: 3.0 -> None'):
    write.save(tmp_path / 'saved', spec, params_of('qwen3'))


def test_another_tree(tmp_path):
  with pytest.raises(ValueError, match='these are not the parameters of'):
    write.save(tmp_path / 'saved', make.spec('qwen2'), params_of('qwen3'))


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / 'saved').mkdir()
  params = params_of('qwen3')
  write.save(tmp_path / 'saved', make.spec('qwen3'), params)  # empty: fine
  before = {p.name: p.read_bytes() for p in (tmp_path / 'saved').iterdir()}
  with pytest.raises(ConfigError, match='saved exists and is not empty; remove it, or choose another'):
    write.save(tmp_path / 'saved', make.spec('qwen3'), params)
  assert {p.name: p.read_bytes() for p in (tmp_path / 'saved').iterdir()} == before
  (tmp_path / 'file').write_text('')
  with pytest.raises(ConfigError, match='file exists'):
    write.save(tmp_path / 'file', make.spec('qwen3'), params)


@pytest.mark.parametrize('after', [0, 1, 2])
def test_an_interrupted_export_leaves_no_folder_and_can_be_repeated(tmp_path, monkeypatch, after):
  params, written = params_of('qwen3'), []
  whole = tensors.write_file

  def dies(path, *rest):
    if len(written) == after:
      raise KeyboardInterrupt
    written.append(path)
    whole(path, *rest)

  monkeypatch.setattr(tensors, 'write_file', dies)
  with pytest.raises(KeyboardInterrupt):
    write.save(tmp_path / 'saved', make.spec('qwen3'), params, max_shard_bytes=10_000)
  assert not (tmp_path / 'saved').exists()
  monkeypatch.setattr(tensors, 'write_file', whole)
  write.save(tmp_path / 'saved', make.spec('qwen3'), params)
  assert sorted(os.listdir(tmp_path)) == ['saved']
  assert sorted(os.listdir(tmp_path / 'saved')) == ['config.json', 'model.safetensors']


def test_announced_sizes_are_kept(tmp_path):
  with pytest.raises(ValueError, match='a has 8 bytes; 4 were announced'):
    tensors.write_file(str(tmp_path / 'x'), {'a': ('F32', (1,), 4)}, [np.ones(2, np.float32)])


def test_what_would_be_refused_is_known_before(tmp_path, base):
  spec = families.read(base)
  shapes = {path: leaf.shape for path, leaf in read.leaves(make.params(spec)).items()}
  assert write.check(tmp_path / 'saved', spec, shapes) is None
  assert write.check(tmp_path / 'saved', spec, shapes, base).prefix == 'model.'
  with pytest.raises(ConfigError, match='is not empty'):
    write.check(base, spec, shapes)
  with pytest.raises(ConfigError, match='no published family'):
    write.check(tmp_path / 'saved', dataclasses.replace(spec, attention_softcap=3.0), shapes)
