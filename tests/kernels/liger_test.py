"""The divergence against Liger's chunked JSD (`LigerFusedLinearJSDLoss`), run as a program of its own.

Liger's `beta` is the teacher's weight in the mixture, as ours is, and its ends are what TRL's are:
beta 0 is KL(teacher || student), beta 1 KL(student || teacher). Its temperature divides both models'
logits and multiplies nothing back. With a hard weight of 0 and a soft one of 1 the result is the sum
over positions whose label is not -100, over their number; a soft weight scales that, and a hard weight
adds the same mean of the labels' cross-entropies at temperature 1.
"""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_divergence.api import DivergenceSpec, linear_divergence

pytestmark = pytest.mark.reference

PROGRAM = """
import numpy as np
import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

given, out = dict(np.load('given.npz')), {}
for i, (beta, temperature, hard, soft) in enumerate(given['settings']):
  student, head, teacher, teacher_head = (
    torch.tensor(given[name], requires_grad='student' in name)
    for name in ('student', 'student_head', 'teacher', 'teacher_head'))
  loss = LigerFusedLinearJSDLoss(
    weight_hard_loss=float(hard), weight_soft_loss=float(soft), beta=float(beta),
    temperature=float(temperature), compiled=False, chunk_size=4,
  )(student, head, teacher, teacher_head, torch.tensor(given['labels']))
  loss.backward()
  out |= {f'loss{i}': loss.detach().numpy()}
  out |= {f'hidden{i}': student.grad.numpy(), f'head{i}': head.grad.numpy()}
np.savez('out.npz', **out)
"""

# beta, temperature, hard weight, soft weight
SETTINGS = [(0.5, 1.0, 0, 1), (0.1, 1.3, 0, 1), (0.0, 1.0, 0, 1), (1.0, 0.7, 0, 1), (0.7, 2.0, 0.3, 0.4)]
COUNT, VOCAB = 18, 60


@pytest.fixture(scope='module')
def given():
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  labels = rng.integers(0, VOCAB, COUNT)
  labels[5::6] = -100
  return dict(
    settings=np.array(SETTINGS),
    student=normal(COUNT, 8),
    student_head=normal(VOCAB, 8),
    teacher=normal(COUNT, 6),
    teacher_head=normal(VOCAB, 6),
    labels=labels,
  )


@pytest.fixture(scope='module')
def theirs(given, tmp_path_factory):
  python = os.environ.get('OPSD_REFERENCE_PYTHON')
  if python is None and importlib.util.find_spec('liger_kernel') is None:
    pytest.skip('needs liger-kernel: make test-reference')
  folder = tmp_path_factory.mktemp('liger')
  np.savez(folder / 'given.npz', **given)
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  done = subprocess.run(
    [python or sys.executable, '-c', PROGRAM],
    cwd=folder,
    env=environment | dict(CUDA_VISIBLE_DEVICES=''),
    capture_output=True,
    text=True,
  )
  if 'ModuleNotFoundError' in done.stderr:
    pytest.skip(f'{python} lacks liger-kernel: {done.stderr.splitlines()[-1]}')
  assert done.returncode == 0, done.stderr[-4000:]
  return dict(np.load(folder / 'out.npz'))


@pytest.mark.parametrize('implementation', ['reference', 'chunked'])
@pytest.mark.parametrize('index', range(len(SETTINGS)))
def test_equals_liger(given, theirs, implementation, index):
  beta, temperature, hard, soft = SETTINGS[index]
  kind = {0.0: 'forward_kl', 1.0: 'reverse_kl'}.get(beta, 'jsd')
  warm = dict(student_temperature=temperature, teacher_temperature=temperature)
  spec = DivergenceSpec(kind=kind, beta=beta, **warm)
  mask = given['labels'] >= 0
  targets = jnp.asarray(np.maximum(given['labels'], 0), jnp.int32)[None]

  @jax.jit
  def loss(student, head):
    arrays = (student[None], head, given['teacher'][None], given['teacher_head'], targets)
    keywords = dict(implementation=implementation, chunk_tokens=4)
    soft_loss = linear_divergence(*arrays, spec, **keywords).loss
    labels = jax.nn.log_softmax(student @ head.T)[np.arange(COUNT), targets[0]]
    return jnp.where(mask, soft * soft_loss[0] - hard * labels, 0).sum() / mask.sum()

  value, gradients = jax.value_and_grad(loss, (0, 1))(given['student'], given['student_head'])
  np.testing.assert_allclose(value, theirs[f'loss{index}'], rtol=3e-6)
  for name, gradient in zip(('hidden', 'head'), gradients, strict=True):
    np.testing.assert_allclose(gradient, theirs[f'{name}{index}'], atol=2e-6, rtol=1e-5)
