"""Verdicts: what counts as the final answer, and what as the right one."""

import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.grade import exact
from opsd_jax.grade.config import GradeConfig, validate


@pytest.mark.parametrize(
  ('completion', 'answer'),
  [
    ('3+4,4*8,=8', '8'),
    ('=7', '7'),
    ('=1,=2', '2'),
    ('1==2', '2'),
    ('= 12 \n', '12'),
    ('x = 3 = 4', '4'),
    ('=7,', '7,'),
    ('=ab c', 'ab c'),
    ('', None),
    ('3+4', None),
    ('=', None),
    ('3+4,= \t', None),
    ('=5=', None),
  ],
)
def test_the_final_answer_follows_the_last_equals_sign(completion, answer):
  assert exact.after_equals(completion) == answer


@pytest.mark.parametrize(
  ('completion', 'answer'),
  [
    (r'so \boxed{12}.', '12'),
    (r'\boxed{1} or \boxed{2}', '2'),
    (r'\boxed{\frac{1}{2}}', r'\frac{1}{2}'),
    (r'\boxed{ {a} }', '{a}'),
    (r'\boxed{3', None),
    (r'\boxed{}', None),
    (r'\boxed 3', None),
    ('= 3', None),
    ('', None),
  ],
)
def test_the_final_answer_stands_in_the_last_box(completion, answer):
  assert exact.in_box(completion) == answer


def test_the_config_says_where_the_answer_stands():
  completions, answers = [r'\boxed{4} = 5'] * 2, ['4', '5']
  assert exact.grade(completions, answers, GradeConfig(answer='boxed')).correct.tolist() == [True, False]
  assert exact.grade(completions, answers, GradeConfig(answer='equals')).correct.tolist() == [False, True]
  with pytest.raises(ConfigError, match="grade.answer is 'box'.*boxed"):
    validate(GradeConfig(answer='box'))


def test_found_answers_and_the_same_text():
  assert exact.find('= 4', GradeConfig()) == '4'
  assert exact.find('= 4', GradeConfig(answer='boxed')) is None
  assert exact.same(' 1,080', '1080') and not exact.same('1,08', '108')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'rules': 'strikt'}, "grade.rules is 'strikt'.*strict"),
    ({'seconds': 0.0}, 'grade.seconds is 0.0; it must be greater than 0'),
    ({'memory_gib': -1.0}, 'grade.memory_gib is -1.0'),
    ({'workers': 0}, 'grade.workers is 0'),
    ({'seconds': float('inf')}, 'grade.seconds is inf.*finite'),
    ({'seconds': float('nan')}, 'grade.seconds is nan'),
  ],
)
def test_rules_that_are_unknown_and_limits_of_nothing(changes, message):
  with pytest.raises(ConfigError, match=message):
    validate(GradeConfig(**changes))


def test_verdicts_row_by_row():
  graded = exact.grade(['=7', '=8', '7', '=', '= 7 ', '=07'], ['7', '7', '7', '7', ' 7', '7'])
  assert graded.correct.tolist() == [True, False, False, False, True, False]
  assert graded.answered.tolist() == [True, True, False, False, True, True]
  assert graded.correct.dtype == graded.answered.dtype == np.bool_
  assert graded.verdicts[2] == 'unformatted' and graded.verdicts[5] == 'wrong'


def test_separators_of_thousands_say_nothing():
  completions = [r'\boxed{1,080}', r'\boxed{1080}', r'\boxed{1,08}', r'\boxed{3,4}', r'\boxed{12,345,678}']
  answers = ['1080', '1,080', '108', '34', '12345678']
  graded = exact.grade(completions, answers, GradeConfig(answer='boxed'))
  assert graded.correct.tolist() == [True, True, False, False, True]


def test_no_answer_is_never_right_even_where_nothing_is_expected():
  graded = exact.grade(['=', 'no'], ['', ''])
  assert not graded.correct.any() and not graded.answered.any()


def test_no_rows():
  graded = exact.grade([], [])
  assert graded.correct.shape == graded.answered.shape == (0,)


def test_every_row_needs_its_answer():
  with pytest.raises(ValueError):
    exact.grade(['=1', '=2'], ['1'])
