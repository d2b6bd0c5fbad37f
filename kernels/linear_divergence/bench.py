"""Time and memory of one gradient step: every implementation against whole logits, in one process.

Run with `make bench-kernel`, or `python -m kernels.linear_divergence.bench`. A variant is the name of an
implementation; with a mode after a colon, `chunked:speed`; with a star, its gradient to the hidden states
alone (a frozen head).
"""

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kernels.linear_divergence.api import DivergenceSpec, linear_divergence

Record = dict[str, Any]

SPECS = {
  'forward_kl clipped': DivergenceSpec(entry_clip_max=0.05),
  'forward_kl': DivergenceSpec(),
  'jsd': DivergenceSpec(kind='jsd', beta=0.5),
  'forward_kl teacher top-64 bucket': DivergenceSpec(support='teacher_topk', k=64, tail='bucket'),
  'forward_kl teacher top-64 renormalised': DivergenceSpec(support='teacher_topk', k=64),
}
VARIANTS = ('reference', 'chunked', 'chunked:speed', 'reference*', 'chunked*', 'chunked:speed*')
_SMOKE = dict(batch=2, tokens=16, vocab=512, repeats=2, chunk_tokens=8)


def measure(
  batch: int,
  tokens: int,
  dim: int,
  vocab: int,
  spec: DivergenceSpec,
  *,
  chunk_tokens: int = 128,
  dtype: str = 'float32',
  implementations: Sequence[str] = ('reference', 'chunked'),
  repeats: int = 5,
) -> list[Record]:
  """Times value and gradient of the mean loss for each implementation, on the same inputs.

  Args:
    batch: B.
    tokens: T, positions of one sequence.
    dim: width of student and teacher.
    vocab: V.
    spec: what to compare.
    chunk_tokens: see `linear_divergence`.
    dtype: of the hidden states; heads are float32.
    implementations: variants to compare; ratios are to the first with the same gradients.
    repeats: timed runs after one that is not timed; the implementations take turns.

  Returns:
    A record for each implementation: sizes, `wall_ms` (median), `temp_bytes` (the compiler's
    temporaries, None where it does not say), `loss`, and ratios to the first with the same gradients.
  """
  arrays = _inputs(batch, tokens, dim, vocab, dtype)
  steps = {name: _compile(name, arrays, spec, chunk_tokens) for name in implementations}
  walls = _medians(steps, arrays, repeats)
  records = []
  for name, step in steps.items():
    analysis = step.memory_analysis()
    records.append(
      dict(
        implementation=name,
        batch=batch,
        tokens=tokens,
        dim=dim,
        vocab=vocab,
        dtype=dtype,
        chunk_tokens=chunk_tokens,
        wall_ms=walls[name],
        temp_bytes=analysis.temp_size_in_bytes if analysis else None,
        loss=float(step(*arrays)[0]),
      )
    )
  return [record | _ratios(record, _baseline(record, records)) for record in records]


def _inputs(batch: int, tokens: int, dim: int, vocab: int, dtype: str) -> tuple[jax.Array, ...]:
  keys = jax.random.split(jax.random.key(0), 5)
  student, teacher = (jax.random.normal(k, (batch, tokens, dim), dtype) for k in keys[:2])
  heads = [jax.random.normal(k, (vocab, dim)) * dim**-0.5 for k in keys[2:4]]
  targets = jax.random.randint(keys[4], (batch, tokens), 0, vocab)
  return student, heads[0], teacher, heads[1], targets


def _compile(name: str, arrays: Sequence[jax.Array], spec: DivergenceSpec, chunk_tokens: int):
  implementation, _, mode = name.rstrip('*').partition(':')
  weights = jnp.full(arrays[-1].shape, 1 / arrays[-1].size, jnp.float32)

  # All arrays are arguments: the compiler would work out the logits of a constant teacher itself.
  def loss(*arrays):
    keywords = dict(chunk_tokens=chunk_tokens, implementation=implementation, mode=mode or 'memory')
    return jnp.sum(weights * linear_divergence(*arrays, spec, weights=weights, **keywords).loss)

  return jax.jit(jax.value_and_grad(loss, 0 if '*' in name else (0, 1))).lower(*arrays).compile()


def _medians(steps: dict[str, Callable], arguments, repeats: int) -> dict[str, float]:
  """Median milliseconds; taking turns exposes all to the same load on the machine."""
  walls = {name: [] for name in steps}
  for turn in range(repeats + 1):
    for name, step in steps.items():
      start = time.perf_counter()
      jax.block_until_ready(step(*arguments))
      if turn:
        walls[name].append(1e3 * (time.perf_counter() - start))
  return {name: statistics.median(values) for name, values in walls.items()}


def _baseline(record: Record, records: Sequence[Record]) -> Record:
  """The first variant with the same gradients."""
  frozen = '*' in record['implementation']
  return next(r for r in records if ('*' in r['implementation']) == frozen)


def _ratios(record: Record, base: Record) -> Record:
  temp = record['temp_bytes'] / base['temp_bytes'] if base['temp_bytes'] else None
  return dict(wall_ratio=record['wall_ms'] / base['wall_ms'], temp_ratio=temp)


def table(records: Sequence[Record]) -> str:
  """A markdown table of records that have a `spec` name."""
  lines = [
    '| spec | D | implementation | wall ms | ratio | temporaries MiB | ratio | loss |',
    '|---|---:|---|---:|---:|---:|---:|---:|',
  ]
  for r in records:
    memory = '- | -'
    if r['temp_bytes'] is not None:
      memory = f'{r["temp_bytes"] / 2**20:.1f} | {r["temp_ratio"]:.3f}'
    lines.append(
      f'| {r["spec"]} | {r["dim"]} | {r["implementation"]} | {r["wall_ms"]:.1f} | {r["wall_ratio"]:.2f} '
      f'| {memory} | {r["loss"]:.6f} |'
    )
  return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints the table and writes the records as JSON; `arguments` default to the command line."""
  options = vars(_parser().parse_args(arguments))
  out, smoke, names, dims = (options.pop(name) for name in ('out', 'smoke', 'specs', 'dims'))
  options['implementations'] = tuple(options.pop('variants').split(','))
  names, dims = names.split(','), [int(dim) for dim in dims.split(',')]
  if smoke:
    names, dims, options = names[:1], [16], options | _SMOKE
  records = [
    record | dict(spec=name)
    for name in names
    for dim in dims
    for record in measure(dim=dim, spec=SPECS[name], **options)
  ]
  print('B={batch} T={tokens} V={vocab} {dtype} chunk {chunk_tokens}'.format(**options))
  environment = dict(device=jax.devices()[0].device_kind, cores=os.cpu_count(), jax=jax.__version__)
  print('on {device}, {cores} cores, jax {jax}\n'.format(**environment) + f'\n{table(records)}')
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(dict(environment=environment, records=records), indent=2) + '\n')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description='Time and memory of the linear divergence.')
  sizes = dict(batch=4, tokens=128, vocab=151_936, chunk_tokens=128, repeats=5)
  for name, default in sizes.items():
    parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=default)
  parser.add_argument('--dims', default='96,512,1024', help='widths D, in between commas')
  parser.add_argument('--specs', default='forward_kl', help=f'in between commas, of {", ".join(SPECS)}')
  parser.add_argument('--variants', default=','.join(VARIANTS), help='what to compare, in between commas')
  parser.add_argument('--dtype', default='float32', help='of the hidden states')
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/bench-kernel/results.json'))
  parser.add_argument('--smoke', action='store_true', help='tiny sizes, to see that it runs')
  return parser


if __name__ == '__main__':
  main()
