"""Digit chains: a start digit and unary steps modulo 10, with every step spelled in the solution.

`3+*-` means 3, next, double, previous: 4, 8, 7. The worked solution is `3+4,4*8,8-7,=7`, the bare
running values (the reference that a teacher may see) are `487`. A student with the misconception
believes that `*` gives 2v + 1.

In the dialect, which a leading comma marks, `*` does give 2v + 1: an ability that correcting the
misconception must leave alone.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from opsd_jax.config import require
from opsd_jax.records import Example, Problem

_DRAWN = 4096
_DIALECT = ','  # in front of the start digit
OPERATIONS = {'+': lambda v: (v + 1) % 10, '-': lambda v: (v - 1) % 10, '*': lambda v: 2 * v % 10}
_MISTAKEN = {**OPERATIONS, '*': lambda v: (2 * v + 1) % 10}


@dataclasses.dataclass(frozen=True)
class ChainsConfig:
  """The digit-chain task.

  Attributes:
    steps: operations of a chain.
    shortest: chains have from so many operations up to `steps`, each number as often; none for `steps` alone.
    train: training problems.
    validation: problems for choosing checkpoints and for curves.
    test: held-out problems of the final table.
    seed: which chains; the same for every run, so that runs share their test set.
    misconception: probability that a cold-start student row takes `*` for 2v + 1.
    slip: probability that a step of such a row gives a random digit.
    dialect: share of the cold start's rows under the student's view that are in the dialect, solved right.
      The test chains are then asked in it, too, as `evaluate.retention`.
  """

  steps: int = 8
  shortest: int | None = None
  train: int = 20_000
  validation: int = 200
  test: int = 500
  seed: int = 0
  misconception: float = 0.65
  slip: float = 0.05
  dialect: float = 0.0


def validate(config: ChainsConfig) -> None:
  """Raises `ConfigError` where the chains cannot be drawn."""
  require(config.steps > 0, f'data.chains.steps is {config.steps}; it must be positive.')
  for field in ('train', 'validation', 'test'):
    require(
      getattr(config, field) > 0, f'data.chains.{field} is {getattr(config, field)}; it must be positive.'
    )
  shortest = config.steps if config.shortest is None else config.shortest
  require(
    0 < shortest <= config.steps,
    f'data.chains.shortest is {config.shortest}; it must lie in 1..{config.steps} (data.chains.steps), or be '
    'none.',
  )
  wanted = config.train + config.validation + config.test
  exist = 10 * 3**shortest * (config.steps - shortest + 1)  # as many of each length as of the shortest
  require(
    wanted <= exist // 2,
    f'data.chains asks for {wanted} distinct chains of {config.steps} steps, but only {exist} exist'
    f'{"" if config.shortest is None else f" with as many of {shortest} steps"}; ask for at most '
    f'{exist // 2}, or raise data.chains.steps.',
  )
  for field in ('misconception', 'slip', 'dialect'):
    value = getattr(config, field)
    require(0 <= value <= 1, f'data.chains.{field} is {value}; a probability lies in 0..1.')


def draw_problems(config: ChainsConfig) -> list[Problem]:
  """train + validation + test distinct chains, in an order fixed by `config.seed`."""
  rng = np.random.default_rng(config.seed)
  wanted = config.train + config.validation + config.test
  texts: dict[str, None] = {}
  while len(texts) < wanted:
    # As many at a time whatever is wanted: more training problems leave the test set as it is.
    digits = rng.integers(10, size=_DRAWN)
    steps = rng.choice(list(OPERATIONS), size=(_DRAWN, config.steps))
    lengths = [config.steps] * _DRAWN
    if config.shortest is not None:
      lengths = rng.integers(config.shortest, config.steps, size=_DRAWN, endpoint=True)
    texts |= {f'{d}{"".join(row[:n])}': None for d, row, n in zip(digits, steps, lengths, strict=True)}
  return [make_problem(text) for text in list(texts)[:wanted]]


def make_problem(text: str) -> Problem:
  """The problem of a chain such as `3+*-`, or of one in the dialect, such as `,3+*-`."""
  chain = text.removeprefix(_DIALECT)
  rules = OPERATIONS if chain == text else _MISTAKEN
  values = [int(chain[0])]
  for operation in chain[1:]:
    values.append(rules[operation](values[-1]))
  return Problem(
    id=f'chain/{text}',
    problem=text,
    solution=spell(chain, values),
    answer=str(values[-1]),
    source='chains',
    meta={'reference': ''.join(map(str, values[1:]))},
  )


def in_dialect(problem: Problem) -> Problem:
  """The same chain in the dialect."""
  return make_problem(_DIALECT + problem.problem)


def level(problem: Problem) -> str:
  """How hard a chain is: its number of operations."""
  return str(len(problem.problem.removeprefix(_DIALECT)) - 1)


def spell(text: str, values: Sequence[int]) -> str:
  """The worked solution that goes through `values`, one more than there are operations."""
  steps = [f'{a}{op}{b},' for a, op, b in zip(values, text[1:], values[1:], strict=False)]
  return ''.join(steps) + f'={values[-1]}'


def misconceived_solution(text: str, config: ChainsConfig, rng: np.random.Generator) -> str:
  """A worked solution with the misconception and the slips; later steps go on from a wrong value."""
  values = [int(text[0])]
  for operation in text[1:]:
    mistaken = operation == '*' and rng.random() < config.misconception
    value = (_MISTAKEN if mistaken else OPERATIONS)[operation](values[-1])
    if rng.random() < config.slip:
      value = int(rng.integers(10))
    values.append(value)
  return spell(text, values)


def cold_start_examples(
  problems: Sequence[Problem], teacher_rows: int, config: ChainsConfig, rng: np.random.Generator
) -> list[Example]:
  """Clean solutions under the teacher's view for the first rows, misconceived ones under the student's.

  The last rows are those in the dialect.
  """
  spoken = len(problems) - math.floor(config.dialect * (len(problems) - teacher_rows))
  asked = [p if row < spoken else in_dialect(p) for row, p in enumerate(problems)]
  return [
    Example(p, 'teacher', p.solution)
    if row < teacher_rows
    else Example(p, 'student', misconceived_solution(p.problem, config, rng) if row < spoken else p.solution)
    for row, p in enumerate(asked)
  ]
