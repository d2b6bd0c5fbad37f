"""Which rules say whether a completion is right, and what grading one may take."""

import dataclasses
import math
from typing import Literal, get_args

from opsd_jax.config import require, require_choice
from opsd_jax.grade.programs import config as programs_room
from opsd_jax.grade.programs.config import ProgramsConfig

Rules = Literal['text', 'opsd', 'strict', 'choice', 'programs']


@dataclasses.dataclass(frozen=True)
class GradeConfig:
  r"""How a final answer is read off a completion and compared with the known one.

  Attributes:
    rules: `text`, the same text; `opsd`, math-verify on the content of the last box, as the published
      evaluation of OPSD has it, its blind spots included; `strict`, mathematics with those repaired;
      `choice`, the letter of multiple choice; `programs`, whether the program in the completion passes the
      tests that stand in the place of the answer (`programs.given`).
    answer: of `text`: the final answer stands after the last `equals` sign, or in the last `boxed` command
      of LaTeX.
    seconds: of `opsd` and `strict`: one grading that takes longer is killed, and its verdict is `timeout`.
      Of processor time, so that the verdict does not depend on what else the machine does; a tenfold of it on
      the clock ends a grading as well. The published evaluation allows 5, on the clock, for each of two
      parsings and one comparison.
    memory_gib: of the same: address space of the process that grades, in GiB.
    workers: of the same: how many processes grade side by side. Verdicts do not depend on it.
    tests: of `programs`: at most so many tests of a problem count, the first. The reward of reinforcement
      learning is the share of them that is passed.
    failures: of `programs`: after so many failed tests in a row the rest counts as failed, and is not run.
    programs: limits of one program under one test, and what keeps it in. One test may take `call_seconds`,
      whatever `seconds` is.
  """

  rules: Rules = 'text'
  answer: Literal['equals', 'boxed'] = 'equals'
  seconds: float = 5.0
  memory_gib: float = 2.0
  workers: int = 2
  tests: int = 5
  failures: int = 3
  programs: ProgramsConfig = ProgramsConfig()


def validate(config: GradeConfig) -> None:
  """Raises `ConfigError` for unknown rules, for a place where no answer is looked for, or for limits of 0."""
  require_choice('grade.rules', config.rules, get_args(Rules))
  require_choice('grade.answer', config.answer, ('equals', 'boxed'))
  for name in ('seconds', 'memory_gib', 'workers', 'tests', 'failures'):
    value = getattr(config, name)
    require(0 < value < math.inf, f'grade.{name} is {value}; it must be greater than 0, and finite.')
  programs_room.validate(config.programs, 'grade.programs')
