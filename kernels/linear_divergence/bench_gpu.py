"""Time and memory of one gradient step on a GPU: ours, whole logits, and Liger's, on the same shapes.

Run with `make bench-gpu`, or `python -m kernels.linear_divergence.bench_gpu`. Every row has a process of its
own, so that the peak of its memory is its own. Without a GPU nothing is measured, and the table says so;
`--smoke` measures tiny shapes wherever it runs, to see that everything works.

Hidden states, heads and gradients are bfloat16, the teacher has a head of its own, and the loss is a mean.
R is time over that of 8·T·D·V operations at the peak of the device: 12·T·D·V are needed for a KL with
both gradients that keeps no logits, 16·T·D·V for a JSD. Liger's rows use its own random numbers: their
losses are near ours, not equal.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]

SHAPES = ((8192, 4096, 151_936), (4096, 2048, 151_936))
SPECS = {'forward_kl': 0.0, 'jsd': 0.5}  # Liger's beta for each.
OURS = ('gpu', 'chunked', 'chunked:speed', 'reference')
PEERS = ('liger', 'liger:triton')
# Dense bfloat16 operations per second, from the data sheets.
PEAKS = {'H200': 989.4e12, 'H100 80GB HBM3': 989.4e12, 'H100 SXM': 989.4e12, 'H100 PCIe': 756e12}
_SMOKE = ((64, 64, 512),)
_SECONDS = 1800

PEER = """
import json, statistics, sys, time

given = json.loads(sys.argv[1])


def skip(why):
  print('RECORD', json.dumps(dict(not_measured=why)))
  raise SystemExit(0)


try:
  import torch
  from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
except ImportError as error:
  skip(f'{sys.executable} lacks {error.name}')
on_gpu = torch.cuda.is_available()
if not on_gpu and not given['smoke']:
  skip('torch has no CUDA device')
device, count, (rows, width, vocab) = 'cuda' if on_gpu else 'cpu', given['repeats'], given['shape']
if given['variant'] == 'liger:triton':
  if not on_gpu:
    skip('its Triton kernels need a CUDA device')
  from liger_kernel.transformers import LigerFusedLinearJSD
  call = LigerFusedLinearJSD(jsd_beta=given['beta'])
else:
  call = LigerFusedLinearJSDLoss(
    weight_hard_loss=0.0, weight_soft_loss=1.0, beta=given['beta'], compiled=on_gpu)
torch.manual_seed(0)
normal = lambda *shape: torch.randn(*shape, device=device, dtype=torch.bfloat16)
arrays = [normal(rows, width), normal(vocab, width) * width**-0.5]
arrays += [normal(rows, width), normal(vocab, width) * width**-0.5]
for x in arrays[:2]:
  x.requires_grad_()
labels = torch.randint(0, vocab, (rows,), device=device)
walls = []
if on_gpu:
  torch.cuda.reset_peak_memory_stats()
for turn in range(count + 2):
  for x in arrays[:2]:
    x.grad = None
  if on_gpu:
    torch.cuda.synchronize()
  start = time.perf_counter()
  loss = call(*arrays, labels)
  loss.backward()
  if on_gpu:
    torch.cuda.synchronize()
  if turn >= 2:
    walls.append(1e3 * (time.perf_counter() - start))
print('RECORD', json.dumps(dict(
  device=torch.cuda.get_device_name() if on_gpu else 'cpu', wall_ms=statistics.median(walls), walls_ms=walls,
  peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None, loss=float(loss.detach()))))
