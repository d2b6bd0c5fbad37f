"""A programming task with its tests."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from opsd_jax.grade.programs import values


@dataclasses.dataclass(frozen=True)
class Calls:
  """Results of calls are compared with the expected ones.

  Attributes:
    calls: `[positional, named]` of each call, as `values.encode` writes it.
    rule: when two results agree, from `compare.RULES`.
    tolerance: absolute, for numbers.
    expected: encoded results; None where the canonical solution gives them.
  """

  calls: tuple[str, ...]
  rule: str = 'close'
  tolerance: float = 0.0
  expected: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Script:
  """Python that raises an exception unless the function is right.

  Attributes:
    parts: run one after the other where the canonical solution's names are known.
    check: the function among them that is then called with the function under test, or ''.
  """

  parts: tuple[str, ...]
  check: str = ''


@dataclasses.dataclass(frozen=True)
class Streams:
  """What the whole program prints is compared, for each text on its standard input.

  `exact`: the texts must be equal but for outer blanks; else lines and numbers must be.
  """

  typed: tuple[str, ...]
  printed: tuple[str, ...]
  exact: bool = False


Tests = Calls | Script | Streams


@dataclasses.dataclass(frozen=True)
class Task:
  """One programming problem.

  Attributes:
    id: unique within its benchmark.
    prompt: the problem as its benchmark states it, without how to answer.
    entry_point: name of the function to write, or of a method of a class `Solution`; '' where the whole
      program reads standard input.
    solution: a complete right program; '' where none is known.
    base: the tests that decide the verdict 'base'.
    plus: further tests; with those of `base` they decide 'plus'.
    starter: put before a program that lacks the function: the head of a function whose body was asked for.
    prelude: imports that are made for every program.
  """

  id: str
  prompt: str
  entry_point: str
  solution: str
  base: Tests
  plus: Tests | None = None
  starter: str = ''
  prelude: str = ''

  @property
  def suites(self) -> dict[str, Tests]:
    """The tests by name, in the order in which they run."""
    return {'base': self.base} | ({} if self.plus is None else {'plus': self.plus})

  @property
  def needs_record(self) -> bool:
    """Whether the canonical solution must run first."""
    return any(isinstance(s, Calls) and s.expected is None for s in self.suites.values())

  @property
  def known_calls(self) -> int:
    """Of how many calls or inputs the result is known from the start."""
    counts = [
      s.expected or () if isinstance(s, Calls) else s.typed
      for s in self.suites.values()
      if not isinstance(s, Script)
    ]
    return sum(map(len, counts))


def program_paper(task: Task, program: str) -> dict[str, str]:
  """What the program's process is given."""
  return {'program': program, 'prelude': task.prelude, 'entry': task.entry_point}


def referee_paper(task: Task, recorded: Sequence[str] = ()) -> dict[str, Any]:
  """What the referee is given; `recorded` are the canonical solution's seconds and encoded results."""
  known = [f'0 {e}' for s in task.suites.values() if isinstance(s, Calls) for e in s.expected or ()]
  suites = [{'name': name} | _described(task, tests) for name, tests in task.suites.items()]
  return {'suites': suites, 'expected': [*recorded] if task.needs_record else known}


def _described(task: Task, tests: Tests) -> dict[str, Any]:
  match tests:
    case Calls():
      return {'kind': 'calls', 'calls': tests.calls, 'rule': tests.rule, 'tolerance': tests.tolerance}
    case Script():
      own = {'solution': task.solution, 'entry': task.entry_point}
      return {'kind': 'script', 'script': tests.parts, 'check': tests.check} | own
    case Streams():
      told = {'typed': tests.typed, 'printed': tests.printed, 'exact': tests.exact}
      return {'kind': 'streams'} | told


def encoded_calls(arguments: Iterable[Sequence[Any]]) -> tuple[str, ...]:
  """`Calls.calls` of these lists of positional arguments."""
  return tuple(values.encode([list(a), {}]).decode() for a in arguments)
