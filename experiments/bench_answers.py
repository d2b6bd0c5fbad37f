"""Answers to measure grading with: known ones, other ways to write them, others, and hostile ones."""

import random
import re
from collections.abc import Iterator, Sequence

BATCH = 100  # answers of a call
HOSTILE = ('none', 'guarded', 'one hangs')

Pair = tuple[str, str]  # the known answer and the given one


def made_up() -> list[str]:
  """Answers of the kinds that contests have, none of them a plain number."""
  kinds = (
    '{a}\\sqrt{{{b}}}',
    '\\frac{{{a}\\pi}}{{{b}}}',
    '({a}, -{b})',
    'x^2 - {a}x + {b}',
    '{a} + {b}i',
    '(-\\infty, -{a}] \\cup [{b}, \\infty)',
    '\\begin{{pmatrix}} {a} \\\\ -{b} \\end{{pmatrix}}',
    'y = {a}x - {b}',
    '\\{{{a}, {b}\\}}',
    '\\frac{{{a} + \\sqrt{{{b}}}}}{{3}}',
  )
  return [kind.format(a=a, b=a + 4) for a in range(2, 42) for kind in kinds]


def batches(golds: Sequence[str], hostile: str, count: int) -> Iterator[list[Pair]]:
  """`count` pairs, `BATCH` at a time; `hostile` is one of `HOSTILE` and says what four of a batch are."""
  rng = random.Random(0)
  number = 0 if hostile == 'none' else 4
  for start in range(0, count, BATCH):
    pairs = [(gold, _written(gold, golds, rng)) for gold in _drawn(golds, BATCH - number, rng)]
    for i in range(number):
      gold, answer = _hang(start) if hostile == 'one hangs' and i == 0 else _absurd(rng, golds)
      pairs.insert(rng.randrange(len(pairs) + 1), (gold, answer))
    yield pairs


def _drawn(golds: Sequence[str], number: int, rng: random.Random) -> list[str]:
  """Without repeats as far as there are enough."""
  return [gold for _ in range(-(-number // len(golds))) for gold in rng.sample(golds, len(golds))][:number]


def _written(gold: str, golds: Sequence[str], rng: random.Random) -> str:
  """One in four the known answer in braces of its own, one in four another's, else with other numbers."""
  draw = rng.random()
  if draw < 0.5:
    return (
      re.sub(r'\d+', lambda _: str(rng.randrange(2, 1000)), gold)
      if re.search(r'\d', gold)
      else rng.choice(golds)
    )
  return f'{{{gold}}} ' if draw < 0.75 else rng.choice(golds)


def _absurd(rng: random.Random, golds: Sequence[str]) -> Pair:
  n = rng.randrange(10**6, 10**7)
  answers = (f'9^{{9^{{9^{{{n}}}}}}}', f'{n}!', f'\\binom{{10^9}}{{{n}}}', '(' * 300 + str(n) + ')' * 300)
  return rng.choice(golds), rng.choice(answers)


def _hang(number: int) -> Pair:
  """Two polynomials whose difference takes minutes to expand."""
  return f'(x+y+z)^{{{60 + number % 97}}}', f'(x+y+z+w)^{{{60 + number % 89}}}'
