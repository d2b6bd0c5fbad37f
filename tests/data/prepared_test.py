"""TFDS data sets are written and read back without TensorFlow, the problems unchanged."""

import json
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.data import builder, prepared, source
from opsd_jax.data.config import DataConfig, FieldsConfig
from opsd_jax.records import Problem

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SPLITS = {
  'train': [
    Problem(f'train/{i}', f'What is {i} + {i}?\n', f'It is 2·{i}.', str(2 * i), 'sums', {'hint': f'é{i}'})
    for i in range(11)
  ],
  'test': [
    Problem('test/0', 'What is 5 − 2?', '', '3', 'sums', {}),
    Problem('b', '{x}', ' s ', '1', 'x', {}),
  ],
}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('prepared')
  builder.prepare(SPLITS, 'sums', str(folder), num_shards=2)
  return folder


def open_all(split='train', **changes):
  return source.open_problems(DataConfig(source='tfds', **changes), split)


@pytest.mark.parametrize('split', SPLITS)
def test_problems_come_back_as_they_were(data_dir, split):
  by_name = open_all(split, tfds='opsd_problems/sums', path=str(data_dir))
  by_folder = open_all(split, path=f'{data_dir}/opsd_problems/sums/1.0.0')
  assert list(by_name) == list(by_folder) == SPLITS[split]
  assert by_name[-1] == SPLITS[split][-1]


def test_the_files(data_dir):
  names = sorted(p.relative_to(data_dir).as_posix() for p in data_dir.rglob('*') if p.is_file())
  start = 'opsd_problems/sums/1.0.0'
  shards = [f'{s}.array_record-0000{i}-of-00002' for s in ('test', 'train') for i in range(2)]
  assert names == [
    f'{start}/dataset_info.json',
    f'{start}/features.json',
    *(f'{start}/opsd_problems-{s}' for s in shards),
  ]


def test_a_version_and_a_slice_can_be_named(data_dir):
  half = open_all('train[:50%]', tfds='opsd_problems/sums:1.0.0', path=str(data_dir))
  rest = open_all('train[50%:]', tfds='opsd_problems/sums:1.0.0', path=str(data_dir))
  assert len(half) in (5, 6) and [*half, *rest] == SPLITS['train']


def test_splits_of_a_prepared_data_set(data_dir):
  config = DataConfig(source='tfds', tfds='opsd_problems/sums', path=str(data_dir), validation_problems=3)
  splits = source.load(config)
  assert list(splits.test) == SPLITS['test'] and len(splits.validation) == 3
  held = list(splits.validation)
  assert list(splits.train) == [p for p in SPLITS['train'] if p not in held]


def test_a_broken_row_is_named():
  row = {name: b'' for name in prepared.FIELDS}
  with pytest.raises(ConfigError, match='here is broken.*Prepare the data set again'):
    prepared.decoder(lambda i: 'here')(0, row)


@pytest.mark.parametrize(
  ('changes', 'split', 'words'),
  [
    ({'tfds': 'nowhere'}, 'train', ['data.tfds=nowhere', 'It has opsd_problems/sums:1.0.0']),
    ({'tfds': 'opsd_problems'}, 'train', ['data.tfds=opsd_problems is not prepared', 'opsd_problems/sums']),
    ({'tfds': 'opsd_problems/sums:2.0.0'}, 'train', ['sums:2.0.0 is not prepared']),
    ({'tfds': 'mnist'}, 'train', ['data.tfds=mnist is not prepared']),
    ({'tfds': 'opsd_problems/sums'}, 'dev', ["split 'dev'", 'Should be one of']),
    ({'tfds': 'opsd_problems/sums'}, 'train[:0]', ["'train[:0]'", 'cannot be read']),
    ({}, 'train', ['no version folder', 'It has opsd_problems/sums:1.0.0', 'data.tfds']),
  ],
)
def test_what_is_not_there(data_dir, changes, split, words):
  with pytest.raises(ConfigError) as caught:
    open_all(split, path=str(data_dir), **changes)
  assert all(word in str(caught.value) for word in words), caught.value


def test_a_folder_that_is_not_there(tmp_path):
  with pytest.raises(ConfigError, match='data.path=.*/x is not a folder'):
    open_all(tfds='opsd_problems/sums', path=str(tmp_path / 'x'))
  with pytest.raises(ConfigError, match='It has no prepared data sets'):
    open_all(tfds='opsd_problems/sums', path=str(tmp_path))


