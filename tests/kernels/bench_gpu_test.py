"""The benchmark for GPUs where there is none: it runs, says what was not measured, and invents nothing."""

import json
import os
import stat
import sys

import pytest

from kernels.linear_divergence import bench_gpu


def results(tmp_path, *flags):
  out = tmp_path / 'deep' / 'results.json'
  bench_gpu.main([f'--out={out}', *flags])
  return json.loads(out.read_text())['records']


@pytest.fixture
def peer(tmp_path):
  """A Python with Liger's packages, as it were, that writes down what it was asked."""
  record = dict(device='NVIDIA H200', wall_ms=80.0, walls_ms=[80.0], peak_bytes=2**30, loss=0.5)
  script = tmp_path / 'python'
  script.write_text(
    f'#!/bin/sh\necho "$3" >> {tmp_path / "asked"}\necho noise\necho \'RECORD {json.dumps(record)}\'\n'
  )
  script.chmod(script.stat().st_mode | stat.S_IEXEC)
  return str(script)


def test_nothing_is_measured_without_a_gpu(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(bench_gpu, 'SPECS', dict(jsd=0.5))  # A process a row takes long enough.
  monkeypatch.setattr(bench_gpu, 'SHAPES', bench_gpu.SHAPES[:1])
  records = results(tmp_path, '--variants=chunked,liger', f'--peer-python={tmp_path / "none"}')
  assert len(records) == 2
  for record in records:
    assert 'wall_ms' not in record and record['R'] is None
    assert ('backend is cpu' if record['variant'] == 'chunked' else 'no Python') in record['not_measured']
  assert capsys.readouterr().out.count('not measured: ') == 2


@pytest.mark.slow
def test_a_tiny_run(tmp_path, peer, capsys):
  records = results(
    tmp_path, '--smoke', '--repeats=1', '--variants=gpu,chunked,liger', f'--peer-python={peer}'
  )
  ours = {r['spec']: r for r in records if r['variant'] == 'chunked'}
  assert ours['forward_kl']['device'] == 'cpu' and ours['jsd']['wall_ms'] > 0
  assert 0 < ours['jsd']['loss'] < ours['forward_kl']['loss'] and ours['jsd']['peak_bytes'] is None
  assert all('gpu lacks' in r['not_measured'] for r in records if r['variant'] == 'gpu')
  theirs = [r for r in records if r['variant'] == 'liger']
  assert [r['beta'] for r in theirs] == [0.0, 0.5] and theirs[0]['wall_ms'] == 80.0
  asked = [json.loads(line) for line in (tmp_path / 'asked').read_text().splitlines()]
  assert [x['shape'] for x in asked] == [[64, 64, 512]] * 2
  # 8 · 64 · 64 · 512 operations take 17 ns.
  assert theirs[0]['R'] == pytest.approx(0.08 * 989.4e12 / 16_777_216)
  assert '| 1024 | - | 0.50000 |' in capsys.readouterr().out


def test_r_needs_a_peak():
  record = dict(device='cpu', wall_ms=1.0, shape=(8192, 4096, 151_936))
  assert bench_gpu.ratio(record, None) is None
  assert bench_gpu.ratio(record | dict(wall_ms=82.45), 989.4e12) == pytest.approx(2.0, rel=1e-3)
  slower = record | dict(device='NVIDIA H100 PCIe', wall_ms=53.95)
  assert bench_gpu.ratio(slower, None) == pytest.approx(1, rel=1e-3)
  assert bench_gpu.ratio(dict(not_measured='x'), 1.0) is None


@pytest.mark.reference
def test_ligers_part_runs(tmp_path, monkeypatch):
  monkeypatch.setattr(bench_gpu, 'SPECS', dict(jsd=0.5))
  python = os.environ.get('OPSD_REFERENCE_PYTHON', sys.executable)
  flags = ('--smoke', '--repeats=1', '--variants=chunked,liger,liger:triton', f'--peer-python={python}')
  ours, theirs, triton = results(tmp_path, *flags)
  if 'lacks liger_kernel' in theirs.get('not_measured', ''):
    pytest.skip(theirs['not_measured'])
  # Other random numbers of the same distribution, bfloat16.
  assert theirs['loss'] == pytest.approx(ours['loss'], rel=0.2)
  assert 'CUDA' in triton['not_measured']
