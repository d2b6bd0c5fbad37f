"""Files that are whole or absent, whatever moment a run is killed at."""

import contextlib
import json
import os
import platform
from typing import Any


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file; until it is complete, readers see the old one, or none.

  Several processes, on machines that share the folder, may write the same file: the last one stays, whole.
  """
  path = os.fspath(path)
  temporary = f'{path}.{platform.node()}.{os.getpid()}.tmp'
  try:
    with open(temporary, 'w', encoding='utf-8') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())  # Else a power cut may keep the new name and lose the content.
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(temporary)
    raise


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
  """Writes JSON in the same way; `indent` None puts it on one line."""
  write_text(path, json.dumps(value, indent=indent) + '\n')
