"""The GPU kernels compiled for an H200, on a machine that has none: layouts and registers are obeyed.

XLA's CUDA plugin compiles for a described device. It runs in a process of its own, from a folder outside
the environment, where JAX would find it in every run and look for a GPU.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

FOLDER = os.environ.get('CUDA_PLUGIN_PATH', '')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not os.path.isdir(FOLDER) or jax.__version_info__ < (0, 11),
    reason='needs the CUDA plugin of jax >= 0.11 in CUDA_PLUGIN_PATH: make test-gpu-kernels',
  ),
]

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
T, D, V = 8192, 4096, 151_936

# Of NVIDIA's data sheet and `cudaGetDeviceProperties`.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "NVIDIA H200"
"""

PROGRAM = """
import json
import os
import sys

import jax
import numpy as np
from jax._src import xla_bridge
from jax.experimental import topologies
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kernels.linear_divergence.api import DivergenceSpec, linear_divergence

folder, device, settings, gradients, sizes, count = sys.argv[1], *map(json.loads, sys.argv[2:])
# Which names a toolkit of its own choice when it is imported.
os.environ['MOSAIC_GPU_CUDA_ROOT'] = os.environ.get('CUDA_TOOLKIT', os.environ['MOSAIC_GPU_CUDA_ROOT'])
xla_bridge.register_plugin('cuda', library_path=folder + '/jax_plugins/xla_cuda13/xla_cuda_plugin.so')
topology = topologies.get_topology_desc(
  platform='cuda', topology_name='h200', target_config=device, topology=f'1x1x{count}')
mesh = Mesh(np.array(topology.devices), ('data',), axis_types=(AxisType.Auto,))
time, width, vocab = sizes


def shaped(shape, dtype='bfloat16', *axes):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))


def loss(*arrays):
  result = linear_divergence(*arrays, DivergenceSpec(**settings), implementation='gpu', batch_axes=('data',))
  return result.loss.mean(), result


pair = shaped((count, time, width), 'bfloat16', 'data'), shaped((vocab, width))
with jax.set_mesh(mesh):
  step = jax.jit(jax.value_and_grad(loss, tuple(gradients), has_aux=True))
  program = step.lower(*pair, *pair, shaped((count, time), 'int32', 'data')).compile()
print('RESULTS', json.dumps(dict(temp=program.memory_analysis().temp_size_in_bytes,
                                 kernels=program.as_text().count('"mosaic_gpu'))))
"""

CASES = {
  'forward KL': (dict(), [0, 1], 2),
  'forward KL, two devices': (dict(), [0, 1], 2),
  'JSD, masked tile, soft-caps': (
    dict(kind='jsd', valid_vocab=151_669, student_softcap=30.0, teacher_softcap=30.0),
    [0, 1],
    3,
  ),
  'bounded reverse KL, frozen head': (
    dict(kind='reverse_kl', entry_clip_min=0.0, entry_clip_max=0.05, teacher_temperature=0.7),
    [0],
    3,
  ),
}


@pytest.mark.parametrize('name', list(CASES))
def test_compiles_without_spills_and_without_logits(name, tmp_path):
  settings, gradients, kernels = CASES[name]
  environment = dict(
    os.environ,
    JAX_PLATFORMS='cpu',
    MOSAIC_GPU_RUNTIME_LIB_PATH=f'{FOLDER}/jax_cuda13_plugin/libmosaic_gpu_runtime.so',
    MOSAIC_GPU_DUMP_PTXAS='1',
    MOSAIC_GPU_DUMP_TO=str(tmp_path),
  )
  toolkit = pathlib.Path(FOLDER, 'nvidia', 'cu13')
  if toolkit.is_dir():
    environment |= dict(CUDA_TOOLKIT=str(toolkit), PATH=f'{toolkit / "bin"}:{os.environ["PATH"]}')
    environment |= dict(XLA_FLAGS=f'--xla_gpu_cuda_data_dir={toolkit}')
  texts = [json.dumps(x) for x in (H200, settings, gradients, (T, D, V), 1 + ('two devices' in name))]
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, FOLDER, *texts],
    cwd=REPOSITORY,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  (line,) = (line for line in done.stdout.splitlines() if line.startswith('RESULTS '))
  result = json.loads(line.removeprefix('RESULTS '))
  assert result['kernels'] == kernels
  # The hidden states' gradient in float32, d loss / d logits of a step, and copies of a step's heads.
  assert result['temp'] < 0.03 * 2 * 4 * T * V
  reports = [path.read_text() for path in tmp_path.glob('*.ptxas')]
  assert len(reports) == kernels
  # Of each kernel, bytes of registers that went to memory: a handful in a tile's thousands of instructions
  # is all that is borne. And no products that wait for each other.
  spills = [(re.search("function '(.*?)'", x)[1], re.search(r'(\d+) bytes spill', x)[1]) for x in reports]
  assert all(int(count) <= 32 for _, count in spills), spills
  assert not any('serialized' in report for report in reports)
