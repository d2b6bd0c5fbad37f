"""One HTML file that tells what a run was and what came of it. No scripts, nothing loaded."""

import base64
import html
import os
from collections.abc import Mapping
from typing import Any

from opsd_jax import files
from opsd_jax.analyze import curves, page, phase_table, table, viewer
from opsd_jax.analyze.runs import Arm, Run, flatten, label, read_run

_PHASES = ('rollout', 'student', 'teacher', 'weigh')  # of an update, as the ledger names them


def write_report(workdir: str | os.PathLike) -> str:
  """Writes `report.html` and `curves.png` into a run's folder, with whatever is there.

  Returns:
    The path of `report.html`.

  Raises:
    ConfigError: the folder does not exist.
  """
  run = read_run(workdir)
  picture = os.path.join(run.folder, 'curves.png')
  curves.write_curves(run, picture)
  with open(picture, 'rb') as file:
    image = base64.b64encode(file.read()).decode()
  path = os.path.join(run.folder, 'report.html')
  files.write_text(path, _page(run, image))  # Whole even while it is open and the run goes on.
  return path


def _page(run: Run, image: str) -> str:
  seed = run.config.get('seed', (run.results or {}).get('seed'))
  title = str(run.config.get('name', 'run')) + ('' if seed is None else f', seed {seed}')
  curves_html = f'<img alt="training curves of all arms" src="data:image/png;base64,{image}">'
  return page.render(
    title,
    (
      ('', _missing(run)),
      ('What was run', _explanation(run)),
      ('Results', _results(run)),
      ('Curves', curves_html),
      ('Tokens and compute', _ledger(run)),
      ('Sampler and scorer', _parity(run)),
      ('Rollouts', viewer.rollouts_html(run)),
      ('Time', _time(run)),
      ('Phases of an update', phase_table.phases_html(run)),
      ('Settings', _settings(run)),
      ('Software and machine', _machine(run)),
    ),
  )


def _missing(run: Run) -> str:
  items = ''.join(f'<li>{html.escape(note)}</li>' for note in run.missing)
  return f'<div class="note">Not everything is here:<ul>{items}</ul></div>' if items else ''


def _explanation(run: Run) -> str:
  """What the arms are, in the run's own settings."""
  flat = flatten(run.config)
  teacher = {
    'frozen': 'its frozen initial weights',
    'ema': 'a moving average of its weights',
    'live': 'its own current weights',
    'external': 'another model',
  }.get(flat.get('teacher.kind'), 'a copy of itself')
  start = flat.get('cold_start.updates')
  begins = (
    f'The base model is trained on worked solutions for {start:,} updates (cold start).'
    if start
    else 'The base model is the weights that training starts from.'
  )
  controls = ''.join(
    f'<li>{html.escape(arm.label)}: {_changes(run, arm.name)}</li>'
    for arm in run.trained
    if arm.name != 'opsd'
  )
  drawn = (
    'writes several answers to each question, and is drawn towards those that are graded better than the '
    'others (GRPO). '
    if flat.get('method') == 'grpo'
    else 'writes its own answers, and at every token of them it is drawn towards the teacher: '
    f'{teacher}, seeing {_code(flat.get("views.teacher"))}. '
  )
  return (
    f'<p>{begins} {"GRPO" if flat.get("method") == "grpo" else "OPSD"} goes on from it: the student, seeing '
    f'{_code(flat.get("views.student"))}, {drawn}'
    "The teacher's view of the base shows how much that extra information is worth.</p>"
    + (
      '<p>Controls are the same training on as many sampled tokens, with settings changed:</p>'
      f'<ul>{controls}</ul>'
      if controls
      else ''
    )
  )


def _changes(run: Run, name: str) -> str:
  overrides = [
    o
    for control in run.config.get('controls') or []
    if control['name'] == name
    for o in control.get('overrides', [])
  ]
  return ', '.join(map(_code, overrides)) or 'changes not recorded'


def _code(text: Any) -> str:
  return '(not recorded)' if text is None else f'<code>{html.escape(str(text))}</code>'


def _results(run: Run) -> str:
  """The table of the evaluation, or how far training has come."""
  if run.results and table.evaluated(run.results):
    return (
      table.html_table(run.results, run.labels)
      + f'<small class="soft">{html.escape(table.summary_note(run.results))}</small>'
    )
  rows = [['arm', 'updates', 'loss', 'rollout accuracy %', 'validation accuracy %']]
  for arm in run.arms.values():
    last = arm.metrics[-1] if arm.metrics else {}
    checks = [m['validation_accuracy'] for m in arm.metrics if 'validation_accuracy' in m]
    rows.append(
      [
        arm.label,
        table.count(last.get('step')),
        f'{last["loss"]:.4f}' if 'loss' in last else table.NONE,
        table.percent(last.get('accuracy')),
        table.percent(checks[-1] if checks else None),
      ]
    )
  return '<p>Not evaluated; the newest update of each arm so far:</p>' + table.html_rows(rows)


