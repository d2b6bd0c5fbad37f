"""Two layers of a published model planned for a slice by the TPU's compiler, by the command itself."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from opsd_jax.models.sizes import SIZES
from opsd_jax.train import ledger

LIBRARY = os.environ.get('TPU_LIBRARY_PATH')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not os.path.exists(LIBRARY) if LIBRARY else importlib.util.find_spec('libtpu') is None,
    reason='needs the TPU compiler, which make test-all installs: requirements/tpu-compile.txt',
  ),
]
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def run(out, topology, *settings):
  flags = [f'--set={s}' for s in ('weights.published=none', 'model.num_layers=2', *settings)]
  command = [sys.executable, '-m', 'experiments.plan', '--experiment=opsd_qwen3_1p7b', *flags]
  command += [f'--topology={topology}', f'--out={out}']
  return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)


def test_a_slice_of_a_pod(tmp_path):
  done = run(tmp_path / 'plan.json', 'v5e:4x4', 'mesh.tensor=4', 'loop.packing=rows')
  assert done.returncode == 0, done.stderr[-4000:]
  assert 'It fits' in done.stdout
  plan = json.loads((tmp_path / 'plan.json').read_text())
  phases = {phase['name']: phase for phase in plan['phases']}
  assert list(phases) == ['copy', 'prefill', 'decode', 'score', 'update']
  # What the compiler's own program does is what the formulas say that it does, padding and all.
  spec, layers = SIZES['qwen3_1p7b'], 2
  computed = ledger.padded_positions((32, 4096), (32, 1024), 0).forward(spec, 0) * layers / spec.num_layers
  assert phases['score']['flops'] * 16 == pytest.approx(computed, rel=1e-3)
  # Three products of the head at every token, at least: both heads, and the gradient of the states.
  head = 2 * 32 * 1024 * spec.vocab_size * spec.embed_dim
  assert phases['update']['flops'] * 16 > 3 * head
  assert phases['update']['sent_by'] and phases['copy']['sent'] > 0
  assert 0 < plan['seconds']['least'] < plan['seconds']['most']


def test_what_does_not_fit_is_said_with_its_size(tmp_path):
  settings = ('mesh.tensor=1', 'rollout.questions=1024', 'rollout.sampling.max_tokens=16384')
  done = run(tmp_path / 'plan.json', 'v5e:2x2', *settings)
  assert done.returncode == 3, done.stderr[-4000:]
  assert 'does not fit' in done.stdout and 'more chips' in done.stdout
  assert not json.loads((tmp_path / 'plan.json').read_text())['fits']
