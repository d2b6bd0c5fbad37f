"""The files of a split in the layouts that people have; what is unclear or missing is listed."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.data import files, layout


def make(root, *names):
  """Files that exist; those of JSON lines have one row with their name."""
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'from': name}) + '\n')
  return str(root)


def found(root, split='train'):
  return [os.path.relpath(f, root) for f in files.files_of(layout.resolve(str(root)), split)]


def refused(root, split='train'):
  with pytest.raises(ConfigError) as caught:
    files.open_split(str(root), split, None)
  return str(caught.value)


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (['train.jsonl', 'test.jsonl'], ['train.jsonl']),
    (['train.jsonl.gz', 'README.md', 'dataset_info.json'], ['train.jsonl.gz']),
    (['train.json'], ['train.json']),
    (
      [
        'data/train-00000-of-00002.parquet',
        'data/train-00001-of-00002.parquet',
        'data/test-00000-of-00001.parquet',
      ],
      ['data/train-00000-of-00002.parquet', 'data/train-00001-of-00002.parquet'],
    ),
    (
      ['data/train-00000-of-00001-a09b74b3ef9c3b56.parquet'],
      ['data/train-00000-of-00001-a09b74b3ef9c3b56.parquet'],
    ),
    (['main/train.jsonl', 'main/test.jsonl', '.git/train.jsonl'], ['main/train.jsonl']),
    (
      ['train/part-0.jsonl', 'train/part-1.jsonl', 'test/part-0.jsonl'],
      ['train/part-0.jsonl', 'train/part-1.jsonl'],
    ),
    (['default/train/0000.parquet', 'default/test/0000.parquet'], ['default/train/0000.parquet']),
    (['train.jsonl', 'old/train.jsonl'], ['train.jsonl']),  # the top one is meant
    (
      ['train/data-00000-of-00001.arrow', 'train/state.json', 'train/cache-1f.arrow', 'dataset_dict.json'],
      ['train/data-00000-of-00001.arrow'],
    ),
    (
      ['main/0.0.0/2f1a/gsm8k-train.arrow', 'main/0.0.0/2f1a/gsm8k-test.arrow'],
      ['main/0.0.0/2f1a/gsm8k-train.arrow'],
    ),
    (['0.0.0/x/gsm8k-train-00000-of-00001.arrow'], ['0.0.0/x/gsm8k-train-00000-of-00001.arrow']),
  ],
)
def test_layouts(tmp_path, names, expected):
  assert found(make(tmp_path, *names)) == expected


def test_splits_are_listed_in_the_usual_order(tmp_path):
  make(tmp_path, 'test.jsonl', 'data/train-00000-of-00001.parquet', 'hard.jsonl', 'validation/0000.parquet')
  assert files.splits(str(tmp_path)) == ['train', 'test', 'validation', 'hard']
  assert files.splits(str(tmp_path / 'hard.jsonl')) == ['hard']


def test_a_file_is_the_split_whatever_its_name(tmp_path):
  make(tmp_path, 'mine.jsonl')
  assert files.open_split(str(tmp_path / 'mine.jsonl'), 'train', None)[0] == {'from': 'mine.jsonl'}


def test_a_file_or_a_pattern_can_be_named(tmp_path):
  make(tmp_path, 'a.jsonl', 'b.jsonl', 'sub/test.jsonl', 'test.jsonl')
  assert found(tmp_path, 'sub/test.jsonl') == ['sub/test.jsonl']
  assert found(tmp_path, '[ab].jsonl') == ['a.jsonl', 'b.jsonl']
  assert files.open_split(str(tmp_path), '?.jsonl', None)[1] == {'from': 'b.jsonl'}


def test_shards_of_two_kinds_are_read_in_order(tmp_path):
  rows = [{'i': i} for i in range(5)]
  for shard, part in enumerate([rows[:2], rows[2:]]):
    pq.write_table(pa.Table.from_pylist(part), tmp_path / f'test-0000{shard}-of-00002.parquet')
  read = files.open_split(str(tmp_path), 'test', ('i',))
  assert [read[i] for i in range(len(read))] == rows
  assert read.where(2) == f'{tmp_path}/test-00001-of-00002.parquet, row 0'


def test_a_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  make(tmp_path, 'mine/train.jsonl')
  assert files.open_split('~/mine', 'train', None)[0] == {'from': 'mine/train.jsonl'}
  assert layout.source_name('~/mine') == 'mine'


# --- The cache of Hugging Face's hub: blobs, and snapshots of links to them.


def hub(root, *revisions, main=None):
  repository = root / 'datasets--org--problems'
  for revision in revisions:
    make(repository, f'blobs/{revision}')
    link = repository / 'snapshots' / revision / 'data' / 'train.jsonl'
    link.parent.mkdir(parents=True)
    link.symlink_to(repository / 'blobs' / revision)
  if main:
    make(repository, 'refs/main')
    (repository / 'refs' / 'main').write_text(main)
  return repository


def test_a_hub_folder_with_one_snapshot(tmp_path):
  repository = hub(tmp_path, 'abc')
  assert files.open_split(str(repository), 'train', None)[0] == {'from': 'blobs/abc'}
  assert layout.source_name(str(repository)) == 'org/problems'


def test_refs_main_chooses_the_snapshot(tmp_path):
  repository = hub(tmp_path, 'abc', 'def', main='def\n')
  assert files.open_split(str(repository), 'train', None)[0] == {'from': 'blobs/def'}
  old = repository / 'snapshots' / 'abc'
  assert files.open_split(str(old), 'train', None)[0] == {'from': 'blobs/abc'}
  assert layout.source_name(str(old)) == 'org/problems'


def test_unclear_and_missing_snapshots(tmp_path):
  assert 'has 2 snapshots and no refs/main: abc, def' in refused(hub(tmp_path, 'abc', 'def'))
  assert 'lacks its snapshot xyz' in refused(hub(tmp_path / 'b', 'abc', main='xyz'))


def test_a_link_without_its_blob_is_no_data(tmp_path):
  repository = hub(tmp_path, 'abc')
  (repository / 'blobs' / 'abc').unlink()
  assert 'holds no data files' in refused(repository)


def test_the_cache_itself_lists_its_data_sets(tmp_path):
  hub(tmp_path, 'abc')
  assert 'It holds datasets--org--problems' in refused(tmp_path)


def test_a_saved_data_set_without_splits(tmp_path):
  make(tmp_path / 'a', 'data-00000-of-00001.arrow')
  assert files.splits(str(tmp_path / 'a')) == ['data']
  make(tmp_path / 'b', 'data-00000-of-00001.arrow')
  (tmp_path / 'b' / 'state.json').write_text('{"_split": "train"}')
  assert files.splits(str(tmp_path / 'b')) == ['train'] and found(tmp_path / 'b')


# --- What cannot work.


@pytest.mark.parametrize(
  ('names', 'words'),
  [
    (['test.jsonl', 'dev.jsonl'], ["no split 'train'", 'dev.jsonl, test.jsonl', 'data.train']),
    (['train.jsonl', 'train.parquet'], ['could be any of train.jsonl, train.parquet']),
    (['main/train.jsonl', 'socratic/train.jsonl'], ['main/train.jsonl, socratic/train.jsonl', 'data.path']),
    (['train.jsonl', 'train-00000-of-00001.jsonl'], ['could be any of']),
    (['train-00000-of-00003.parquet', 'train-00002-of-00003.parquet'], ['has 2 of its 3 files', 'Fetch']),
    (['notes.txt', 'dataset_info.json'], ['no data files', 'It holds dataset_info.json, notes.txt']),
    (['features.json', 'x-train.array_record-00000-of-00001'], ['prepared by TFDS', 'data.source=tfds']),
  ],
)
def test_folders_that_cannot_work(tmp_path, names, words):
  message = refused(make(tmp_path, *names))
  assert all(word in message for word in [str(tmp_path), *words]), message


def test_nothing_there(tmp_path):
  assert f'data.path={tmp_path}/x does not exist' in refused(tmp_path / 'x')
  assert 'It holds nothing' in refused(tmp_path)
  (tmp_path / 'notes.txt').write_text('')
  assert 'notes.txt is no data file' in refused(tmp_path / 'notes.txt')
  with pytest.raises(ConfigError, match='holds no data'):
    files.splits(str(tmp_path))


@pytest.mark.parametrize('content', ['', '\n  \n'])
def test_an_empty_file(tmp_path, content):
  (tmp_path / 'train.jsonl').write_text(content)
  assert "split 'train'" in refused(tmp_path) and 'is empty' in refused(tmp_path)


def test_long_lists_are_cut(tmp_path):
  make(tmp_path, *(f'{i:02}.jsonl' for i in range(30)))
  assert '11.jsonl and 18 more' in refused(tmp_path)
