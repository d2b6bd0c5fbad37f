"""The same experiment over several seeds: means with intervals, and how soon every arm got where.

An interval is Student's t at 95 % over the seeds, each of which has a base model of its own: it says how a
number would move with another seed. Where the seeds share their test problems it does not say how it would
move with others.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from opsd_jax.analyze import runs, table
from opsd_jax.analyze.runs import Run
from opsd_jax.jsonlines import Row


class Mean(NamedTuple):
  """A mean over seeds, and half the width of its 95 % interval; None where one seed has no spread."""

  value: float
  half: float | None


class Course(NamedTuple):
  """How an arm went in one seed, a point a validation; what its warm start took is in all of them.

  Attributes:
    accuracy: share of right answers, float [K].
    updates: until then.
    tokens: completion tokens until then, sampled or given.
    scored: completion tokens read by the student for its loss, by the teacher, or for weights of samples.
    flops: model FLOPs.
    kept: accuracy on other tasks, by name.
  """

  accuracy: np.ndarray
  updates: np.ndarray
  tokens: np.ndarray
  scored: np.ndarray
  flops: np.ndarray
  kept: Mapping[str, np.ndarray]


_SCORED = ('total/scored_student', 'total/scored_teacher', 'total/scored_weigh')
_TOKENS = ('total/sampled', 'total/given')
_KEPT = 'retention/'


def mean(values: Sequence[float]) -> Mean:
  """Mean of one value a seed, with Student's t interval."""
  array = np.asarray(values, float)
  if len(array) < 2:
    return Mean(float(array.mean()), None)
  half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
  return Mean(float(array.mean()), float(half))


def read(folders: Sequence[str | os.PathLike]) -> list[Run]:
  """The runs that are evaluated."""
  found = [runs.read_run(folder) for folder in folders]
  return [run for run in found if run.results is not None]


def course(run: Run, name: str) -> Course | None:
  """An arm's validations; None where there were none."""
  if name not in run.arms:
    return None
  began = _last(runs.read_metrics(os.path.join(run.folder_of(name), 'warm_start', 'metrics.jsonl')))
  rows = [row for row in run.arms[name].metrics if 'validation_accuracy' in row]
  if not rows:
    return None

  def total(names: Sequence[str]) -> np.ndarray:
    return np.array([sum(row.get(n, 0) + began.get(n, 0) for n in names) for row in rows], float)

  others = [n for n in rows[0] if n.startswith(_KEPT) and n.endswith('/accuracy')]
  kept = {n.split('/')[1]: np.array([row.get(n, np.nan) for row in rows], float) for n in others}
  accuracy = np.array([row['validation_accuracy'] for row in rows], float)
  updates = total(('step',))
  return Course(accuracy, updates, total(_TOKENS), total(_SCORED), total(('total/flops',)), kept)


def _last(rows: Sequence[Row]) -> Row:
  return rows[-1] if rows else {}


def reached(way: Course, base: Mapping[str, Any], target: float) -> dict[str, float]:
  """Updates, completion tokens, FLOPs and accuracy on other tasks where the accuracy first is `target`.

  Between two validations, and between the `base`'s row of the table and the first one, all go in a straight
  line. Empty where the target is not reached.
  """
  accuracy = np.array([base['sampled_accuracy'], *way.accuracy])
  there = np.flatnonzero(accuracy >= target)
  if not len(there):
    return {}
  after = max(there[0], 1)
  share = (target - accuracy[after - 1]) / (accuracy[after] - accuracy[after - 1]) if there[0] else 0.0

  def at(values: np.ndarray, first: float) -> float:
    ends = np.array([first, *values])[[after - 1, after]]
    return float(ends[0] + share * (ends[1] - ends[0]))

  others = {name: row['accuracy'] for name, row in base.get('retention', {}).items()}
  kept = {f'{name}_at_target': at(values, others.get(name, np.nan)) for name, values in way.kept.items()}
  costs = {'updates': way.updates, 'tokens': way.tokens, 'flops': way.flops}
  return {f'{name}_to_target': at(values, 0) for name, values in costs.items()} | kept


def summarise(found: Sequence[Run], target: float) -> dict[str, dict[str, Any]]:
  """Of every arm what stands in the table, as means over the seeds that have it.

  `behind` is by how much OPSD's sampled accuracy of the same seed is higher.
  """
  evaluated = [table.evaluated(run.results) for run in found]
  names = dict.fromkeys(name for arms in evaluated for name in arms)
  return {name: _arm(name, found, evaluated, target) for name in names}


