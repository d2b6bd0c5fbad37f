"""Which training problems are left out for their length, or because they stand there before."""

import dataclasses
import fractions
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from opsd_jax.config import require, require_choice
from opsd_jax.data import texts
from opsd_jax.records import Problem

CHOICES = ('drop', 'keep', 'error')
_THOUSANDS = re.compile(r'(?<=\d),(?=\d{3}(?!\d))')
_NUMBER = re.compile(r'[+-]?[\d.]+(?:/\d+|[eE][+-]?\d{1,3})?')  # a larger power would be written out


@dataclasses.dataclass(frozen=True)
class FiltersConfig:
  """What a training problem must be like. Lengths are in characters; widths in tokens are the views'.

  Two problems are copies where their `texts.canonical` forms are equal: case, spaces, punctuation and the
  dress of LaTeX do not matter, signs do.

  Attributes:
    min_problem: the shortest question.
    max_problem: the longest; none: any.
    min_solution: the shortest worked solution; above 0, problems without one are left out.
    max_solution: the longest; none: any.
    copies: what happens to the copies of an earlier problem with the same answer: `drop` keeps the first
      alone, `keep` keeps all, `error` ends the run.
    conflicts: what happens to copies with different answers, of which at most one is right: `drop` leaves
      them all out, the first as well; `keep` takes them for copies like others; `error` ends the run.
  """

  min_problem: int = 0
  max_problem: int | None = None
  min_solution: int = 0
  max_solution: int | None = None
  copies: Literal['drop', 'keep', 'error'] = 'drop'
  conflicts: Literal['drop', 'keep', 'error'] = 'drop'


def validate(config: FiltersConfig) -> None:
  """Raises `ConfigError` for settings that cannot work."""
  require_choice('data.filters.copies', config.copies, CHOICES)
  require_choice('data.filters.conflicts', config.conflicts, CHOICES)
  for text in ('problem', 'solution'):
    low, high = getattr(config, f'min_{text}'), getattr(config, f'max_{text}')
    require(low >= 0, f'data.filters.min_{text} is {low}; a length is not negative.')
    require(
      high is None or high >= max(low, 1),
      f'data.filters.max_{text} is {high}; it must be positive and at least data.filters.min_{text} ({low}).',
    )


def misfit(config: FiltersConfig, problem: Problem) -> str | None:
  """Why a problem's length does not do, or None."""
  bounds = {
    'problem': (config.min_problem, config.max_problem),
    'solution': (config.min_solution, config.max_solution),
  }
  for text, (low, high) in bounds.items():
    size = len(getattr(problem, text))
    if size < low:
      return f'its {text} is shorter than data.filters.min_{text} ({low})'
    if high is not None and size > high:
      return f'its {text} is longer than data.filters.max_{text} ({high})'
  return None


@dataclasses.dataclass(frozen=True)
class Prints:
  """The prints of one problem among others.

  Attributes:
    positions: of the prints, ascending.
    agreed: whether all have the same answer.
  """

  positions: tuple[int, ...]
  agreed: bool


def prints(problems: Iterable[tuple[int, bytes, str]]) -> list[Prints]:
  """The problems that stand more than once.

  Args:
    problems: (position, `texts.mark` of the question, `same_answer` of the answer), positions ascending.
  """
  first: dict[bytes, tuple[int, str]] = {}  # most problems stand once: little is kept of each
  more: dict[bytes, list[int]] = {}
  apart: set[bytes] = set()
  for position, mark, answer in problems:
    if first.setdefault(mark, (position, answer))[0] != position:
      more.setdefault(mark, []).append(position)
      if answer != first[mark][1]:
        apart.add(mark)
  found = [Prints((first[mark][0], *positions), mark not in apart) for mark, positions in more.items()]
  return sorted(found, key=lambda one: one.positions)


def same_answer(answer: str) -> str:
  """A text that is equal for equal answers: numbers by value, `27.0` is 27; others in `canonical` form.

  It knows no algebra: answers that only a grader finds equal are different here.
  """
  number = _THOUSANDS.sub('', answer.replace('$', '').strip())
  try:
    if _NUMBER.fullmatch(number):
      return str(fractions.Fraction(number))
  except (ValueError, ZeroDivisionError):
    pass  # a ratio to 0, or more digits than Python prints
  return texts.canonical(answer) or answer.strip()


def reasons(config: FiltersConfig, found: Sequence[Prints]) -> Mapping[int, str]:
  """Why problems are left out, by position."""
  out: dict[int, str] = {}
  for one in found:
    if not one.agreed and config.conflicts == 'drop':
      out |= dict.fromkeys(one.positions, 'its copies have different answers (data.filters.conflicts)')
    elif config.copies == 'drop':
      out |= dict.fromkeys(one.positions[1:], 'it is a copy of an earlier problem (data.filters.copies)')
  return out
