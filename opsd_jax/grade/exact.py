r"""Verdicts by exact match of the final answer, as text: `1/2` and `\frac12` are two answers."""

import re
from collections.abc import Sequence

from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Graded, Verdict

_BOXED = r'\boxed{'


def grade(completions: Sequence[str], answers: Sequence[str], config: GradeConfig = GradeConfig()) -> Graded:
  """Compares each completion's final answer with the row's known answer."""
  found = [find(c, config) for c in completions]
  return Graded(tuple(_verdict(f, a) for f, a in zip(found, answers, strict=True)))


def find(completion: str, config: GradeConfig) -> str | None:
  """The final answer, from where `config.answer` says that it stands; None where there is none."""
  return {'equals': after_equals, 'boxed': in_box}[config.answer](completion)


def same(first: str, second: str) -> bool:
  """Whether two final answers are the same text, but for spaces around them and separators of thousands."""
  return _plain(first) == _plain(second)


def _verdict(found: str | None, answer: str) -> Verdict:
  if found is None:
    return Verdict.UNFORMATTED
  return Verdict.CORRECT if same(found, answer) else Verdict.WRONG


def _plain(answer: str) -> str:
  """Stripped, and `1,080` as `1080`: separators of thousands say nothing."""
  return re.sub(r'(?<=\d),(?=\d{3}(?!\d))', '', answer.strip())


def after_equals(completion: str) -> str | None:
  """What follows the last `=`, stripped; None where there is none."""
  before, equals, answer = completion.rpartition('=')
  return answer.strip() or None if equals else None


def in_box(completion: str) -> str | None:
  r"""What stands in the last `\boxed{...}` with its braces balanced, stripped; None where there is none."""
  before, box, rest = completion.rpartition(_BOXED)
  depth = 1
  for place, character in enumerate(rest if box else ''):
    depth += (character == '{') - (character == '}')
    if depth == 0:
      return rest[:place].strip() or None
  return None
