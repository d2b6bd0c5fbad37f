"""Benchmarks by name: read from where somebody keeps them, checked, and with what must be said of them."""

import dataclasses
import functools
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from opsd_jax.config import ConfigError, require
from opsd_jax.data.config import FieldsConfig, validate_fields
from opsd_jax.data.rows import Rows
from opsd_jax.evaluate import benchmark_files, benchmark_rows, catalogue
from opsd_jax.evaluate.catalogue import BENCHMARKS, Benchmark
from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Problem, Verdict

__all__ = ('BENCHMARKS', 'Benchmark', 'Loaded', 'check', 'load', 'split_name')


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A benchmark that was read.

  Attributes:
    benchmark: what is known of it: name, kind, licence, remarks.
    problems: in the order of the file; their ids do not depend on where it lies.
    tasks: of programs, the tests of each problem by its id.
    digest: sha256 of what is asked and what counts as right; equal where two evaluations may be compared.
    files: path -> sha256 of every file that was read.
    notes: what a reader of the numbers should be told: another file than the known one, too few problems.
  """

  benchmark: Benchmark
  problems: Sequence[Problem]
  tasks: Mapping[str, Any]
  digest: str
  files: Mapping[str, str]
  notes: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    """How the benchmark is asked for."""
    return self.benchmark.name

  @functools.cached_property
  def by_id(self) -> Mapping[str, Problem]:
    """The problems by their ids."""
    return {problem.id: problem for problem in self.problems}


def split_name(name: str) -> tuple[str, str | None]:
  """`name` or `name=PATH` as the name and the path, if any."""
  name, equals, path = name.partition('=')
  return name.strip(), path.strip() if equals else None


def load(name: str, path: str | None = None, fields: FieldsConfig | None = None) -> Loaded:
  """Reads a benchmark.

  Args:
    name: one of `BENCHMARKS` or its alias; or `name=PATH`, where a name that is unknown makes a benchmark
      of a file of one's own, with problems of mathematics.
    path: where it is: see `benchmark_files.locate`; not used with `name=PATH`.
    fields: names of the fields of a file of one's own; None reads `problem` and `answer`, and the solution
      where there is one. A known benchmark knows its fields.

  Raises:
    ConfigError: it is unknown, not found, or a row of it cannot be read.
  """
  name, given = split_name(name)
  path = given or path
  require(bool(name), 'a benchmark has no name; write name=PATH.')
  if fields is not None:
    validate_fields(fields)
  try:
    benchmark = catalogue.find(name)
  except ConfigError:
    if not given:
      raise
    benchmark = catalogue.own(name, fields)
  require(bool(path), f'where {benchmark.title} is was not said; name a folder of data sets, or {name}=PATH.')
  files = {p: benchmark_files.digest(p) for p in benchmark_files.locate(benchmark, path)}
  _require_its_own(benchmark, files)
  return _read(benchmark, benchmark_files.open_rows(list(files)), files)


def _require_its_own(benchmark: Benchmark, files: Mapping[str, str]) -> None:
  """Raises `ConfigError` if a file is known to be another benchmark."""
  for path, digest in files.items():
    for other in BENCHMARKS.values():
      require(
        digest not in other.known or other is benchmark or benchmark.name not in BENCHMARKS,
        f'{path} is {other.title}, not {benchmark.title}; ask for {other.name}, or name another file.',
      )


def _read(benchmark: Benchmark, rows: Rows, files: Mapping[str, str]) -> Loaded:
  schema = benchmark_rows.choose(benchmark, rows[0], rows.where(0))
  problems, tasks, marks = [], {}, []
  for number in range(len(rows)):
    row, place = rows[number], rows.where(number)
    benchmark_rows.require_fields(schema, row, place)
    if benchmark.kind == 'programs':
      problem, task = _program(benchmark, row, place)
      tasks[problem.id] = task
    else:
      problem = benchmark_rows.read(benchmark, schema, number, row, place)
    if problem is not None:
      problems.append(problem)
      marks.append([problem.id, problem.problem, row if benchmark.kind == 'programs' else problem.answer])
  _require_unique(benchmark, problems)
  notes = _notes(benchmark, len(problems), len(rows), files)
  return Loaded(benchmark, tuple(problems), tasks, _digest(marks), files, notes)


def _program(benchmark: Benchmark, row: Mapping[str, Any], place: str) -> tuple[Problem, Any]:
  from opsd_jax.grade.programs import schemas

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Python's, of escapes in the code of other people's tasks
    task = schemas.read(benchmark.name, row, place)
  return Problem(task.id, task.prompt, task.solution, '', benchmark.name), task


def _digest(marks: Sequence) -> str:
  text = json.dumps(marks, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def _require_unique(benchmark: Benchmark, problems: Sequence[Problem]) -> None:
  require(bool(problems), f'none of the rows is a problem of {benchmark.title}.')
  id, count = Counter(p.id for p in problems).most_common(1)[0]
  require(count == 1, f'{count} problems of {benchmark.title} have the id {id!r}; ids must be unique.')


def _notes(benchmark: Benchmark, count: int, rows: int, files: Mapping[str, str]) -> tuple[str, ...]:
  notes = []
  if benchmark.expected not in (None, count):
    notes.append(f'{count} problems, not the usual {benchmark.expected}')
  if count != rows:
    notes.append(f'{rows - count} of {rows} rows are not part of the benchmark')
  strange = [path for path, digest in files.items() if digest not in benchmark.known]
  if benchmark.known and strange:
    notes.append(f'not the known file: {", ".join(strange)}')
  notes += [f'{path}: {benchmark.variants[d]}' for path, d in files.items() if d in benchmark.variants]
  return tuple(notes)


def check(loaded: Loaded, config: GradeConfig) -> dict[str, Verdict]:
  """The known answers that the grader would not accept of a model: problem id -> its verdict.

  Each answer is graded as a completion that says it. Programs are not run here: nothing is found.
  """
  from opsd_jax.grade import grading

  if loaded.benchmark.kind == 'programs':
    return {}
  if loaded.benchmark.kind == 'choice':
    config = dataclasses.replace(config, rules='choice')
  verdicts = grading.check_golds([p.answer for p in loaded.problems], config)
  return {p.id: v for p, v in zip(loaded.problems, verdicts, strict=True) if v != Verdict.CORRECT}
