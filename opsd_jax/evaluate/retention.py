"""Other tasks that a run must not unlearn: their problems are asked while it trains."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from opsd_jax.config import require
from opsd_jax.distill import views
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.evaluate import accuracy, benchmarks, marking, protocols
from opsd_jax.evaluate.accuracy import Exam, Verdicts
from opsd_jax.evaluate.benchmarks import Loaded
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.evaluate.statistics import mean_accuracy, pass_at_k
from opsd_jax.grade import grading
from opsd_jax.grade.config import GradeConfig
from opsd_jax.models.model import Params
from opsd_jax.records import Graded, Problem
from opsd_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class RetentionSet:
  """Problems of another task, and how they are asked.

  Attributes:
    name: of the benchmark, as it was asked for.
    problems: those that are tracked.
    digest: of what the files hold.
    views: the run's, with the wording of this kind of task and the width that it takes.
    mark: verdicts on completions of problems.
  """

  name: str
  problems: Sequence[Problem]
  digest: str
  views: ViewsConfig
  mark: Callable[[Sequence[Problem], Sequence[str]], Graded]


def open_sets(
  config: EvaluateConfig, run: ViewsConfig, grade: GradeConfig, tokenizer: Tokenizer
) -> tuple[RetentionSet, ...]:
  """The sets that `evaluate.retention` names, every prompt tried.

  Mathematics is asked in the run's own words and graded by its rules; programs and multiple choice, and
  mathematics where the run is about programs, have words and rules of their own.

  Raises:
    ConfigError: a benchmark is unknown or not there, or one of its rows is no problem.
  """
  retention = config.retention
  require(
    retention.path is not None or all('=' in name for name in retention.benchmarks),
    f'evaluate.retention.benchmarks is {",".join(retention.benchmarks)}, but evaluate.retention.path is '
    'none; name the folder that holds them, or write name=FILE.jsonl.',
  )
  return tuple(
    _make(benchmarks.load(name, retention.path), retention.problems, run, grade, tokenizer)
    for name in retention.benchmarks
  )


def _make(
  loaded: Loaded, count: int | None, run: ViewsConfig, grade: GradeConfig, tokenizer: Tokenizer
) -> RetentionSet:
  problems, kind = tuple(loaded.problems[:count]), loaded.benchmark.kind
  own = kind == 'maths' and grade.rules != 'programs'
  worded = run if own else dataclasses.replace(run, student=protocols.PROMPTS[kind])
  longest = max(
    len(views.prompt_ids(worded, views.student_prompt(worded, p, tokenizer), tokenizer)) for p in problems
  )
  worded = dataclasses.replace(worded, student_tokens=max(longest, 1))

  def mark(asked: Sequence[Problem], completions: Sequence[str]) -> Graded:
    if own:
      return grading.grade(completions, [p.answer for p in asked], grade)
    _, verdicts = marking.mark(loaded, asked, completions, grade)
    if not verdicts:  # one of several processes may have no rows
      return Graded(())
    counted = next(rules for rules in ('plus', 'base', 'choice', 'strict') if rules in verdicts[0])
    return Graded(tuple(verdict[counted] for verdict in verdicts))

  return RetentionSet(loaded.name, problems, loaded.digest, worded, mark)


def own_sets(
  others: Mapping[str, Sequence[Problem]],
  config: EvaluateConfig,
  run: ViewsConfig,
  grade: GradeConfig,
  tokenizer: Tokenizer,
) -> tuple[RetentionSet, ...]:
  """Sets of what the data themselves teach beside what is trained, asked in the run's own words.

  Raises:
    ConfigError: a prompt does not fit its width.
  """
  for problems in others.values():
    views.student_batch(run, problems, tokenizer)

  def mark(asked: Sequence[Problem], completions: Sequence[str]) -> Graded:
    return grading.grade(completions, [p.answer for p in asked], grade)

  count = config.retention.problems
  return tuple(
    RetentionSet(name, tuple(problems[:count]), f'{name}: {len(problems)}', run, mark)
    for name, problems in others.items()
  )


def with_benchmarks(
  benchmarks: Mapping[str, Sequence[Problem]], sets: Sequence[RetentionSet]
) -> dict[str, Sequence[Problem]]:
  """What training problems are checked against: benchmarks, and what is tracked of others or of the same."""
  found = dict(benchmarks)
  for one in sets:
    known = found.get(one.name, ())
    texts = {problem.problem for problem in known}
    found[one.name] = (*known, *(problem for problem in one.problems if problem.problem not in texts))
  return found


def track(
  exam: Exam, params: Params, sets: Sequence[RetentionSet], config: EvaluateConfig
) -> tuple[dict[str, dict[str, float]], list[Verdicts]]:
  """Accuracy and pass@k of every set under the student's view, and the verdicts they come from."""
  found, asked = {}, []
  for one in sets:
    verdicts = accuracy.answer_problems(
      dataclasses.replace(exam, views=one.views, mark=one.mark),
      params,
      one.problems,
      'student',
      config.sampling,
      samples=config.retention.samples,
      batch=config.batch,
      decode=config.decode,
      seed=config.seed,
    )
    found[one.name] = _summary(verdicts.correct)
    asked.append(verdicts)
  return found, asked


def _summary(correct: np.ndarray) -> dict[str, float]:
  """`correct` is bool [X, n]."""
  k = correct.shape[1]
  estimate = mean_accuracy(correct)
  return {
    'accuracy': estimate.value,
    'low': estimate.low,
    'high': estimate.high,
    f'pass_at_{k}': pass_at_k(correct, k),
    'problems': len(correct),
  }


def metrics(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  """What stands in a run's metrics: `retention/<name>/accuracy` and `retention/<name>/pass_at_<k>`."""
  return {
    f'retention/{name}/{key}': value
    for name, row in found.items()
    for key, value in row.items()
    if key == 'accuracy' or key.startswith('pass_at_')
  }
