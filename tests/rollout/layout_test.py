"""Parameters laid out for decoding: no weight crosses devices inside the loop, and tokens stay the same."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.analyze import hlo
from opsd_jax.models import lora, model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode, drawing, layout
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig

# Wide beside the 16 rows, so that one matrix has more numbers than any activation of a step.
SPEC = ModelSpec(
  vocab_size=64, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=96
)
CONFIG = SamplingConfig(max_tokens=5)
LORA = lora.LoraConfig(rank=2)
MESHES = {'fsdp': (1, 8, 1), 'cube': (2, 2, 2)}
PROMPTS = Prompts(
  ids=np.random.default_rng(0).integers(0, 64, (8, 6)).astype(np.int32),
  length=np.int32([6, 1, 3, 2, 6, 5, 4, 2]),
  problem_id=np.arange(8, dtype=np.uint32),
)


def make_mesh(name):
  return meshes.make_mesh(meshes.MeshConfig(*MESHES[name]))


@functools.cache
def born(name, adapted=False):
  """Parameters in their training layout, the same on every mesh; adapters that do something."""
  mesh = make_mesh(name) if name else meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1])
  rng = np.random.default_rng(0)

  def fill(leaf):
    fan_in = math.prod(leaf.shape[1:-1]) if len(leaf.shape) > 2 else leaf.shape[-1]
    return jax.device_put(rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32), leaf.sharding)

  base = jax.tree.map(fill, model.abstract_params(SPEC, mesh))
  pairs = jax.tree.map(fill, lora.abstract(LORA, SPEC, mesh))
  return model.Adapted(base, pairs, lora.scale(LORA)) if adapted else base


def draw(params):
  return decode.generate(SPEC, params, PROMPTS, CONFIG, eos_ids=(3,), per_question=2)


@pytest.mark.parametrize(
  'name, adapted', [pytest.param('fsdp', False, marks=pytest.mark.slow), ('cube', True)]
)
def test_tokens_are_those_of_one_device(name, adapted):
  with jax.set_mesh(make_mesh(name)):
    many = meshes.host(draw(born(name, adapted)))
  one = meshes.host(draw(born(None, adapted)))
  np.testing.assert_array_equal(many.ids, one.ids)
  np.testing.assert_array_equal(many.length, one.length)
  np.testing.assert_allclose(many.raw_logp, one.raw_logp, atol=1e-5, rtol=0)


def exchanged(mesh, params, slots=None):
  """How many numbers the largest exchange inside the decode loop leaves on a device."""
  with jax.set_mesh(mesh):
    setting = decode.setting_of(SPEC, CONFIG, (3,), 2, None, DecodeConfig(slots))
    counters = decode.Counters(np.uint32(0), np.uint32(0))
    law = drawing.law_of(CONFIG, 1.0)
    lowered = decode._sample.lower(setting, params, PROMPTS, np.full(16, 5, np.int32), counters, law)
    program = hlo.parse(lowered.compile().as_text())
  found = hlo.collectives(program, hlo.loop(program))
  return max((a.size for i in found for a in i.result), default=0)


@pytest.mark.parametrize('name', ['fsdp', pytest.param('cube', marks=pytest.mark.slow)])
def test_no_weight_crosses_devices_inside_the_loop(name):
  mesh, params = make_mesh(name), born(name)
  laid_out = layout.for_decoding(SPEC, params, mesh)
  tensor = mesh.shape['tensor']
  smallest = SPEC.embed_dim * SPEC.num_kv_heads * SPEC.head_dim // tensor
  assert exchanged(mesh, laid_out, slots=None if name == 'fsdp' else 8) < smallest
  # The training layout is gathered for every token: the same look at it finds that.
  assert exchanged(mesh, params) >= smallest


@pytest.mark.parametrize('name', MESHES)
def test_embed_is_whole_and_wide_axes_stay_split(name):
  mesh, params = make_mesh(name), born(name, adapted=True)
  done = layout.for_decoding(SPEC, params, mesh)
  tensor = mesh.shape['tensor']
  base, pairs = done.base['layers'], done.lora['layers']
  shards = {
    (64 // tensor, 64): done.base['embedding'],
    (2, 64, 4 // tensor, 32): base['attention']['query'],
    (2, 4 // tensor, 32, 64): base['attention']['out'],
    (2, 64, 96 // tensor): base['mlp']['gate'],
    (2, 96 // tensor, 64): base['mlp']['down'],
    (2, 64, 2): pairs['attention']['query']['a'],
    (2, 2, 4 // tensor, 32): pairs['attention']['query']['b'],
    (2, 96 // tensor, 2): pairs['mlp']['down']['a'],
  }
  for shape, leaf in shards.items():
    assert leaf.sharding.shard_shape(leaf.shape) == shape


def test_a_second_call_copies_nothing_and_bytes_are_counted():
  mesh = make_mesh('cube')
  spec = dataclasses.replace(SPEC, dtype='bfloat16')
  params = born('cube', adapted=True)
  done = layout.for_decoding(spec, params, mesh)
  again = layout.for_decoding(spec, done, mesh)
  assert all(a is b for a, b in zip(jax.tree.leaves(done), jax.tree.leaves(again), strict=True))
  held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(done))
  assert layout.cost(spec, done, mesh) == (held, 0, held)
  copied = sum(
    new.addressable_shards[0].data.nbytes
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(done), strict=True)
    if new is not old
  )
  assert layout.cost(spec, params, mesh) == (held, copied, held) and 0 < copied < held
  # Descriptions serve as well as arrays.
  described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
  assert layout.cost(spec, described, mesh) == (held, copied, held)


def test_an_embedding_that_is_no_head_is_not_read():
  mesh, spec = make_mesh('cube'), dataclasses.replace(SPEC, tie_embeddings=False)
  cost = layout.cost(spec, model.abstract_params(spec, mesh), mesh)
  assert cost.held - cost.read == 64 * 64 * 4 // 2


def test_without_a_mesh_only_the_dtype_changes():
  spec = dataclasses.replace(SPEC, dtype='bfloat16')
  done = layout.for_decoding(spec, born(None))
  expected = model.in_compute_dtype(spec, born(None))
  jax.tree.map(np.testing.assert_array_equal, done, expected)
  assert done['embedding'].dtype == jnp.bfloat16 and done['final_norm']['scale'].dtype == jnp.float32


def test_weights_are_cast_before_they_travel():
  mesh = make_mesh('fsdp')
  leaf = born('fsdp')['embedding']
  target = layout.describe(dataclasses.replace(SPEC, dtype='bfloat16'), born('fsdp'), mesh)['embedding']
  text = layout._move.lower(target.dtype, target.sharding, leaf).as_text()
  before, _, after = text.partition('optimization_barrier')
  assert 'xbf16>' in before and 'sharding_constraint' in after and 'sharding_constraint' not in before
  assert math.prod(leaf.sharding.shard_shape(leaf.shape)) * 8 == leaf.size
