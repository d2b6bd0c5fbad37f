"""The TPU kernels compiled for real TPUs, on a machine that has none: tiling and VMEM are obeyed.

The compiler comes with libtpu and runs in a process of its own, where it cannot disturb other tests.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

LIBRARY = os.environ.get('TPU_LIBRARY_PATH')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not os.path.exists(LIBRARY) if LIBRARY else importlib.util.find_spec('libtpu') is None,
    reason='needs the TPU compiler, which make test-all installs: requirements/tpu-compile.txt',
  ),
]

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
VOCAB = 151_936

PROGRAM = """
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kernels.linear_divergence.api import DivergenceSpec, linear_divergence

topology, cases = sys.argv[1], json.loads(sys.argv[2])
chips = {'1x1': (1, 1, 1), '2x2': (2, 2, 1)}[topology.split(':')[1]]
devices = topologies.get_topology_desc(
  platform='tpu', topology_name=topology, chips_per_host_bounds=chips, num_slices=1
).devices
mesh = Mesh(np.array(devices).reshape(-1, 2 if len(devices) > 1 else 1), ('data', 'tensor'),
            axis_types=(AxisType.Auto,) * 2)


def shaped(shape, dtype, *axes):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))


def compiled(settings, batch, time, width, vocab, head='bfloat16', hidden='bfloat16', gradients=(0, 1)):
  def loss(*arrays):
    result = linear_divergence(
      *arrays, DivergenceSpec(**settings), implementation='tpu', batch_axes=('data',))
    return result.loss.mean(), result

  states = shaped((batch, time, width), hidden, 'data')
  heads = shaped((vocab, width), head, 'tensor' if len(devices) > 1 else None)
  targets = shaped((batch, time), 'int32', 'data')
  step = jax.jit(jax.value_and_grad(loss, gradients, has_aux=True))
  return step.lower(states, heads, states, heads, targets).compile()


results = []
with jax.set_mesh(mesh):
  for case in cases:
    program = compiled(**case)
    memory = program.memory_analysis()
    results.append(dict(temp=memory.temp_size_in_bytes, peak=memory.peak_memory_in_bytes,
                        kernels=program.as_text().count('custom_call_target="tpu_custom_call"')))
print('RESULTS', json.dumps(results))
"""

SPECS = {
  'forward KL': dict(valid_vocab=151_669),
  'reverse KL': dict(kind='reverse_kl', student_softcap=30.0),
  'teacher top-64, bucket': dict(kind='jsd', support='teacher_topk', k=64, tail='bucket'),
  'student top-64': dict(kind='reverse_kl', support='student_topk', k=64),
}


def compile_for(topology, cases):
  """What the compiler says of each case: bytes of temporaries and at the peak, and kernels."""
  environment = dict(
    os.environ,
    JAX_PLATFORMS='cpu',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
  )
  command = [sys.executable, '-c', PROGRAM, topology, json.dumps(cases)]
  done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr[-4000:]
  (line,) = (line for line in done.stdout.splitlines() if line.startswith('RESULTS '))
  return json.loads(line.removeprefix('RESULTS '))


def sized(settings, width=2048, **others):
  # 4 × 513 rows: no multiple of any block.
  return dict(settings=settings, batch=4, time=513, width=width, vocab=VOCAB) | others


@pytest.mark.parametrize('topology', ['v5e:1x1', 'v6e:1x1'])
def test_compiles_without_memory_for_logits(topology):
  cases = [sized(spec) for spec in SPECS.values()]
  cases += [sized(SPECS[name], 4096) for name in ('forward KL', 'teacher top-64, bucket')]
  results = compile_for(topology, cases)
  for case, result in zip(cases, results, strict=True):
    assert result['kernels'] == 3, case
    assert result['temp'] < 4 * 513 * VOCAB * 4 / 50, (case, result)


def test_compiles_in_other_types_and_sizes():
  forward_kl, top_k = SPECS['forward KL'], SPECS['teacher top-64, bucket']
  cases = [
    sized(forward_kl, head='float32'),
    sized(top_k, hidden='float32', head='float32'),
    sized(forward_kl | dict(valid_vocab=None), 576, batch=1, time=5, vocab=49_152),
    sized(forward_kl | dict(valid_vocab=None), 96, batch=1, time=40, vocab=300),
  ]
  assert all(result['kernels'] == 3 for result in compile_for('v5e:1x1', cases))


def test_kernels_of_unused_gradients_are_dropped():
  cases = [sized(SPECS[name], gradients=0) for name in ('forward KL', 'student top-64')]
  assert [result['kernels'] for result in compile_for('v5e:1x1', cases)] == [2] * len(cases)


def test_compiles_for_a_mesh():
  cases = [sized(SPECS['forward KL']), sized(SPECS['student top-64'], time=512)]
  for result in compile_for('v5e:2x2', cases):
    assert result['kernels'] == 3
