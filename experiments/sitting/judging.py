"""Verdicts on samples, under the rules of a benchmark's kind or under those of the run that is asked."""

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from experiments.sitting.papers import Paper
from opsd_jax.evaluate import marking
from opsd_jax.evaluate.samples import Sample
from opsd_jax.grade.config import GradeConfig
from opsd_jax.grade.programs.config import ProgramsConfig
from opsd_jax.records import Problem, Verdict

# What no verdict on a benchmark depends on: the rest is of training on programs.
_UNREAD = ('workers', 'tests', 'failures', 'programs')
_GRADERS = ('math-verify', 'latex2sympy2_extended', 'sympy')


def judge(paper: Paper, found: Sequence[Sample], config: GradeConfig) -> list[Sample]:
  """The samples with the answers that were read off them, and their verdicts."""
  problems = [paper.loaded.by_id[sample.problem] for sample in found]
  answers, verdicts = _mark(paper, problems, [sample.completion for sample in found], config)
  return [
    dataclasses.replace(sample, answer=answer, verdicts=verdict)
    for sample, answer, verdict in zip(found, answers, verdicts, strict=True)
  ]


def _mark(
  paper: Paper, problems: Sequence[Problem], completions: Sequence[str], config: GradeConfig
) -> tuple[list[str | None], list[dict[str, Verdict]]]:
  if headline(paper, config) != 'text':
    return marking.mark(paper.loaded, problems, completions, config, _programs(config))
  from opsd_jax.grade import grading

  verdicts = grading.grade(completions, [problem.answer for problem in problems], config).verdicts
  return [grading.find(text, config) for text in completions], [{'text': v} for v in verdicts]


def at_once(paper: Paper) -> bool:
  """Whether samples are judged as they end.

  Programs are not: every call of their judge runs the known solutions of its tasks first, so that all samples
  of a task are best judged in one.
  """
  return paper.loaded.benchmark.kind != 'programs'


def headline(paper: Paper, config: GradeConfig) -> str:
  """The name of the verdict that counts."""
  kind = paper.loaded.benchmark.kind
  return config.rules if kind == 'maths' else marking.RULES[kind][-1]


def counts(paper: Paper, sample: Sample, config: GradeConfig) -> Verdict:
  """The verdict on a sample that counts; programs without further tests have their base tests alone."""
  name = headline(paper, config)
  return sample.verdicts[name if name in sample.verdicts else next(iter(sample.verdicts))]


def _programs(config: GradeConfig) -> ProgramsConfig:
  return ProgramsConfig(workers=config.workers)


def require_sandbox(paper: Paper, config: GradeConfig) -> None:
  """Judges the first known program of a benchmark, if it has programs.

  Raises:
    ConfigError: programs cannot be run on this machine.
  """
  from opsd_jax.grade.programs import judge as programs

  if paper.loaded.benchmark.kind == 'programs':
    programs.check_golds([paper.loaded.tasks[paper.problems[0].id]], _programs(config))


def told(config: GradeConfig) -> dict[str, Any]:
  """What settings say of the graders: all that a verdict may depend on."""
  limits = {'answers': config, 'programs': _programs(config)}
  plain = {
    name: {k: v for k, v in dataclasses.asdict(one).items() if k not in _UNREAD}
    for name, one in limits.items()
  }
  return plain | {'versions': {name: _version(name) for name in _GRADERS}}


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
