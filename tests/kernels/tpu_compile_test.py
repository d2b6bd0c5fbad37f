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

PROGRAM = r"""
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kernels.linear_divergence import tpu_blocks, tpu_speed
from kernels.linear_divergence.api import (
  DivergenceSpec, TeacherTopK, linear_divergence, linear_divergence_from_top_k)

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
             cached=False, statistics=True, mode='memory'):
  def loss(*arrays):
    keywords = dict(batch_axes=('data',), vocab_axes=('tensor',), statistics=statistics)
    call, weights = linear_divergence, (arrays[-1] > 0).astype('float32')
    keywords |= dict(mode=mode, weights=weights)
    if cached:
      call = linear_divergence_from_top_k
      del keywords['mode'], keywords['weights']
    result = call(*arrays, DivergenceSpec(**settings), implementation='tpu', **keywords)
    return (result.loss * weights).sum(), result

  states = shaped((batch, time, width), hidden, 'data')
  heads = shaped((vocab, width), head, 'tensor' if len(devices) > 1 else None)
  targets = shaped((batch, time), 'int32', 'data')
  lists = [shaped((batch, time, settings.get('k', 0)), dtype, 'data') for dtype in ('int32', 'float32')]
  teacher = (TeacherTopK(*lists),) if cached else (states, heads)
  step = jax.jit(jax.value_and_grad(loss, tuple(gradients), has_aux=True))
  return step.lower(states, heads, *teacher, targets).compile()


def exchanged(text):
  # How many numbers each collective leaves on a device.
  shapes = re.findall(
    r'= ([^\n]*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(', text)
  return [math.prod(int(n) for n in shape.split(',') if n)
          for line in shapes for shape in re.findall(r'\w\[([\d,]*)\]', line)]


results = []
with jax.set_mesh(mesh):
  for case in cases:
    program = compiled(**case)
    memory, text = program.memory_analysis(), program.as_text()
    layout = [str(getattr(x, "spec", None)) for x in program.output_shardings[1]]
    results.append(dict(temp=memory.temp_size_in_bytes, peak=memory.peak_memory_in_bytes,
                        kernels=text.count('custom_call_target="tpu_custom_call"'),
                        exchanged=exchanged(text), layout=layout))
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
  'union of 32': dict(kind='forward_kl', support='union', k=32, tail='bucket'),
  'sampled': dict(support='sampled', student_softcap=30.0),
  'cached top-64, bucket': dict(kind='jsd', support='teacher_topk', k=64, tail='bucket'),
  'cached top-64': dict(kind='reverse_kl', support='teacher_topk', k=64, valid_vocab=151_669),
}
# Kernels with both gradients, and with that of the hidden states alone; a second look is one.
PASSES = {name: (3, 2) if 'jsd' in name or 'clipped' in name else (2, 1) for name in SPECS}
PASSES |= {
  'teacher top-64, bucket': (3, 3),
  'student top-64': (2, 2),
  'union of 32': (5, 5),
  'sampled': (2, 2),
}


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
  done = subprocess.run(
    command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1800
  )
  assert done.returncode == 0, done.stderr[-4000:]
  (line,) = (line for line in done.stdout.splitlines() if line.startswith('RESULTS '))
  return json.loads(line.removeprefix('RESULTS '))


def named_case(name, case):
  return name, case | dict(cached=name.startswith('cached'))


def sized(settings, width=2048, **others):
  # 4 × 513 rows: no multiple of any block.
  return dict(settings=settings, batch=4, time=513, width=width, vocab=VOCAB) | others


def expected_kernels(name, gradients):
  both, frozen = PASSES[name]
  return frozen if gradients == [0] else both


def check(topology, named, *flags):
  """Compiles cases by their names in `SPECS`; temporaries are a small share of both logits."""
  results = compile_for(topology, [case for _, case in named], *flags)
  for (name, case), result in zip(named, results, strict=True):
    assert result['kernels'] == expected_kernels(name, case.get('gradients')), (name, case)
    logits = case['batch'] * case['time'] * case['vocab'] * 4
    # For TPU7x the compiler keeps the hidden states' float32 sum twice.
    share = 0.04 if topology.startswith('tpu7x') else 0.02
    # What a step has of two heads and of a head's gradient does not shrink with few positions.
    both, short = case.get('gradients') != [0], case['time'] == 2048 and case['width'] == 4096
    step = 1024 * case['width'] * (2 + 2 + 4) if both and short else 0
    assert result['temp'] < share * 2 * logits + step + 2**20, (name, case, result)


@pytest.mark.parametrize(
  'topology, cases',
  [
    ('v5e:1x1', [('forward KL', [0, 1]), ('clipped forward KL', [0, 1]), ('teacher top-64, bucket', [0, 1])]),
    ('v6e:1x1', [('jsd', [0]), ('clipped forward KL', [0]), ('clipped reverse KL', [0, 1])]),
    ('v5p:1x1x1', [('cached top-64, bucket', [0]), ('cached top-64', [0, 1])]),
  ],
)
def test_compiles_without_memory_for_logits(topology, cases):
  # Small blocks, for the compiler unrolls them: those of production are the slow tests'.
  named = [named_case(name, sized(SPECS[name], 512, gradients=gradients)) for name, gradients in cases]
  named.append(('student top-64', sized(SPECS['student top-64'], 512, statistics=False)))
  check(topology, named, 'quick')


def check_speed(topology, cases, *flags):
  """Compiles cases with stored logits, which take a tenth of what both models' would."""
  for case, result in zip(cases, compile_for(topology, cases, *flags), strict=True):
    frozen, linear = case.get('gradients') == [0], case['settings'].get('kind') != 'jsd'
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
@pytest.mark.parametrize('name', SPECS)
@pytest.mark.parametrize('topology', ['v5e:1x1', 'v5p:1x1x1', 'v6e:1x1', 'tpu7x:2x2x1'])
def test_compiles_at_all_sizes(topology, name):
  # Every pair of a loss with a width, a length, a vocabulary and a frozen head, over two topologies.
  number = list(SPECS).index(name)
  flip = number + ('v5e', 'v5p', 'v6e', 'tpu').index(topology[:3])
  width, time, vocab = (2048, 4096)[flip % 2], (2048, 16_384)[flip // 2 % 2], (VOCAB, 262_144)[number % 2]
  gradients = [0] if (flip + number // 2) % 2 else [0, 1]
  settings = SPECS[name] if vocab == VOCAB else SPECS[name] | dict(valid_vocab=None)
  sizes = dict(settings=settings, batch=1, time=time, width=width, vocab=vocab, gradients=gradients)
  check(topology, [named_case(name, sizes)])


@pytest.mark.slow
def test_compiles_in_other_types_and_sizes():
  forward_kl, top_k = SPECS['forward KL'], SPECS['teacher top-64, bucket']
  cases = [
    sized(SPECS['student top-64'], statistics=False),
    sized(forward_kl, head='float32'),
    sized(top_k, hidden='float32', head='float32'),
    sized(SPECS['jsd'], hidden='float32', head='float32', gradients=[0]),
    sized(forward_kl | dict(valid_vocab=None), 576, batch=1, time=5, vocab=49_152),
    sized(forward_kl | dict(valid_vocab=None), 96, batch=1, time=40, vocab=300),
  ]
  assert [result['kernels'] for result in compile_for('v5e:1x1', cases)] == [2, 2, 3, 2, 2, 2]


def check_mesh(named, *flags):
  """Compiles cases for rows over two devices and heads over two: only numbers of positions leave these."""
  for (name, case), result in zip(named, compile_for('v5e:2x2', [x for _, x in named], *flags), strict=True):
    both = case.get('gradients') != [0]
    assert result['kernels'] == expected_kernels(name, case.get('gradients')), (name, result)
    rows, width = case['batch'] * case['time'] // 2, case['width']
    sizes = list(result['exchanged'])
    sizes.remove(rows * width)  # the hidden states' gradient, over the devices with other entries
    if both:
      sizes.remove(case['vocab'] // 2 * width)  # a part of the head's, over those with other rows
    lanes = 3 * 2 * case['settings'].get('k', 0)
    assert sum(sizes) <= rows * (16 + lanes) + 1, (name, result)
    assert 'tensor' in result['layout'][-1] if both else 'data' in result['layout'][-1]
    # What a device holds beside its arguments and results is small, and has no head that was gathered.
    logits = rows * case['vocab'] // 2 * 4
    assert result['temp'] < 0.04 * logits + 2**20, (name, result)


def test_compiles_for_heads_over_devices():
  case = sized(SPECS['teacher top-64, bucket'] | dict(valid_vocab=151_669), 512)
  check_mesh([('teacher top-64, bucket', case)], 'quick')


@pytest.mark.slow
def test_compiles_for_heads_over_devices_at_all_sizes():
  wanted = [
    ('forward KL', [0, 1]),
    ('forward KL', [0]),
    ('reverse KL', [0]),
    ('jsd', [0]),
    ('clipped forward KL', [0, 1]),
    ('student top-64', [0, 1]),
  ]
  check_mesh([(name, sized(SPECS[name], gradients=gradients)) for name, gradients in wanted])
