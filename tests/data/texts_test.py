"""Prints of one problem have the same words and marks; other problems do not."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.data import texts


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ("The farmer's 3 dogs.", 'the farmer s 3 dogs'),
    ('$3x+4y$', '3 x 4 y'),
    ('\\frac{1}{2}', '1 2'),
    ('\\frac12', '1 2'),
    ('\\dfrac 1 2', '1 2'),
    ('\\sin\\alpha', 'sin α'),
    ('\\varphi', 'φ'),
    ('\\lambda', 'λ'),
    ('λ', 'λ'),
    ('1,080 and 2{,}500 and 3,\\!600', '1080 and 2500 and 3600'),
    ('1,2,3', '1 2 3'),
    ('(1,234,5)', '1234 5'),
    ('\\begin{align*}a\\\\b\\end{align*}', 'a b'),
    ('求 x 的值', '求 x 的 值'),
    ('ﬁnd Ｘ²', 'find x2'),
    ('a_1', 'a 1'),
    ('... !? $$', ''),
    ('', ''),
  ],
)
def test_words(text, words):
  expected = words.replace('x2', 'x 2').split()
  assert texts.words(text) == expected


SAME = [
  ('Find $x$ if $x^2 = 4$.', 'FIND \\(x\\)  if\n\\[x^2=4\\]'),
  ('\\dfrac{a}{b}', '\\frac{a}{b}'),
  ('\\left( \\frac{1}{2} \\right)', '(\\frac12)'),
  ('a \\leq b', 'a\\le b'),
  ('1,080 apples', '1080 apples'),
  ('10{,}000', '10000'),
  ('the base-ten digits', 'the base ten digits'),
  ('\\text{lcm}(a,b)', '{lcm}(a,b)'),
  ('“Quoted,” she said…', '"quoted" she said...'),
  ('x − 1', 'x - 1'),
  ('\\pi r', 'π r'),
  ('ＡＢＣ', 'abc'),
]


@pytest.mark.parametrize(('one', 'other'), SAME, ids=range(len(SAME)))
def test_prints_of_one_problem(one, other):
  assert texts.canonical(one) == texts.canonical(other) and texts.mark(one) == texts.mark(other)


OTHER = [
  ('\\frac{2n + 1}{n}', '\\frac{2n - 1}{n}'),
  ('2+3', '2-3'),
  ('(2+3)*4', '2+3*4'),
  ('1.5', '15'),
  ('(1,23)', '(12,3)'),
  ('a < b', 'a > b'),
  ('\\sin x', '\\cos x'),
  ('a \\times b', 'a \\div b'),
  ('x^2', 'x_2'),
  ('5!', '5'),
  ('求 x', '求 y'),
  ('求和', '求积'),
  ('a ≤ b', 'a ≥ b'),
  ('?', '!'),
  ('?', '??'),
]


@pytest.mark.parametrize(('one', 'other'), OTHER, ids=range(len(OTHER)))
def test_other_problems(one, other):
  assert texts.mark(one) != texts.mark(other)


PLAIN = st.lists(st.sampled_from('alpha beta x y 1 23 + - = ( )'.split()), min_size=1, max_size=12)
SPACE = st.lists(
  st.sampled_from(['  ', '\n', ' $', '$ ', '\\, ', ' \\left ', ', ', ' {', '} ', '. ']), min_size=13
)


@given(PLAIN, SPACE, st.booleans())
def test_dress_does_not_matter(parts, spaces, upper):
  plain = ' '.join(parts)
  dressed = ''.join(space + part for space, part in zip(spaces, parts))
  dressed = dressed.replace('alpha', 'ALPHA').replace('x', 'X') if upper else dressed
  assert texts.mark(plain) == texts.mark(dressed)
  assert texts.words(plain) == texts.words(dressed)


@given(PLAIN, PLAIN)
def test_equal_marks_are_equal_problems(one, other):
  assert (texts.mark(' '.join(one)) == texts.mark(' '.join(other))) == (one == other)


@given(st.text())
def test_any_text_has_words_and_a_mark(text):
  assert len(texts.mark(text)) == 16
  assert all(word and word.casefold() == word and ' ' not in word for word in texts.words(text))


def test_marks_are_the_same_in_every_process():
  code = 'from opsd_jax.data import texts; print(texts.mark("Find $x$.").hex())'
  runs = {
    subprocess.run(
      [sys.executable, '-c', code], env={'PYTHONHASHSEED': seed}, capture_output=True, text=True, check=True
    ).stdout.strip()
    for seed in ('0', '1')
  }
  assert runs == {texts.mark('find x').hex()}
