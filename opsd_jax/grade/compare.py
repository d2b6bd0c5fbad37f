"""What a worker does: two answers, given to math-verify.

Needs no JAX: it is imported by the processes that grade. There `seconds` is enforced by who asks, so that
math-verify's own alarms are switched off.
"""

import functools
import logging
from typing import Any

from opsd_jax.grade import plain


def prepare() -> None:
  """Imports math-verify and takes what it does by the usual ways once, before workers are forked.

  Parser and sympy fill tables as they go: a worker that had to fill its own would need a second for that.
  """
  logging.disable(logging.CRITICAL)
  for gold, answer in _WARM:
    compare('opsd', gold, answer)


_WARM = (
  ('\\frac{1}{2}', '0.5'),
  ('\\left( 3, \\frac{\\pi}{2} \\right)', '(3, \\pi/2)'),
  ('x^2 - 2\\sqrt{3} + \\sqrt[3]{y}', '-2\\sqrt3+x^{2}+y^{1/3}'),
  ('\\begin{pmatrix} 1 \\\\ -2 \\end{pmatrix}', '\\begin{pmatrix}1\\\\-2\\end{pmatrix}'),
  ('x \\in [-2,7) \\cup (8, \\infty)', '[-2, 7)\\cup(8,\\infty)'),
  ('2^{25} \\cdot 26!', '\\binom{4}{2} + \\sin(\\theta) \\cos 2x - \\log_2 8'),
  ('1 \\pm i', '\\{1, 2\\}'),
  ('90^\\circ', '\\text{east}'),
  ('y = 2x + 3', '|x| < 5'),
  ('x^2 + 2x + 1', '(x+1)^2'),
  ('x^2 + 6', 'x^2 + 7'),
  ('\\sin x + 1', '\\cos x'),
  ('\\sqrt{2} + \\pi', '3'),
  ('(1,2)', '(1,3)'),
  ('\\frac{a+1}{b}', '\\frac{a}{b} + \\frac1b'),
  ('e^{2x}', 'e^x e^x'),
  ('x < 5', 'x > 5'),
)


def compare(rules: str, gold: str, answer: str) -> str:
  """The verdict on an answer that was read off a completion, as the text of a `records.Verdict`."""
  return {'opsd': opsd, 'strict': strict, 'readable': readable}[rules](gold, answer)


def opsd(gold: str, answer: str) -> str:
  """As the reference: dollar signs around what has none, no fallback, and equal texts where that fails."""
  try:
    known, given = (_parse(text if '$' in text else f'${text}$') for text in (gold, answer))
    return _verify(known, given)
  except Exception:  # The reference compares texts then, and so does this.
    return 'correct' if _bare(gold) == _bare(answer) else 'wrong'


def _bare(text: str) -> str:
  return text.replace('$', '').replace(' ', '').lower().strip()


def strict(gold: str, answer: str) -> str:
  """Dollar signs are currency or dress, never part of the answer; the rest is math-verify's."""
  return _verify(*(_parse(f'${plain.tidy(text)}$') for text in (gold, answer)))


def readable(gold: str, answer: str) -> str:
  """Whether `strict` can read a known answer at all; `answer` is not used."""
  return 'correct' if _parse(f'${plain.tidy(gold)}$') else 'gold_unparsable'


@functools.lru_cache(1000)  # parsing is most of the work, and many completions have the same known answer
def _parse(text: str) -> list[Any]:
  import math_verify

  return math_verify.parse(text, fallback_mode='no_fallback', parsing_timeout=None)


def _verify(gold: list[Any], answer: list[Any]) -> str:
  import math_verify

  if not gold:
    return 'gold_unparsable'
  return 'correct' if math_verify.verify(gold, answer, timeout_seconds=None) else 'wrong'
