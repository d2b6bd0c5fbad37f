"""Reads a run's folder, finished or still growing, into one record."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from opsd_jax import jsonlines
from opsd_jax.config import require
from opsd_jax.jsonlines import Row
from opsd_jax.records import Shown

LABELS = {
  'cold_start': 'cold start',
  'base': 'cold start (base)',
  'teacher_view': "base, teacher's view",
  'teacher': 'external teacher',
  'opsd': 'OPSD',
  'opsd_best': 'OPSD, best by validation',
  'no_privilege': 'control: no privilege',
  'sharpened_no_privilege': 'control: no privilege, sharpened',
  'renio': 'ReNIO',
  'effopd': 'EffOPD around OPSD',
  'opd_sampled': 'OPD, sampled token',
  'opd_topk': 'OPD, rewards on the top-k',
  'opd_unaligned': 'OPD, teacher in another template',
  'cold_start_opd': 'cold start, then OPD',
  'sft': 'SFT',
  'off_policy': 'off-policy distillation',
  'gkd': 'GKD',
  'grpo': 'GRPO',
}


@dataclasses.dataclass(frozen=True)
class Arm:
  """One training of the run.

  Attributes:
    name: `cold_start`, `opsd` or a control's.
    label: for people.
    metrics: one row an update, oldest first.
    rollouts: update -> the rollouts written out at it, oldest first.
    failure: what stopped it (`failure.json`), or None.
  """

  name: str
  label: str
  metrics: list[Row]
  rollouts: dict[int, list[Shown]]
  failure: Row | None = None


@dataclasses.dataclass(frozen=True)
class Run:
  """What a folder holds.

  Attributes:
    folder: where it was read.
    config: the resolved experiment, {} where it is missing.
    results: of the evaluation, None before it is done.
    arms: by name: cold start, OPSD, then the controls in their order.
    labels: the experiment's own names for its controls.
  """

  folder: str
  config: Row
  results: Row | None
  arms: dict[str, Arm]
  labels: dict[str, str]

  @property
  def trained(self) -> list[Arm]:
    """The arms that roll out: all but the cold start."""
    return [arm for name, arm in self.arms.items() if name != 'cold_start']

  def folder_of(self, name: str) -> str:
    """Where an arm's training is."""
    return dict(_arm_folders(self.folder, self.config))[name]

  @property
  def missing(self) -> list[str]:
    """Sentences on what is not there (yet)."""
    notes = [] if self.config else ['config.json is missing: settings are not shown.']
    if self.results is None:
      notes.append('results.json is missing: the run is not evaluated (yet).')
    for arm in self.arms.values():
      if arm.failure:
        notes.append(
          f'{arm.label}: stopped at update {arm.failure.get("update")}, after too many '
          'updates that were not finite (failure.json has the details).'
        )
      elif not arm.metrics:
        notes.append(f'{arm.label}: no updates recorded (yet).')
    return notes


def label(name: str, labels: Mapping[str, str] | None = None) -> str:
  """How an arm is called in tables and plots; `labels` go before the usual ones."""
  return (labels or {}).get(name) or LABELS.get(name) or name.replace('_', ' ')


def read_run(folder: str | os.PathLike) -> Run:
  """Reads whatever is there.

  Raises:
    ConfigError: the folder does not exist.
    ValueError: a metrics line before the last is not JSON.
  """
  folder = os.fspath(folder)
  require(os.path.isdir(folder), f'workdir is {folder!r}, which is not a folder; name that of a run.')
  config = _read_json(os.path.join(folder, 'config.json')) or {}
  labels = {c['name']: c['label'] for c in config.get('controls') or [] if c.get('label')}
  arms = {name: _read_arm(name, path, labels) for name, path in _arm_folders(folder, config)}
  return Run(folder, config, _read_json(os.path.join(folder, 'results.json')), arms, labels)


def _arm_folders(folder: str, config: Row) -> Iterator[tuple[str, str]]:
  cold_start = os.path.join(folder, 'cold_start')
  # A run that starts from given weights has no cold start to miss.
  if os.path.isdir(cold_start) or (config.get('cold_start') or {}).get('updates'):
    yield 'cold_start', cold_start
  yield 'opsd', folder
  controls = os.path.join(folder, 'controls')
  found = sorted(os.listdir(controls)) if os.path.isdir(controls) else []
  named = [control['name'] for control in config.get('controls') or []]
  for name in dict.fromkeys(named + found):
    yield name, os.path.join(controls, name)


def _read_arm(name: str, folder: str, labels: Mapping[str, str]) -> Arm:
  metrics = read_metrics(os.path.join(folder, 'metrics.jsonl'))
  failure = _read_json(os.path.join(folder, 'failure.json'))
  if failure and metrics and metrics[-1]['step'] > failure['update']:
    failure = None  # It was continued and got past that.
  rollouts = _read_rollouts(os.path.join(folder, 'rollouts'))
  return Arm(name, label(name, labels), metrics, rollouts, failure)


def read_metrics(path: str) -> list[Row]:
  """One row an update; [] where there is no file (yet)."""
  try:
    return jsonlines.read(path)
  except FileNotFoundError:
    return []


def _read_rollouts(folder: str) -> dict[int, list[Shown]]:
  names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  found = {
    int(name[:-5]): _read_json(os.path.join(folder, name))
    for name in names
    if re.fullmatch(r'\d+\.json', name)
  }
  return {n: [Shown(**row) for row in found[n]] for n in sorted(found) if found[n]}


def _read_json(path: str) -> Any:
  """None where the file is missing or not written to its end."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (FileNotFoundError, ValueError):
    return None


def flatten(value: Any, prefix: str = '') -> dict[str, Any]:
  """`{'optimizer.learning_rate': 1e-4, ...}`; items of a list that have a name go by it."""
  if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
    value = {str(item.get('name', i)): item for i, item in enumerate(value)}
  if not isinstance(value, dict) or not value:
    return {prefix: value}
  flat: dict[str, Any] = {}
  for key, item in value.items():
    flat |= flatten(item, f'{prefix}.{key}' if prefix else str(key))
  return flat
