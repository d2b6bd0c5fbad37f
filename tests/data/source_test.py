"""Splits do not overlap, and the data of an update depends on the seed and its number alone."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.data import source
from opsd_jax.data.chains import ChainsConfig, make_problem
from opsd_jax.data.config import FieldsConfig
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


def test_clean_rows_have_the_solutions_whoever_sees_them():
  rows = source.cold_start_examples(SMALL, source.load(SMALL).train, 20, 8, seed=0, step=3, clean=True)
  assert [(e.problem, e.role) for e in rows] == [(e.problem, e.role) for e in cold_start(3)]
  assert all(e.completion == e.problem.solution for e in rows)
  assert any(e.completion != e.problem.solution for e in cold_start(3))


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


# --- Problems of files.


def write(path, texts):
  rows = [{'problem': t, 'solution': f'because {t}', 'answer': i} for i, t in enumerate(texts)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture
def folder(tmp_path):
  """30 different problems to train on, two of them twice, and 9 for the test."""
  write(tmp_path / 'train.jsonl', [*(f'train {i}' for i in range(30)), 'train 3', 'train 17'])
  write(tmp_path / 'test.jsonl', [f'test {i}' for i in range(9)])
  return tmp_path


def of_files(path, **changes):
  return DataConfig(source='files', path=str(path), **({'validation_problems': 5} | changes))


def texts(problems):
  return [p.problem for p in problems]


def test_splits_of_files(folder):
  splits = source.load(of_files(folder))
  assert texts(splits.test) == [f'test {i}' for i in range(9)]
  held, rest = texts(splits.validation), texts(splits.train)
  assert len(set(held)) == len(held) == 5 and not set(held) & set(rest)
  assert set(held) | set(rest) == {f'train {i}' for i in range(30)}
  first = splits.test[0]
  assert (first.id, first.answer, first.solution) == ('test/0', '0', 'because test 0')
  assert first.source == folder.name


def test_the_seed_of_the_data_chooses_what_is_held_out(folder):
  validations = [texts(source.load(of_files(folder, seed=seed)).validation) for seed in (0, 1, 0)]
  assert validations[0] == validations[2] != validations[1]


def test_the_test_set_stays_whatever_else_is_held_out(folder):
  for changes in ({'test_problems': 4}, {'test': None, 'test_problems': 4}):
    few, many = (source.load(of_files(folder, validation_problems=n, **changes)) for n in (2, 9))
    assert list(few.test) == list(many.test) and len(few.test) == 4
    assert len(set(texts([*few.test, *few.validation, *few.train]))) >= 30


def test_the_test_problems_can_be_held_out_of_one_file(folder):
  splits = source.load(of_files(folder / 'train.jsonl', test=None, test_problems=7))
  parts = [set(texts(s)) for s in (splits.train, splits.validation, splits.test)]
  assert [len(p) for p in parts] == [18, 5, 7] and len(set().union(*parts)) == 30


def test_splits_have_other_names_and_places(folder):
  write(folder / 'olympiad.jsonl', ['hard 1', 'hard 2'])
  assert texts(source.load(of_files(folder, test='olympiad')).test) == ['hard 1', 'hard 2']
  assert texts(source.load(of_files(folder, test='olymp*.jsonl')).test) == ['hard 1', 'hard 2']


def test_a_test_problem_that_is_trained_on(folder):
  write(folder / 'test.jsonl', ['test 1', 'train 9'])
  with pytest.raises(ConfigError, match="1 problems stand in both train and test, such as 'train 9'"):
    source.load(of_files(folder))


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'validation_problems': 30}, ['data.validation_problems is 30', '30 different problems']),
    ({'test': None, 'test_problems': 31}, ['data.test_problems is 31']),
    ({'test': None, 'test_problems': 27}, ['data.validation_problems is 5', '3 different']),
    ({'test': 'dev'}, ["no split 'dev'", 'test.jsonl, train.jsonl']),
    ({'path': 'nowhere'}, ['nowhere does not exist']),
    ({'fields': FieldsConfig(id='solution')}, ["id 'because train 3'", 'data.fields.id=none']),
    ({'fields': FieldsConfig(problem='question')}, ['train.jsonl, line 1', "no field 'question'"]),
  ],
)
def test_data_that_cannot_work(folder, changes, words):
  with pytest.raises(ConfigError) as caught:
    source.load(of_files(**{'path': folder} | changes))
  assert all(word in str(caught.value) for word in words), caught.value


def test_a_bad_line_is_found_when_the_data_are_loaded(folder):
  with open(folder / 'train.jsonl', 'a') as file:
    file.write('{"problem": \n')
  with pytest.raises(ConfigError, match='train.jsonl, line 33 is not JSON'):
    source.load(of_files(folder))


def test_one_file_has_no_test_split(folder):
  with pytest.raises(ConfigError, match='data.path=.*train.jsonl is one file.*data.test=none'):
    source.load(of_files(folder / 'train.jsonl'))


def test_digit_chains_import_nothing_that_they_do_not_need():
  program = 'import sys; from opsd_jax.data import source; print(*sys.modules)'
  done = subprocess.run([sys.executable, '-c', program], text=True, capture_output=True, check=True)
  assert not {'grain', 'pyarrow', 'tensorflow_datasets'} & set(done.stdout.split())


# --- Which problems belong to an update, and to a host.


def test_the_order_of_runs_that_are_under_way_does_not_change():
  drawn = [source.problems_of_update(range(10), 4, 3, step) for step in range(5)]
  assert drawn == [[9, 6, 0, 2], [1, 4, 7, 5], [4, 1, 2, 8], [5, 0, 7, 9], [7, 4, 1, 8]]


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 8), st.integers(0, 3), st.integers(0, 20))
def test_hosts_share_one_global_order(each, hosts, more, seed, step):
  count = each * hosts
  problems = range(count + more)
  whole = source.problems_of_update(problems, count, seed, step)
  parts = [source.problems_of_update(problems, count, seed, step, host, hosts) for host in range(hosts)]
  assert [p for part in parts for p in part] == whole and {len(part) for part in parts} == {each}


@pytest.mark.parametrize(('host', 'hosts'), [(0, 3), (4, 4), (-1, 2), (0, 0)])
def test_an_update_divides_over_its_hosts(host, hosts):
  with pytest.raises(ConfigError, match='takes 8 problems, which do not divide over'):
    source.problems_of_update(range(20), 8, 0, 0, host, hosts)


def test_an_update_of_files(folder):
  train = source.load(of_files(folder)).train
  drawn = [p.id for step in range(len(train) // 4) for p in source.problems_of_update(train, 4, 0, step)]
  assert len(set(drawn)) == len(drawn) == len(train) // 4 * 4


def test_cold_start_rows_of_files_are_worked_solutions(folder):
  config = of_files(folder)
  train = source.load(config).train
  rows = source.cold_start_examples(config, train, batch=6, teacher_rows=2, seed=0, step=1)
  assert [r.role for r in rows] == ['teacher'] * 2 + ['student'] * 4
  assert [r.problem for r in rows] == source.problems_of_update(train, 6, 0, 1)
  assert all(r.completion == r.problem.solution == f'because {r.problem.problem}' for r in rows)


def test_a_cold_start_needs_worked_solutions(folder):
  config = of_files(folder, fields=FieldsConfig(solution=None))
  with pytest.raises(ConfigError, match='no worked solution.*data.fields.solution.*cold_start.updates=0'):
    source.cold_start_examples(config, source.load(config).train, 4, 2, 0, 0)


def test_how_hard_a_problem_is_said_to_be():
  chain = make_problem('2+*')
  assert source.level(DataConfig(), chain) == '2'
  files = DataConfig(source='files', path='chains.jsonl')
  assert source.level(files, chain) is None
  assert source.level(files, dataclasses.replace(chain, meta={'level': '5'})) == '5'
