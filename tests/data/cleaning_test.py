"""Training problems are left out for one counted reason each, and nobody moves who is held out."""

import collections
import dataclasses
import json

import pytest

from opsd_jax.config import ConfigError
from opsd_jax.data import cleaning, source
from opsd_jax.data.chains import ChainsConfig
from opsd_jax.data.config import DataConfig
from opsd_jax.data.contamination import ContaminationConfig
from opsd_jax.data.filters import FiltersConfig
from opsd_jax.data.source import Splits
from opsd_jax.records import Problem

NAMES = 'Ann Bo Cem Dot Eve Fay Gus Hal Ida Jon Kim Lea Max Ned Ola Pia'.split()


def question(i, thing='plums'):
  """Fifteen words and more, of which two questions share few."""
  name, other = NAMES[i % 16], NAMES[(i // 16 + 3) % 16]
  return f'{name} has {i} {thing}, {other} brings {3 * i + 1} {thing} {name} likes; {other} eats {i + 2}.'


def problem(name, text, answer='1', solution='s'):
  return Problem(name, text, solution, answer, 'here')


def problems(prefix, texts, **fields):
  return tuple(problem(f'{prefix}{i}', text, **fields) for i, text in enumerate(texts))


HELD = {
  'validation': problems('v', [question(100), question(101)]),
  'test': problems('e', [question(200), question(201)]),
}
BENCHMARKS = {'amc': problems('a', [question(300)]), 'aime': problems('i', [question(400), question(300)])}
TRAIN = (
  problem('fine', question(1)),
  problem('first', question(2), '7'),
  problem('copy', question(2).upper(), '7.0'),
  problem('one', question(3), '1'),
  problem('two', question(3).replace(' ', '  '), '2'),
  problem('short', 'Why?'),
  problem('tested', question(200) + ' Say why.'),
  problem('validated', 'So: ' + question(101)),
  problem('of amc and aime', question(300)),
  problem('of aime', question(400).replace(',', ' --')),
  problem('short copy', 'Why'),
  problem('unsolved', question(5), solution=''),
)
FILTERS = FiltersConfig(min_problem=10, min_solution=1)
CONFIG = DataConfig(source='files', path='x', filters=FILTERS)
LENGTH = 'its problem is shorter than data.filters.min_problem (10)'
REASONS = {
  'copy': 'it is a copy of an earlier problem (data.filters.copies)',
  'one': 'its copies have different answers (data.filters.conflicts)',
  'two': 'its copies have different answers (data.filters.conflicts)',
  'short': LENGTH,
  'short copy': LENGTH,
  'tested': 'it repeats the test problems of this run (data.contamination)',
  'validated': 'it repeats the validation problems of this run (data.contamination)',
  'of amc and aime': 'it repeats aime and amc (data.contamination)',
  'of aime': 'it repeats aime (data.contamination)',
  'unsolved': 'its solution is shorter than data.filters.min_solution (1)',
}


def cleaned(config=CONFIG, train=TRAIN, benchmarks=BENCHMARKS):
  return cleaning.clean(Splits(train=train, **HELD), config, benchmarks)


def with_check(**changes):
  return dataclasses.replace(CONFIG, contamination=ContaminationConfig(**changes))


def ids(some):
  return [p.id for p in some]


def test_every_reason_is_counted():
  done = cleaned()
  assert ids(done.splits.train) == ['fine', 'first']
  assert done.report.reasons == REASONS
  assert done.report.left_out == collections.Counter(REASONS.values())
  assert (done.report.read, done.report.kept) == (12, 2)
  assert done.report.read == done.report.kept + sum(done.report.left_out.values())
  assert (done.report.copies, done.report.conflicting, done.report.conflicts) == (1, 1, (('one', 'two'),))


def test_what_is_repeated_by_benchmark():
  found = cleaned().report.repeated
  counts = {name: (one.problems, one.repeated, one.train) for name, one in found.items()}
  assert counts == {'test': (2, 1, 1), 'validation': (2, 1, 1), 'amc': (1, 1, 1), 'aime': (2, 2, 2)}
  assert {(o.problem, o.other) for o in found['aime'].examples} == {
    ('of amc and aime', 'i1'),
    ('of aime', 'i0'),
  }


def test_the_report_is_plain():
  report = cleaned().report
  plain = json.loads(json.dumps(report.to_dict()))
  assert plain['repeated']['amc']['examples'][0]['other'] == 'a0'
  assert plain['left_out'] == report.left_out and 'reasons' not in plain


@pytest.mark.parametrize('action', ['drop', 'report', 'off'])
@pytest.mark.parametrize('copies', ['drop', 'keep'])
def test_nobody_moves_who_is_held_out(action, copies):
  filters = dataclasses.replace(FILTERS, copies=copies, conflicts=copies)
  config = dataclasses.replace(with_check(action=action), filters=filters)
  splits = cleaned(config).splits
  assert splits.validation is HELD['validation'] and splits.test is HELD['test']


def test_a_report_leaves_repeated_problems_where_they_are():
  done = cleaned(with_check(action='report'))
  assert ids(done.splits.train) == ['fine', 'first', 'tested', 'validated', 'of amc and aime', 'of aime']
  assert done.report.repeated == cleaned().report.repeated
  assert not any('contamination' in reason for reason in done.report.left_out)


def test_nothing_is_looked_for_where_the_check_is_off():
  done = cleaned(with_check(action='off'))
  assert done.report.repeated == {} and ids(done.splits.train)[2] == 'tested'


def test_an_error_names_the_first():
  with pytest.raises(ConfigError) as caught:
    cleaned(with_check(action='error'))
  message = str(caught.value)
  assert 'held-out splits: 4 in all' in message and "'tested', which repeats 'e0' of test" in message
  assert 'action=drop' in message
  clean = with_check(action='error')
  assert ids(cleaned(clean, train=TRAIN[:2]).splits.train) == ['fine', 'first']


@pytest.mark.parametrize(('setting', 'such'), [('copies', "'first', 'copy'"), ('conflicts', "'one', 'two'")])
def test_copies_can_be_errors(setting, such):
  filters = dataclasses.replace(FILTERS, **{setting: 'error'})
  with pytest.raises(ConfigError) as caught:
    cleaned(dataclasses.replace(CONFIG, filters=filters))
  assert ': 1 in all, such as' in str(caught.value) and such in str(caught.value)
  assert f'data.filters.{setting}=drop' in str(caught.value)
  assert cleaned(dataclasses.replace(CONFIG, filters=filters), train=TRAIN[:2]).report.kept == 2


def test_the_copy_of_a_problem_that_is_left_out_stays():
  long = problem('long', question(2) + ' ' * 500)
  config = dataclasses.replace(CONFIG, filters=FiltersConfig(max_problem=300))
  assert ids(cleaned(config, train=(long, TRAIN[1])).splits.train) == ['first']


def test_where_all_stay_nothing_changes():
  train = TRAIN[:2]
  assert cleaned(train=train).splits.train is train


def test_nothing_left_says_why():
  with pytest.raises(ConfigError) as caught:
    cleaned(train=(TRAIN[5], TRAIN[10], TRAIN[6]))
  message = str(caught.value)
  assert 'none of the 3 training problems is left: 2 because its problem is shorter' in message
  assert '1 because it repeats the test problems' in message


def test_validation_problems_that_repeat_a_benchmark_are_reported():
  benchmarks = {'amc': problems('a', [question(101)])}
  report = cleaned(benchmarks=benchmarks).report
  assert (report.held_out['amc'].repeated, report.held_out['amc'].train) == (1, 1)
  assert cleaned().report.held_out['amc'].repeated == 0


def test_a_benchmark_may_not_be_called_like_a_split():
  with pytest.raises(ConfigError, match="called 'test'"):
    cleaned(benchmarks={'test': BENCHMARKS['amc']})


def test_digit_chains_stay_as_drawn():
  config = DataConfig(chains=ChainsConfig(steps=3, train=60, validation=12, test=20))
  splits = source.load(config)
  done = cleaning.clean(splits, config, BENCHMARKS)
  assert done.splits is splits and (done.report.read, done.report.kept) == (60, 60)


def test_files_are_cleaned_after_problems_are_held_out(tmp_path):
  texts = [question(i) for i in range(40)]
  rows = [{'problem': text, 'solution': 's', 'answer': '1'} for text in [*texts, *map(str.upper, texts)]]
  (tmp_path / 'train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  config = DataConfig(source='files', path=str(tmp_path), test=None, test_problems=5, validation_problems=6)
  splits = source.load(config)
  held = {p.problem.upper() for p in (*splits.validation, *splits.test)}
  done = cleaning.clean(splits, config, {})
  kept = [p.problem.upper() for p in done.splits.train]
  assert len(kept) == len(set(kept)) == 40 - len(held) and not held & set(kept)
  for action in ('off', 'report', 'drop'):
    again = source.load(dataclasses.replace(config, contamination=ContaminationConfig(action=action)))
    assert ids(again.test) == ids(splits.test) and ids(again.validation) == ids(splits.validation)
