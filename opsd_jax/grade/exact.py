"""Verdicts by exact match of the final answer."""

from collections.abc import Sequence

import numpy as np

from opsd_jax.records import Graded


def final_answer(completion: str) -> str | None:
  """What follows the last `=`, stripped; None where there is none."""
  before, equals, answer = completion.rpartition('=')
  return answer.strip() or None if equals else None


def grade(completions: Sequence[str], answers: Sequence[str]) -> Graded:
  """Compares each completion's final answer with the row's known answer, as text."""
  found = [final_answer(c) for c in completions]
  correct = [f == a.strip() for f, a in zip(found, answers, strict=True)]
  return Graded(correct=np.array(correct, bool), answered=np.array([f is not None for f in found], bool))
