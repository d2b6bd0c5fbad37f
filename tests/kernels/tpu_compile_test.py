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
pytestmark = pytest.mark.skipif(
  not os.path.exists(LIBRARY) if LIBRARY else importlib.util.find_spec('libtpu') is None,
  reason='needs the TPU compiler, which make test-all installs: requirements/tpu-compile.txt',
)

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

from kernels.linear_divergence import tpu_blocks, tpu_speed
from kernels.linear_divergence.api import DivergenceSpec, linear_divergence

topology, cases = sys.argv[1], json.loads(sys.argv[2])
if sys.argv[3:] == ['quick']:
  tpu_blocks.ROW_MAJOR, tpu_blocks.VOCAB_MAJOR = (((256, 128),),) * 2
  tpu_speed._CHUNKS = tpu_speed._CHUNKS_FROZEN = (256,)
shape = topology.split(':')[1]
chips = {'1x1': (1, 1, 1), '1x1x1': (1, 1, 1), '2x2': (2, 2, 1), '2x2x1': (2, 2, 1)}[shape]
devices = topologies.get_topology_desc(
  platform='tpu', topology_name=topology, chips_per_host_bounds=chips, num_slices=1
).devices
# Of TPU7x no smaller topology has a name.
devices = devices if shape == '2x2' else devices[:1]
mesh = Mesh(np.array(devices).reshape(-1, 2 if len(devices) > 1 else 1), ('data', 'tensor'),
            axis_types=(AxisType.Auto,) * 2)


def shaped(shape, dtype, *axes):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))


def compiled(settings, batch, time, width, vocab, head='bfloat16', hidden='bfloat16', gradients=(0, 1),
             mode='memory'):
  def loss(*arrays):
    weights = (arrays[-1] > 0).astype('float32')
    result = linear_divergence(
      *arrays, DivergenceSpec(**settings), implementation='tpu', batch_axes=('data',), mode=mode,
      weights=weights)
    return (result.loss * weights).sum(), result

  states = shaped((batch, time, width), hidden, 'data')
  heads = shaped((vocab, width), head, 'tensor' if len(devices) > 1 else None)
  targets = shaped((batch, time), 'int32', 'data')
  step = jax.jit(jax.value_and_grad(loss, tuple(gradients), has_aux=True))
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
  'jsd': dict(kind='jsd'),
  'clipped forward KL': dict(entry_clip_max=0.05, valid_vocab=151_669),
  'clipped reverse KL': dict(kind='reverse_kl', entry_clip_min=0.0, teacher_softcap=30.0),
  'teacher top-64, bucket': dict(kind='jsd', support='teacher_topk', k=64, tail='bucket'),
  'student top-64': dict(kind='reverse_kl', support='student_topk', k=64),
}
# Kernels of the results alone, and with the gradient of the hidden states but not of the head.
PASSES = {name: (2, 2) if 'jsd' in name or 'clipped' in name else (1, 1) for name in SPECS}
PASSES |= {'teacher top-64, bucket': (1, 2), 'student top-64': (1, 2)}


def compile_for(topology, cases, *flags):
  """What the compiler says of each case: bytes of temporaries and at the peak, and kernels."""
  environment = dict(
    os.environ,
    JAX_PLATFORMS='cpu',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
  )
  command = [sys.executable, '-c', PROGRAM, topology, json.dumps(cases), *flags]
  done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr[-4000:]
  (line,) = (line for line in done.stdout.splitlines() if line.startswith('RESULTS '))
  return json.loads(line.removeprefix('RESULTS '))


def sized(settings, width=2048, **others):
  # 4 × 513 rows: no multiple of any block.
  return dict(settings=settings, batch=4, time=513, width=width, vocab=VOCAB) | others


def expected_kernels(name, gradients):
  results, frozen = PASSES[name]
  return frozen if gradients == [0] else results + 1


