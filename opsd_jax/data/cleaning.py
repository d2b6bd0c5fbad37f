"""Leaves out training problems that should not be trained on, and says how many for which reason.

Only training problems are left out. Validation and test problems are drawn before, so that runs which are
cleaned in different ways are measured on the same ones; what they repeat of benchmarks is reported.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from opsd_jax.config import ConfigError, require
from opsd_jax.data import contamination, filters, findings, index, texts
from opsd_jax.data.config import DataConfig
from opsd_jax.data.contamination import Overlap
from opsd_jax.data.filters import Prints
from opsd_jax.data.findings import Report
from opsd_jax.data.source import Splits
from opsd_jax.records import Problem

_OWN = ('test', 'validation')  # the run's own held-out problems, as the report calls them


@dataclasses.dataclass(frozen=True)
class Cleaned:
  """The splits of a run, whose training problems may be fewer; and what was found."""

  splits: Splits
  report: Report


def clean(splits: Splits, config: DataConfig, benchmarks: Mapping[str, Sequence[Problem]]) -> Cleaned:
  """Leaves training problems out as `data.filters` and `data.contamination` say; digit chains stay as drawn.

  Reads every problem once. A function of its arguments, the same on every host.

  Args:
    splits: of `source.load`.
    config: its `filters` and `contamination` are used.
    benchmarks: the problems of benchmarks, by name; read by who knows where they are.

  Raises:
    ConfigError: a setting says that what was found is an error, or no training problem is left.
  """
  if config.source == 'chains':
    return Cleaned(splits, Report(len(splits.train), len(splits.train), {}, 0, (), 0, {}, {}, {}))
  for name in _OWN:
    require(
      name not in benchmarks, f'a benchmark is called {name!r}, as a split of the run; give it another name.'
    )
  against = {'test': splits.test, 'validation': splits.validation, **benchmarks}
  train, report = clean_problems(splits.train, config, against)
  held_out = _held_out(splits.validation, config, benchmarks)
  return Cleaned(dataclasses.replace(splits, train=train), dataclasses.replace(report, held_out=held_out))


def clean_problems(
  problems: Sequence[Problem], config: DataConfig, benchmarks: Mapping[str, Sequence[Problem]]
) -> tuple[Sequence[Problem], Report]:
  """`clean` for problems of one split, whatever they are for; `problems` itself where all stay."""
  ids: list[str] = []  # one pass: reading may be slow
  out: dict[int, str] = {}
  found: dict[int, Sequence[Overlap]] = {}
  marked: list[tuple[int, bytes, str]] = []
  runs = (
    contamination.make_index(benchmarks, config.contamination.n)
    if config.contamination.action != 'off'
    else None
  )
  for position, problem in enumerate(problems):
    ids.append(problem.id)
    if runs and (overlaps := contamination.overlaps(runs, problem, config.contamination.share)):
      found[position] = overlaps
    if reason := filters.misfit(config.filters, problem):
      out[position] = reason
    else:
      marked.append((position, texts.mark(problem.problem), filters.same_answer(problem.answer)))
  prints = filters.prints(marked)
  _refuse(config.filters, prints, ids)
  out |= filters.reasons(config.filters, prints)
  kept = [overlaps for position, overlaps in found.items() if position not in out]
  _refuse_overlaps(config.contamination, kept)
  repeated = {} if runs is None else findings.repeated(kept, {name: len(p) for name, p in benchmarks.items()})
  if config.contamination.action == 'drop':
    out |= {p: _reason(overlaps) for p, overlaps in found.items() if p not in out}
  return _chosen(problems, out), findings.report(ids, out, prints, repeated)


def _chosen(problems: Sequence[Problem], out: Mapping[int, str]) -> Sequence[Problem]:
  if not out:
    return problems
  counts = collections.Counter(out.values())
  causes = '; '.join(f'{count} because {reason}' for reason, count in counts.most_common())
  require(len(out) < len(problems), f'none of the {len(problems)} training problems is left: {causes}.')
  return index.take(problems, np.array([p for p in range(len(problems)) if p not in out]))


def _reason(overlaps: Sequence[Overlap]) -> str:
  """Why a problem that repeats others is left out: the same words for the same benchmarks."""
  names = {o.benchmark for o in overlaps}
  own = [f'the {name} problems of this run' for name in _OWN if name in names]
  return f'it repeats {" and ".join([*own, *sorted(names - {*_OWN})])} (data.contamination)'


def _held_out(
  problems: Sequence[Problem], config: DataConfig, benchmarks: Mapping[str, Sequence[Problem]]
) -> dict[str, findings.Repeated]:
  """What the validation problems repeat of the benchmarks."""
  if config.contamination.action == 'off' or not benchmarks:
    return {}
  runs = contamination.make_index(benchmarks, config.contamination.n)
  found = [contamination.overlaps(runs, problem, config.contamination.share) for problem in problems]
  return findings.repeated(found, {name: len(some) for name, some in benchmarks.items()})


def _refuse(config: filters.FiltersConfig, prints: Sequence[Prints], ids: Sequence[str]) -> None:
  """Raises `ConfigError` where copies or conflicts are errors and there are some."""
  for setting, agreed, what in (('copies', True, 'again'), ('conflicts', False, 'with different answers')):
    some = [one for one in prints if one.agreed == agreed]
    if some and getattr(config, setting) == 'error':
      such = ', '.join(repr(ids[p]) for p in some[0].positions)
      raise ConfigError(
        f'training problems stand there {what}: {len(some)} in all, such as {such}; leave copies out of the '
        f'data, or set data.filters.{setting}=drop.'
      )


def _refuse_overlaps(config: contamination.ContaminationConfig, some: Sequence[Sequence[Overlap]]) -> None:
  """Raises `ConfigError` where a training problem that repeats a benchmark's is an error."""
  if some and config.action == 'error':
    first = some[0][0]
    raise ConfigError(
      f"training problems repeat those of benchmarks or of this run's held-out splits: {len(some)} in all, "
      f'such as {first.problem!r}, which repeats {first.other!r} of {first.benchmark} ({first.share:.0%} of '
      'its words); leave them out of the data, or set data.contamination.action=drop.'
    )
