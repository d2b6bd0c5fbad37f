"""How a final answer is read off a completion."""

import dataclasses
from typing import Literal

from opsd_jax.config import require_choice


@dataclasses.dataclass(frozen=True)
class GradeConfig:
  """Exact match of final answers, as text.

  Attributes:
    answer: where the final answer stands: after the last `equals` sign, or in the last `boxed` command
      of LaTeX.
  """

  answer: Literal['equals', 'boxed'] = 'equals'


def validate(config: GradeConfig) -> None:
  """Raises `ConfigError` for a place where no answer is looked for."""
  require_choice('grade.answer', config.answer, ('equals', 'boxed'))
