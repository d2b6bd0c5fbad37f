"""Subsets are sequences, selections count what they leave out, and held-out texts are nowhere else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.data import index
from opsd_jax.data.chains import make_problem
from opsd_jax.records import Problem

PROBLEMS = [make_problem(f'{d}+') for d in range(10)]


def of_texts(texts):
  return [Problem(f'p{i}', t, '', '1', 'here') for i, t in enumerate(texts)]


def test_a_subset_is_a_sequence():
  subset = index.take(PROBLEMS, np.array([7, 2, 5]))
  expected = [PROBLEMS[7], PROBLEMS[2], PROBLEMS[5]]
  assert len(subset) == 3 and list(subset) == expected and [*reversed(subset)] == expected[::-1]
  assert subset[np.int64(1)] == subset[1] == subset[-2] == PROBLEMS[2]
  assert subset[1:] == expected[1:] and subset[:99] == expected and subset[::-1] == expected[::-1]
  assert PROBLEMS[5] in subset and PROBLEMS[6] not in subset
  for outside in (3, -4):
    with pytest.raises(IndexError):
      subset[outside]


def test_a_subset_of_a_subset_reads_the_original():
  subset = index.take(index.take(PROBLEMS, np.array([9, 8, 7])), np.array([2, 0]))
  assert subset.problems is PROBLEMS and list(subset) == [PROBLEMS[7], PROBLEMS[9]]


def too_big(problem):
  return 'the digit is above 6' if int(problem.problem[0]) > 6 else None


def test_problems_that_do_not_fit_are_left_out_and_counted():
  chosen = index.select(PROBLEMS, too_big, 'drop', 'train problems')
  assert list(chosen.problems) == PROBLEMS[:7] and chosen.dropped == {'the digit is above 6': 3}


def test_where_all_fit_nothing_changes():
  chosen = index.select(PROBLEMS[:5], too_big, 'error', 'train problems')
  assert chosen.problems == PROBLEMS[:5] and chosen.dropped == {}


def test_the_first_misfit_can_be_an_error():
  with pytest.raises(ConfigError, match="test problems: 'chain/7.' does not fit: the digit is above 6.*drop"):
    index.select(PROBLEMS, too_big, 'error', 'test problems')


def test_nothing_left_says_why():
  reasons = {'7': 'too odd', '8': 'too even', '9': 'too odd'}
  with pytest.raises(ConfigError) as caught:
    index.select(PROBLEMS[7:], lambda p: reasons[p.problem[0]], 'drop', 'train problems')
  assert 'none of the 3 train problems fits: 2 because: too odd; 1 because: too even' in str(caught.value)


def test_fingerprints_are_equal_for_equal_texts():
  marks = index.fingerprints(of_texts(['a', 'b', 'a', 'a ']))
  assert marks[0] == marks[2] and len(set(marks)) == 3 and {len(m) for m in marks} == {16}


def test_two_problems_with_one_id():
  with pytest.raises(ConfigError, match="id 'p0'.*data.fields.id=none"):
    index.fingerprints(of_texts('ab') + of_texts('c'))


@settings(max_examples=60)
@given(st.lists(st.sampled_from('abcdefgh'), min_size=2), st.integers(1, 7), st.integers(0, 5))
def test_held_out_texts_are_distinct_and_nowhere_else(texts, count, seed):
  marks = index.fingerprints(of_texts(texts))
  if count >= len(set(texts)):
    with pytest.raises(ConfigError, match=f'x is {count}.*{len(set(texts))} different'):
      index.hold_out(marks, count, (seed,), 'x')
    return
  held, rest = index.hold_out(marks, count, (seed,), 'x')
  held_texts = [texts[i] for i in held]
  assert len(held_texts) == len(set(held_texts)) == count
  # The rest is every problem of another text, in the old order.
  assert [texts[i] for i in rest] == [t for t in texts if t not in held_texts] and len(rest) > 0
  assert list(held) == sorted(held) and all(texts.index(texts[i]) == i for i in held)


def test_what_is_held_out_depends_on_the_seed_alone():
  marks = index.fingerprints(of_texts(map(str, range(100))))
  draws = [tuple(index.hold_out(marks, 20, (seed, 0), 'x')[0]) for seed in (0, 1, 0)]
  assert draws[0] == draws[2] != draws[1]


def test_every_problem_can_be_held_out():
  marks = index.fingerprints(of_texts(map(str, range(20))))
  held = [i for seed in range(200) for i in index.hold_out(marks, 5, (seed,), 'x')[0]]
  counts = np.bincount(held, minlength=20)  # of 200 with probability 1/4: 50, deviation 6.1
  assert counts.min() > 20 and counts.max() < 80


def test_a_sample_keeps_the_order():
  assert list(index.sample(5, None, (0,))) == list(index.sample(5, 9, (0,))) == list(range(5))
  drawn = index.sample(100, 30, (0,))
  assert len(set(drawn)) == 30 and list(drawn) == sorted(drawn) and drawn[-1] >= 60
