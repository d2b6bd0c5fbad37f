"""Real data sets, where they are: counts, answers and types as their publishers have them."""

import pytest

from opsd_jax.data import builder, source
from opsd_jax.data.config import DataConfig, FieldsConfig

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
