"""Frozen-dataclass configs: command-line overrides, printing, saving and clear errors.

Knows no recipe and no room. A config is a tree of frozen dataclasses whose leaves are `bool`, `int`,
`float`, `str`, `None` or tuples of those; every room owns its own dataclass.
"""

import ast
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar('T')


class ConfigError(ValueError):
  """A setting that cannot work. The message names the setting, its value and the remedy."""


def require(condition: bool, message: str) -> None:
  """Raises `ConfigError(message)` unless `condition` holds."""
  if not condition:
    raise ConfigError(message)


def nearest(name: str, valid: Iterable[str]) -> str:
  """' Did you mean ...?' for the closest valid name, else the list of all valid names."""
  valid = sorted(valid)
  close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
  return f' Did you mean {close[0]!r}?' if close else f' Valid names: {", ".join(valid)}.'


def require_choice(setting: str, value: str, choices: Sequence[str]) -> None:
  """Raises `ConfigError` unless `value` is one of `choices`."""
  require(value in choices, f'{setting} is {value!r}, which is not a choice.{nearest(value, choices)}')


def override(config: T, assignments: Iterable[str]) -> T:
  """Returns `config` with `dotted.path=value` assignments applied, left to right.

  Values are read as the field's declared type: `optimizer.learning_rate=1e-4`,
  `model.tie_embeddings=false`, `teacher.kind=ema`, `rollout.top_k=none`. A group of settings that has
  a method `named(name)` is set as a whole by a name, `views=opsd`; later assignments change parts of it.

  Raises:
    ConfigError: an assignment without `=`, an unknown field (names the nearest), or a value that
      is not of the field's type.
  """
  for assignment in assignments:
    path, equals, text = assignment.partition('=')
    require(bool(equals), f'--set={assignment} has no "="; write --set=some.field=value.')
    config = _assign(config, path.strip().split('.'), text.strip(), path.strip())
  return config


def _assign(node: Any, path: list[str], text: str, whole: str) -> Any:
  require(dataclasses.is_dataclass(node), f'{whole!r} goes deeper than the config: its parent is a value.')
  names = [field.name for field in dataclasses.fields(node)]
  name, rest = path[0], path[1:]
  where = type(node).__name__
  require(name in names, f'{whole!r} is unknown: {where} has no field {name!r}.{nearest(name, names)}')
  current, kind = getattr(node, name), typing.get_type_hints(type(node))[name]
  if rest:
    value = _assign(current, rest, text, whole)
  elif dataclasses.is_dataclass(current):
    value = _named(current, text, whole)
  else:
    value = parse(text, kind, whole)
  return dataclasses.replace(node, **{name: value})


def _named(group: T, name: str, setting: str) -> T:
  """The group of settings that goes by a name."""
  fields = ', '.join(f.name for f in dataclasses.fields(group))
  require(
    hasattr(group, 'named'),
    f'{setting!r} is a group of settings, not a value; set one of its fields: {fields}.',
  )
  return group.named(name)


def parse(text: str, kind: Any, setting: str) -> Any:
  """Reads `text` as a value of the annotated type `kind`.

  Raises:
    ConfigError: the text is not of that type.
  """
  options = typing.get_args(kind) if _is_union(kind) else (kind,)
  if type(None) in options and text.lower() in ('none', 'null', ''):
    return None
  for option in options:
    if option is not type(None):
      try:
        return _parse_one(text, option)
      except (ValueError, SyntaxError, KeyError, TypeError):
        continue
  expected = ' or '.join(_type_name(o) for o in options)
  raise ConfigError(f'{setting} is {text!r}, which is not a value of type {expected}.')


def _parse_one(text: str, kind: Any) -> Any:
  origin = typing.get_origin(kind)
  if kind is bool:
    return _parse_bool(text)
  if kind in (int, float):
    return kind(text.replace('_', ''))
  if kind is str:
    return text
  if origin is typing.Literal:
    return {str(choice): choice for choice in typing.get_args(kind)}[text]
  if origin is tuple:
    return _parse_tuple(text, typing.get_args(kind))
  raise ValueError(f'values of type {kind} are not set from text')


def _parse_bool(text: str) -> bool:
  if text.lower() not in ('true', 'false', '1', '0'):
    raise ValueError(text)
  return text.lower() in ('true', '1')


def _parse_tuple(text: str, kinds: tuple[Any, ...]) -> tuple:
  """Reads `a,b` or Python's `("a", "b")`; `kinds` are the arguments of the `tuple[...]`."""
  if text.startswith(('(', '[')):
    items = ast.literal_eval(text)
    if not isinstance(items, tuple | list):
      raise ValueError(f'{text} is no tuple; a tuple of one is ({items!r},)')
  else:
    items = [item.strip() for item in text.split(',') if item.strip()]
  if kinds[-1] is Ellipsis:
    kinds = kinds[:1] * len(items)
  return tuple(_parse_one(str(i), kind) for i, kind in zip(items, kinds, strict=True))


def _is_union(kind: Any) -> bool:
  return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _type_name(kind: Any) -> str:
  if typing.get_origin(kind) is typing.Literal:
    return 'one of ' + ', '.join(map(repr, typing.get_args(kind)))
  return 'none' if kind is type(None) else getattr(kind, '__name__', str(kind))


def to_dict(config: Any) -> dict[str, Any]:
  """Nested plain dict of a config, tuples as lists: what `config.json` holds."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: Any, value: Any, where: str) -> Any:
  """The config of type `kind` that `to_dict` made plain; `where` is its file, for messages.

  Raises:
    ConfigError: a setting that this version does not have.
  """
  if dataclasses.is_dataclass(kind):
    hints = typing.get_type_hints(kind)
    for name in value:
      require(name in hints, f'{where}: setting {name!r} is unknown to this version.{nearest(name, hints)}')
    return kind(**{name: from_dict(hints[name], v, f'{where}: {name}') for name, v in value.items()})
  options = typing.get_args(kind)
  if _is_union(kind):
    chosen = [option for option in options if option is not type(None)]
    return value if value is None or len(chosen) != 1 else from_dict(chosen[0], value, where)
  if typing.get_origin(kind) is tuple and isinstance(value, list):
    inner = options[:1] * len(value) if options[-1] is Ellipsis else options
    return tuple(from_dict(k, v, where) for k, v in zip(inner, value, strict=True))
  return value


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """`{'optimizer.learning_rate': 1e-4, ...}` in field order."""
  flat: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      flat |= flatten(value, f'{prefix}{field.name}.')
    else:
      flat[prefix + field.name] = value
  return flat


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
  """Lines `path: old -> new` for every leaf that differs between two nested dicts."""
  lines = []
  for key in sorted(old.keys() | new.keys()):
    before, after = old.get(key, '(absent)'), new.get(key, '(absent)')
    if isinstance(before, dict) and isinstance(after, dict):
      lines += differences(before, after, f'{prefix}{key}.')
    elif before != after:
      lines.append(f'{prefix}{key}: {before} -> {after}')
  return lines
