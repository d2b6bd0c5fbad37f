"""Completions of a benchmark's problems marked by the rules that its kind has."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from opsd_jax.evaluate.benchmarks import Loaded
from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Problem, Verdict

RULES = {'maths': ('opsd', 'strict'), 'choice': ('choice',), 'programs': ('base', 'plus')}
NO_ANSWER = -1


def mark(
  loaded: Loaded,
  problems: Sequence[Problem],
  completions: Sequence[str],
  config: GradeConfig,
  programs: Any = None,
) -> tuple[list[str | None], list[dict[str, Verdict]]]:
  """The final answer of each completion, and its verdict under every rule of the benchmark's kind.

  Mathematics is graded by `opsd` and by `strict`, whatever `config.rules` says; the answer is read by
  `config.rules` if it is one of the two, else by `strict`.

  Args:
    loaded: the benchmark.
    problems: B of its problems, that of each completion.
    completions: B texts.
    config: limits of the grader, and by which rules answers are read.
    programs: `ProgramsConfig` of the judge of programs; None for its defaults.
  """
  if len(problems) != len(completions):
    raise ValueError(f'{len(completions)} completions of {len(problems)} problems.')
  if not completions:
    return [], []
  if loaded.benchmark.kind == 'programs':
    return _mark_programs(loaded, problems, completions, programs)
  return _mark_answers(loaded, problems, completions, config)


def _mark_answers(
  loaded: Loaded, problems: Sequence[Problem], completions: Sequence[str], config: GradeConfig
) -> tuple[list[str | None], list[dict[str, Verdict]]]:
  from opsd_jax.grade import grading

  reading = _reading(loaded, config)
  golds = [problem.answer for problem in problems]
  columns = {
    rules: grading.grade(completions, golds, dataclasses.replace(config, rules=rules)).verdicts
    for rules in RULES[loaded.benchmark.kind]
  }
  verdicts = [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]
  return [grading.find(completion, reading) for completion in completions], verdicts


def _reading(loaded: Loaded, config: GradeConfig) -> GradeConfig:
  """The config with rules that belong to the benchmark's kind."""
  rules = RULES[loaded.benchmark.kind]
  return config if config.rules in rules else dataclasses.replace(config, rules=rules[-1])


def _mark_programs(
  loaded: Loaded, problems: Sequence[Problem], completions: Sequence[str], config: Any
) -> tuple[list[str | None], list[dict[str, Verdict]]]:
  from opsd_jax.grade.programs import extract, judge
  from opsd_jax.grade.programs.config import ProgramsConfig

  tasks = [loaded.tasks[problem.id] for problem in problems]
  found = [extract.program(text, task) for text, task in zip(completions, tasks, strict=True)]
  graded = judge.judge(found, tasks, config or ProgramsConfig())
  columns = {rules: part.verdicts for rules, part in graded.items()}
  return found, [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]


def same_answers(loaded: Loaded, answers: Sequence[str | None], config: GradeConfig) -> list[int]:
  """Which of n answers to one problem are the same: see `clusters`."""
  return clusters(loaded, [answers], config)[0]


def clusters(loaded: Loaded, answers: Sequence[Sequence[str | None]], config: GradeConfig) -> list[list[int]]:
  """Labels, equal within a problem for answers that the grader takes for the same.

  An answer joins the first cluster whose first member it equals: the grader's equality need not be
  transitive. Equal texts are the same without asking; programs are only ever the same as texts.

  Args:
    loaded: the benchmark; its kind and `config.rules` say which rules decide.
    answers: for X problems, the final answers of their samples; None where none could be read.
    config: of the grader.

  Returns:
    For each answer the number of its cluster within its problem, from 0 in the order of their first
    members, and `NO_ANSWER` for None.
  """
  found = [_ungrouped(row) for row in answers]
  if config.rules != 'text':
    config = _reading(loaded, config)
  number = 0
  while waiting := _waiting(found):
    # One call of the grader a round, for all problems: it may start processes.
    first = [texts[0] for _, texts in waiting for _ in texts[1:]]
    second = [text for _, texts in waiting for text in texts[1:]]
    same = iter(_equal(loaded, first, second, config))
    for names, texts in waiting:
      joined = [text for text in texts[1:] if next(same)]
      names.update(dict.fromkeys([texts[0], *joined], number))
    number += 1
  return [[NO_ANSWER if a is None else names[a] for a in row] for names, row in zip(found, answers)]


def _ungrouped(answers: Sequence[str | None]) -> dict[str, int | None]:
  """Every different text of a problem, in order, without a cluster yet."""
  return {answer: None for answer in answers if answer is not None}


def _waiting(found: Sequence[dict[str, int | None]]) -> list[tuple[dict[str, int | None], list[str]]]:
  """The problems with texts that have no cluster yet, and these texts."""
  rows = [(names, [text for text, number in names.items() if number is None]) for names in found]
  return [(names, texts) for names, texts in rows if texts]


def _equal(
  loaded: Loaded, first: Sequence[str], second: Sequence[str], config: GradeConfig
) -> Sequence[bool]:
  if not first or loaded.benchmark.kind == 'programs':
    return [False] * len(first)
  from opsd_jax.grade import grading

  return grading.equal(first, second, config)
