"""Every known answer of the benchmarks, graded against itself."""

import collections

import pytest

from opsd_jax.grade import grading, guard
from opsd_jax.grade.config import GradeConfig
from tests.grade import real

pytestmark = pytest.mark.data

COUNTS = {
  'aime24': 30,
  'aime24 with solutions': 30,
  'aime25': 30,
  'amc23': 40,
  'hmmt25': 30,
  'math500': 500,
  'gsm8k': 1319,
  'gsm8k train': 7473,
  'svamp': 1000,
  'dapo': 17917,
}


@pytest.mark.parametrize('rules', ['opsd', 'strict'])
@pytest.mark.parametrize('name', COUNTS)
def test_every_gold_can_be_graded(data_root, name, rules):
  golds = real.golds(data_root, name)
  verdicts = grading.check_golds(golds, GradeConfig(rules=rules))
  expected = {'correct': COUNTS[name]}
  if (name, rules) == ('math500', 'opsd'):
    expected = {'correct': 497, 'gold_unparsable': 3}
    unread = {gold for gold, verdict in zip(golds, verdicts) if verdict != 'correct'}
    assert unread == {r'\$32,\!348', r'\$18.90', r'\$36'}
  assert collections.Counter(verdicts) == expected


@pytest.mark.parametrize('name', COUNTS)
def test_no_gold_is_absurd(data_root, name):
  assert not any(map(guard.absurd, real.golds(data_root, name)))


def test_a_gold_is_right_when_boxed_and_numbers_however_they_are_written(data_root):
  for name in ('amc23', 'svamp', 'gsm8k', 'math500'):
    golds = real.golds(data_root, name)
    completions = [rf'so it is $\boxed{{{gold}}}$.' for gold in golds]
    assert grading.grade(completions, golds, GradeConfig(rules='strict')).correct.all()
  numbers = real.golds(data_root, 'svamp')
  whole = [rf'\boxed{{{int(float(number)):,}}}' for number in numbers]
  assert grading.grade(whole, numbers, GradeConfig(rules='strict')).correct.all()
