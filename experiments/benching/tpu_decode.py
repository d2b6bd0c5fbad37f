"""Plans a decode step for TPUs with their compiler, on a machine without one: memory, exchanges, bytes.

  TPU_LIBRARY_PATH=.../libtpu.so python -m experiments.benching.tpu_decode

Nothing runs. The program is the sampler's own, for 64 rows with prompts of 256 tokens and budgets of 1024. Of
its loop the scheduled program says what crosses devices and how many bytes each instruction moves
(`analyze.hlo`), held against the floor: each weight that a device has and its whole cache, once a token.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from experiments.planning import topology
from opsd_jax import mesh as meshes
from opsd_jax.analyze import chips, hlo
from opsd_jax.analyze.chips import GIB
from opsd_jax.files import write_json
from opsd_jax.mesh import MeshConfig
from opsd_jax.models import chunked, model
from opsd_jax.models.sizes import SIZES
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode, drawing, layout
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig

MEMORY = {'v5e': 16 * GIB, 'v6e': 32 * GIB}
PROMPT, BUDGET, ROWS = 256, 1024, 64


@dataclasses.dataclass(frozen=True)
class Case:
  """A model on eight chips: the devices along ('data', 'fsdp', 'tensor'), and how rows are decoded.

  Attributes:
    topology: of `jax.experimental.topologies`.
    name: of `models.sizes`.
    axes: sizes of the mesh.
    refill: four times as many requests as rows, each taking the next slot; else all rows at once, four of
      a prompt.
    layers: instead of the model's; none for these.
  """

  topology: str
  name: str
  axes: tuple[int, int, int]
  refill: bool
  layers: int | None = None


SMALL, LARGE = 'qwen3_1p7b', 'qwen3_8b'
CASES = [
  Case('v5e:2x4', SMALL, (1, 8, 1), False),
  Case('v5e:2x4', SMALL, (1, 8, 1), True),
  Case('v5e:2x4', LARGE, (1, 1, 8), True),
  Case('v6e:2x4', SMALL, (1, 8, 1), True),
  Case('v6e:2x4', LARGE, (1, 2, 4), False),
  Case('v6e:2x4', LARGE, (1, 2, 4), True),
]


def plan(case: Case) -> dict[str, Any]:
  """What the compiler plans for a case, in bytes on one device."""
  mesh = meshes.make_mesh(MeshConfig(*case.axes), topology.devices(chips.parse(case.topology)))
  spec = dataclasses.replace(SIZES[case.name], dtype='bfloat16')
  spec = dataclasses.replace(spec, num_layers=case.layers or spec.num_layers)
  began = time.perf_counter()
  with topology.compiling(mesh):
    chunk = chunked.usual_chunk()
    params = layout.describe(spec, model.abstract_params(spec, mesh), mesh)
    compiled = _compiled(spec, params, case, mesh)
  weights = layout.cost(spec, params, mesh).read
  cache = _cache_bytes(spec, case)
  program = hlo.parse(compiled.as_text())
  body = hlo.loop(program)
  columns = BUDGET + (PROMPT - 1) * case.refill
  moved = hlo.traffic(program, body, {'Transformer/': -(-columns // chunk)})  # pieces of the whole cache
  total, memory = sum(m.bytes for m in moved), compiled.memory_analysis()
  return {
    **dataclasses.asdict(case),
    'seconds': time.perf_counter() - began,
    'peak': memory.peak_memory_in_bytes,
    'largest_exchange': max((a.size for i in hlo.collectives(program, body) for a in i.result), default=0),
    'smallest_matrix': _smallest_matrix(spec, case),
    'weights': weights,
    'cache': cache,
    'moved': total,
    'over_floor': total / (weights + cache),
    'largest': [dataclasses.asdict(m) for m in moved[:12]],
  }


def _compiled(spec: ModelSpec, params: Any, case: Case, mesh: jax.sharding.Mesh) -> Any:
  questions, per_question = (ROWS, 4) if case.refill else (ROWS // 4, 4)

  def rows(*shape: int, dtype: str = 'int32') -> jax.ShapeDtypeStruct:
    where = meshes.sharding(mesh, ['batch', *[None] * (len(shape) - 1)], shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  prompts = Prompts(rows(questions, PROMPT), rows(questions), rows(questions, dtype='uint32'))
  sampling = SamplingConfig(max_tokens=BUDGET)
  way = DecodeConfig(slots=ROWS if case.refill else None)
  setting = decode.setting_of(spec, sampling, (151_645, 151_643), per_question, 151_669, way)
  counters = decode.Counters(np.uint32(0), np.uint32(0))
  law = drawing.law_of(sampling, 1.0)
  arguments = params, prompts, rows(questions * per_question), counters, law
  return decode._sample.lower(setting, *arguments).compile()


def _cache_bytes(spec: ModelSpec, case: Case) -> int:
  """Keys and values of a device's rows: a prompt in each slot, or a prompt once for its four rows."""
  data, fsdp, tensor = case.axes
  tokens = ROWS * (PROMPT - 1 + BUDGET) if case.refill else ROWS * BUDGET + ROWS // 4 * (PROMPT - 1)
  token = 2 * spec.num_layers * (spec.num_kv_heads // tensor) * spec.head_dim * 2
  return tokens * token // (data * fsdp)


def _smallest_matrix(spec: ModelSpec, case: Case) -> int:
  """Numbers of the smallest matrix that a device reads: an exchange of a weight leaves no fewer."""
  return spec.embed_dim * spec.num_kv_heads * spec.head_dim // case.axes[2]


def check(found: dict[str, Any]) -> list[str]:
  """What is wrong with a plan, in words."""
  wrong = []
  if found['peak'] > MEMORY[found['topology'][:3]]:
    wrong.append(f'{found["peak"] / GIB:.1f} GiB do not fit')
  if found['largest_exchange'] >= found['smallest_matrix']:
    wrong.append(f'an exchange of {found["largest_exchange"]} numbers in the loop may be a weight')
  if found['over_floor'] > 1.25:
    wrong.append(f'{found["over_floor"]:.2f} times the floor of bytes a step: {found["largest"]}')
  return wrong


def table(plans: list[dict[str, Any]]) -> str:
  """Markdown."""
  lines = ['| chips | model | mesh | rows | peak GiB | GB a step | over the floor | exchange |']
  lines.append('|---|---|---|---|---:|---:|---:|---:|')
  for p in plans:
    rows = 'refilled' if p['refill'] else 'at once'
    lines.append(
      f'| {p["topology"]} | {p["name"]} | {"x".join(map(str, p["axes"]))} | {rows} | {p["peak"] / GIB:.1f} | '
      f'{p["moved"] / 1e9:.2f} | {p["over_floor"]:.3f} | {p["largest_exchange"]:,} |'
    )
  return '\n'.join(lines)


def compile_apart(case: Case) -> dict[str, Any]:
  """`plan` in a process of its own, as the TPU's compiler may disturb others in this one."""
  import subprocess

  with tempfile.TemporaryDirectory() as folder:
    out = os.path.join(folder, 'plan.json')
    command = [
      sys.executable,
      '-m',
      'experiments.benching.tpu_decode',
      json.dumps(dataclasses.asdict(case)),
      out,
    ]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
      raise RuntimeError(done.stderr[-4000:])
    with open(out) as file:
      return json.load(file)


def main(*arguments: str) -> None:
  """Plans one case into a file, or all into a table."""
  if arguments:
    case, out = arguments
    fields = json.loads(case)
    write_json(out, plan(Case(**fields | {'axes': tuple(fields['axes'])})))
    return
  plans = [compile_apart(case) for case in CASES]
  print(table(plans))
  for found in plans:
    for words in check(found):
      print(f'{found["topology"]} {found["name"]}: {words}')


if __name__ == '__main__':
  main(*sys.argv[1:])
