"""Rows of Parquet and Arrow files."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from opsd_jax.config import ConfigError
from opsd_jax.data.rows import Row


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """The rows of a `pyarrow.Table`, made into Python values when they are asked for."""

  path: str
  table: Any

  def __len__(self) -> int:
    return self.table.num_rows

  def __getitem__(self, row: int) -> Row:
    return self.table.slice(int(row), 1).to_pylist()[0]

  def where(self, row: int) -> str:
    """`<file>, row <number>`, from 0."""
    return f'{self.path}, row {row}'


def open_parquet(path: str, columns: Sequence[str] | None) -> Table:
  """The rows of a Parquet file, with the `columns` in memory; all of them for None, or where one is missing.

  Raises:
    ConfigError: the file is not Parquet, or broken.
  """

  def read() -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
      # A missing column is reported with the row, whose other names may be near.
      return file.read(_present(columns, file.schema_arrow.names))

  return Table(path, _guarded(read, path, 'Parquet'))


def open_arrow(path: str, columns: Sequence[str] | None) -> Table:
  """The rows of an Arrow stream or file, as Hugging Face `datasets` keeps them; mapped, not loaded.

  Raises:
    ConfigError: the file is not Arrow, or broken.
  """

  def read() -> Any:
    import pyarrow as pa

    source = pa.memory_map(path)
    try:
      table = pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
      table = pa.ipc.open_file(source).read_all()
    present = _present(columns, table.schema.names)
    return table if present is None else table.select(present)

  return Table(path, _guarded(read, path, 'Arrow'))


def _present(columns: Sequence[str] | None, names: Sequence[str]) -> list[str] | None:
  """The wanted columns that exist; None, for all, where a wanted one does not, or all are wanted."""
  if columns is None:
    return None
  complete = all(c in names or c.split('.')[0] in names for c in columns)
  return [n for n in names if n in columns] if complete else None


def _guarded(read: Callable[[], Any], path: str, kind: str) -> Any:
  """What `read` returns; its failures name the file."""
  import pyarrow as pa

  try:
    return read()
  except (pa.ArrowException, OSError, ValueError) as error:
    reason = str(error).splitlines()[0].rstrip('.')
    raise ConfigError(f'{path} cannot be read as {kind}: {reason}. Fetch or write it again.') from error
