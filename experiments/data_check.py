"""Rows that can be read, canonical JSON lines, and the table of a check: parts of `experiments.data`."""

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from opsd_jax import jsonlines
from opsd_jax.config import ConfigError, require
from opsd_jax.data import builder, index
from opsd_jax.data.config import DataConfig
from opsd_jax.data.contamination import Overlap
from opsd_jax.data.findings import Report
from opsd_jax.files import write_text
from opsd_jax.records import Problem

_HELD_OUT = 100  # problems that the printed settings hold out for the test, where there are enough
_SHOWN = 3  # groups of conflicts
_CUT = 110  # characters of a text in an example


def readable(problems: Sequence[Problem]) -> tuple[Sequence[Problem], list[str]]:
  """The rows that are problems, and a message for each that is none."""
  kept, faults = [], []
  for position in range(len(problems)):
    try:
      problems[position]
      kept.append(position)
    except ConfigError as error:
      faults.append(str(error))
  require(bool(kept), f'none of the {len(problems)} rows is a problem: {faults[0] if faults else ""}')
  return (index.take(problems, np.array(kept)) if faults else problems), faults


def require_new(flag: str, path: str) -> None:
  """Raises `ConfigError` where a file exists, or the folder that it is to lie in does not."""
  folder = os.path.dirname(os.path.abspath(path))
  require(os.path.isdir(folder), f'--{flag}={path}: the folder {folder} does not exist; make it first.')
  require(not os.path.exists(path), f'--{flag}={path} exists already; remove it, or name another file.')


def write_canonical(path: str, problems: Sequence[Problem]) -> None:
  """Writes JSON lines with the fields of `Problem`; `meta` is an object of texts."""
  write_text(path, ''.join(jsonlines.dumps(dataclasses.asdict(problem)) + '\n' for problem in problems))


def show(report: Report, problems: Sequence[Problem], against: Mapping[str, Sequence[Problem]]) -> None:
  """Prints what was found: reasons, copies, benchmarks as a table, and a few examples with their texts."""
  print(f'\nof {report.read:,} problems {report.kept:,} are left')
  for reason, count in sorted(report.left_out.items(), key=lambda item: -item[1]):
    print(f'  {count:7,} left out: {reason}')
  print(f'copies with the same answer: {report.copies:,}')
  print(f'problems that stand there with different answers: {report.conflicting:,}')
  for group in report.conflicts[:_SHOWN]:
    print(f'  {", ".join(group)}')
  if not report.repeated:
    return
  print(f'\n{"benchmark":16} {"problems":>8} {"repeated":>8} {"by training problems":>20}')
  for name, one in report.repeated.items():
    print(f'{name:16} {one.problems:8,} {one.repeated:8,} {one.train:20,}')
  shown = [o for one in report.repeated.values() for o in _spread(one.examples)]
  _show_examples(shown, problems, against)


def _spread(examples: Sequence[Overlap]) -> list[Overlap]:
  """The first, the middle and the last of the examples: not all of them the same clear copy."""
  return [examples[i] for i in sorted({0, len(examples) // 2, len(examples) - 1})] if examples else []


def _show_examples(
  shown: Sequence[Overlap], problems: Sequence[Problem], against: Mapping[str, Sequence[Problem]]
) -> None:
  wanted = {o.problem for o in shown}
  mine = {p.id: p.problem for p in problems if p.id in wanted}
  others = {(name, p.id): p.problem for name, some in against.items() for p in some}
  for o in shown:
    print(f'\n{o.problem} repeats {o.other} of {o.benchmark} ({o.share:.0%} of its own words)')
    print(f'  {_cut(mine[o.problem])!r}\n  {_cut(others[o.benchmark, o.other])!r}')


def _cut(text: str) -> str:
  return text if len(text) <= _CUT else text[:_CUT] + ' ...'


def usage(distinct: Mapping[str, int], path: str, of: Problem | str) -> str:
  """The settings that make a run use what was written, as one types them.

  Args:
    distinct: how many different problems each split has; a tenth of them is held out at the most.
    path: what was written.
    of: the name of a prepared data set, or a problem of JSON lines.
  """
  chosen = [f'data.path={os.path.abspath(os.path.expanduser(path))}']
  if isinstance(of, str):
    chosen = ['data.source=tfds', f'data.tfds={builder.NAME}/{of}', *chosen]
  else:
    meta = [f'data.fields.meta={",".join(f"meta.{name}" for name in of.meta)}'] if of.meta else []
    chosen = ['data.source=files', *chosen, 'data.fields.id=id', *meta]
  train = 'train' if 'train' in distinct else next(iter(distinct))
  most, usual = max(1, distinct[train] // 10), DataConfig().validation_problems
  if train != 'train' and isinstance(of, str):
    chosen.append(f'data.train={train}')
  if train == 'test' or 'test' not in distinct:
    chosen += ['data.test=none', f'data.test_problems={min(_HELD_OUT, most)}']
  if most < usual:
    chosen.append(f'data.validation_problems={most}')
  return ' '.join(shlex.quote(f'--set={setting}') for setting in chosen)
