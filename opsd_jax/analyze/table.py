"""The summary of a run's evaluation: for the terminal, for HTML, and over several seeds."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from opsd_jax.analyze.runs import label

Labels = Mapping[str, str] | None

NONE = '–'
_FIRST = ('base', 'teacher_view', 'teacher', 'opsd', 'opsd_best')
_LEDGER_OF = {'base': 'cold_start'}  # the training that made the weights of an evaluated arm
_UNITS = ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'))


def evaluated(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """The arms that were evaluated: base, teacher's view, OPSD, then the controls."""
  found = {k: v for k, v in results.items() if isinstance(v, dict) and 'sampled_accuracy' in v}
  names = [n for n in _FIRST if n in found] + [n for n in found if n not in _FIRST]
  return {name: found[name] for name in names}


def summary_rows(results: Mapping[str, Any], labels: Labels = None) -> list[list[str]]:
  """Cells of the summary, the header first and then one row an arm."""
  arms = evaluated(results)
  spent = {name: _ledger(results, name) for name in arms}
  size, unit = flops_unit(max((s.get('flops', 0) for s in spent.values()), default=0))
  draws = max((int(k) for arm in arms.values() for k in arm.get('pass_at', {})), default=1)
  rows = [
    [
      'arm',
      'sampled % [95 %]',
      'greedy % [95 %]',
      f'pass@{draws} %',
      'answered %',
      'length',
      'updates',
      'sampled tokens',
      f'train {unit}FLOPs',
    ]
  ]
  recovered = any('gap_recovery' in arm for arm in arms.values())
  rows[0][3:3] = ['gap recovered % (greedy)'] if recovered else []
  for name, arm in arms.items():
    flops = spent[name].get('flops')
    rows.append(
      [
        label(name, labels),
        with_interval(arm, 'sampled'),
        with_interval(arm, 'greedy'),
        percent(arm.get('pass_at', {}).get(str(draws))),
        percent(arm.get('answered')),
        NONE if arm.get('mean_length') is None else f'{arm["mean_length"]:.1f}',
        count(spent[name].get('updates')),
        count(spent[name].get('sampled')),
        NONE if flops is None else short(flops / size),
      ]
    )
    share = arm.get('gap_recovery', {})
    pair = f'{percent(share.get("sampled"))} ({percent(share.get("greedy"))})'
    rows[-1][3:3] = [pair if share else NONE] if recovered else []
  return rows


def _ledger(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """What training the arm took; {} for an arm that is not trained."""
  found = results.get('arms', {}).get(_LEDGER_OF.get(name, name))
  return found or (results.get('tokens', {}) if name == 'opsd' else {})


def summary_note(results: Mapping[str, Any]) -> str:
  """One sentence on what the numbers of the summary are of, '' where nothing was evaluated."""
  arm = next(iter(evaluated(results).values()), None)
  if arm is None:
    return ''
  return (
    f'{arm.get("problems", "?")} held-out problems, {arm.get("samples", "?")} samples of '
    'each; intervals are over problems. Tokens and model FLOPs are what training the arm '
    'took, without the cold start before it.'
  )


def format_table(results: Mapping[str, Any], labels: Labels = None) -> str:
  """The summary as aligned plain text, without a newline at its end."""
  lines = aligned(summary_rows(results, labels))
  return '\n'.join([*lines, *textwrap.wrap(summary_note(results), 100)])


def html_table(results: Mapping[str, Any], labels: Labels = None) -> str:
  """The summary as an HTML table."""
  return html_rows(summary_rows(results, labels))


def markdown_seeds_table(results: Sequence[Mapping[str, Any]], labels: Labels = None) -> str:
  """One row a seed: 'sampled / greedy' accuracy of every arm in %.

  The last row is OPSD's smallest margin over each other arm, in points, over the seeds that have
  both; sampled and greedy each on its own, so they may come from different seeds.
  """
  runs = [evaluated(r) for r in results]
  found = dict.fromkeys(name for run in runs for name in run)
  arms = [n for n in _FIRST if n in found] + [n for n in found if n not in _FIRST]
  rows = [['seed', *(label(name, labels) for name in arms)]]
  for result, run in zip(results, runs, strict=True):
    rows.append([str(result.get('seed', NONE)), *(_pair(run.get(name)) for name in arms)])
  rows.append(['**smallest margin of OPSD**', *(_margins(runs, name) for name in arms)])
  return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Cells as a Markdown table, the header first."""
  lines = ['| ' + ' | '.join(cell.replace('|', r'\|') for cell in row) + ' |' for row in rows]
  return '\n'.join([lines[0], '|---|' + '---:|' * (len(rows[0]) - 1), *lines[1:]])


def _pair(arm: Mapping[str, Any] | None) -> str:
  arm = arm or {}
  return f'{percent(arm.get("sampled_accuracy"))} / {percent(arm.get("greedy_accuracy"))}'


def _margins(runs: Sequence[Mapping[str, Any]], other: str) -> str:
  both = [run for run in runs if 'opsd' in run and other in run]
  if other in ('opsd', 'opsd_best') or not both:
    return ''
  smallest = [
    min(run['opsd'][key] - run[other][key] for run in both) for key in ('sampled_accuracy', 'greedy_accuracy')
  ]
  return '**' + ' / '.join(f'{100 * m:+.1f}' for m in smallest) + '**'


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Lines of a plain-text table: the first column to the left, numbers to the right."""
  widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    lines.append('  '.join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
  return [lines[0], '-' * len(lines[0]), *lines[1:]]


def html_rows(rows: Sequence[Sequence[str]], header: bool = True) -> str:
  """Any cells as an HTML table, escaped; the first cell of a row names it."""
  head = ''.join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0]) if header else ''
  body = ''.join(
    f'<tr><th scope="row">{html.escape(row[0])}</th>'
    + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])
    + '</tr>\n'
    for row in rows[header:]
  )
  head = f'<thead><tr>{head}</tr></thead>' if header else ''
  return f'<div class="wide"><table>{head}<tbody>\n{body}</tbody></table></div>'


def percent(share: float | None) -> str:
  """'72.5' for 0.725."""
  return NONE if share is None else f'{100 * share:.1f}'


def with_interval(arm: Mapping[str, Any], kind: str) -> str:
  """'72.5 [70.1, 74.8]' for the `sampled` or `greedy` accuracy."""
  interval = arm.get(f'{kind}_interval')
  ends = f' [{percent(interval[0])}, {percent(interval[1])}]' if interval else ''
  return percent(arm.get(f'{kind}_accuracy')) + ends


def count(number: float | None) -> str:
  """'1,234,567'."""
  return NONE if number is None else f'{number:,.0f}'


def short(number: float) -> str:
  """About three digits, never in powers of ten: '3.14', '31.4', '314'."""
  decimals = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
  return f'{number:,.{decimals}f}'


def flops_unit(largest: float) -> tuple[float, str]:
  """Size and prefix of the unit in which `largest` is between 1 and 1000."""
  return next(((size, prefix) for size, prefix in _UNITS if largest >= size), _UNITS[-1])
