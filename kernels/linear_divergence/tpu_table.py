"""The table of estimated TPU times: every loss, mode and chip, each in a process of its own.

Run with `make bench-tpu`, on any machine: nothing runs on a TPU, see `tpu_estimate`. A row takes a
minute or two; what was found is kept after each, and `--only` picks rows.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

Record = dict[str, Any]

VOCAB = 151_936
_TOP = dict(support='teacher_topk', k=64)
LOSSES = {
  'forward KL': dict(),
  'reverse KL': dict(kind='reverse_kl'),
  'forward KL, at most 0.05': dict(entry_clip_max=0.05),
  'JSD': dict(kind='jsd'),
  'forward KL in [0, 0.05]': dict(entry_clip_min=0.0, entry_clip_max=0.05),
}
TOP_K = {
  'JSD, top-64 and a bucket': dict(kind='jsd', tail='bucket', **_TOP),
  'forward KL, top-64 renormalised': _TOP,
}
# Chip, positions, width: the last ones show what short batches, long ones and wide models change.
_PLACES = (('v5e', 8192, 2048), ('v5p', 8192, 2048), ('v6e', 8192, 2048))
_MORE = (('v5e', 2048, 2048), ('v5e', 16_384, 2048), ('v5p', 16_384, 4096), ('v6e', 16_384, 4096))


def cases() -> Iterator[Record]:
  """What is estimated: keywords of `tpu_estimate.divergence`, and the loss's name."""
  for loss, spec in LOSSES.items():
    for statistics in (True, False):
      yield from _with(loss, spec, _PLACES, statistics=statistics)
    yield from _with(loss, spec, _PLACES, ((0, 1),), mode='speed')
  yield from _with('forward KL', LOSSES['forward KL'], _MORE)
  for loss, spec in TOP_K.items():
    for cached in (False, True):
      yield from _with(loss, spec, _PLACES, statistics=False, cached=cached)


def _with(loss: str, spec: Record, places, gradients=((0, 1), (0,)), **keywords) -> Iterator[Record]:
  for wanted in gradients:
    for chip, tokens, width in places:
      place = dict(chip=chip, tokens=tokens, width=width, vocab=VOCAB)
      yield dict(loss=loss, spec=spec, gradients=list(wanted), **place, **keywords)


def title(case: Record) -> str:
  """A name of a case that `--only` is matched with."""
  how = [case.get('mode', 'memory')]
  how += ['teacher cached'] if case.get('cached') else []
  how += [] if case.get('statistics', True) else ['no statistics']
  head = 'both' if len(case['gradients']) == 2 else 'frozen head'
  place = [case['chip'], f'T={case["tokens"]}', f'D={case["width"]}']
  return ' | '.join([case['loss'], head, ', '.join(how), *place])


def measure(case: Record) -> Record:
  """A case with its R and its temporaries in bytes and as a share of both models' whole logits."""
  keywords = {name: value for name, value in case.items() if name != 'loss'}
  command = [sys.executable, '-m', 'kernels.linear_divergence.tpu_estimate', json.dumps(keywords)]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f'{title(case)} could not be compiled:\n{done.stderr[-3000:]}')
  result = json.loads(done.stdout)
  share = result['temporaries'] / (2 * 4 * case['tokens'] * case['vocab'])
  return case | dict(R=result['R'], temporaries=result['temporaries'], share=share)


def table(records: Sequence[Record]) -> str:
  """The records in markdown."""
  lines = [
    '| loss | gradients | how | chip | T | D | R | temporaries MiB | of whole logits |',
    '|---|---|---|---|---:|---:|---:|---:|---:|',
  ]
  for record in records:
    cells = title(record).replace('T=', '').replace('D=', '')
    memory = f'{record["temporaries"] / 2**20:.0f} | {100 * record["share"]:.1f} %'
    lines.append(f'| {cells} | {record["R"]:.2f} | {memory} |')
  return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
  """Estimates the cases and writes them as JSON; `arguments` default to the command line."""
  options = _parser().parse_args(arguments)
  chosen = [case for case in cases() if re.search(options.only, title(case))]
  if not chosen:
    raise SystemExit(f'--only={options.only} matches no case, such as {title(next(cases()))!r}.')
  found: dict[str, Record] = {}
  if options.out.exists():
    found = {title(record): record for record in json.loads(options.out.read_text())['records']}
  options.out.parent.mkdir(parents=True, exist_ok=True)
  for case in chosen:
    print(title(case), flush=True)
    found[title(case)] = measure(case)
    records = [found[title(case)] for case in cases() if title(case) in found]
    options.out.write_text(json.dumps(dict(estimate=True, records=records), indent=2) + '\n')
  print(f'\nEstimates of the compiler; nothing ran.\n\n{table(records)}')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description='Estimated time and memory of the divergence on TPUs.')
  parser.add_argument('--only', default='', help='a regular expression that names of cases must match')
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/bench-tpu/results.json'))
  return parser


if __name__ == '__main__':
  main()
