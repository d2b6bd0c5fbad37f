"""Parquet and Arrow rows equal the rows they were written from; broken files are named."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.data import tables

ROWS = [{'a': i, 'b': f'text {i}', 'c': {'d': [{'e': i / 2}]}} for i in range(7)]


def parquet(path, rows=ROWS):
  pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
  return str(path)


def arrow(path, new=pa.ipc.new_stream):
  table = pa.Table.from_pylist(ROWS)
  with new(str(path), table.schema) as writer:
    writer.write_table(table, max_chunksize=3)
  return str(path)


def test_parquet_rows_by_number(tmp_path):
  found = tables.open_parquet(parquet(tmp_path / 'a.parquet'), None)
  assert len(found) == 7 and [found[i] for i in (6, 0, 3)] == [ROWS[i] for i in (6, 0, 3)]
  assert found.where(6) == f'{tmp_path}/a.parquet, row 6'


@pytest.mark.parametrize('new', [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_rows_by_number(tmp_path, new):
  found = tables.open_arrow(arrow(tmp_path / 'a.arrow', new), None)
  assert len(found) == 7 and [found[i] for i in (6, 0, 3)] == [ROWS[i] for i in (6, 0, 3)]


@pytest.mark.parametrize('kind', ['parquet', 'arrow'])
@pytest.mark.parametrize(
  ('columns', 'kept'),
  [
    (None, 'abc'),
    (('b',), 'b'),
    (('c.d.0.e', 'c', 'a'), 'ac'),
    (('b', 'nowhere'), 'abc'),  # the message about the missing one lists the others
  ],
)
def test_only_needed_columns_are_in_memory(tmp_path, kind, columns, kept):
  if kind == 'parquet':
    found = tables.open_parquet(parquet(tmp_path / 'a.parquet'), columns)
  else:
    found = tables.open_arrow(arrow(tmp_path / 'a.arrow'), columns)
  assert set(found[2]) == set(kept) and all(found[2][name] == ROWS[2][name] for name in kept)


@pytest.mark.parametrize('opened', [tables.open_parquet, tables.open_arrow])
@pytest.mark.parametrize('content', [b'', b'not a table', b'PAR1' + bytes(50) + b'PAR1'])
def test_a_broken_file_is_named(tmp_path, opened, content):
  (tmp_path / 'bad').write_bytes(content)
  with pytest.raises(ConfigError, match=f'{tmp_path}/bad cannot be read as (Parquet|Arrow)'):
    opened(str(tmp_path / 'bad'), None)


def test_a_cut_file_is_named(tmp_path):
  for path, opened in (
    (parquet(tmp_path / 'a.parquet'), tables.open_parquet),
    (arrow(tmp_path / 'a.arrow'), tables.open_arrow),
  ):
    with open(path, 'r+b') as file:
      file.truncate(file.seek(0, 2) // 2)
    with pytest.raises(ConfigError, match='cannot be read as'):
      opened(path, None)