"""


def one(given: Record) -> Record:
  """Measures one variant of ours in this process.

  Args:
    given: `variant`, `spec`, `shape` (T, D, V), `repeats`, `chunk_tokens`, `smoke`, and `config`, fields
      of `gpu_config.Config` that differ from its defaults.

  Returns:
    `device`, `wall_ms` (median), `walls_ms`, `peak_bytes` and `temp_bytes` (None where the device or the
    compiler does not say), `loss`; or `not_measured`, why.
  """
  import jax
  import jax.numpy as jnp

  from kernels.linear_divergence import api, gpu
  from kernels.linear_divergence.gpu_config import Config

  backend, (rows, width, vocab) = jax.default_backend(), given['shape']
  if backend != 'gpu' and not given['smoke']:
    return dict(not_measured=f'the backend is {backend}')
  gpu.CONFIG = Config(**given['config'])
  spec = api.DivergenceSpec(kind=given['spec'])
  name, _, mode = given['variant'].partition(':')

  @jax.jit  # As one program: what it takes on the way must not be the peak.
  def inputs():
    keys = jax.random.split(jax.random.key(0), 5)
    normal = lambda key, *shape: jax.random.normal(key, shape, jnp.bfloat16)  # noqa: E731
    arrays = [normal(keys[0], 1, rows, width), normal(keys[1], vocab, width) * width**-0.5]
    arrays += [normal(keys[2], 1, rows, width), normal(keys[3], vocab, width) * width**-0.5]
    return arrays, jax.random.randint(keys[4], (1, rows), 0, vocab)

  arrays, targets = inputs()
  # A name among others counts only where it can run.
  (choice, _) = api.explain(spec, *arrays, implementation=(name, 'reference'))
  if choice.lacks is not None:
    return dict(not_measured=f'{name} lacks {choice.lacks}')
  weights = jnp.full(targets.shape, 1 / rows, jnp.float32)
  settings = dict(chunk_tokens=given['chunk_tokens'], mode=mode or 'memory', statistics=False)

  def loss(*arrays):
    result = api.linear_divergence(*arrays, spec, weights=weights, implementation=name, **settings)
    return jnp.sum(weights * result.loss)

  step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays, targets).compile()
  walls = []
  for turn in range(given['repeats'] + 2):
    start = time.perf_counter()
    value = jax.block_until_ready(step(*arrays, targets))[0]
    if turn >= 2:
      walls.append(1e3 * (time.perf_counter() - start))
  device, analysis = jax.devices()[0], step.memory_analysis()
  return dict(
    device=device.device_kind,
    wall_ms=statistics.median(walls),
    walls_ms=walls,
    peak_bytes=(device.memory_stats() or {}).get('peak_bytes_in_use'),
    temp_bytes=analysis.temp_size_in_bytes if analysis else None,
    loss=float(value),
  )


def measured(given: Record, peer: str) -> Record:
  """The record of one row, from a process of its own."""
  text = json.dumps(given)
  if given['variant'] in PEERS:
    command = [peer, '-c', PEER, text]
  else:
    command = [sys.executable, '-m', 'kernels.linear_divergence.bench_gpu', f'--one={text}']
  # Memory taken in advance would be no peak.
  environment = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE='false')
  try:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
  except FileNotFoundError:
    return dict(not_measured=f'no Python at {peer}')
  except subprocess.TimeoutExpired:
    return dict(not_measured=f'it took more than {_SECONDS} seconds')
  lines = [line for line in done.stdout.splitlines() if line.startswith('RECORD ')]
  if done.returncode or not lines:
    last = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
    return dict(not_measured=f'it ended with {done.returncode}: {last[:300]}')
  return json.loads(lines[-1].removeprefix('RECORD '))


def ratio(record: Record, peak: float | None) -> float | None:
  """R: time over that of 8·T·D·V operations at `peak`, by default that of the device; None where unknown."""
  if 'wall_ms' not in record:
    return None
  known = [value for name, value in PEAKS.items() if name in record['device']]
  peak = peak or (known[0] if known else None)
  rows, width, vocab = record['shape']
  return record['wall_ms'] / 1e3 * peak / (8 * rows * width * vocab) if peak else None


def table(records: Sequence[Record]) -> str:
  """A markdown table of records."""
  lines = [
    '| loss | T | D | V | variant | ms | R | peak MiB | temporaries MiB | loss value |',
    '|---|---|---|---|---|---:|---:|---:|---:|---:|',
  ]
  size = lambda count: '-' if count is None else f'{count / 2**20:.0f}'  # noqa: E731
  for r in records:
    row = [r['spec'], *map(str, r['shape']), r['variant']]
    if 'not_measured' in r:
      row += [f'not measured: {r["not_measured"]}', '-', '-', '-', '-']
    else:
      row += [f'{r["wall_ms"]:.2f}', '-' if r['R'] is None else f'{r["R"]:.2f}']
      row += [size(r['peak_bytes']), size(r.get('temp_bytes')), f'{r["loss"]:.5f}']
    lines.append(f'| {" | ".join(row)} |')
  return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints the table and writes the records as JSON; `arguments` default to the command line."""
  options = _parser().parse_args(arguments)
  if options.one:
    print('RECORD', json.dumps(one(json.loads(options.one))))
    return
  config = dict(pair.split('=') for pair in options.config.split(',') if pair)
  shared = dict(repeats=options.repeats, chunk_tokens=options.chunk_tokens, smoke=options.smoke)
  shared |= dict(config={name: int(value) for name, value in config.items()})
  records = []
  for shape in _SMOKE if options.smoke else SHAPES:
    for spec, beta in SPECS.items():
      for variant in options.variants.split(','):
        given = dict(variant=variant, spec=spec, beta=beta, shape=shape, **shared)
        record = given | measured(given, options.peer_python)
        records.append(record | dict(R=ratio(record, options.peak)))
        print(table(records[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
  print(table(records))
  options.out.parent.mkdir(parents=True, exist_ok=True)
  options.out.write_text(json.dumps(dict(records=records), indent=2) + '\n')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description='Time and memory of the linear divergence on a GPU.')
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/bench-gpu/results.json'))
  parser.add_argument('--variants', default=','.join(OURS + PEERS), help='what to measure, between commas')
  parser.add_argument('--repeats', type=int, default=10, help='timed runs after two that are not')
  parser.add_argument('--chunk-tokens', type=int, default=1024, help='of chunked')
  parser.add_argument('--config', default='', help='fields of gpu_config.Config, as in slots=4,segments=12')
  parser.add_argument('--peak', type=float, help='bfloat16 operations a second, where PEAKS has no device')
  parser.add_argument('--peer-python', default='.venv/gpu-peers/bin/python', help="with Liger's packages")
  parser.add_argument('--smoke', action='store_true', help='tiny shapes on any device, to see that it runs')
  parser.add_argument('--one', help=argparse.SUPPRESS)
  return parser


if __name__ == '__main__':
  main()