def test_nothing_is_overwritten(data_dir):
  with pytest.raises(ConfigError, match='sums/1.0.0 exists already'):
    builder.prepare(SPLITS, 'sums', str(data_dir))
  assert len(open_all('train', tfds='opsd_problems/sums', path=str(data_dir))) == 11


def test_a_failure_leaves_nothing_behind(tmp_path):
  def failing():
    raise ConfigError('row 1 is bad')

  class Failing(list):
    def __iter__(self):
      yield SPLITS['train'][0]
      failing()

  with pytest.raises(ConfigError, match='row 1 is bad'):
    builder.prepare({'train': Failing('ab')}, 'sums', str(tmp_path))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('splits', 'name', 'shards', 'words'),
  [
    ({}, 'a', None, 'no splits'),
    (SPLITS, 'a-b', None, "'a-b' is no name"),
    ({'9': SPLITS['test']}, 'a', None, "'9' is no name"),
    ({'train': []}, 'a', None, 'has 0 problems'),
    (SPLITS, 'a', 3, "'test' has 2 problems for 3 files"),
    (SPLITS, 'a', 0, 'number of files is 0'),
  ],
)
def test_what_cannot_be_written(tmp_path, splits, name, shards, words):
  with pytest.raises(ConfigError, match=words):
    builder.prepare(splits, name, str(tmp_path), num_shards=shards)


def test_a_data_set_of_somebody_else(tmp_path):
  import tensorflow_datasets as tfds

  class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = 'foreign'
    VERSION = tfds.core.Version('2.1.0')
    code_path = None

    def _info(self):
      features = {
        'question': tfds.features.Text(),
        'score': tfds.features.Scalar(np.float32),
        'more': {'why': tfds.features.Text()},
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield 'only', {'question': 'q', 'score': 27.0, 'more': {'why': 'ü'}}

  made = Foreign(data_dir=str(tmp_path), file_format='array_record')
  made.download_and_prepare(download_dir=str(tmp_path / 'downloads'))
  fields = FieldsConfig('question', 'more.why', 'score')
  found = open_all(tfds='foreign', path=str(tmp_path), fields=fields)
  assert list(found) == [Problem('train/0', 'q', 'ü', '27', 'foreign', {})]


WITHOUT_TENSORFLOW = """
  import importlib.util, json, sys

  class Block:
    def find_spec(self, name, path=None, target=None):
      if name.split('.')[0] == 'tensorflow':
        raise ModuleNotFoundError(f'{name} is blocked')

  real = importlib.util.find_spec
  importlib.util.find_spec = lambda name, package=None: None if name == 'tensorflow' else real(name, package)
  sys.meta_path.insert(0, Block())

  import os
  from opsd_jax.data import builder, source
  from opsd_jax.data.config import DataConfig

  folder = sys.argv[1]
  files = DataConfig(source='files', path=folder)
  splits = {name: source.open_problems(files, name) for name in ('train', 'test')}
  written = builder.prepare(splits, 'mine', os.path.join(folder, 'tfds'), num_shards=3)
  for place in ({'tfds': 'opsd_problems/mine', 'path': os.path.join(folder, 'tfds')}, {'path': written}):
    for name, problems in splits.items():
      again = source.open_problems(DataConfig(source='tfds', **place), name)
      assert list(again) == list(problems), name

  import tensorflow_datasets as tfds
  halves = tfds.even_splits('train', 2)
  where = os.path.join(folder, 'tfds')
  parts = [tfds.data_source('opsd_problems/mine', split=h, data_dir=where) for h in halves]
  ids = [row['id'].decode() for part in parts for row in part]
  assert [len(p) for p in parts] == [5, 5] and ids == [p.id for p in splits['train']], ids
  assert not [name for name in sys.modules if name.split('.')[0] == 'tensorflow']
  print('fine')
"""


def test_no_tensorflow_is_needed(tmp_path):
  for split, size in (('train', 10), ('test', 4)):
    rows = [{'problem': f'{split} {i}', 'solution': 's', 'answer': i} for i in range(size)]
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  program = textwrap.dedent(WITHOUT_TENSORFLOW)
  done = subprocess.run(
    [sys.executable, '-c', program, str(tmp_path)],
    cwd=REPOSITORY,
    text=True,
    capture_output=True,
    timeout=120,
  )
  assert done.returncode == 0 and done.stdout == 'fine\n', done.stdout + done.stderr
