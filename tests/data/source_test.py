"""Splits do not overlap, and the data of an update depends on the seed and its number alone."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.data import source
from opsd_jax.data.chains import ChainsConfig, make_problem
from opsd_jax.data.source import DataConfig, Splits

SMALL = DataConfig(chains=ChainsConfig(steps=3, train=60, validation=12, test=20))


def flat(size, count, seed, updates):
  """The problems (integers here) of the first updates, one after the other."""
  problems = list(range(size))
  return [p for step in range(updates) for p in source.problems_of_update(problems, count, seed, step)]


def test_splits_have_their_sizes_and_share_nothing():
  splits = source.load(SMALL)
  assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [60, 12, 20]
  texts = [p.problem for p in splits.train + splits.validation + splits.test]
  assert len(texts) == len(set(texts)) == 92


def test_runs_share_their_test_set_whatever_they_train_on():
  fewer = dataclasses.replace(SMALL, chains=dataclasses.replace(SMALL.chains, train=40))
  assert source.load(fewer).test == source.load(SMALL).test


@pytest.mark.parametrize(
  ('train', 'validation', 'test', 'names'),
  [
    (['1+', '2+'], ['2+'], ['3+'], 'train and validation'),
    (['1+', '2+'], ['4+'], ['2+'], 'train and test'),
    (['1+'], ['2+', '5+'], ['2+'], 'validation and test'),
  ],
)
def test_a_problem_in_two_splits_is_named(train, validation, test, names):
  splits = Splits(*(tuple(map(make_problem, texts)) for texts in (train, validation, test)))
  with pytest.raises(ConfigError, match="'2\\+'") as caught:
    source.check_disjoint(splits)
  assert names in str(caught.value)


def test_texts_count_not_ids():
  problem = make_problem('2+')
  copy = dataclasses.replace(problem, id='another')
  with pytest.raises(ConfigError, match='train and test'):
    source.check_disjoint(Splits((problem,), (make_problem('3+'),), (copy,)))


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10))
def test_no_problem_comes_twice_in_an_epoch(size, count, seed):
  count = min(size, count)
  whole = size // count  # updates of an epoch; what is left over waits
  drawn = flat(size, count, seed, 4 * whole)
  for epoch in range(4):
    seen = drawn[epoch * whole * count : (epoch + 1) * whole * count]
    assert len(seen) == len(set(seen)) == whole * count and set(seen) <= set(range(size))


def test_an_epoch_without_a_rest_is_a_permutation():
  drawn = flat(12, 4, 0, 9)
  for epoch in range(3):
    assert sorted(drawn[epoch * 12 : (epoch + 1) * 12]) == list(range(12))


def test_what_one_epoch_leaves_over_another_takes():
  # One update of 7 of 10 problems an epoch: a given problem is in none of 40 with probability 1e-21.
  assert set(flat(10, 7, 0, 40)) == set(range(10))


def test_an_update_needs_as_many_problems():
  assert len(source.problems_of_update(range(4), 4, 0, 0)) == 4
  with pytest.raises(ConfigError, match='takes 5 problems, but there are 4.*rollout.questions'):
    source.problems_of_update(range(4), 5, 0, 0)


def test_an_update_depends_on_seed_and_step_alone():
  problems = list(range(30))
  forward = [source.problems_of_update(problems, 7, 5, step) for step in range(12)]
  backward = [source.problems_of_update(problems, 7, 5, step) for step in reversed(range(12))]
  assert forward == backward[::-1]


def test_seeds_and_epochs_differ_in_their_order():
  # Two of 50! orders are equal by chance about never.
  orders = [
    tuple(flat(50, 50, seed, 3)[epoch * 50 : (epoch + 1) * 50]) for seed in range(3) for epoch in range(3)
  ]
  assert len(set(orders)) == 9


def cold_start(step, seed=0):
  problems = source.load(SMALL).train
  return source.cold_start_examples(SMALL, problems, batch=20, teacher_rows=8, seed=seed, step=step)


def test_cold_start_rows_depend_on_seed_and_step_alone():
  assert cold_start(3) == cold_start(3)
  assert [e.completion for e in cold_start(3)] != [e.completion for e in cold_start(4)]
  assert [e.completion for e in cold_start(3)] != [e.completion for e in cold_start(3, seed=1)]


def test_cold_start_rows_walk_through_the_training_problems():
  drawn = [e.problem.id for step in range(3) for e in cold_start(step)]
  assert sorted(drawn) == sorted(p.id for p in source.load(SMALL).train)
  assert [e.role for e in cold_start(0)] == ['teacher'] * 8 + ['student'] * 12


def test_a_source_that_does_not_exist():
  with pytest.raises(ConfigError, match="data.source is 'chain'.*'chains'"):
    source.validate(DataConfig(source='chain'))


def test_settings_of_the_source_are_checked():
  with pytest.raises(ConfigError, match='data.chains.steps'):
    source.validate(DataConfig(chains=ChainsConfig(steps=-1)))
  source.validate(SMALL)
