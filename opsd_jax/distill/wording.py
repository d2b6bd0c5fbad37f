"""Wordings of the two views: presets that come along, and files of the same form.

A wording is a TOML file. `[student]` and `[teacher]` each have `text`, a template, and may have
`thinking` (true or false) and `opening`; at the top stand `chat` and `system`. The presets are such
files: copy one to begin your own.
"""

import os
import pathlib
import tomllib
from typing import Any

from opsd_jax.config import ConfigError, nearest, require

_FOLDER = pathlib.Path(__file__).parent / 'wordings'
_TOP = {'chat': bool, 'system': str, 'student': dict, 'teacher': dict}
_VIEW = {'text': str, 'thinking': bool, 'opening': str}
_TYPES = {bool: 'true or false', str: 'a text', dict: 'a table'}


def presets() -> list[str]:
  """Names of the wordings that come along."""
  return sorted(path.stem for path in _FOLDER.glob('*.toml'))


def load(name: str) -> dict[str, Any]:
  """Fields of `ViewsConfig` that a wording sets; what its file leaves out has its default.

  Args:
    name: a preset, or the path of a TOML file.

  Raises:
    ConfigError: there is no such preset or file, or it does not hold a wording.
  """
  content = _read(name)
  _check(name, content, _TOP, '')
  fields = {'chat': content.get('chat', True), 'system': content.get('system', '')}
  for role in ('student', 'teacher'):
    view = content.get(role, {})
    _check(name, view, _VIEW, f'{role}.')
    require('text' in view, f'{name} has no {role}.text; write what the {role} sees under [{role}].')
    fields |= {
      role: view['text'],
      f'{role}_thinking': view.get('thinking'),
      f'{role}_opening': view.get('opening', ''),
    }
  return fields


def _read(name: str) -> dict[str, Any]:
  path = pathlib.Path(os.path.expanduser(name))
  if not name.endswith('.toml'):
    require(name in presets(), f'views is {name!r}, no preset and no .toml file.{nearest(name, presets())}')
    path = _FOLDER / f'{name}.toml'
  try:
    return tomllib.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise ConfigError(f'views is {name!r}, which cannot be read: {error.strerror}.') from error
  except ValueError as error:
    raise ConfigError(f'views is {name!r}, which is not TOML: {error}.') from error


def _check(name: str, table: dict[str, Any], known: dict[str, type], prefix: str) -> None:
  """Every key is known and has its type."""
  for key, value in table.items():
    require(key in known, f'{name} has {prefix}{key}, which is unknown.{nearest(key, known)}')
    require(
      isinstance(value, known[key]), f'{name}: {prefix}{key} is {value!r}; it must be {_TYPES[known[key]]}.'
    )
