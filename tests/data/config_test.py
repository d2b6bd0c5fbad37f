"""Settings of the data are refused before any data is read, and can be written on a command line."""

import dataclasses

import pytest

from opsd_jax import config as configs
from opsd_jax.config import ConfigError
from opsd_jax.data import config as data_config
from opsd_jax.data.config import DataConfig, FieldsConfig

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
    ({'fields': FieldsConfig(solution=None, answer_marker='####')}, ["'####'", 'data.fields.solution']),
    ({'fields': FieldsConfig(meta=('extra.answer',))}, ["two texts as 'answer'"]),
    ({'fields': FieldsConfig(meta=('a.x', 'b.x'))}, ["two texts as 'x'"]),
  ],
)
def test_settings_that_cannot_work(change, words):
  with pytest.raises(ConfigError) as caught:
    data_config.validate(dataclasses.replace(FILES, **change))
  assert all(word in str(caught.value) for word in words), caught.value


def test_every_schema_is_valid():
  assert set(data_config.NAMED) == {'default', 'gsm8k', 'math', 'openthoughts', 'verl'}
  for name in data_config.NAMED:
    data_config.validate_fields(FieldsConfig.named(name))


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
    ],
  )
  assert (changed.path, changed.source, changed.test, changed.test_problems) == ('x', 'files', None, 12)
  assert changed.fields == FieldsConfig(solution=None, answer_marker='####', meta=('a', 'b.c'))
