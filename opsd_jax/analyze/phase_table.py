"""Where the time of a run's updates went, phase by phase, and the profile that was taken of it."""

import html
import os
import shlex
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from opsd_jax.analyze import table
from opsd_jax.analyze.runs import Run
from opsd_jax.jsonlines import Row

BETWEEN = 'between updates'
# The ledger's phases in each of the host's. Within `update` the host does not wait, so that it has no times.
_LEDGER = {'rollout': ('rollout',), 'update': ('teacher', 'weigh', 'student')}
_NOT_A_PHASE = ('seconds', 'tokens_per_second')
_MEANING = {
  'rollout': 'prompts are made and completions drawn, until the host has them; with GRPO also graded',
  'grade': 'verdicts on the completions',
  'plan': 'which token is read in which row, and the ids on their way to the devices',
  'update': 'scoring, weights of samples, forward, backward and optimiser, until the host has the loss',
  'controller': 'questions to weights that are further along',
  BETWEEN: 'recording, validating, saving',
}


class Phase(NamedTuple):
  """One phase of the updates that were recorded.

  Attributes:
    name: as the metrics have it, or `BETWEEN`.
    seconds: of each update, compiling included.
    needed: FLOPs of each update that real tokens needed, by the phases of the ledger.
    spent: FLOPs of each update that were computed, likewise.
  """

  name: str
  seconds: list[float]
  needed: dict[str, list[int]]
  spent: dict[str, list[int]]


def measure(metrics: Sequence[Row]) -> list[Phase]:
  """The phases of an arm in their order, by the host's clock; [] where it was not recorded."""
  rows = [row for row in metrics if 'seconds' in row.get('time', {})]
  parts = [{k: v for k, v in row['time'].items() if k not in _NOT_A_PHASE} for row in rows]
  names = list(dict.fromkeys(name for part in parts for name in part))
  seconds = {name: [part.get(name, 0.0) for part in parts] for name in names}
  whole = _each([row['time']['seconds'] for row in rows])
  rest = [max(all_of_it - sum(part.values()), 0.0) for all_of_it, part in zip(whole, parts, strict=True)]

  def flops(kind: str, name: str) -> dict[str, list[int]]:
    counted = {phase: f'total/{kind}_{phase}' for phase in _LEDGER.get(name, ())}
    return {phase: _each([row.get(key, 0) for row in rows]) for phase, key in counted.items()}

  timed = seconds | {BETWEEN: rest} if names else {}
  return [Phase(name, of, flops('needed', name), flops('spent', name)) for name, of in timed.items()]


def _each(cumulative: Sequence[float]) -> list[float]:
  """What every update added."""
  return [now - before for now, before in zip(cumulative, [0, *cumulative], strict=False)]


def phases_html(run: Run) -> str:
  """The table of the main run and where its profiles are, '' where neither is known."""
  phases = measure(run.arms['opsd'].metrics) if 'opsd' in run.arms else []
  shown = table.html_rows(_rows(phases)) + _note(phases) if phases else ''
  return shown + profile_html(run.folder)


def _rows(phases: Sequence[Phase]) -> list[list[str]]:
  whole = sum(sum(phase.seconds) for phase in phases) or 1.0
  clock = ['seconds, median update', 'seconds, all updates', 'share of these %']
  rows = [['phase', *clock, 'FLOPs needed', 'FLOPs computed', 'FLOP/s computed, median']]
  for phase in phases:
    total, middle = sum(phase.seconds), statistics.median(phase.seconds)
    times = [
      f'{middle:.3g}' if middle < 100 else table.count(middle),
      f'{total:,.1f}',
      table.percent(total / whole),
    ]
    spent = [sum(each) for each in zip(*phase.spent.values(), strict=True)]
    speeds = [flops / seconds for flops, seconds in zip(spent, phase.seconds, strict=False) if seconds]
    needed = sum(sum(each) for each in phase.needed.values())
    speed = statistics.median(speeds) if speeds else 0
    rows.append([phase.name, *times, _amount(needed), _amount(sum(spent)), _amount(speed)])
    for name, each in phase.spent.items() if len(phase.spent) > 1 else ():
      if sum(each):
        amounts = _amount(sum(phase.needed[name])), _amount(sum(each))
        rows.append([f'{phase.name}: {name}', *[table.NONE] * 3, *amounts, table.NONE])
  return rows


def _amount(number: float) -> str:
  if not number:
    return table.NONE
  size, prefix = table.flops_unit(number)
  return f'{table.short(number / size)} {prefix}'


def _note(phases: Sequence[Phase]) -> str:
  said = '; '.join(f'{p.name}: {_MEANING[p.name]}' for p in phases if p.name in _MEANING)
  text = (
    f"The main run's updates ({len(phases[0].seconds)}) by the host's clock, which is read where the host "
    f'waits for the devices in any case. {said[:1].upper()}{said[1:]}. All updates: with what they compiled. '
    'What belongs to an update runs on the devices without the host; its seconds are in a profile '
    '(--profile_steps).'
  )
  return f'<small class="soft">{html.escape(text)}</small>'


def profile_html(folder: str) -> str:
  """Where the profiles of a run are and how they are opened, '' where there is none."""
  root = os.path.join(folder, 'profile')
  sessions = os.path.join(root, 'plugins', 'profile')
  if not os.path.isdir(sessions):
    return ''
  found = {
    name: sum(file.endswith('.xplane.pb') for file in os.listdir(os.path.join(sessions, name)))
    for name in sorted(os.listdir(sessions))
  }
  listed = ', '.join(
    f'<code>{html.escape(name)}</code> (processes: {count})' for name, count in found.items()
  )
  command = f'xprof --logdir={shlex.quote(root)} --port=8791'
  return (
    f'<p>Profiles: {listed}. <code>pip install xprof</code>, then <code>{html.escape(command)}</code> shows '
    'them in a browser (localhost:8791). What the devices ran is named prefill, decode, teacher, weigh, '
    'student, loss and optimizer there; the backward pass is transpose(...) of these.</p>'
  )
