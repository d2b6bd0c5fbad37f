"""Marking by kind, and answers that are the same: against the grader itself and against brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.evaluate import catalogue, marking
from opsd_jax.evaluate.benchmarks import BENCHMARKS, Loaded
from opsd_jax.grade import grading
from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Graded, Problem, Verdict

STRICT = GradeConfig(rules='strict')


def loaded(name, *answers, tasks=None):
  problems = [Problem(f'{name}/{i}', 'Q', '', answer, name) for i, answer in enumerate(answers)]
  return Loaded(BENCHMARKS.get(name) or catalogue.own(name, None), problems, tasks or {}, '', {})


def test_mathematics_is_marked_by_both_rules():
  known = loaded('math500', '\\$36', '2', '2', '2')
  texts = ['\\boxed{\\$36}', 'so \\boxed{1+1}', 'it is 2', '\\boxed{3}']
  answers, verdicts = marking.mark(known, known.problems, texts, STRICT)
  assert answers == ['\\$36', '1+1', None, '3']
  assert [v['strict'] for v in verdicts] == ['correct', 'correct', 'unformatted', 'wrong']
  assert [v['opsd'] for v in verdicts] == ['gold_unparsable', 'correct', 'unformatted', 'wrong']


@pytest.mark.parametrize('rules', ['opsd', 'strict', 'text'])
def test_the_answer_is_read_by_the_rules_that_were_asked_for(rules):
  known = loaded('aime24', '5')
  (answer,), (verdicts,) = marking.mark(known, known.problems, ['\\boxed 5'], GradeConfig(rules=rules))
  assert list(verdicts) == ['opsd', 'strict']
  assert answer == grading.find('\\boxed 5', GradeConfig(rules='opsd' if rules == 'opsd' else 'strict'))
  assert verdicts == {'opsd': 'unformatted', 'strict': 'correct'}


def test_multiple_choice_is_marked_by_its_letter():
  known = loaded('gpqa', 'C', 'C', 'C')
  texts = ['I take \\boxed{C}', '\\boxed{(A)}', 'none']
  answers, verdicts = marking.mark(known, known.problems, texts, STRICT)
  assert [list(v.items()) for v in verdicts] == [
    [('choice', 'correct')],
    [('choice', 'wrong')],
    [('choice', 'unformatted')],
  ]
  assert answers[2] is None and answers[0] is not None


def test_nothing_is_marked_of_nothing():
  assert marking.mark(loaded('aime24'), [], [], STRICT) == ([], [])
  with pytest.raises(ValueError, match='1 completions of 0 problems'):
    marking.mark(loaded('aime24'), [], ['x'], STRICT)


# --- Answers that are the same.


def test_answers_are_the_same_by_value():
  known = loaded('math500', '1')
  answers = ['1/2', '0.5', None, '\\frac{1}{2}', '3', '0.50', '3', 'x']
  assert marking.same_answers(known, answers, STRICT) == [0, 0, -1, 0, 1, 0, 1, 2]
  assert marking.same_answers(known, answers, GradeConfig(rules='text')) == [0, 1, -1, 2, 3, 4, 3, 5]
  assert marking.same_answers(known, [None, None], STRICT) == [-1, -1]
  assert marking.same_answers(known, [], STRICT) == []


def test_letters_are_the_same_and_programs_only_as_texts():
  assert marking.same_answers(loaded('gpqa', 'A'), ['A', 'B', '(A)', 'A'], STRICT) == [0, 1, 0, 0]
  assert marking.same_answers(loaded('humaneval', ''), ['1/2', '0.5', '1/2'], STRICT) == [0, 1, 0]


def one_by_one(answers, alike):
  """Every answer joins the first cluster whose first member it is like, in the order of the answers."""
  firsts, labels = [], []
  for answer in answers:
    if answer is None:
      labels.append(-1)
      continue
    joined = [i for i, first in enumerate(firsts) if first == answer or alike(first, answer)]
    labels.append(joined[0] if joined else len(firsts))
    if not joined:
      firsts.append(answer)
  return labels


_answers = st.lists(st.lists(st.none() | st.sampled_from('abcdefgh'), max_size=7), max_size=4)


@settings(max_examples=200)
@given(_answers, st.integers(1, 9))
def test_clusters_are_those_of_one_answer_after_the_other(answers, unlike):
  """Equality that is neither symmetric nor transitive; asked once a round for all problems."""

  def alike(first, second):
    return (ord(second) - ord(first)) % 10 in (1, 3) and ord(first) % unlike != 0

  rounds = []

  def equal(first, second, config):
    rounds.append(len(first))
    return tuple(alike(a, b) for a, b in zip(first, second, strict=True))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(grading, 'equal', equal)
    found = marking.clusters(loaded('aime24', '1'), answers, STRICT)
  assert found == [one_by_one(row, alike) for row in answers]
  assert len(rounds) <= max([len(set(row) - {None}) for row in answers], default=0)


# --- Programs, with a judge that runs nothing.


def test_programs_are_marked_by_their_tests(monkeypatch):
  extract = pytest.importorskip('opsd_jax.grade.programs.extract')
  judge = pytest.importorskip('opsd_jax.grade.programs.judge')
  known = loaded('humaneval_plus', '', '', tasks={'humaneval_plus/0': 'task 0', 'humaneval_plus/1': 'task 1'})
  asked = {}

  def judged(programs, tasks, config):
    asked.update(programs=programs, tasks=tasks)
    return {
      'base': Graded((Verdict.CORRECT, Verdict.UNFORMATTED)),
      'plus': Graded((Verdict.WRONG, Verdict.UNFORMATTED)),
    }

  monkeypatch.setattr(extract, 'program', lambda text, task: None if 'no' in text else f'{task}: {text}')
  monkeypatch.setattr(judge, 'judge', judged)
  answers, verdicts = marking.mark(known, known.problems, ['def f', 'no'], STRICT)
  assert answers == asked['programs'] == ['task 0: def f', None] and asked['tasks'] == ['task 0', 'task 1']
  assert verdicts == [{'base': 'correct', 'plus': 'wrong'}, {'base': 'unformatted', 'plus': 'unformatted'}]
