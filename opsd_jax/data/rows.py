"""Rows that are read when they are asked for: JSON lines, JSON lists, and several files as one.

Rows have a length, an item for every int in 0..length-1, and `where(i)`: the place of row i for messages.
"""

import dataclasses
import gzip
import io
import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from opsd_jax.config import ConfigError

Row = Mapping[str, Any]
_KINDS = {list: 'a list', str: 'a text', type(None): 'null', bool: 'true or false'}


class Rows(Protocol):
  """Random access to rows, each of which knows its place."""

  def __len__(self) -> int: ...

  def __getitem__(self, row: int) -> Row: ...

  def where(self, row: int) -> str:
    """The place of a row, for messages."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLines:
  """A file with one JSON object a line, of which only the index is in memory.

  Attributes:
    path: the file.
    spans: int64 [N, 3], first byte, bytes and line number (from 1) of every row.
    content: the whole text of a compressed file, else None.
  """

  path: str
  spans: np.ndarray
  content: bytes | None = None

  def __len__(self) -> int:
    return len(self.spans)

  def __getitem__(self, row: int) -> Row:
    first, size, _ = map(int, self.spans[row])
    if self.content is not None:
      return parse(self.content[first : first + size], self.where(row))
    # Opened each time: nothing to close, and any thread or forked process may read.
    with open(self.path, 'rb') as file:
      file.seek(first)
      return parse(file.read(size), self.where(row))

  def where(self, row: int) -> str:
    """`<file>, line <number>`."""
    return f'{self.path}, line {self.spans[row, 2]}'


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
  """Rows in memory: the items of a JSON list."""

  path: str
  items: Sequence[Row]

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, row: int) -> Row:
    return _require_object(self.items[row], self.where(row))

  def where(self, row: int) -> str:
    """`<file>, item <number>`, from 0."""
    return f'{self.path}, item {row}'


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
  """Several files one after the other; `ends` int64 [files] counts the rows up to the end of each."""

  parts: Sequence[Rows]
  ends: np.ndarray

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitem__(self, row: int) -> Row:
    part, inner = self._find(row)
    return part[inner]

  def where(self, row: int) -> str:
    """The place in the file that has the row."""
    part, inner = self._find(row)
    return part.where(inner)

  def _find(self, row: int) -> tuple[Rows, int]:
    number = int(np.searchsorted(self.ends, row, side='right'))
    return self.parts[number], int(row) - (int(self.ends[number - 1]) if number else 0)


def join(parts: Sequence[Rows]) -> Rows:
  """The rows of all `parts`, at least one."""
  return parts[0] if len(parts) == 1 else Joined(parts, np.cumsum([len(p) for p in parts]))


def open_json(path: str) -> Rows:
  """The rows of `.jsonl`, `.json` (lines or one list), and either compressed as `.gz`.

  Raises:
    ConfigError: the file cannot be read, or is a list that is not JSON. Lines are looked at when read.
  """
  content = _read(path, gzip.open) if path.endswith('.gz') else None
  if path.removesuffix('.gz').endswith('.json'):
    text = _read(path, open) if content is None else content
    if text.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'['):
      return Items(path, _loads(text, path))
  return JsonLines(path, _index(path, content), content)


def _read(path: str, opener) -> bytes:
  try:
    with opener(path, 'rb') as file:
      return file.read()
  except (OSError, EOFError, zlib.error) as error:
    raise ConfigError(f'{path} cannot be read: {error}. Fetch or write it again.') from error


def _index(path: str, content: bytes | None) -> np.ndarray:
  """int64 [N, 3]: first byte, bytes and number of every line that is not blank."""
  spans, first = [], 0
  try:
    with open(path, 'rb') if content is None else io.BytesIO(content) as file:
      for number, line in enumerate(file, 1):
        if line.strip():
          spans.append((first, len(line), number))
        first += len(line)
  except OSError as error:
    raise ConfigError(f'{path} cannot be read: {error}.') from error
  return np.array(spans, np.int64).reshape(-1, 3)


def parse(line: bytes, place: str) -> Row:
  """The object of one JSON line.

  Raises:
    ConfigError: names the place where the line is not a JSON object.
  """
  return _require_object(_loads(line.rstrip(), place), place)


def _loads(text: bytes, place: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    at = f'column {error.colno}' if error.lineno == 1 else f'line {error.lineno}'
    raise ConfigError(f'{place} is not JSON: {error.msg}, at {at}. Mend it or leave it out.') from error
  except UnicodeDecodeError as error:
    raise ConfigError(f'{place} is not UTF-8 text: {error}. Mend it or leave it out.') from error
  except ValueError as error:  # the one kind left: Python's limit on the digits of an integer
    raise ConfigError(
      f'{place} has an integer of more than {sys.get_int_max_str_digits():,} digits. Make it a text, or '
      'leave it out.'
    ) from error
  except RecursionError as error:
    raise ConfigError(f'{place} is nested too deeply to be read. Mend it or leave it out.') from error


def _require_object(value: Any, place: str) -> Row:
  if not isinstance(value, dict):
    kind = _KINDS.get(type(value), 'a number')
    raise ConfigError(f'{place} is {kind}, not an object with fields.')
  return value
