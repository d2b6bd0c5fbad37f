"""Real data sets, where they are: counts, answers and types as their publishers have them."""

import functools
import re
import unicodedata

import pytest

from opsd_jax.data import builder, cleaning, source, texts
from opsd_jax.data.config import DataConfig
from opsd_jax.data.schemas import FieldsConfig

pytestmark = pytest.mark.data


def problems(folder, split='test', fields='default', **changes):
  return source.open_problems(
    DataConfig(source='files', path=str(folder), fields=FieldsConfig.named(fields), **changes), split
  )


def bare(path, **fields):
  """Problems without solutions."""
  config = DataConfig(source='files', path=str(path), fields=FieldsConfig(solution=None, **fields))
  return list(source.open_problems(config, 'test'))


def test_gsm8k(data_root):
  config = DataConfig(source='files', path=str(data_root / 'gsm8k'), fields=FieldsConfig.named('gsm8k'))
  splits = source.load(config)
  assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [7273, 200, 1319]
  every = [*splits.train, *splits.validation, *splits.test]
  assert len({p.id for p in every}) == 7473 + 1319
  assert all(p.answer.strip() and p.solution and p.problem for p in every)
  assert not any('####' in p.solution or '####' in p.answer or ',' in p.answer for p in every)
  first = splits.test[0]
  assert (first.id, first.answer, first.source) == ('test/0', '18', 'gsm8k')
  assert first.solution.endswith('every day at the farmer’s market.')


def test_gsm8k_prepared_for_tfds(data_root, tmp_path):
  original = problems(data_root / 'gsm8k', fields='gsm8k')
  builder.prepare({'test': original}, 'gsm8k', str(tmp_path))
  again = DataConfig(source='tfds', tfds='opsd_problems/gsm8k', path=str(tmp_path))
  assert list(source.open_problems(again, 'test')) == list(original)


def test_math500_is_the_same_in_two_formats(data_root):
  lines = problems(data_root / 'math500' / 'test_with_solution.jsonl', fields='math')
  table = problems(data_root / 'math500' / 'val_test.parquet', fields='verl')
  assert len(table) == len(lines) == 500 and len({p.problem for p in table}) == 500
  assert {p.problem.strip(): p.answer for p in lines} == {p.problem.strip(): p.answer for p in table}
  assert all(p.solution for p in lines) and not any(p.solution for p in table)


def test_the_split_of_a_folder_with_other_files(data_root):
  found = problems(data_root / 'math500', fields='verl')  # test.parquet, not val_test.parquet
  assert len(found) == 500 and found[0].problem.endswith('\\boxed{}.')


def test_answers_that_are_integers(data_root):
  found = bare(data_root / 'aime25')
  assert len(found) == 30 and found[0].answer == '70' and all(p.answer.isdecimal() for p in found)
  table = bare(
    data_root / 'aime25' / 'val_test.parquet', problem='prompt.0.content', answer='reward_model.ground_truth'
  )
  assert [p.answer for p in table] == [p.answer for p in found]


def test_answers_that_are_floats(data_root):
  found = bare(data_root / 'amc23')
  assert len(found) == 40 and found[0].answer == '27' and not any('.' in p.answer for p in found)
  named = dict(problem='prompt.0.content', answer='reward_model.ground_truth')
  assert [p.answer for p in bare(data_root / 'amc23' / 'val_test.parquet', **named)] == [
    p.answer for p in found
  ]


def test_code_tasks_have_their_own_fields(data_root):
  fields = FieldsConfig('prompt', 'canonical_solution', 'entry_point', 'task_id', meta=('test',))
  config = DataConfig(source='files', path=str(data_root / 'humaneval' / 'HumanEval.jsonl.gz'), fields=fields)
  found = source.open_problems(config, 'test')
  assert len(found) == 164 and found[163].id == 'HumanEval/163' and 'def check' in found[0].meta['test']


# --- What training data repeat.


@functools.cache
def dapo(root):
  return tuple(problems(root / 'dapo_math_17k', 'train', 'dapo'))


def held(root):
  """Problems of benchmarks, read without what knows benchmarks."""
  config = functools.partial(DataConfig, source='files')
  gsm8k = config(path=str(root / 'gsm8k'), fields=FieldsConfig.named('gsm8k'))
  return {
    'amc23': bare(root / 'amc23'),
    'math500': bare(root / 'math500' / 'test_with_solution.jsonl'),
    'aime24': bare(root / 'aime24' / 'test.jsonl'),
    'aime25': bare(root / 'aime25'),
    'hmmt25': bare(root / 'hmmt25_feb'),
    'gsm8k': list(source.open_problems(gsm8k, 'test')),
  }


def checked(some, against):
  return cleaning.clean_problems(some, DataConfig(source='files', path='x'), against)


def test_dapo_is_questions_with_integers(data_root):
  found = dapo(data_root)
  assert len(found) == 17_917 and all(re.fullmatch(r'-?\d+', p.answer) for p in found)
  assert not any(re.search('Answer: .Answer|answer on its own line', p.problem) for p in found)
  assert found[0].problem.startswith('In triangle $ABC$') and found[0].problem.endswith('find $a + b + c$.')
  assert len({p.problem for p in found}) == 17_255


def test_dapo_has_most_of_amc_and_none_of_aime(data_root):
  left, report = checked(dapo(data_root), held(data_root))
  repeated = {name: (one.repeated, one.train) for name, one in report.repeated.items()}
  none = dict.fromkeys(('aime24', 'aime25', 'hmmt25', 'gsm8k'), (0, 0))
  assert repeated == {'amc23': (28, 39), 'math500': (34, 40), **none}
  assert (report.read, report.kept, len(left)) == (17_917, 16_091, 16_091)
  assert (report.copies, report.conflicting) == (1_693, 25)
  assert sorted(report.left_out.values()) == [39, 40, 54, 1_693]


@pytest.mark.slow
def test_dapo_against_amc_by_another_measure(data_root):
  """The first hundred letters and digits of a problem, looked for in all of DAPO as one text."""

  def letters(text):
    return re.sub(r'[\W_]+', '', unicodedata.normalize('NFKC', text).lower())

  whole = '\n'.join(letters(p.problem) for p in dapo(data_root))
  amc = held(data_root)['amc23']
  expected = {p.id for p in amc if letters(p.problem)[:100] in whole}
  _, report = checked(dapo(data_root), {'amc23': amc})
  every = cleaning.contamination.make_index({'amc23': amc}, 13)
  found = {o.other for p in dapo(data_root) for o in cleaning.contamination.overlaps(every, p, 0.4)}
  assert len(expected) == 25 and expected <= found and len(found) == report.repeated['amc23'].repeated == 28


def test_copies_in_dapo_are_counted_as_by_others(data_root):
  questions = [p.problem for p in dapo(data_root)]
  # Letters and digits of ASCII alone: an upper bound, for Chinese problems become one.
  assert len({re.sub('[^a-z0-9]+', '', q.lower()) for q in questions}) == 16_054
  assert len({texts.mark(q) for q in questions}) == 16_195


def test_gsm8k_repeats_one_of_its_test(data_root):
  train = problems(data_root / 'gsm8k', 'train', 'gsm8k')
  left, report = checked(train, held(data_root))
  assert {name: one.train for name, one in report.repeated.items() if one.train} == {'gsm8k': 3}
  assert len(left) == 7_470 and report.copies == report.conflicting == 0
  such = {p.problem for p in train} - {p.problem for p in left}
  assert sum('miles in 3 hours. At the same rate' in text for text in such) == 2
  assert sum('stamps at the post office. Some of the stamps' in text for text in such) == 1 and len(such) == 3
