"""Tiny folders of every family, written by the safetensors package and by hand-written names."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import safetensors.numpy

from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import families, model
from opsd_jax.models.spec import ModelSpec

SHAPE = dict(
  vocab_size=40,
  hidden_size=24,
  intermediate_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  rms_norm_eps=1e-5,
  max_position_embeddings=64,
)
GEMMA = SHAPE | dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=16)
CONFIGS = {
  'qwen2': dict(model_type='qwen2', tie_word_embeddings=False, **SHAPE),
  'qwen3': dict(model_type='qwen3', head_dim=8, tie_word_embeddings=True, **SHAPE),
  'llama': dict(model_type='llama', **SHAPE),
  'gemma2': dict(model_type='gemma2', **GEMMA),
  'gemma3_text': dict(model_type='gemma3_text', **GEMMA),
  'gemma3': dict(model_type='gemma3', text_config=dict(model_type='gemma3_text', **GEMMA)),
}


def spec(name: str) -> ModelSpec:
  return families.from_config(CONFIGS[name])


def matrices(config: dict) -> dict[str, tuple[int, ...]]:
  """Names below the layer and shapes of a decoder's tensors, written out by hand."""
  c = config
  head = c.get('head_dim', c['hidden_size'] // c['num_attention_heads'])
  wide, narrow = head * c['num_attention_heads'], head * c['num_key_value_heads']
  width, inner = c['hidden_size'], c['intermediate_size']
  found = {
    'self_attn.q_proj.weight': (wide, width),
    'self_attn.k_proj.weight': (narrow, width),
    'self_attn.v_proj.weight': (narrow, width),
    'self_attn.o_proj.weight': (width, wide),
    'mlp.gate_proj.weight': (inner, width),
    'mlp.up_proj.weight': (inner, width),
    'mlp.down_proj.weight': (width, inner),
    'input_layernorm.weight': (width,),
    'post_attention_layernorm.weight': (width,),
  }
  kind = c['model_type']
  if kind == 'qwen2':
    found |= {'self_attn.q_proj.bias': (wide,), 'self_attn.k_proj.bias': (narrow,)}
    found |= {'self_attn.v_proj.bias': (narrow,)}
  if kind in ('qwen3', 'gemma3_text'):
    found |= {'self_attn.q_norm.weight': (head,), 'self_attn.k_norm.weight': (head,)}
  if kind.startswith('gemma'):
    found |= {'pre_feedforward_layernorm.weight': (width,), 'post_feedforward_layernorm.weight': (width,)}
  return found


def tensors(name: str, dtype='float32', prefix: str = 'model.') -> dict[str, np.ndarray]:
  """Every tensor of a tiny model, random."""
  config = CONFIGS[name].get('text_config', CONFIGS[name])
  vocab, width = config['vocab_size'], config['hidden_size']
  shapes = {'embed_tokens.weight': (vocab, width), 'norm.weight': (width,)}
  for layer in range(config['num_hidden_layers']):
    shapes |= {f'layers.{layer}.{n}': shape for n, shape in matrices(config).items()}
  shapes = {prefix + n: shape for n, shape in shapes.items()}
  if not config.get('tie_word_embeddings', config['model_type'].startswith('gemma')):
    shapes['lm_head.weight'] = (vocab, width)
  if name == 'gemma3':
    shapes |= {'vision_tower.patch.weight': (3, 5), 'multi_modal_projector.weight': (7, 2)}
  rng = np.random.default_rng(0)
  return {n: rng.normal(size=shape).astype(dtype) for n, shape in shapes.items()}


def write(
  folder: pathlib.Path, name: str, held: dict[str, np.ndarray] | None = None, files: int = 1, **changes
) -> pathlib.Path:
  """A folder with config.json and the tensors, spread over this many files."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(CONFIGS[name] | changes))
  prefix = 'language_model.model.' if name == 'gemma3' else 'model.'
  held = tensors(name, prefix=prefix) if held is None else held
  if files == 1:
    safetensors.numpy.save_file(held, folder / 'model.safetensors', {'format': 'pt'})
    return folder
  places = {n: f'model-{i % files + 1:05d}-of-{files:05d}.safetensors' for i, n in enumerate(held)}
  for file in sorted(set(places.values())):
    part = {n: held[n] for n in held if places[n] == file}
    safetensors.numpy.save_file(part, folder / file, {'format': 'pt'})
  index = {'metadata': {'total_size': sum(t.nbytes for t in held.values())}, 'weight_map': places}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  return folder


def read_all(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Every tensor of a folder, by the safetensors package."""
  found = {}
  for path in sorted(folder.glob('*.safetensors')):
    found |= safetensors.numpy.load_file(path)
  return found


def mesh(data: int = 1, fsdp: int = 1, tensor: int = 1):
  count = data * fsdp * tensor
  return make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[:count])


def params(spec: ModelSpec, *shape: int):
  """Random parameters; nothing is compiled for them."""
  rng = np.random.default_rng(1)

  def one(leaf):
    return jax.device_put(rng.normal(size=leaf.shape).astype(np.float32), leaf.sharding)

  return jax.tree.map(one, model.abstract_params(spec, mesh(*shape)))


def narrow(spec: ModelSpec) -> ModelSpec:
  return dataclasses.replace(spec, dtype='bfloat16')
