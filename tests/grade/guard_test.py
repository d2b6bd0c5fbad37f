"""Absurd sizes are told from the text."""

import math
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given

from opsd_jax.grade import guard


def nested(opening, inside, closing, depth):
  return opening * depth + inside + closing * depth


ABSURD = {
  'tower': '9^{9^{9^9}}',
  'tower in dollars': '$9^{9^{9^9}}$',
  'tower without braces': '9^9^9^9',
  'tower of Python': '9**9**9',
  'power of powers': '((9^9)^9)^9999',
  'factorial': '10000000!',
  'factorial of a factorial': '(20!)!',
  'factorial of a sum': r'(10^4 + 7 \cdot 10^3)!',
  'power of a factorial': '2^{12!}',
  'product of powers': r'10^{3000} \cdot 10^{3000}',
  'binomial': r'\binom{10^9}{5\cdot 10^8}',
  'small binomial symbol': r'\dbinom{1000000}{500000}',
  'degree': 'x^{100000000}',
  'sum': r'\sum_{k=1}^{10^9} \frac1k',
  'parentheses': nested('(', '1', ')', 300),
  'some parentheses': nested('(', '1', ')', 20),
  'brackets': nested('[', '1', ']', 300),
  'fractions': nested(r'\frac{1}{1+', 'x', '}', 50),
  'roots': nested(r'\sqrt{1+', 'x', '}', 40),
  'digits': '9' * 1_000_000,
  'some digits': '9' * 1001,
  'length': '1+' * 1000,
  'never closed': '(' * 500,
  'after a stray bracket': '} ) 9^{9^{9^9}}',
}
FINE = {
  'empty': '',
  'power': '2^{100}',
  'year': '2^{2023}',
  'googol': '10^{100}',
  'negative power': '10^{-34}',
  'binomial': r'\binom{20}{10}',
  'binomial of a year': r'\binom{2024}{2}',
  'shorthand': r'\binom52 + \frac12',
  'factorial': '10!',
  'large factorial': '100!',
  'double factorial': '9!!',
  'contest': r'2^{25} \cdot 26!',
  'difference of years': 'x^{2023-2019}',
  'tower': '2^{2^{10}}',
  'polynomial': 'x^{100} + x^{99} + 1',
  'sum': r'\sum_{k=0}^{2023} k',
  'interval': r'(-\infty, -1) \cup [10^6, \infty)',
  'matrix': r'\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}',
  'coordinates': '((1,2),(3,4))',
  'fractions': nested(r'\frac{1}{1+', 'x', '}', 6),
}


@pytest.mark.parametrize('name', ABSURD)
def test_absurd(name):
  assert guard.absurd(ABSURD[name])


@pytest.mark.parametrize('name', FINE)
def test_fine(name):
  assert not guard.absurd(FINE[name])


@given(st.integers(2, 10**6), st.integers(1, 10**6))
def test_a_power_is_absurd_by_its_digits(base, exponent):
  digits = exponent * math.log10(base)
  if abs(digits - guard.DIGITS) > 1e-3:
    assert guard.absurd(f'{base}^{{{exponent}}}') == (digits > guard.DIGITS)


@given(st.integers(1, 5000))
def test_a_factorial_that_is_let_through_can_be_printed(n):
  digits = math.lgamma(n + 1) / math.log(10)
  assert guard.absurd(f'{n}!') or digits < guard.DIGITS
  assert not guard.absurd(f'{n}!') or digits > guard.DIGITS / 2


@given(st.integers(1, 10**5), st.integers(1, 10**5))
def test_a_binomial_that_is_let_through_can_be_printed(n, k):
  k = min(n, k)
  digits = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(10)
  assert guard.absurd(rf'\binom{{{n}}}{{{k}}}') or digits < guard.DIGITS


@given(st.text(alphabet='0123456789.^!{}()[]\\binomfracleft+-*/,=$x ', max_size=120))
def test_any_text_is_judged(text):
  assert guard.absurd(text) in (True, False)


def test_the_longest_text_is_judged_at_once():
  began = time.monotonic()
  for unit in ('(', '{', '^', '!', '1+', '\\frac', '9^', '\\binom{', '}{'):
    guard.absurd((unit * guard.LENGTH)[: guard.LENGTH])
  assert time.monotonic() - began < 2
