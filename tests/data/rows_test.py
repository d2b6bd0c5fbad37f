"""Rows of JSON files by number, in any order, each with its place; broken lines are named."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.data import rows


def written(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return rows.open_json(str(path))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('rows')


TEXTS = st.text(st.characters(codec='utf-8'), max_size=20)


@settings(max_examples=60)
@given(
  st.lists(st.tuples(TEXTS, st.sampled_from(['\n', '\r\n', '\n\n', '\n \t\n']), st.booleans())), st.randoms()
)
def test_every_row_in_any_order(folder, lines, random):
  # U+2028 and the like end no line.
  text = ''.join(json.dumps({'t': t}, ensure_ascii=ascii) + end for t, end, ascii in lines)
  found = written(folder / 'any.jsonl', text)
  assert len(found) == len(lines)
  order = random.sample(range(len(lines)), len(lines))
  assert [found[i]['t'] for i in order] == [lines[i][0] for i in order]


def test_places_count_blank_lines_from_one(tmp_path):
  found = written(tmp_path / 'a.jsonl', '\n{"a": 1}\n\n  \n{"a": 2}')
  assert [found[i] for i in range(2)] == [{'a': 1}, {'a': 2}]
  assert [found.where(i) for i in range(2)] == [f'{tmp_path}/a.jsonl, line {n}' for n in (2, 5)]


def test_a_byte_order_mark(tmp_path):
  assert written(tmp_path / 'a.jsonl', b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')[0] == {'a': 1}
  assert written(tmp_path / 'b.json', b'\xef\xbb\xbf[{"a": 1}]')[0] == {'a': 1}


def test_compressed_lines_and_lists(tmp_path):
  lines = gzip.compress(b'{"a": 1}\n\n{"a": 2}\n')
  found = written(tmp_path / 'a.jsonl.gz', lines)
  assert [found[1], found[0]] == [{'a': 2}, {'a': 1}] and 'line 3' in found.where(1)
  assert len(written(tmp_path / 'b.json.gz', lines)) == 2
  assert len(written(tmp_path / 'c.json.gz', gzip.compress(b'[{}, {}, {}]'))) == 3


def test_json_is_a_list_or_lines(tmp_path):
  as_list = written(tmp_path / 'a.json', ' \n[{"a": 1},\n {"a": 2}]')
  assert [as_list[i] for i in (1, 0)] == [{'a': 2}, {'a': 1}] and 'item 1' in as_list.where(1)
  assert written(tmp_path / 'b.json', '{"a": 1}\n{"a": 2}\n')[1] == {'a': 2}


def test_several_files_as_one(tmp_path):
  lines = [json.dumps({'i': i}) + '\n' for i in range(3)]
  parts = [written(tmp_path / f'{i}.jsonl', lines[i] * size) for i, size in enumerate([2, 0, 3])]
  joined = rows.join(parts)
  assert len(joined) == 5 and [joined[i]['i'] for i in range(5)] == [0, 0, 2, 2, 2]
  assert [joined.where(i).split('/')[-1] for i in (1, 2, 4)] == [
    '0.jsonl, line 2',
    '2.jsonl, line 1',
    '2.jsonl, line 3',
  ]
  assert rows.join(parts[:1]) is parts[0]


@pytest.mark.parametrize(
  ('line', 'words'),
  [
    (b'{"a": 1', ['line 2 is not JSON', 'column']),
    (b'{"a": 1}}', ['line 2 is not JSON', 'Extra data, at column 9']),
    (b"{'a': 1}", ['line 2 is not JSON']),
    (b'[1]', ['line 2 is a list, not an object']),
    (b'"x"', ['line 2 is a text']),
    (b'3', ['line 2 is a number']),
    (b'null', ['line 2 is null']),
    (b'true', ['line 2 is true or false']),
    (b'{"a": ' + b'1' * 5000 + b'}', ['line 2 has an integer of more than 4,300 digits']),
    (b'{"a": ' + b'[' * 200_000 + b']' * 200_000 + b'}', ['line 2 is nested too deeply']),
    (b'{"a": "\xff"}', ['line 2 is not UTF-8']),
  ],
)
def test_a_broken_line_is_named_when_it_is_read(tmp_path, line, words):
  found = written(tmp_path / 'bad.jsonl', b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
  assert found[0] == {'a': 0} and found[2] == {'a': 2}
  with pytest.raises(ConfigError) as caught:
    found[1]
  assert all(word in str(caught.value) for word in [f'{tmp_path}/bad.jsonl', *words]), caught.value


def test_a_broken_list(tmp_path):
  with pytest.raises(ConfigError, match='a.json is not JSON.*at line 2'):
    written(tmp_path / 'a.json', '[{"a": 1},\n {"a": ]')
  with pytest.raises(ConfigError, match='item 1 is a number'):
    written(tmp_path / 'b.json', '[{}, 2]')[1]


@pytest.mark.parametrize(
  'content', [b'no gzip', gzip.compress(b'{}\n' * 999, mtime=0)[:-9], gzip.compress(b'{}', mtime=0)[:12]]
)
def test_broken_compression(tmp_path, content):
  with pytest.raises(ConfigError, match='a.jsonl.gz cannot be read'):
    written(tmp_path / 'a.jsonl.gz', content)


def test_a_file_that_changed_since_it_was_opened(tmp_path):
  found = written(tmp_path / 'a.jsonl', '{"a": 1}\n{"a": 2}\n')
  (tmp_path / 'a.jsonl').write_text('{"longer": 1}\n{"a": 2}\n')
  with pytest.raises(ConfigError, match='line 2 is not JSON'):
    found[1]
