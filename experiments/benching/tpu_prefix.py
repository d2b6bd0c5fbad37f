"""Plans how a teacher reads long prefixes on TPUs with their compiler, on a machine without one: its memory.

  TPU_LIBRARY_PATH=.../libtpu.so JAX_PLATFORMS=cpu python -m experiments.benching.tpu_prefix

Nothing runs. The program is the scorer's own (`distill.scoring.score_teacher`), with the weights in bfloat16
as they lie beside adapters, and one question on every shard of the rows.
"""

import dataclasses
import functools
import sys
import time

import jax

from experiments.planning import topology
from opsd_jax import mesh as meshes
from opsd_jax.analyze import chips
from opsd_jax.analyze.chips import GIB
from opsd_jax.distill import scoring
from opsd_jax.mesh import MeshConfig
from opsd_jax.models import model
from opsd_jax.models.sizes import SIZES
from opsd_jax.records import Prompts, Rollout

TOPOLOGY, NAME, AXES, BUDGET = 'v5e:4x4', 'qwen3_8b', (1, 4, 4), 1024


def plan(prompt: int, layers: int | None = None, per_question: int = 1) -> dict[str, float]:
  """What the compiler plans for prefixes of `prompt` tokens: GiB on one chip, and seconds that it took."""
  mesh = meshes.make_mesh(MeshConfig(*AXES), topology.devices(chips.parse(TOPOLOGY)))
  spec = dataclasses.replace(SIZES[NAME], dtype='bfloat16')
  spec = dataclasses.replace(spec, num_layers=layers or spec.num_layers)
  shapes = model.abstract_params(spec, mesh)
  narrow = jax.eval_shape(functools.partial(model.in_compute_dtype, spec), shapes)
  params = jax.tree.map(
    lambda x, like: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding), narrow, shapes
  )

  def rows(*shape: int, dtype: str = 'int32') -> jax.ShapeDtypeStruct:
    where = meshes.sharding(mesh, ['batch', *[None] * (len(shape) - 1)], shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  asked = meshes.row_shards(mesh)
  drawn = asked * per_question
  seen = Prompts(rows(asked, prompt), rows(asked), rows(asked, dtype='uint32'))
  floats = rows(drawn, BUDGET, dtype='float32')
  rollout = Rollout(
    rows(drawn, BUDGET), rows(drawn), rows(drawn, dtype='bool'), floats, floats, rows(drawn), rows(drawn)
  )
  began = time.perf_counter()
  with topology.compiling(mesh):
    scorer = jax.jit(scoring.score_teacher, static_argnums=0)
    memory = scorer.lower(spec, params, (seen,), rollout).compile().memory_analysis()
  token = 2 * spec.num_layers * spec.num_kv_heads // AXES[2] * spec.head_dim * 2
  return {
    'arguments': memory.argument_size_in_bytes / GIB,
    'temporary': memory.temp_size_in_bytes / GIB,
    'peak': memory.peak_memory_in_bytes / GIB,
    'prefix': (prompt - 1) * token / GIB,
    'seconds': time.perf_counter() - began,
  }


def main(*lengths: str) -> None:
  """Prints a table; `lengths` are numbers of tokens, with the rollouts of a question after a colon."""
  print('| prefix tokens | rollouts | arguments GiB | temporary GiB | of it keys and values | peak GiB |')
  print('|---:|---:|---:|---:|---:|---:|')
  for length in lengths or ('2048', '16384', '32768', '16384:8'):
    tokens, _, several = length.partition(':')
    found = plan(int(tokens), per_question=int(several or 1))
    print(
      f'| {tokens} | {several or 1} | {found["arguments"]:.2f} | {found["temporary"]:.2f} | '
      f'{found["prefix"]:.2f} | {found["peak"]:.2f} |',
      flush=True,
    )
    print(f'{found["seconds"]:.0f} s', file=sys.stderr)


if __name__ == '__main__':
  main(*sys.argv[1:])
