"""Numbers as exact fractions, and texts that say the same."""

from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given

from opsd_jax.grade import plain


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('0', 0),
    ('007', 7),
    ('-12', -12),
    ('+3', 3),
    ('\u22125', -5),
    ('1,080', 1080),
    ('1{,}080', 1080),
    (r'10,\!080', 10080),
    (r'11,\! 111,\! 111,\! 100', 11111111100),
    ('12,345,678.5', Fraction(24691357, 2)),
    ('27.0', 27),
    ('27.', 27),
    ('.35', Fraction(7, 20)),
    ('1.5e3', 1500),
    ('2E-2', Fraction(1, 50)),
    (r'\$18.90', Fraction(189, 10)),
    ('$12$', 12),
    ('3/4', Fraction(3, 4)),
    (r'\frac{3}{4}', Fraction(3, 4)),
    (r'-\dfrac{3}{4}', Fraction(-3, 4)),
    (r'\tfrac{-3}{4}', Fraction(-3, 4)),
    (r'\frac34', Fraction(3, 4)),
    (r'\frac 34', Fraction(3, 4)),
    (r'\frac9{19}', Fraction(9, 19)),
    (r'1\frac{4}{5}', Fraction(9, 5)),
    (r'137 \frac{1}{2}', Fraction(275, 2)),
    (r'-1\frac12', Fraction(-3, 2)),
    (r'90^\circ', 90),
    (r'90^{\circ}', 90),
    (r'10\text{ cm}', 10),
    (r'864 \mbox{ inches}^2', 864),
    (r'\frac{270}{7}\text{ degrees}', Fraction(270, 7)),
    ('10_{10}', 10),
    ('', None),
    ('x', None),
    ('1,08', None),
    ('1,2', None),
    ('12,34', None),
    (r'\frac{1}{0}', None),
    ('1/0', None),
    ('1-2', None),
    ('100_8', None),
    ('6:30', None),
    (r'50\%', None),
    (r'10\text{ million}', 10**7),
    (r'2.5 \text{ million dollars}', 2_500_000),
    (r'3\text{ dozen}', 36),
    (r'1\text{ millionth}', None),
    (r'2\text{ and a half}', None),
    (r'5\mathrm{i}', None),
    (r'5\text{ e}', None),
    (r'5\,\mathrm{cm}', 5),
    ('1\\\\2', None),
    (r'5\text{ or }6', None),
    ('1 2', None),
    ('٣', 3),
    ('9' * 2000, None),
  ],
)
def test_a_number_is_read(text, value):
  assert plain.number(plain.tidy(text)) == value


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_ways_to_write_a_fraction(up, down):
  value = Fraction(up, down)
  sign, size = '-' * (up < 0), abs(up)
  ways = [f'{up}/{down}', rf'\frac{{{up}}}{{{down}}}', rf'{sign}\dfrac{{{size}}}{{{down}}}']
  assert {plain.number(plain.tidy(way)) for way in ways} == {value}


@given(st.decimals(-(10**9), 10**9, places=3))
def test_ways_to_write_a_decimal(decimal):
  ways = [f'{decimal:f}', f'{decimal:,f}', f'{decimal:f}000', f'{decimal:e}', rf'\$ {decimal:f}']
  assert {plain.number(plain.tidy(way)) for way in ways} == {Fraction(decimal)}


@given(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30))
def test_integers_are_compared_exactly(first, second):
  assert plain.same(str(first), f'{second:,}.0') == (first == second)


@pytest.mark.parametrize(
  ('first', 'second', 'same'),
  [
    (r'\text{Evelyn}', 'Evelyn', True),
    (r'\left( 3, \frac{\pi}{2} \right)', r'(3,\dfrac{\pi}{2})', True),
    ('p - q', 'p-q', True),
    (r'52_{8}', '52_8', True),
    ('x^{2}', 'x^2', True),
    ('x^{12}', 'x^12', None),
    ('1 2', '12', None),
    ('1/3', '0.333333', None),
    ('1/3', '0.3333', False),
    ('100_8', '100', False),
    ('100_8', '100_9', False),
    ('100_8', '64', False),
    ('x_1', 'x_2', None),
    ('6:30', '6:30', True),
    ('6:30', r'06:30\text{ a.m.}', True),
    ('6:30 a.m.', '6:30 pm', False),
    ('6:30', '6:31', False),
    ('6:30', '1/5', False),
    ('6:30', '9' * 5000 + ':30', False),
    ('100_8', r'100_{\text{eight}}', None),
    ('100', r'100_{\text{eight}}', False),
    ('100', r'100\text{ (base 8)}', False),
    ('2', r'2\text{ and a half}', False),
    (r'10\text{ million}', '10{,}000{,}000', True),
    (r'10\text{ million}', '10', False),
    (r'10\text{ million}', r'10\text{ billion}', False),
    ('5i', r'5\mathrm{i}', True),
    (r'2\pi', r'2\text{pi}', True),
    ('0.0000001', '0.0000002', False),
    ('1/10000000', '0.0000002', False),
    ('0', '0.0000001', False),
    (r'\{1,2\}', '(2,1)', False),
    (r'\{1,2\}', r'\left\{ 2, 1 \right\}', None),
    (r'\{\frac12, 3\}', r'[\frac12, 3]', False),
    (r'(1,2)\cup(3,4)', r'\{1,2\}', None),
    (r'\{5\}', '(5)', None),
    ('BAC', 'CAB', False),
    ('7', '7\\\\8', None),
    (r'\begin{pmatrix} 1 \\ -2 \end{pmatrix}', '\\begin{pmatrix}1\\\\[2pt]-2\\end{pmatrix}', True),
    ('', '', None),
  ],
)
def test_what_is_the_same_without_algebra(first, second, same):
  assert plain.same(first, second) is same
  assert plain.same(second, first) is same


def test_rows_stay_rows_and_parted_answers_are_parted():
  assert plain.tidy(r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}') == r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}'
  assert plain.tidy('7\\\\8') == '7,8' and plain.tidy('7 \\\\ -8') == '7 , -8'


@given(st.text(alphabet='0123456789,.:/{}()\\fractextboxed ^_-+$%xe', max_size=60))
def test_any_text_can_be_compared_with_any(text):
  assert plain.same(text, '5') in (True, False, None)
  assert plain.same(text, text) in ((True,) if plain.tidy(text) else (True, None))
