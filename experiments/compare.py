"""Compares two evaluations of the same problems: what changed, and whether it is luck.

  python -m experiments.compare runs/base_eval runs/opsd_eval

A and B are folders of `experiments.evaluate`. Of every benchmark that both have (or of those in
--benchmarks) a Markdown table shows the mean accuracies, their difference with a paired 95 % bootstrap
interval over problems, an exact p-value, the problems that were gained and lost, and pass@k. The verdicts
are those of --rules, or else of the main rules in A's table. Above it stand the settings that differ,
because what they change is not the model's doing. Problems that differ are refused. --output=FILE.json
writes all numbers with the ids of the problems that changed.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from experiments import entry, options
from experiments.sitting.finished import Evaluation, read
from opsd_jax import config, files
from opsd_jax.config import ConfigError, nearest, require
from opsd_jax.evaluate import samples
from opsd_jax.evaluate.comparison import Comparison, compare
from opsd_jax.evaluate.grid import Grid, grid
from opsd_jax.evaluate.summary import markdown, percent

for shared in ('benchmarks', 'rules', 'output'):
  flags.declare_key_flag(shared)

HARMLESS = ('versions', 'machine')  # whatever else differs may itself change the numbers
_UNCOMPARED = (
  'model',
  'benchmarks',
  'changed',
  'source',
  'remarks',
)  # what is compared, and what only explains


def chosen(a: Evaluation, b: Evaluation, names: Sequence[str]) -> list[str]:
  """The benchmarks to compare.

  Raises:
    ConfigError: there is none, one is not in both, or its problems differ.
  """
  common = [name for name in a.benchmarks if name in b.benchmarks]
  for name in names:
    lacking = next((e for e in (a, b) if name not in e.benchmarks), None)
    if lacking is not None:
      raise ConfigError(f'{lacking.folder} has no benchmark {name!r}.{nearest(name, lacking.benchmarks)}')
  common = list(names) or common
  have = '; '.join(f'{e.folder} has {", ".join(e.benchmarks) or "none"}' for e in (a, b))
  require(bool(common), f'the two evaluations share no benchmark: {have}.')
  other = [n for n in common if a.benchmarks[n].get('digest') != b.benchmarks[n].get('digest')]
  rest = [n for n in common if n not in other]
  remedy = f' Those with equal problems: --benchmarks={",".join(rest)}.' if rest else ''
  require(
    not other,
    f'the problems of {", ".join(other)} differ between {a.folder} and {b.folder}, so that they cannot be '
    f'compared one by one; evaluate both on the same files.{remedy}',
  )
  return common


def rules_of(a: Evaluation, name: str, first: Grid, second: Grid, asked: str | None) -> str:
  """The rules whose verdicts are compared.

  Raises:
    ConfigError: an evaluation was not marked by them.
  """
  rules = asked or a.benchmarks[name].get('primary') or first.rules[-1]
  for cells in (first, second):
    require(rules in cells.rules, f'{name} was not marked by --rules={rules}.{nearest(rules, cells.rules)}')
  return rules


def compared(a: Evaluation, b: Evaluation, name: str, rules: str | None) -> Comparison:
  """One benchmark of both."""
  paths = [os.path.join(e.folder, name, 'samples.jsonl') for e in (a, b)]
  first, second = (grid(samples.read(path), where=path) for path in paths)
  return compare(first, second, rules_of(a, name, first, second, rules))


def differing(a: Evaluation, b: Evaluation) -> tuple[list[str], list[str]]:
  """Lines `setting: A -> B`: first those that can change the numbers, then those that should not."""
  names = [n for n in dict.fromkeys([*a.settings, *b.settings]) if n not in _UNCOMPARED]
  lines = {
    n: config.differences({n: a.settings.get(n, '(absent)')}, {n: b.settings.get(n, '(absent)')})
    for n in names
  }
  matter = [line for n in names if n not in HARMLESS for line in lines[n]]
  return matter, [line for n in names if n in HARMLESS for line in lines[n]]


def report(a: Evaluation, b: Evaluation, found: Mapping[str, Comparison]) -> str:
  """What is printed."""
  matter, harmless = differing(a, b)
  lines = [f'{side}: {e.folder} (model {_named(e.settings.get("model"))})' for side, e in zip('AB', (a, b))]
  if matter:
    lines += ['', 'Settings that differ, and may be why the numbers do:', *(f'- {_line(m)}' for m in matter)]
  if harmless:
    lines += ['', 'Also different:', *(f'- {_line(m)}' for m in harmless)]
  alone = [
    f'{name} (only {side})'
    for side, one, other in (('A', a, b), ('B', b, a))
    for name in one.benchmarks
    if name not in other.benchmarks
  ]
  lines += ['', *markdown(cells(found, {n: a.benchmarks[n].get('title', n) for n in found})), '', _LEGEND]
  return '\n'.join(lines + ([f'Not compared: {", ".join(alone)}.'] if alone else []))


_LEGEND = (
  'Shares in per cent; B − A with the paired 95 % bootstrap interval over problems. p: exact sign-flip test '
  'over problems, two-sided (with one sample a problem: McNemar), not adjusted for the number of benchmarks. '
  'gained, lost: problems whose mean accuracy rose, fell; in brackets those whose majority of samples turned.'
)


def _named(model: Any) -> str:
  """A model in the words of its settings."""
  if isinstance(model, Mapping):
    return ', '.join(f'{key} {value}' for key, value in model.items())
  return 'not stated' if model is None else str(model)


def _line(text: str) -> str:
  return text.replace('\n', '\\n')


def cells(found: Mapping[str, Comparison], titles: Mapping[str, str]) -> list[list[str]]:
  """Header and one row a benchmark."""
  draws = sorted({k for c in found.values() for k in c.pass_at if k > 1})
  header = ['benchmark', 'problems', 'n', 'rules', 'avg A', 'avg B', 'B − A [95 %]', 'p', 'gained', 'lost']
  header += [f'pass@{k} A → B' for k in draws] + ['truncated A → B', 'tokens A → B']
  return [header, *(_row(titles[name], c, draws) for name, c in found.items())]


def _row(title: str, c: Comparison, draws: Sequence[int]) -> list[str]:
  d = c.difference
  return [
    title,
    str(c.problems),
    ' / '.join(map(str, dict.fromkeys(c.samples))),
    c.rules,
    percent(c.first.value),
    percent(c.second.value),
    f'{percent(d.value, "+")} [{percent(d.low, "+")}, {percent(d.high, "+")}]',
    f'{c.p_value:.3f}' if c.p_value >= 0.001 else f'{c.p_value:.0e}',
    f'{len(c.gained)} ({len(c.gained_majority)})',
    f'{len(c.lost)} ({len(c.lost_majority)})',
    *(' → '.join(map(percent, c.pass_at.get(k, (None, None)))) for k in draws),
    ' → '.join(map(percent, c.truncated)),
    ' → '.join(f'{x:.0f}' for x in c.mean_length),
  ]


def main(first: str, second: str) -> None:
  """Compares, prints and writes."""
  a, b = read(first), read(second)
  names = chosen(a, b, options.BENCHMARKS.value)
  rules = options.one(options.RULES)
  found = {name: compared(a, b, name, rules) for name in names}
  print(report(a, b, found))
  if options.OUTPUT.value:
    matter, harmless = differing(a, b)
    _write(
      options.OUTPUT.value,
      {
        'a': a.folder,
        'b': b.folder,
        'settings_that_differ': matter,
        'also_different': harmless,
        'benchmarks': {name: dataclasses.asdict(c) for name, c in found.items()},
      },
    )


def _write(path: str, found: Mapping[str, Any]) -> None:
  try:
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    files.write_json(path, found)
  except OSError as error:
    raise ConfigError(f'--output={path} cannot be written: {error.strerror or error}.') from error


if __name__ == '__main__':
  entry.run(main, sys.modules['__main__'].__doc__, 'the command takes two folders, A and B', ('A', 'B'))
