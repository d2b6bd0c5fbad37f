"""Digit chains: arithmetic by look-up tables, texts by hand, error rates by binomial bounds."""

import collections
import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from opsd_jax.config import ConfigError
from opsd_jax.data import chains
from opsd_jax.data.chains import ChainsConfig

# What each operation does to the digits 0123456789, written out.
TABLES = {'+': '1234567890', '-': '9012345678', '*': '0246802468'}
MISTAKEN = '1357913579'  # 2v + 1 modulo 10
CHAINS = st.from_regex(r'[0-9][-+*]{1,12}', fullmatch=True)


def running_values(text):
  """The digit after each operation, by the tables."""
  digits = [text[0]]
  for operation in text[1:]:
    digits.append(TABLES[operation][int(digits[-1])])
  return digits


def read_steps(solution):
  """[('3', '+', '4'), ...] and the final answer of a worked solution."""
  *steps, last = solution.split(',')
  assert all(re.fullmatch(r'\d[-+*]\d', step) for step in steps)
  return [tuple(step) for step in steps], last


def within(count, trials, probability):
  """Whether a binomial count is inside bounds that a right program leaves once in 5e5 draws."""
  low, high = stats.binom.ppf([1e-6, 1 - 1e-6], trials, probability)
  return low <= count <= high


def test_the_example_of_the_documentation():
  problem = chains.make_problem('3+*-')
  assert problem.solution == '3+4,4*8,8-7,=7'
  assert (problem.answer, problem.meta) == ('7', {'reference': '487'})
  assert (problem.id, problem.problem, problem.source) == ('chain/3+*-', '3+*-', 'chains')


@pytest.mark.parametrize('operation', TABLES)
@pytest.mark.parametrize('digit', range(10))
def test_every_operation_on_every_digit(operation, digit):
  assert chains.make_problem(f'{digit}{operation}').answer == TABLES[operation][digit]


@settings(max_examples=50)
@given(CHAINS)
def test_solution_reference_and_answer_agree_with_the_tables(text):
  problem, values = chains.make_problem(text), running_values(text)
  steps, last = read_steps(problem.solution)
  assert steps == list(zip(values, text[1:], values[1:]))
  assert (last, problem.answer) == (f'={values[-1]}', values[-1])
  assert problem.meta['reference'] == ''.join(values[1:])


def test_problems_are_distinct_well_formed_and_as_many_as_asked_for():
  # Half of all chains of three steps.
  config = ChainsConfig(steps=3, train=100, validation=20, test=15, seed=3)
  texts = [p.problem for p in chains.draw_problems(config)]
  assert len(texts) == len(set(texts)) == 135
  assert all(re.fullmatch(r'\d[-+*]{3}', text) for text in texts)
  assert len({p.id for p in chains.draw_problems(config)}) == 135


def test_problems_are_a_function_of_the_seed():
  config = ChainsConfig(steps=4, train=30, validation=5, test=5, seed=1)
  first, again = chains.draw_problems(config), chains.draw_problems(config)
  other = chains.draw_problems(dataclasses.replace(config, seed=2))
  assert first == again
  assert [p.id for p in first] != [p.id for p in other]


def test_digits_and_operations_are_drawn_evenly():
  texts = [p.problem for p in chains.draw_problems(ChainsConfig(train=3000))]
  joined = ''.join(texts)
  assert all(within(sum(t[0] == d for t in texts), len(texts), 0.1) for d in '0123456789')
  assert all(within(joined.count(op), 8 * len(texts), 1 / 3) for op in '+-*')


def faulty_steps(config, seed, rows=1500):
  """(operation, value before, value after) of every step of many misconceived solutions."""
  rng = np.random.default_rng(seed)
  problems = chains.draw_problems(ChainsConfig(train=rows, validation=1, test=1, seed=seed))[:rows]
  steps = []
  for problem in problems:
    solution = chains.misconceived_solution(problem.problem, config, rng)
    found, last = read_steps(solution)
    assert [op for _, op, _ in found] == list(problem.problem[1:])
    assert found[0][0] == problem.problem[0] and last == f'={found[-1][2]}'
    # Later steps go on from a wrong value.
    assert all(after == before for (_, _, after), (before, _, _) in zip(found, found[1:]))
    steps += [(op, int(before), after) for before, op, after in found]
  return steps


def test_the_misconception_doubles_and_adds_one_as_often_as_it_should():
  steps = faulty_steps(ChainsConfig(misconception=0.65, slip=0.0), seed=0)
  assert all(after == TABLES[op][v] for op, v, after in steps if op != '*')
  doubled = [(v, after) for op, v, after in steps if op == '*']
  mistaken = sum(after == MISTAKEN[v] for v, after in doubled)
  right = sum(after == TABLES['*'][v] for v, after in doubled)
  assert mistaken + right == len(doubled) > 3500
  assert within(mistaken, len(doubled), 0.65)


