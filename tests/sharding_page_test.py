"""The settings that docs/sharding.md begins with: they fit chips and heads, and its sums are right."""

import dataclasses
import functools
import math
import pathlib
import re

import jax
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.distill.config import TeacherConfig
from opsd_jax.mesh import AXES
from opsd_jax.models import lora, model
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.sizes import SIZES
from opsd_jax.rollout import layout
from opsd_jax.train import state
from opsd_jax.train.config import OptimizerConfig

PAGE = pathlib.Path(__file__).parents[1] / 'docs' / 'sharding.md'
GIB = 2**30
MEMORY = {'v5e': 16, 'v6e': 32, 'v5p': 95, 'H100': 80}
# | `qwen3_8b` | LoRA | v5e 4x4 | `mesh.tensor=4` | 1.02 | 3.81 |
ROW = re.compile(r'^\| `(\w+)` \| (LoRA|full) \| (\w+) ([\dx]+) \| (.*) \| ([\d.]+) \| ([\d.]+) \|$', re.M)
ROWS = ROW.findall(PAGE.read_text())


def per_chip(tree):
  return (
    sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / GIB
  )


def sums(name, trained, sizes):
  """GiB that a chip holds between programs, and of the copy for decoding."""
  spec = dataclasses.replace(SIZES[name], dtype='bfloat16')
  mesh = jax.sharding.AbstractMesh(sizes, AXES)
  base = model.abstract_params(spec, mesh)
  optimizer = state.make_optimizer(OptimizerConfig())
  if trained == 'full':
    held = per_chip((base, state.describe(base, optimizer, TeacherConfig())))
    return held, layout.cost(spec, base, mesh).copied / GIB
  narrow = jax.eval_shape(functools.partial(model.in_compute_dtype, spec), base)
  narrow = jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at.sharding), narrow, base
  )
  pairs = lora.abstract(LoraConfig(rank=64), spec, mesh)
  both = model.Adapted(narrow, pairs, 2.0)
  held = per_chip((narrow, state.describe(pairs, optimizer, TeacherConfig())))
  return held, layout.cost(spec, both, mesh).copied / GIB


def sizes_of(settings, chips):
  given = dict(re.findall(r'mesh\.(\w+)=(\d+)', settings))
  given = {name: int(size) for name, size in given.items()}
  assert set(given) <= set(AXES)
  data, tensor = given.get('data', 1), given.get('tensor', 1)
  return data, given.get('fsdp', chips // (data * tensor)), tensor


def test_the_page_has_its_table():
  assert len(ROWS) >= 8 and len({row[:4] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: '-'.join(row[:4]))
def test_settings_to_begin_with(row):
  name, trained, kind, grid, settings, held, copied = row
  chips = math.prod(map(int, grid.split('x')))
  sizes = sizes_of(settings, chips)
  assert math.prod(sizes) == chips and SIZES[name].num_kv_heads % sizes[2] == 0
  found = sums(name, trained, sizes)
  assert (f'{found[0]:.1f}', f'{found[1]:.1f}') == (held, copied)
  assert found[1] < 0.3 * MEMORY[kind] and sum(found) < 0.6 * MEMORY[kind]
  assert meshes.RULES['batch'] == ('data', 'fsdp')
