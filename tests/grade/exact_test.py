"""Verdicts: what counts as the final answer, and what as the right one."""

import numpy as np
import pytest

from opsd_jax.grade import exact


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
  assert exact.final_answer(completion) == answer


def test_verdicts_row_by_row():
  graded = exact.grade(['=7', '=8', '7', '=', '= 7 ', '=07'], ['7', '7', '7', '7', ' 7', '7'])
  assert graded.correct.tolist() == [True, False, False, False, True, False]
  assert graded.answered.tolist() == [True, True, False, False, True, True]
  assert graded.correct.dtype == graded.answered.dtype == np.bool_


def test_no_answer_is_never_right_even_where_nothing_is_expected():
  graded = exact.grade(['=', 'no'], ['', ''])
  assert not graded.correct.any() and not graded.answered.any()


def test_no_rows():
  graded = exact.grade([], [])
  assert graded.correct.shape == graded.answered.shape == (0,)


def test_every_row_needs_its_answer():
  with pytest.raises(ValueError):
    exact.grade(['=1', '=2'], ['1'])