def check(topology, named, *flags):
  """Compiles cases by their names in `SPECS`; temporaries are a small share of both logits."""
  results = compile_for(topology, [case for _, case in named], *flags)
  for (name, case), result in zip(named, results, strict=True):
    assert result['kernels'] == expected_kernels(name, case.get('gradients')), (name, case)
    logits = case['batch'] * case['time'] * case['vocab'] * 4
    # For TPU7x the compiler keeps the hidden states' float32 sum twice.
    share = 0.04 if topology.startswith('tpu7x') else 0.02
    assert result['temp'] < share * 2 * logits + 2**20, (name, case, result)


@pytest.mark.parametrize(
  'topology, cases',
  [
    ('v5e:1x1', [('forward KL', [0, 1]), ('clipped forward KL', [0, 1]), ('teacher top-64, bucket', [0, 1])]),
    ('v6e:1x1', [('jsd', [0]), ('reverse KL', [0]), ('clipped reverse KL', [0, 1])]),
  ],
)
def test_compiles_without_memory_for_logits(topology, cases):
  # Small blocks, for the compiler unrolls them: those of production are the slow tests'.
  named = [(name, sized(SPECS[name], 512, gradients=gradients)) for name, gradients in cases]
  check(topology, named, 'quick')


def check_speed(topology, cases, *flags):
  """Compiles cases with stored logits, which take a tenth of what both models' would."""
  for case, result in zip(cases, compile_for(topology, cases, *flags), strict=True):
    frozen, linear = case.get('gradients') == [0], 'kind' not in case['settings']
    # Store, sums where a loss needs them, gradients; for the head a factor and the way without.
    assert result['kernels'] == 2 + (not linear) + 2 * (not frozen)
    assert result['temp'] < 0.1 * 2 * 4 * case['batch'] * case['time'] * case['vocab']


def test_stored_logits_compile_within_a_tenth_of_their_memory():
  # The chunks are small here, and the sum of the head's gradient has the memory.
  case = dict(settings=SPECS['jsd'], batch=4, time=513, width=512, vocab=VOCAB, mode='speed')
  check_speed('v5e:1x1', [case], 'quick')


@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v5e:1x1', 'v5p:1x1x1', 'v6e:1x1'])
def test_stored_logits_compile_at_production_size(topology):
  case = dict(settings={}, batch=1, time=8192, width=2048, vocab=VOCAB, mode='speed')
  softcap = dict(kind='reverse_kl', student_softcap=30.0)
  check_speed(topology, [case, case | dict(settings=softcap, time=16_384, gradients=[0])])


@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v5e:1x1', 'v5p:1x1x1', 'v6e:1x1', 'tpu7x:2x2x1'])
def test_compiles_at_all_sizes(topology):
  named = []
  for number, name in enumerate(SPECS):
    # Every pair of a loss with a width, a length, a vocabulary and a frozen head, over two topologies.
    flip = number + ('v5e', 'v5p', 'v6e', 'tpu').index(topology[:3])
    width, time, vocab = (2048, 4096)[flip % 2], (2048, 16_384)[flip // 2 % 2], (VOCAB, 262_144)[number % 2]
    gradients = [0] if (flip + number // 2) % 2 else [0, 1]
    settings = SPECS[name] if vocab == VOCAB else SPECS[name] | dict(valid_vocab=None)
    named.append(
      (name, dict(settings=settings, batch=1, time=time, width=width, vocab=vocab, gradients=gradients))
    )
  check(topology, named)


@pytest.mark.slow
def test_compiles_in_other_types_and_sizes():
  forward_kl, top_k = SPECS['forward KL'], SPECS['teacher top-64, bucket']
  cases = [
    sized(forward_kl, head='float32'),
    sized(top_k, hidden='float32', head='float32'),
    sized(SPECS['jsd'], hidden='float32', head='float32', gradients=[0]),
    sized(forward_kl | dict(valid_vocab=None), 576, batch=1, time=5, vocab=49_152),
    sized(forward_kl | dict(valid_vocab=None), 96, batch=1, time=40, vocab=300),
  ]
  assert [result['kernels'] for result in compile_for('v5e:1x1', cases)] == [2, 2, 2, 2, 2]


@pytest.mark.slow
def test_compiles_for_a_mesh():
  cases = [sized(SPECS['forward KL']), sized(SPECS['student top-64'], time=512)]
  for result in compile_for('v5e:2x2', cases):
    assert result['kernels'] == 2
