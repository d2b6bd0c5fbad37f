"""Settings of the data are refused before any data is read, and can be written on a command line."""

import dataclasses

import pytest

from opsd_jax import config as configs
from opsd_jax.config import ConfigError
from opsd_jax.data import config as data_config
from opsd_jax.data import schemas
from opsd_jax.data.config import DataConfig
from opsd_jax.data.contamination import ContaminationConfig
from opsd_jax.data.filters import FiltersConfig
from opsd_jax.data.schemas import FieldsConfig

FILES = DataConfig(source='files', path='data')
TFDS = DataConfig(source='tfds', tfds='opsd_problems/gsm8k')


def test_what_works():
  for config in (DataConfig(), FILES, TFDS, DataConfig(source='tfds', path='data/name/1.0.0')):
    data_config.validate(config)
  data_config.validate(dataclasses.replace(FILES, test=None, test_problems=10))


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'source': 'file'}, ["data.source is 'file'", "'files'"]),
    ({'too_long': 'cut'}, ["data.too_long is 'cut'", 'drop, error']),
    ({'path': None}, ['data.path is none', 'train.jsonl']),
    ({'source': 'tfds', 'path': None}, ['data.tfds and data.path are none', 'opsd_problems/gsm8k']),
    ({'train': ''}, ['data.train is empty']),
    ({'validation_problems': 0}, ['data.validation_problems is 0']),
    ({'test_problems': -1}, ['data.test_problems is -1']),
    ({'test': None}, ['data.test is none', 'data.test_problems']),
    ({'test': 'train'}, ["both 'train'", 'data.test=none']),
    ({'fields': FieldsConfig(problem='')}, ['data.fields.problem is empty']),
    ({'fields': FieldsConfig(answer='')}, ['data.fields.answer is empty', 'answer_marker']),
    (
      {'fields': FieldsConfig(tests='t', answer_marker='####')},
      ["data.fields.tests is 't'", "'####'", 'to none'],
    ),
    (
      {'fields': FieldsConfig(starter='s')},
      ["data.fields.starter is 's'", 'data.fields.tests', 'starter=none'],
    ),
    ({'fields': FieldsConfig(solution=None, answer_marker='####')}, ["'####'", 'data.fields.solution']),
    ({'fields': FieldsConfig(meta=('extra.answer',))}, ["two texts as 'answer'"]),
    ({'fields': FieldsConfig(meta=('a.x', 'b.x'))}, ["two texts as 'x'"]),
    ({'fields': FieldsConfig(prefix=' ')}, ['data.fields.prefix is blank', 'or none']),
    ({'fields': FieldsConfig(suffix='')}, ['data.fields.suffix is blank', 'or none']),
    ({'filters': FiltersConfig(min_problem=-1)}, ['data.filters.min_problem is -1']),
    ({'filters': FiltersConfig(max_solution=0)}, ['data.filters.max_solution is 0', 'positive']),
    ({'filters': FiltersConfig(min_problem=9, max_problem=8)}, ['max_problem is 8', 'min_problem (9)']),
    ({'filters': FiltersConfig(copies='first')}, ["data.filters.copies is 'first'", 'drop, error, keep']),
    (
      {'filters': FiltersConfig(conflicts='raise')},
      ["data.filters.conflicts is 'raise'", 'drop, error, keep'],
    ),
    ({'contamination': ContaminationConfig(action='dropp')}, ['data.contamination.action', "mean 'drop'"]),
    ({'contamination': ContaminationConfig(n=0)}, ['data.contamination.n is 0', '13']),
    ({'contamination': ContaminationConfig(share=1.5)}, ['data.contamination.share is 1.5', '0..1']),
    ({'contamination': ContaminationConfig(benchmarks=('a',))}, ['names a', 'data.contamination.path']),
  ],
)
def test_settings_that_cannot_work(change, words):
  with pytest.raises(ConfigError) as caught:
    data_config.validate(dataclasses.replace(FILES, **change))
  assert all(word in str(caught.value) for word in words), caught.value


def test_every_schema_is_valid():
  known = (
    'dapo dapo_boxed deepmath deepmath_verl default gsm8k math mbpp openthoughts openthoughts_114k '
    'openthoughts_114k_code roll verl'
  )
  assert sorted(schemas.NAMED) == known.split()
  for name in schemas.NAMED:
    schemas.validate_fields(FieldsConfig.named(name))


def test_an_unknown_schema_names_the_nearest():
  with pytest.raises(ConfigError, match="'gsm8' are unknown. Did you mean 'gsm8k'"):
    FieldsConfig().named('gsm8')


def test_only_the_columns_that_are_needed():
  fields = FieldsConfig.named('verl')
  assert set(fields.columns()) >= {'prompt', 'reward_model'}
  assert all(c.split('.')[0] in ('prompt', 'reward_model') for c in fields.columns())
  # With a marker the answer is in the solution.
  assert FieldsConfig.named('gsm8k').columns() == ('question', 'answer')


def test_settings_from_the_command_line():
  changed = configs.override(
    DataConfig(),
    [
      'path=x',
      'source=files',
      'test=none',
      'test_problems=12',
      'fields.answer_marker=####',
      'fields.solution=none',
      'fields.meta=a,b.c',
      'filters.max_problem=4_000',
      'contamination.benchmarks=amc23,math500',
      'contamination.path=y',
    ],
  )
  assert changed.filters == FiltersConfig(max_problem=4000)
  assert changed.contamination == ContaminationConfig(path='y', benchmarks=('amc23', 'math500'))
  assert (changed.path, changed.source, changed.test, changed.test_problems) == ('x', 'files', None, 12)
  assert changed.fields == FieldsConfig(solution=None, answer_marker='####', meta=('a', 'b.c'))