def _arm(
  name: str, found: Sequence[Run], evaluated: Sequence[Mapping[str, Any]], target: float
) -> dict[str, Any]:
  have = [(run, arms) for run, arms in zip(found, evaluated, strict=True) if name in arms]
  rows = [arms[name] for _, arms in have]
  shown = {kind: mean([row[f'{kind}_accuracy'] for row in rows]) for kind in ('sampled', 'greedy')}
  shown |= {
    'kept': _by_key([{k: v['accuracy'] for k, v in row.get('retention', {}).items()} for row in rows]),
    'levels': _by_key([row.get('levels', {}) for row in rows]),
    'seeds': len(rows),
  }
  if all('opsd' in arms for _, arms in have):
    ahead = [arms['opsd']['sampled_accuracy'] - arms[name]['sampled_accuracy'] for _, arms in have]
    shown['behind'] = mean(ahead)
  spent = [run.results.get('arms', {}).get(name) for run, _ in have]
  if all(spent):
    shown |= {key: mean(values) for key, values in _spent(spent).items()}
  ways = [(way, arms['base']) for run, arms in have if (way := course(run, name)) is not None]
  there = [at for way in ways if (at := reached(*way, target))]
  if ways:
    shown['reached'] = len(there)
  return shown | _by_key(there)


def _spent(ledgers: Sequence[Row]) -> dict[str, list[float]]:
  return {
    'updates': [one['updates'] for one in ledgers],
    'tokens': [one['sampled'] + one['given'] for one in ledgers],
    'scored': [sum(v for k, v in one.items() if k.startswith('scored_')) for one in ledgers],
    'flops': [one['flops'] for one in ledgers],
  }


def _by_key(rows: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
  keys = dict.fromkeys(key for row in rows for key in row)
  return {key: mean([row[key] for row in rows if key in row]) for key in keys}


def cells(
  summary: Mapping[str, Mapping[str, Any]], target: float, labels: table.Labels = None
) -> list[list[str]]:
  """The table of `summarise`, its header first."""
  others = list(dict.fromkeys(key for arm in summary.values() for key in arm['kept']))
  header = ['arm', 'sampled %', 'greedy %', 'points behind OPSD', *(f'{name} %' for name in others)]
  goal = f'{100 * target:g} %'
  header += ['updates', 'tokens', 'scored', 'TFLOPs']
  header += [f'{cost} to {goal}' for cost in ('updates', 'tokens', 'TFLOPs')]
  header += [f'{name} % then' for name in others]
  rows = [header]
  for name, arm in summary.items():
    there = f' ({arm["reached"]}/{arm["seeds"]})' if arm.get('reached') else ''
    rows.append(
      [
        runs.label(name, labels),
        _share(arm['sampled']),
        _share(arm['greedy']),
        table.NONE if name in ('opsd', 'opsd_best') else _share(arm.get('behind')),
        *(_share(arm['kept'].get(other)) for other in others),
        _number(arm.get('updates'), 1),
        _number(arm.get('tokens'), 1e3, 'k'),
        _number(arm.get('scored'), 1e3, 'k'),
        _number(arm.get('flops'), 1e12),
        _number(arm.get('updates_to_target'), 1) + there,
        _number(arm.get('tokens_to_target'), 1e3, 'k'),
        _number(arm.get('flops_to_target'), 1e12),
        *(_share(arm.get(f'{other}_at_target')) for other in others),
      ]
    )
  return rows


def level_cells(summary: Mapping[str, Mapping[str, Any]], labels: table.Labels = None) -> list[list[str]]:
  """Sampled accuracy by how hard the problems are, its header first; no rows where nothing is known of it."""
  levels = list(dict.fromkeys(key for arm in summary.values() for key in arm['levels']))
  if not levels:
    return []
  rows = [['arm', *(f'level {level} %' for level in levels)]]
  return rows + [
    [runs.label(name, labels), *(_share(arm['levels'].get(level)) for level in levels)]
    for name, arm in summary.items()
  ]


def _share(share: Mean | None) -> str:
  """'72.5 ± 1.3' for a share."""
  if share is None:
    return table.NONE
  return f'{100 * share.value:.1f}' + ('' if share.half is None else f' ± {100 * share.half:.1f}')


def _number(amount: Mean | None, size: float, unit: str = '') -> str:
  return table.NONE if amount is None else table.short(amount.value / size) + unit
