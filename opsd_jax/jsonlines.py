"""Strict JSON lines: one object a line, non-finite floats by name, a torn end forgiven.

Strict JSON has no NaN, so 'nan', 'inf' and '-inf' stand for these numbers. As texts of their own
they cannot be stored: they come back as numbers.
"""

import json
import math
import os
from typing import Any

Row = dict[str, Any]

_NON_FINITE = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}


def dumps(row: Row) -> str:
  """One row as strict JSON, without a newline.

  Raises:
    TypeError: a value is not JSON-able.
  """
  return json.dumps(_named(row), allow_nan=False)


def read(path: str | os.PathLike) -> list[Row]:
  """The rows of a file that may still grow; a torn last line is left out.

  Raises:
    FileNotFoundError: there is no file.
    ValueError: a line before the last is not JSON.
  """
  with open(path, 'rb') as file:
    lines = file.read().split(b'\n')[:-1]  # What follows the last newline is torn, or empty.
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      rows.append(_revived(json.loads(line)))
    except ValueError as error:
      if number < len(lines):
        raise ValueError(f'{path}, line {number} is not JSON: {error}') from error
  return rows


def _named(value: Any) -> Any:
  """Non-finite floats by name, deeply."""
  if isinstance(value, dict):
    return {name: _named(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [_named(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return 'nan' if math.isnan(value) else 'inf' if value > 0 else '-inf'
  return value


def _revived(value: Any) -> Any:
  """The inverse of `_named`."""
  if isinstance(value, dict):
    return {name: _revived(item) for name, item in value.items()}
  if isinstance(value, list):
    return [_revived(item) for item in value]
  return _NON_FINITE.get(value, value) if isinstance(value, str) else value
