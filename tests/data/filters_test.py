"""Lengths, copies and answers of one problem."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.data import filters
from opsd_jax.data.filters import FiltersConfig, Prints
from opsd_jax.records import Problem


@pytest.mark.parametrize(
  ('setting', 'problem', 'solution', 'words'),
  [
    ('min_problem', 2, 3, 'its problem is shorter than data.filters.min_problem (3)'),
    ('max_problem', 4, 3, 'its problem is longer than data.filters.max_problem (3)'),
    ('min_solution', 3, 2, 'its solution is shorter than data.filters.min_solution (3)'),
    ('max_solution', 3, 4, 'its solution is longer than data.filters.max_solution (3)'),
  ],
)
def test_lengths(setting, problem, solution, words):
  config = FiltersConfig(**{setting: 3})
  assert filters.misfit(config, Problem('a', 'p' * problem, 's' * solution, '1', '')) == words
  assert filters.misfit(config, Problem('a', 'ppp', 'sss', '1', '')) is None


def test_any_length_fits_where_nothing_is_said():
  for size in (1, 10**6):
    assert filters.misfit(FiltersConfig(), Problem('a', 'p' * size, '', '1', '')) is None


@pytest.mark.parametrize(
  ('one', 'other', 'same'),
  [
    ('27.0', '27', True),
    ('1,080', '1080', True),
    ('$18', '18', True),
    ('1/2', '0.5', True),
    ('-3', '3', False),
    ('007', '7', True),
    ('$\\dfrac{1}{2}$', '\\frac12', True),
    ('x+1', 'x-1', False),
    ('(1, 2)', '(1,2)', True),
    ('A', 'B', False),
    ('1/0', '1/1', False),
    ('∅', '∞', False),
    ('?', '??', False),
    ('1,2', '12', False),
    ('1,2,3', '123', False),
    ('12,345,678', '12345678', True),
    ('1.5e3', '1,500', True),
    ('1e999999999', '1e999999998', False),
    ('9' * 5000, '9' * 5001, False),
  ],
)
def test_answers(one, other, same):
  assert (filters.same_answer(one) == filters.same_answer(other)) == same


def test_prints():
  rows = [(0, b'a', '1'), (2, b'b', '1'), (3, b'a', '1'), (5, b'c', '1'), (7, b'c', '2'), (8, b'c', '1')]
  assert filters.prints(rows) == [Prints((0, 3), True), Prints((5, 7, 8), False)]


@pytest.mark.parametrize(
  ('copies', 'conflicts', 'out'),
  [
    ('drop', 'drop', [3, 5, 7, 8]),
    ('keep', 'drop', [5, 7, 8]),
    ('drop', 'keep', [3, 7, 8]),
    ('keep', 'keep', []),
  ],
)
def test_reasons(copies, conflicts, out):
  found = [Prints((0, 3), True), Prints((5, 7, 8), False)]
  reasons = filters.reasons(FiltersConfig(copies=copies, conflicts=conflicts), found)
  assert sorted(reasons) == out
  assert all('data.filters.co' in reason for reason in reasons.values())


ROWS = st.lists(st.tuples(st.sampled_from('abc'), st.sampled_from('12')), max_size=12)


@given(ROWS)
def test_one_of_each_problem_is_left_and_it_is_not_in_doubt(rows):
  marked = [(i, text.encode(), answer) for i, (text, answer) in enumerate(rows)]
  out = filters.reasons(FiltersConfig(), filters.prints(marked))
  answers = {text: {a for t, a in rows if t == text} for text, _ in rows}
  expected = [
    rows.index(next(r for r in rows if r[0] == text)) for text, some in answers.items() if len(some) == 1
  ]
  assert sorted(set(range(len(rows))) - set(out)) == sorted(expected)
