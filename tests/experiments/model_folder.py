"""A model's folder as users have them: a small Qwen3 with random weights, its tokenizer and template."""

import json
import pathlib
import shutil

import jax

from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.models.folder import write
from opsd_jax.models.spec import ModelSpec
from tests.experiments import real_text

# 320 rows for a tokenizer of 305 ids: the others are padding, as published models have it.
SPEC = ModelSpec(
  vocab_size=320, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48
)


def write_model(folder: pathlib.Path, spec: ModelSpec = SPEC, seed: int = 0) -> pathlib.Path:
  """Weights that favour the padding rows of the vocabulary, which must never be drawn."""
  mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
  params = model.init_params(spec, jax.random.key(seed), mesh)
  params['embedding'] = params['embedding'].at[305:].multiply(4.0)
  write.save(folder, spec, params)
  real_text.write_tokenizer(folder)
  return folder


def write_lines(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  """A JSONL file."""
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return path


def copy(folder: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
  """The same files elsewhere."""
  return pathlib.Path(shutil.copytree(folder, to))
