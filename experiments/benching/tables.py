"""The tables of `bench`, from what the timed programs report."""

import statistics
from collections.abc import Mapping
from typing import Any

from experiments.benching import peers, workload

Reports = Mapping[str, Mapping[str, Any]]


def rollouts(own: Mapping[str, Any], others: Reports) -> list[dict[str, Any]]:
  """A row for every way to sample a case: ours, then the peers, and how much faster the best of ours is."""
  rows = []
  for name in (workload.EQUAL, workload.GEOMETRIC):
    ours = own.get('cases', {}).get(name, {})
    full = {way: r for way, r in ours.items() if 'orientation' not in way}
    best = max((_speed(r) for r in full.values()), default=None)
    best_cpu = max((_cpu_speed(r) for r in full.values()), default=None)
    rows += [_sampled(name, f'ours: {way}', r, None, None) for way, r in ours.items()]
    if not ours:
      rows.append({'case': name, 'program': 'ours', 'missing': own.get('missing')})
    for peer, report in others.items():
      if 'missing' in report:
        rows.append({'case': name, 'program': peer, 'missing': report['missing']})
      else:
        rows.append(_sampled(name, peer, report['cases'][name], best, best_cpu))
  return rows


def _speed(r: Mapping[str, Any]) -> float:
  return r['tokens'] / r['seconds']


def _cpu_speed(r: Mapping[str, Any]) -> float:
  return r['tokens'] / r['cpu_seconds']


def _sampled(case: str, program: str, r: Mapping[str, Any], best: float | None, cpu: float | None) -> dict:
  return {
    'case': case,
    'program': program,
    'tokens_per_second': _speed(r),
    'tokens_per_cpu_second': _cpu_speed(r),
    'mean_length': r['tokens'] / r['requests'],
    'idle': r.get('idle'),
    'ours_faster': best and best / _speed(r),
    'ours_faster_by_cpu': cpu and cpu / _cpu_speed(r),
    'load': r['load'],
  }


def steps(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Ours and PyTorch's step: median seconds, CPU seconds and the peak of memory."""
  rows = []
  for program, report in (('ours', own), (peers.TORCH, other)):
    if 'missing' in report:
      rows.append({'program': program, 'missing': report['missing']})
      continue
    middle = {key: statistics.median(s[key] for s in report['steps']) for key in report['steps'][0]}
    rows.append({'program': program, **middle, 'peak_mib': report['peak_mib'], 'loss': report['loss'][-1]})
  if all('seconds' in row for row in rows):
    rows[1]['ours_faster'] = rows[1]['seconds'] / rows[0]['seconds']
  return rows


_ROLLOUTS = {
  'case': 'case',
  'program': 'program',
  'tokens_per_second': 'tokens/s',
  'tokens_per_cpu_second': 'tokens/CPU s',
  'ours_faster': 'ours is faster',
  'ours_faster_by_cpu': 'by CPU time',
  'idle': 'idle rows',
  'mean_length': 'mean length',
  'load': 'load before',
}
_STEPS = {
  'program': 'program',
  'seconds': 's a step',
  'cpu_seconds': 'CPU s a step',
  'ours_faster': 'ours is faster',
  'peak_mib': 'peak MiB',
  'loss': 'loss',
  'load': 'load before',
}


def markdown(rows: list[dict[str, Any]]) -> str:
  """A table of `rollouts` or `steps`; what was not measured says why."""
  columns = _ROLLOUTS if 'case' in rows[0] else _STEPS
  lines = ['| ' + ' | '.join(columns.values()) + ' |', '|---|' + '---:|' * (len(columns) - 1)]
  for row in rows:
    if 'missing' in row:
      names = [row[key] for key in ('case', 'program') if key in row]
      cells = [*names, f'not measured: {row["missing"]}']
      cells += [''] * (len(columns) - len(cells))
    else:
      cells = [_cell(key, row.get(key)) for key in columns]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def _cell(key: str, value: Any) -> str:
  if value is None:
    return '-'
  if isinstance(value, str):
    return value
  if key == 'idle':
    return f'{value:.1%}'
  if key.startswith('ours_faster'):
    return f'{value:.2f}x'
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