def _ledger(run: Run) -> str:
  """Every token that a model read or wrote, an arm a row."""
  entries = {arm.label: _spent(arm) for arm in run.arms.values() if arm.metrics}
  results = run.results or {}
  for name, entry in results.get('arms', {}).items():
    entries[label(name, run.labels)] = entry
  for name, entry in results.get('evaluation', {}).items():
    entries[f'evaluation: {label(name, run.labels)}'] = entry
  if not entries:
    return ''
  names = [n for n in dict.fromkeys(k for e in entries.values() for k in e) if _is_count(n)]
  phases = [p for p in _PHASES if any(e.get(f'spent_{p}') for e in entries.values())]
  rows = [['', *(n.replace('_', ' ') for n in names), 'model FLOPs', *(f'{p} utilisation %' for p in phases)]]
  for name, entry in entries.items():
    counts = [table.count(entry.get(n)) for n in names]
    used = [table.percent(_utilisation(entry, phase)) for phase in phases]
    rows.append([name, *counts, _flops(entry.get('flops')), *used])
  note = (
    'Real tokens, padding not counted. Prompts are counted once a question '
    "and view; FLOPs are the model's: a forward, or three where gradients are taken."
  )
  if phases:
    note += (
      ' Utilisation is the share of the FLOPs computed that real tokens needed; the rest is padding, rows '
      'that had ended, masked attention and what is computed again for gradients.'
    )
  return table.html_rows(rows) + f'<small class="soft">{note}</small>'


def _is_count(name: str) -> bool:
  """Whether a number of the ledger is a count of real tokens or updates."""
  return name != 'flops' and not name.startswith(('positions_', 'needed_', 'spent_'))


def _utilisation(entry: Mapping[str, Any], phase: str) -> float | None:
  """FLOPs needed over FLOPs computed, None where they are not known."""
  spent = entry.get(f'spent_{phase}')
  return entry.get(f'needed_{phase}', 0) / spent if spent else None


def _parity(run: Run) -> str:
  """How far the program that drew the tokens was from the one that scored them, an arm a row."""
  header = ['', 'mean gap, last update', 'largest gap of all', 'alarms', 'mean staleness', 'mean weight']
  rows = []
  for arm in run.arms.values():
    metered = [m for m in arm.metrics if 'parity_alarm' in m]
    if metered:
      alarms = sum(m['parity_alarm'] for m in metered)
      weight = metered[-1].get('correction_weight')
      rows.append(
        [
          arm.label,
          f'{metered[-1]["logp_gap"]:.2g}',
          f'{max(m["logp_gap_max"] for m in metered):.2g}',
          f'{alarms} of {len(metered)} updates' if alarms else 'none',
          f'{sum(m["staleness"] for m in metered) / len(metered):.2g} updates',
          table.NONE if weight is None else f'{weight:.3f}',
        ]
      )
  if not rows:
    return ''
  return table.html_rows([header, *rows]) + (
    '<small class="soft">Absolute difference in nats between the log-probs that the sampler and the scorer '
    'have of the same sampled tokens. An alarm is an update above loop.parity_alarm on rollouts of the '
    'current weights. Staleness: updates by which the weights that drew a rollout were older. Weight: of the '
    'importance correction in the last update.</small>'
  )


def _spent(arm: Arm) -> dict[str, Any]:
  """An arm's ledger as of its newest update."""
  last = arm.metrics[-1]
  totals = {k.removeprefix('total/'): v for k, v in last.items() if k.startswith('total/')}
  return {'updates': last.get('step'), 'skipped': totals.pop('skipped_updates', None)} | totals


def _flops(number: float | None) -> str:
  if number is None:
    return table.NONE
  size, prefix = table.flops_unit(number)
  return f'{table.short(number / size)} {prefix}FLOPs'


def _time(run: Run) -> str:
  so_far = {
    arm.name: arm.metrics[-1].get('time', {}).get('seconds') for arm in run.arms.values() if arm.metrics
  }
  seconds = (run.results or {}).get('seconds') or so_far
  seconds = flatten(seconds) if seconds else {}
  rows = [[label(name, run.labels), _clock(s)] for name, s in seconds.items() if s is not None]
  return table.html_rows(rows, header=False) if rows else ''


def _clock(seconds: float) -> str:
  """'8.2 s', '1 min 15 s', '1 h 02 min'."""
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest:02d} s'
  return f'{minutes // 60} h {minutes % 60:02d} min'


def _settings(run: Run) -> str:
  rows = _cells(run.config)
  return (
    f'<details><summary>{len(rows)} settings</summary><div class="settings">'
    f'{table.html_rows(rows, header=False)}</div></details>'
    if rows
    else ''
  )


def _machine(run: Run) -> str:
  results = run.results or {}
  rows = _cells(results.get('versions') or {}) + _cells(results.get('machine') or {})
  return f'<div class="settings">{table.html_rows(rows, header=False)}</div>' if rows else ''


def _cells(nested: dict[str, Any]) -> list[list[str]]:
  flat = flatten(nested) if nested else {}
  return [[name, _cell(value)] for name, value in flat.items()]


def _cell(value: Any) -> str:
  return ', '.join(map(str, value)) or table.NONE if isinstance(value, list) else str(value)
