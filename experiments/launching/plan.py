"""What is to be started: programs and their words, without the quotes of any shell.

A plan is data. It is printed, compared in tests, or handed to xmanager, and says the same each time.
"""

import shlex
from collections.abc import Mapping
from typing import NamedTuple


class Run(NamedTuple):
  """One run of a plan.

  Attributes:
    name: what the run is called; of a sweep also the name of its folder.
    flags: those that this run has beyond the shared words. A tuple stands for a flag that is repeated.
  """

  name: str
  flags: Mapping[str, str | tuple[str, ...]]


class Plan(NamedTuple):
  """Runs of one program, after each other.

  Attributes:
    program: its path, or its name where it is looked for on PATH.
    shared: the words that every run begins with.
    runs: at least one.
    before: whole commands that make everything ready, once and in this order.
  """

  program: str
  shared: tuple[str, ...]
  runs: tuple[Run, ...]
  before: tuple[tuple[str, ...], ...] = ()


def words(plan: Plan, run: Run) -> list[str]:
  """The command of a run, one word an argument, as the program will see them."""
  return [plan.program, *plan.shared, *flag_words(run.flags)]


def flag_words(flags: Mapping[str, str | tuple[str, ...]]) -> list[str]:
  """`--name=value` for every value, in order: what xmanager makes of the same flags."""
  pairs = ((name, each) for name, value in flags.items() for each in _values(value))
  return [f'--{name}={value}' for name, value in pairs]


def _values(value: str | tuple[str, ...]) -> tuple[str, ...]:
  return (value,) if isinstance(value, str) else value


def lines(plan: Plan) -> list[str]:
  """Every command of a plan as a line for a POSIX shell."""
  return [shlex.join(command) for command in (*plan.before, *(words(plan, run) for run in plan.runs))]
