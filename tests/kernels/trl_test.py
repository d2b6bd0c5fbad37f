"""The divergence against TRL's generalised JSD, run as a program of its own.

TRL's `beta` is the teacher's weight in the mixture, as ours is: for 0 < beta < 1 the two losses are
the same. Its ends are special there, where the formula gives 0: beta 0 means KL(teacher || student),
our forward KL, and beta 1 means KL(student || teacher), our reverse KL.

The PyTorch side runs outside the repository, whose folder `kernels` would hide an optional package
of the same name, under the Python that OPSD_REFERENCE_PYTHON names, else under this one.
"""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence.api import DivergenceSpec, linear_divergence

pytestmark = pytest.mark.reference

PROGRAM = """
import numpy as np
import torch
from trl.experimental.gkd import GKDTrainer

given, out = dict(np.load('given.npz')), {}
for i, (beta, temperature) in enumerate(given['settings']):
  student, head, teacher, teacher_head = (
    torch.tensor(given[name], requires_grad='student' in name)
    for name in ('student', 'student_head', 'teacher', 'teacher_head'))
  loss = GKDTrainer.generalized_jsd_loss(
    student @ head.T, teacher @ teacher_head.T, torch.tensor(given['labels']),
    beta=float(beta), temperature=float(temperature), reduction='sum')
  loss.backward()
  out |= {f'loss{i}': loss.detach().numpy()}
  out |= {f'hidden{i}': student.grad.numpy(), f'head{i}': head.grad.numpy()}
np.savez('out.npz', **out)
"""

SETTINGS = [(0.0, 1.0), (1.0, 0.7), (0.5, 1.0), (0.1, 1.3)]  # beta, temperature
BATCH, TIME, VOCAB = 2, 9, 60


def ours_for(beta, temperature, implementation):
  """The spec that says what TRL's settings do."""
  kind = {0.0: 'forward_kl', 1.0: 'reverse_kl'}.get(beta, 'jsd')
  support = dict()
  if implementation == 'tpu' and kind == 'jsd':  # Which has no full vocabulary there, but a k that holds all.
    support = dict(support='student_topk', k=VOCAB)
  return DivergenceSpec(
    kind=kind, beta=beta, student_temperature=temperature, teacher_temperature=temperature, **support
  )


@pytest.fixture(scope='module')
def given():
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  labels = rng.integers(0, VOCAB, (BATCH, TIME))
  labels[:, 7:] = -100  # What TRL leaves out; ids are all that it reads of the others.
  return dict(
    settings=np.array(SETTINGS),
    student=normal(BATCH, TIME, 8),
    student_head=normal(VOCAB, 8),
    teacher=normal(BATCH, TIME, 6),
    teacher_head=normal(VOCAB, 6),
    labels=labels,
  )


@pytest.fixture(scope='module')
def theirs(given, tmp_path_factory):
  python = os.environ.get('OPSD_REFERENCE_PYTHON')
  if python is None and importlib.util.find_spec('trl') is None:
    pytest.skip('needs trl: make test-reference')
  folder = tmp_path_factory.mktemp('trl')
  np.savez(folder / 'given.npz', **given)
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  environment |= dict(TRL_EXPERIMENTAL_SILENCE='1', CUDA_VISIBLE_DEVICES='', HF_HUB_OFFLINE='1')
  done = subprocess.run(
    [python or sys.executable, '-c', PROGRAM], cwd=folder, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return dict(np.load(folder / 'out.npz'))


@pytest.mark.parametrize('implementation', ['reference', 'chunked', 'tpu'])
@pytest.mark.parametrize('index', range(len(SETTINGS)))
def test_equals_trl(given, theirs, implementation, index):
  spec, mask = ours_for(*SETTINGS[index], implementation), given['labels'] >= 0
  targets = jnp.asarray(np.maximum(given['labels'], 0), jnp.int32)

  @jax.jit
  def loss(student, head):
    arrays = (student, head, given['teacher'], given['teacher_head'], targets)
    result = linear_divergence(*arrays, spec, implementation=implementation, chunk_tokens=4)
    return jnp.where(mask, result.loss, 0).sum()

  with pltpu.force_tpu_interpret_mode():
    value, gradients = jax.value_and_grad(loss, (0, 1))(given['student'], given['student_head'])
  np.testing.assert_allclose(value, theirs[f'loss{index}'], rtol=2e-6)
  for name, gradient in zip(('hidden', 'head'), gradients, strict=True):
    np.testing.assert_allclose(gradient, theirs[f'{name}{index}'], atol=1e-5, rtol=1e-5)
