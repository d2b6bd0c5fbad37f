"""What a teacher's template may show beyond the texts of the problem.

`{solution_start}` is the beginning of the solution. Three fields are known once a question's rollouts are
there, and differ from row to row: `{sibling}`, a right completion of the same question by another row (SDPO,
arXiv 2601.20802); `{attempt}`, the row's own completion; `{feedback}`, what the grader's verdict on it is
worth saying. A row whose template shows a sibling, but that has none, has no view.
"""

import math
import string
from collections.abc import Sequence

from opsd_jax.distill.config import ViewsConfig
from opsd_jax.records import Problem

OF_ROW = ('attempt', 'feedback', 'sibling')


def of_problem(config: ViewsConfig, problem: Problem) -> dict[str, str]:
  """The texts that are known before any rollout; those of rows are empty."""
  shown = math.ceil(config.solution_fraction * len(problem.solution))
  return {'solution_start': problem.solution[:shown]} | dict.fromkeys(OF_ROW, '')


def used(template: str) -> set[str]:
  """Which fields of `OF_ROW` a template shows; it must be well-formed."""
  return {name for _, name, _, _ in string.Formatter().parse(template)} & set(OF_ROW)


def of_rows(
  config: ViewsConfig, completions: Sequence[str], correct: Sequence[bool]
) -> list[dict[str, str] | None]:
  """The texts of each of a question's n rows; None for a row without the sibling that it should show.

  Args:
    config: the template, and the words of the feedback.
    completions: texts of the n rows.
    correct: verdicts on them.
  """
  rows: list[dict[str, str] | None] = []
  needed = 'sibling' in used(config.teacher)
  for row, (attempt, right) in enumerate(zip(completions, correct, strict=True)):
    sibling = _sibling(row, completions, correct)
    texts = {'attempt': attempt, 'feedback': config.feedback_right if right else config.feedback_wrong}
    rows.append(None if needed and sibling is None else texts | {'sibling': sibling or ''})
  return rows


def _sibling(row: int, completions: Sequence[str], correct: Sequence[bool]) -> str | None:
  """The next right one after the row, around the end, so that not all rows see the same."""
  others = [(row + step) % len(completions) for step in range(1, len(completions))]
  return next((completions[other] for other in others if correct[other]), None)
