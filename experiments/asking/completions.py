"""Completions as JSON lines, in a file that an interrupted command finds again, or on standard output."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments.asking.prompts import Request
from opsd_jax import files
from opsd_jax.config import ConfigError, require

Row = dict[str, Any]


def find(path: str, requests: Sequence[Request], settings: Mapping[str, Any]) -> set[tuple[int, int]]:
  """(line, sample) of what the file has; a line that a kill tore is cut off.

  Raises:
    ConfigError: the file is something else, or belongs to other prompts or settings.
  """
  lines, torn = _lines(path)
  given, found = {request.line: request.given for request in requests}, set()
  for number, row in enumerate(_parsed(lines, path), 1):
    where = f'--output={path}, line {number}'
    changed = [k for k, v in settings.items() if row['settings'].get(k) != v]
    require(
      not changed, f'{where} was made with other settings, which differ in {", ".join(changed)}. {_REMEDY}'
    )
    require(given.get(row['line']) == row['input'], f'{where} answers another prompt. {_REMEDY}')
    found.add((row['line'], row['sample']))
  # Only now is it sure that the file is ours to change.
  begins = torn.startswith(_BEGIN) or _BEGIN.startswith(torn)
  require(begins, f'--output={path} ends in {torn[:40]!r}, which is no completion. {_REMEDY}')
  _cut(path, len(torn))
  return found


def lacking(request: Request, samples: int, have: set[tuple[int, int]]) -> list[int]:
  """Samples of a prompt that are still to be drawn."""
  return [i for i in range(samples) if (request.line, i) not in have]


_REMEDY = 'Choose another --output, or remove it.'


_BEGIN = b'{"line": '  # of every row


def _lines(path: str) -> tuple[list[bytes], bytes]:
  """The whole lines of a file and what follows the last; of none, where there is no file yet."""
  if not os.path.exists(path):
    return [], b''
  try:
    with open(path, 'rb') as file:
      *lines, torn = file.read().split(b'\n')
  except OSError as error:
    raise ConfigError(f'--output={path} cannot be written: {error.strerror or error}.') from error
  return lines, torn


def _cut(path: str, torn: int) -> None:
  """Makes the file, or takes `torn` bytes off its end."""
  try:
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'ab') as file:
      file.truncate(file.tell() - torn)
  except OSError as error:
    raise ConfigError(f'--output={path} cannot be written: {error.strerror or error}.') from error


def _parsed(lines: Iterable[bytes], path: str) -> Iterator[Row]:
  for number, line in enumerate(lines, 1):
    where = f'--output={path}, line {number}'
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ConfigError(f'{where} is not JSON: {error}. {_REMEDY}') from error
    require(_is_ours(row), f'{where} is no completion. {_REMEDY}')
    yield row


def _is_ours(row: Any) -> bool:
  kinds = {'line': int, 'sample': int, 'input': dict, 'settings': dict}
  return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in kinds.items())


def append(path: str | None, rows: Iterable[Row]) -> None:
  """Adds rows to the file, or prints them where there is none; they are there when this returns."""
  text = ''.join(map(_line, rows))
  if path is None:
    print(text, end='', flush=True)
    return
  with open(path, 'a', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def sort(path: str) -> None:
  """Puts the rows of a file in the order of the prompts; batches come in that of their widths."""
  rows = list(_parsed(_lines(path)[0], path))
  ordered = sorted(rows, key=lambda row: (row['line'], row['sample']))
  if ordered != rows:
    files.write_text(path, ''.join(map(_line, ordered)))


def _line(row: Row) -> str:
  text = json.dumps(row, ensure_ascii=False) + '\n'
  try:
    text.encode()
  except UnicodeEncodeError:  # half a character in a field that came along
    return json.dumps(row) + '\n'
  return text
