"""Tensors of files end up in the right leaves, at the right places, on any mesh."""

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from opsd_jax.models import model
from opsd_jax.models.folder import read
from tests.models.folder import make

MESHES = [(1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2), (8, 1, 1), (4, 1, 2), (1, 2, 4)]


def at(params, path):
  for name in path.split('/'):
    params = params[name]
  return np.asarray(params)


@pytest.mark.parametrize('name', make.CONFIGS)
def test_the_tree_is_that_of_the_model(tmp_path, name):
  spec, mesh = make.spec(name), make.mesh(1, 4, 2)
  params = read.load(make.write(tmp_path, name, files=3), spec, mesh)
  described = model.abstract_params(spec, mesh)
  assert jax.tree.structure(params) == jax.tree.structure(described)
  for ours, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(described), strict=True):
    assert (ours.shape, ours.dtype, ours.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)


@pytest.mark.parametrize('name', make.CONFIGS)
def test_every_tensor_is_where_it_belongs(tmp_path, name):
  """Element by element, against the definition of each projection; no reshape of whole arrays."""
  prefix = 'language_model.model.' if name == 'gemma3' else 'model.'
  held, spec = make.tensors(name, prefix=prefix), make.spec(name)
  params = read.load(make.write(tmp_path, name, held), spec, make.mesh())
  n, h, d, f, layer, k = 3, 5, 11, 17, 2, 1

  def theirs(key):
    return held[f'{prefix}layers.{layer}.{key}']

  head = spec.head_dim
  attention, mlp = params['layers']['attention'], params['layers']['mlp']
  assert attention['query'][layer, d, n, h] == theirs('self_attn.q_proj.weight')[n * head + h, d]
  assert attention['key'][layer, d, k, h] == theirs('self_attn.k_proj.weight')[k * head + h, d]
  assert attention['value'][layer, d, k, h] == theirs('self_attn.v_proj.weight')[k * head + h, d]
  assert attention['out'][layer, n, h, d] == theirs('self_attn.o_proj.weight')[d, n * head + h]
  for gate in ('gate', 'up'):
    assert mlp[gate][layer, d, f] == theirs(f'mlp.{gate}_proj.weight')[f, d]
  assert mlp['down'][layer, f, d] == theirs('mlp.down_proj.weight')[d, f]
  assert params['embedding'][31, d] == held[f'{prefix}embed_tokens.weight'][31, d]
  np.testing.assert_array_equal(params['final_norm']['scale'], held[f'{prefix}norm.weight'])
  if spec.attention_bias:
    assert attention['query_bias'][layer, n, h] == theirs('self_attn.q_proj.bias')[n * head + h]
    assert attention['key_bias'][layer, k, h] == theirs('self_attn.k_proj.bias')[k * head + h]
    assert attention['value_bias'][layer, k, h] == theirs('self_attn.v_proj.bias')[k * head + h]
  if spec.qk_norm:
    for ours in ('query', 'key'):
      scale = at(params, f'layers/attention/{ours}_norm/scale')[layer]
      np.testing.assert_array_equal(scale, theirs(f'self_attn.{ours[0]}_norm.weight'))
  norms = {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
  if spec.post_norms:
    norms |= {'attention_post_norm': 'post_attention_layernorm', 'mlp_norm': 'pre_feedforward_layernorm'}
    norms |= {'mlp_post_norm': 'post_feedforward_layernorm'}
  for ours, key in norms.items():
    np.testing.assert_array_equal(params['layers'][ours]['scale'][layer], theirs(f'{key}.weight'))
  if not spec.tie_embeddings:
    np.testing.assert_array_equal(params['head'], held['lm_head.weight'])


@pytest.mark.parametrize('name', ['qwen2', 'gemma2'])
def test_every_mesh_gives_the_same_arrays(tmp_path, name):
  folder, spec = make.write(tmp_path, name, files=2), make.spec(name)
  alone = read.load(folder, spec, make.mesh())
  for shape in MESHES:
    mesh = make.mesh(*shape)
    params = read.load(folder, spec, mesh)
    jax.tree.map(np.testing.assert_array_equal, params, alone)
    wanted = jax.tree.map(lambda leaf: leaf.sharding, model.abstract_params(spec, mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == wanted, shape


def test_a_part_that_devices_share_is_read_once(tmp_path, monkeypatch):
  folder, spec, mesh = make.write(tmp_path, 'qwen3'), make.spec('qwen3'), make.mesh(4, 2, 1)
  seen = []

  class Watched:
    def __init__(self, view):
      self._view = view

    def __getitem__(self, index):
      seen.append(self._view[index].nbytes)
      return self._view[index]

  whole = read.Stored.view
  monkeypatch.setattr(read.Stored, 'view', lambda self: Watched(whole(self)))
  read.load(folder, spec, mesh)
  assert sum(seen) == sum(t.nbytes for t in make.tensors('qwen3').values())


@pytest.mark.parametrize('stored', ['bfloat16', 'float16', 'float32', 'float64'])
@pytest.mark.parametrize('wanted', ['bfloat16', 'float32'])
def test_dtypes(tmp_path, stored, wanted):
  held = make.tensors('qwen2', ml_dtypes.bfloat16 if stored == 'bfloat16' else stored)
  params = read.load(make.write(tmp_path, 'qwen2', held), make.spec('qwen2'), make.mesh(1, 2, 1), wanted)
  assert params['embedding'].dtype == params['layers']['attention']['query_bias'].dtype == wanted
  assert params['final_norm']['scale'].dtype == params['layers']['mlp_norm']['scale'].dtype == 'float32'
  table = held['model.embed_tokens.weight'].astype(params['embedding'].dtype)
  np.testing.assert_array_equal(np.asarray(params['embedding']), table)


def test_narrow_parameters_are_those_of_decoding(tmp_path):
  folder, spec = make.write(tmp_path, 'gemma2'), make.narrow(make.spec('gemma2'))
  cast = model.in_compute_dtype(spec, read.load(folder, spec, make.mesh()))
  direct = read.load(folder, spec, make.mesh(), 'bfloat16')
  assert jax.tree.map(lambda x: x.dtype, direct) == jax.tree.map(lambda x: x.dtype, cast)
  jax.tree.map(np.testing.assert_array_equal, direct, cast)


def test_parameters_do_not_lean_on_the_file(tmp_path):
  """A file may be changed or removed later, and a training step may reuse the memory of its input."""
  folder, spec = make.write(tmp_path, 'qwen3'), make.spec('qwen3')
  params = read.load(folder, spec, make.mesh(8, 1, 1))
  before = jax.tree.map(lambda x: np.array(x), params)
  path = folder / 'model.safetensors'
  with open(path, 'r+b') as file:
    file.seek(path.stat().st_size // 8)
    file.write(b'\xff' * (path.stat().st_size // 2))
  jax.tree.map(np.testing.assert_array_equal, params, before)
  doubled = jax.jit(lambda t: jax.tree.map(lambda x: 2 * x, t), donate_argnums=0)(params)
  jax.tree.map(lambda ours, old: np.testing.assert_array_equal(ours, 2 * old), doubled, before)


@pytest.mark.parametrize('prefix', ['model.', 'language_model.model.', 'model.language_model.'])
def test_prefixes(tmp_path, prefix):
  held = make.tensors('gemma3_text', prefix=prefix)
  if prefix != 'model.':
    held['model.vision_tower.x' if prefix == 'model.language_model.' else 'vision_tower.x'] = np.zeros(2)
  params = read.load(make.write(tmp_path, 'gemma3_text', held), make.spec('gemma3_text'), make.mesh())
  np.testing.assert_array_equal(params['embedding'], held[f'{prefix}embed_tokens.weight'])


@pytest.mark.parametrize('prefix', ['language_model.model.', 'model.language_model.'])
def test_redundant_head_of_a_tied_model_is_ignored(tmp_path, prefix):
  held = make.tensors('gemma3', prefix=prefix)
  head = 'language_model.lm_head.weight' if prefix.startswith('language') else 'lm_head.weight'
  held[head] = held[f'{prefix}embed_tokens.weight'].copy()
  params = read.load(make.write(tmp_path, 'gemma3', held), make.spec('gemma3'), make.mesh())
  assert 'head' not in params


def test_derived_tables_of_old_files_are_ignored(tmp_path):
  held = make.tensors('llama')
  held['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(3, np.float32)
  read.load(make.write(tmp_path, 'llama', held), make.spec('llama'), make.mesh())


def test_links_as_in_a_cache_are_followed(tmp_path):
  made = make.write(tmp_path / 'blobs', 'qwen3')
  (tmp_path / 'snapshot').mkdir()
  for path in made.iterdir():
    (tmp_path / 'snapshot' / path.name).symlink_to(path)
  read.load(tmp_path / 'snapshot', make.spec('qwen3'), make.mesh())


def test_header_against_the_safetensors_package(tmp_path):
  from opsd_jax.models.folder import tensors

  held = {'a': np.arange(6, dtype=np.int8).reshape(2, 3), 'b': np.full((), 4, np.float32), 'c': np.ones(3)}
  safetensors.numpy.save_file(held, tmp_path / 'x.safetensors', {'k': 'v'})
  found = tensors.read_header(str(tmp_path / 'x.safetensors'))
  assert {n: (t.kind, t.shape) for n, t in found.items()} == {
    'a': ('I8', (2, 3)),
    'b': ('F32', ()),
    'c': ('F64', (3,)),
  }
  for name, tensor in found.items():
    assert tensor.bytes().tobytes() == held[name].tobytes()
