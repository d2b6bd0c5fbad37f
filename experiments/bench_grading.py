r"""Measures how many answers a minute are graded, with hostile ones among them and without.

  python -m experiments.bench_grading --workdir=runs/bench-grading
  python -m experiments.bench_grading --golds=MATH-500/test.jsonl --seconds=2

Known answers come from JSON lines with a field `answer`, or are made up; those that are plain numbers are
left out, so that every pair needs math-verify. Answers are the known ones, written differently, and others.
Of every 100, none or four are hostile: all four of absurd sizes, which the guard sees, or one of the four a
comparison that the guard lets through and that runs into the limit of time. The processes have started
before the clock does. Absolute numbers belong to the machine named in results.json and to what else it did.
"""

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Sequence

from absl import flags

from experiments import bench_answers, entry, options, study
from experiments.footprint import Footprint, footprint
from opsd_jax import jsonlines
from opsd_jax.config import ConfigError
from opsd_jax.files import write_json
from opsd_jax.grade import config as grade_config
from opsd_jax.grade import grading, plain
from opsd_jax.grade.config import GradeConfig

_WORKDIR = flags.DEFINE_string('workdir', 'runs/bench-grading', 'Folder that results.json is written to.')
flags.declare_key_flag('rules')
_GOLDS = flags.DEFINE_multi_string('golds', [], 'JSON lines with known answers; left out: made up.')
_COUNT = flags.DEFINE_integer('gradings', 2000, 'Gradings of each row.', lower_bound=100)
_SECONDS = flags.DEFINE_float(
  'seconds', GradeConfig.seconds, 'Processor seconds of one grading; then it is killed.'
)
_WORKERS = flags.DEFINE_integer('workers', GradeConfig.workers, 'Processes that grade.', lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table; `verdicts` counts them by name."""

  rules: str
  hostile: str
  gradings: int
  seconds: float
  per_minute: float
  cpu_seconds: float
  verdicts: dict[str, int]
  before: Footprint
  after: Footprint


def main() -> None:
  """Runs every measurement, prints a markdown table and writes results.json."""
  rules = options.RULES.value or ['strict', 'opsd']
  configs = [GradeConfig(rules=r, seconds=_SECONDS.value, workers=_WORKERS.value) for r in rules]
  for config in configs:
    grade_config.validate(config)
  golds = [gold for path in _GOLDS.value for gold in _read(path)] or bench_answers.made_up()
  golds = [gold for gold in dict.fromkeys(golds) if plain.number(plain.tidy(gold)) is None]
  if len(golds) < bench_answers.BATCH // 4:
    raise ConfigError(f'--golds holds {len(golds)} answers that are no plain numbers; name more files.')
  try:
    os.makedirs(_WORKDIR.value, exist_ok=True)
  except OSError as error:
    raise ConfigError(f'--workdir={_WORKDIR.value} cannot be written: {error.strerror}.') from error
  rows = []
  for config in configs:
    for hostile in bench_answers.HOSTILE:
      rows.append(measure(config, golds, hostile, _COUNT.value))
      print(table(rows).splitlines()[-1], flush=True)
  write_json(
    os.path.join(_WORKDIR.value, 'results.json'),
    {
      'golds': {'files': _GOLDS.value or 'made up', 'used': len(golds)},
      'limit_seconds': _SECONDS.value,
      'workers': _WORKERS.value,
      'rows': [dataclasses.asdict(row) for row in rows],
      'load': os.getloadavg(),
      'versions': study.versions() | grading_versions(),
      'machine': study.machine(),
    },
  )
  print(table(rows))


def _read(path: str) -> list[str]:
  try:
    return [str(row['answer']) for row in jsonlines.read(path)]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(f'--golds={path} is no file of JSON lines with a field answer: {error}.') from error


def grading_versions() -> dict[str, str]:
  """Of the packages that decide verdicts."""
  import importlib.metadata

  return {
    name: importlib.metadata.version(name) for name in ('math-verify', 'latex2sympy2_extended', 'sympy')
  }


def measure(config: GradeConfig, golds: Sequence[str], hostile: str, count: int) -> Row:
  """Grades `count` answers, 100 a call, all pairs of a call different."""
  batches = list(bench_answers.batches(golds, hostile, count))
  grading.equal(golds[: 4 * config.workers], golds[1 : 4 * config.workers + 1], config)  # starts all of them
  before, began = footprint(), time.perf_counter()
  verdicts: Counter[str] = Counter()
  for batch in batches:
    completions = [f'So the answer is $\\boxed{{{answer}}}$.' for _, answer in batch]
    verdicts.update(map(str, grading.grade(completions, [gold for gold, _ in batch], config).verdicts))
  seconds = time.perf_counter() - began
  done = sum(verdicts.values())
  after = footprint()
  return Row(
    rules=config.rules,
    hostile=hostile,
    gradings=done,
    seconds=seconds,
    per_minute=60 * done / seconds,
    cpu_seconds=after.cpu_seconds - before.cpu_seconds,
    verdicts=dict(verdicts),
    before=before,
    after=after,
  )


def table(rows: Sequence[Row]) -> str:
  """Markdown; what is held is before -> after."""
  lines = [
    '| rules | hostile of 100 | gradings | a minute | processor s | processes | files | own MiB '
    '| workers MiB | verdicts |',
    '|---|---|---:|---:|---:|---:|---:|---:|---:|---|',
  ]
  for row in rows:
    held = ' | '.join(
      f'{getattr(row.before, name):.0f} -> {getattr(row.after, name):.0f}'
      for name in ('processes', 'files', 'own_mib', 'workers_mib')
    )
    verdicts = ', '.join(f'{name} {n}' for name, n in sorted(row.verdicts.items()))
    speed = f'{row.gradings} | {row.per_minute:,.0f} | {row.cpu_seconds:.1f}'
    lines.append(f'| {row.rules} | {row.hostile} | {speed} | {held} | {verdicts} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  entry.run(main, __doc__)