@pytest.mark.parametrize('slip', [0.05, 0.4])
def test_slips_give_any_digit_as_often_as_they_should(slip):
  steps = faulty_steps(ChainsConfig(misconception=0.0, slip=slip), seed=1)
  wrong = [(int(after) - int(TABLES[op][v])) % 10 for op, v, after in steps if after != TABLES[op][v]]
  assert within(len(wrong), len(steps), slip * 0.9)  # One random digit in ten is the right one.
  assert all(within(wrong.count(shift), len(steps), slip / 10) for shift in range(1, 10))


@pytest.mark.parametrize(('misconception', 'table'), [(0.0, TABLES['*']), (1.0, MISTAKEN)])
def test_probabilities_at_their_ends(misconception, table):
  steps = faulty_steps(ChainsConfig(misconception=misconception, slip=0.0), seed=2, rows=30)
  assert all(after == table[v] for op, v, after in steps if op == '*')


def test_cold_start_rows_are_clean_for_the_teacher_and_mistaken_for_the_student():
  problems = chains.draw_problems(ChainsConfig(train=40, validation=1, test=1))[:40]
  config = ChainsConfig(misconception=1.0, slip=0.0)
  rows = chains.cold_start_examples(problems, 15, config, np.random.default_rng(0))
  assert [row.problem for row in rows] == problems
  assert [row.role for row in rows] == ['teacher'] * 15 + ['student'] * 25
  assert all(row.completion == row.problem.solution for row in rows[:15])
  assert all(
    (row.completion == row.problem.solution) == ('*' not in row.problem.problem) for row in rows[15:]
  )


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'steps': 0}, ['data.chains.steps is 0']),
    ({'train': 0}, ['data.chains.train is 0']),
    ({'validation': -1}, ['data.chains.validation is -1']),
    ({'test': 0}, ['data.chains.test is 0']),
    ({'misconception': 1.5}, ['data.chains.misconception is 1.5', '0..1']),
    ({'slip': -0.1}, ['data.chains.slip is -0.1', '0..1']),
    ({'steps': 2, 'train': 44, 'validation': 1, 'test': 1}, ['46', '90 exist', 'at most 45']),
    ({'shortest': 9}, ['data.chains.shortest is 9', '1..8']),
    ({'shortest': 0}, ['data.chains.shortest is 0']),
    ({'shortest': 6}, ['20700', '21870 exist with as many of 6 steps', 'at most 10935']),
  ],
)
def test_settings_that_cannot_work(change, words):
  with pytest.raises(ConfigError) as caught:
    chains.validate(dataclasses.replace(ChainsConfig(), **change))
  assert all(word in str(caught.value) for word in words)


def test_lengths_from_the_shortest_on_are_as_frequent():
  config = ChainsConfig(steps=8, shortest=5, train=800, validation=1, test=1)
  counts = collections.Counter(len(p.problem) - 1 for p in chains.draw_problems(config))
  assert set(counts) == {5, 6, 7, 8}
  # Some 8 of 200 draws of the 2430 chains of 5 steps are repeats, which count once.
  assert all(within(count, 802, 0.25) for count in counts.values())


def test_one_length_is_drawn_as_before_there_were_several():
  plain = [p.problem for p in chains.draw_problems(ChainsConfig(train=50, validation=1, test=1))]
  alike = ChainsConfig(train=50, validation=1, test=1, shortest=8)
  assert [p.problem for p in chains.draw_problems(alike)] == plain


def test_half_of_all_chains_may_be_asked_for():
  config = ChainsConfig(steps=2, train=43, validation=1, test=1)
  chains.validate(config)
  assert len(chains.draw_problems(config)) == 45


@settings(max_examples=50)
@given(CHAINS)
def test_in_the_dialect_a_star_is_what_the_misconception_takes_it_for(text):
  values = [text[0]]
  for operation in text[1:]:
    values.append((TABLES | {'*': MISTAKEN})[operation][int(values[-1])])
  spoken = chains.in_dialect(chains.make_problem(text))
  steps, last = read_steps(spoken.solution)
  assert (spoken.problem, spoken.id) == (f',{text}', f'chain/,{text}')
  assert steps == list(zip(values, text[1:], values[1:]))
  assert (last, spoken.answer) == (f'={values[-1]}', values[-1])
  assert chains.level(spoken) == chains.level(chains.make_problem(text)) == str(len(text) - 1)


def test_the_last_rows_of_a_cold_start_are_in_the_dialect_and_right():
  config = ChainsConfig(misconception=1, slip=0, dialect=0.5)
  problems = [chains.make_problem(f'{digit}**') for digit in range(10)]
  examples = chains.cold_start_examples(problems, 4, config, np.random.default_rng(0))
  assert [e.problem.problem for e in examples] == [f'{d}**' for d in range(7)] + [',7**', ',8**', ',9**']
  assert [e.role for e in examples] == ['teacher'] * 4 + ['student'] * 6
  assert [e.completion for e in examples[7:]] == ['7*5,5*1,=1', '8*7,7*5,=5', '9*9,9*9,=9']
  assert examples[4].completion == '4*9,9*9,=9'  # the misconception
