"""What an evaluation found, as JSON and as one table, with the settings without which it says little."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from opsd_jax.evaluate.scores import Summary, summarise
from opsd_jax.evaluate.statistics import Estimate

__all__ = ('Summary', 'markdown', 'percent', 'plain', 'results', 'summarise', 'table')

NONE = '–'
SETTINGS = (
  ('model', 'model'),
  ('protocol', 'protocol'),
  ('temperature', 'temperature'),
  ('top_p', 'top-p'),
  ('top_k', 'top-k'),
  ('min_p', 'min-p'),
  ('thinking', 'thinking mode'),
  ('max_tokens', 'token budget'),
  ('prompt', 'prompt'),
  ('system', 'system turn'),
  ('rules', 'grader rules'),
  ('samples', 'samples of a problem'),
  ('seed', 'seed'),
  ('versions', 'versions'),
  ('machine', 'machine'),
)
_UNSAID = 'not stated'


def results(rows: Sequence[Summary], settings: Mapping[str, Any]) -> dict[str, Any]:
  """All numbers and the settings they were got with, as plain JSON: what `results.json` holds."""
  return {'settings': dict(settings), 'benchmarks': {row.name: plain(row) for row in rows}}


def plain(row: Summary) -> dict[str, Any]:
  """A summary as plain JSON."""
  return _plain(dataclasses.asdict(row))


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(name): _plain(item) for name, item in value.items()}
  return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def table(rows: Sequence[Summary], settings: Mapping[str, Any]) -> str:
  """One Markdown table of all benchmarks, between how they were measured and what to mind.

  Shares are in per cent. `settings` has the names of `SETTINGS`; what it lacks is said to be unstated.
  """
  lines = [
    f'- **{title}:** {_said(settings[key]) if key in settings else _UNSAID}' for key, title in SETTINGS
  ]
  more = [f'- **{key}:** {_said(settings[key])}' for key in settings if key not in dict(SETTINGS)]
  return '\n'.join([*lines, *more, '', *markdown(_cells(rows)), '', _LEGEND, *_remarks(rows)]) + '\n'


_LEGEND = (
  'Shares in per cent. avg@n: mean over samples, with the 95 % interval over problems (Wilson at the '
  'effective number of samples; beside it the percentile bootstrap over problems). pass@k: unbiased. maj@n: '
  'the most common answer is right, ties shared. truncated: cut off by the token budget.'
)


def _said(value: Any) -> str:
  """A setting as one line."""
  if isinstance(value, Mapping):
    return '; '.join(f'{key}: {_said(item)}' for key, item in value.items())
  if isinstance(value, list | tuple):
    return ', '.join(map(_said, value)) or 'none'
  if value is None or value == '':
    return 'none'
  if isinstance(value, bool):
    return 'on' if value else 'off'
  text = str(value).replace('\\', '\\\\').replace('\n', '\\n').replace('`', "'")
  return f'`{text}`' if isinstance(value, str) else text


def _cells(rows: Sequence[Summary]) -> list[list[str]]:
  """Header and one row a benchmark."""
  counts = sorted({row.samples for row in rows})
  n = str(counts[0]) if len(counts) == 1 else 'n'
  draws = sorted({k for row in rows for s in row.scores.values() for k in s.pass_at if k > 1})
  header = ['benchmark', 'problems × n', 'rules', f'avg@{n} [95 %]', 'bootstrap', 'other rules']
  header += [f'pass@{k}' for k in draws]
  header += [f'maj@{n}', 'answered', 'truncated', 'tokens', 'right / wrong', 'no verdict']
  return [header, *(_row(row, draws) for row in rows)]


def _row(row: Summary, draws: Sequence[int]) -> list[str]:
  main = row.scores[row.primary]
  others = [f'{name} {percent(s.average.value)}' for name, s in row.scores.items() if name != row.primary]
  return [
    row.title,
    f'{row.problems} × {row.samples}',
    row.primary,
    _with_interval(main.average),
    f'{percent(main.bootstrap.low)}–{percent(main.bootstrap.high)}',
    ', '.join(others) or NONE,
    *(percent(main.pass_at.get(k)) for k in draws),
    percent(main.majority),
    percent(main.answered),
    percent(row.truncated),
    whole(row.mean_length),
    f'{whole(main.length_right)} / {whole(main.length_wrong)}',
    _unjudged(main.verdicts),
  ]


def _unjudged(verdicts: Mapping[str, int]) -> str:
  """Samples for which the grader has no verdict of its own: they count as wrong."""
  found = [
    f'{verdicts[name]} {name}' for name in ('gold_unparsable', 'timeout', 'error') if verdicts.get(name)
  ]
  return ', '.join(found) or '0'


def _remarks(rows: Sequence[Summary]) -> list[str]:
  """One line a benchmark for what is to be minded, if anything, then tokens and licences."""
  notes = [
    f'- {row.title}: {"; ".join([*row.notes, *row.remarks])}.' for row in rows if row.notes + row.remarks
  ]
  lengths = [f'{row.title} {row.mean_prompt_tokens:.0f}' for row in rows]
  total = sum(row.sampled_tokens for row in rows)
  tail = [f'- Mean prompt tokens: {", ".join(lengths)}. Sampled tokens in all: {total:,}.'] if rows else []
  licences = [f'- Licence of {row.title}: {row.licence}.' for row in rows]
  return ['', *notes, *tail, *licences]


def percent(share: float | None, sign: str = '') -> str:
  """`0.4567` as 45.7."""
  return NONE if share is None else f'{100 * share:{sign}.1f}'


def whole(number: float | None) -> str:
  """A mean of tokens."""
  return NONE if number is None else f'{number:.0f}'


def _with_interval(estimate: Estimate) -> str:
  return f'{percent(estimate.value)} [{percent(estimate.low)}–{percent(estimate.high)}]'


def markdown(cells: Sequence[Sequence[str]]) -> list[str]:
  """Lines of a Markdown table: the first column to the left, the others to the right."""
  lines = ['| ' + ' | '.join(cell.replace('|', r'\|') for cell in row) + ' |' for row in cells]
  return [lines[0], '|---|' + '---:|' * (len(cells[0]) - 1), *lines[1:]]
