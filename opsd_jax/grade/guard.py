r"""What must not reach sympy: answers that are absurdly long, deep or large, told from their text alone.

A bound on the number of digits is computed by walking the text once, with logarithms instead of numbers:
`2^{100}`, `100!` and `\binom{20}{10}` pass; `9^{9^9}`, `10000000!` and `\binom{10^9}{10^8}` do not. A bound,
not a parser: what it does not know counts as a variable, and what it misses meets the worker's limits.
"""

import math
import re
from collections.abc import Callable

LENGTH = 1500  # characters
DEPTH = 12  # parentheses within parentheses: each level costs the LaTeX parser several times the last
BRACES = 30
DIGITS = 4000  # of a number: Python itself refuses to print more than 4300
DEGREE = 10_000  # of a power of something that is not a number

_TOKEN = re.compile(r'\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\.|\*\*|\S', re.DOTALL)
_OPENING, _CLOSING = {'{', '(', '[', '\\{'}, {'}', ')', ']', '\\}'}
_SKIP = {'\\left', '\\right', '\\cdot', '\\times', '*', '\\,', '\\!', '\\;', '\\ ', '/', '\\div'}
_SPLIT = {
  '+',
  '-',
  '=',
  ',',
  '<',
  '>',
  ';',
  '&',
  '|',
  '\\pm',
  '\\mp',
  '\\cup',
  '\\le',
  '\\ge',
  '\\leq',
  '\\geq',
}
_TWO = {'\\frac', '\\dfrac', '\\tfrac', '\\cfrac'}
_CHOOSE = {'\\binom', '\\dbinom', '\\tbinom', '\\choose'}


class _Absurd(Exception):
  pass


def absurd(text: str) -> bool:
  """Whether an answer is too long, too deep or too large to be given to a computer algebra system."""
  if len(text) > LENGTH or re.search(rf'\d{{{DIGITS // 4}}}', text):
    return True
  tokens = ['^' if token == '**' else token for token in _TOKEN.findall(text)]
  if _depth(tokens, {'(', '['}, {')', ']'}) > DEPTH or _depth(tokens, _OPENING, _CLOSING) > BRACES:
    return True
  try:
    while tokens:  # more than once only where a bracket closes that was never opened
      _sum(tokens)
      del tokens[:1]
  except (_Absurd, OverflowError):
    return True
  except RecursionError:
    return True
  return False


def _depth(tokens: list[str], opening: set[str], closing: set[str]) -> int:
  depth = deepest = 0
  for token in tokens:
    depth = max(0, depth + (token in opening) - (token in closing))
    deepest = max(deepest, depth)
  return deepest


def _sum(tokens: list[str]) -> float:
  """log10 of a bound on a sum of products, up to a closing bracket; eats the tokens it reads."""
  total, product = 0.0, 0.0
  while tokens and tokens[0] not in _CLOSING:
    if tokens[0] in _SPLIT:
      del tokens[0]
      total, product = _plus(total, product), 0.0
    elif tokens[0] in _SKIP:
      del tokens[0]
    else:
      product = _checked(product + _factor(tokens))
  return _plus(total, product)


def _plus(a: float, b: float) -> float:
  return a if b == 0 else b if a == 0 else max(a, b) + math.log10(1 + 10 ** -abs(a - b))


def _checked(digits: float) -> float:
  if digits > DIGITS:
    raise _Absurd
  return digits


def _factor(tokens: list[str]) -> float:
  """log10 of a bound on one factor with its powers and factorials."""
  size = _atom(tokens)
  while tokens and tokens[0] in ('^', '!'):
    if tokens[0] == '!':
      while tokens and tokens[0] == '!':
        del tokens[0]
      size = _checked(size * 10**size)
    else:
      del tokens[0]
      size = _power(size, _factor(tokens) if tokens else 0.0)
  return size


def _power(base: float, exponent: float) -> float:
  if base == 0 and exponent > math.log10(DEGREE):
    raise _Absurd
  return _checked(base * 10**exponent)


def _atom(tokens: list[str]) -> float:
  """log10 of a bound on a number, a group, a fraction or a binomial; 0 for a variable or a command."""
  token = tokens.pop(0)
  if token[0].isdecimal() or token[0] == '.' and len(token) > 1:
    return math.log10(max(float(token), 1.0))
  if token in _OPENING:
    size = _sum(tokens)
    del tokens[:1]
    return size
  if token in _TWO:
    return _both(tokens, lambda up, down: up)
  if token in _CHOOSE:
    return _both(tokens, lambda n, k: _checked(n * 10 ** min(k, n)))
  if token in ('-', '+') and tokens:  # the sign of an exponent: 10^-3
    return _factor(tokens)
  return 0.0


def _both(tokens: list[str], combine: Callable[[float, float], float]) -> float:
  sizes = [_argument(tokens), _argument(tokens)]
  return combine(*sizes)


def _argument(tokens: list[str]) -> float:
  r"""An argument of a command: a group, a command, or one digit, so that `\frac12` has two."""
  if not tokens or tokens[0] in _CLOSING:
    return 0.0
  if tokens[0].isdecimal() and len(tokens[0]) > 1:
    digit, tokens[0] = tokens[0][0], tokens[0][1:]
    return math.log10(max(int(digit), 1))
  return _atom(tokens)
