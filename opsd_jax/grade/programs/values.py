"""Python values as JSON text and back, for data that crosses from a process that is not trusted.

Plain values alone come out of `decode`: it calls no code of the sender's, and a value of any other kind
arrives as `Opaque`, which equals nothing. JSON's own kinds stand for themselves; the others are objects
of one key, the tag. A list, tuple or text of more than a million parts crosses as a digest, which compares
exactly.

Runs inside the sandbox: imports the standard library alone.
"""

import itertools
import json
import marshal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

ATOMS = frozenset({type(None), bool, int, float, str})
_LARGE = 1_000_000  # parts of a value, in its first two levels
_CHUNK = 10_000
_ENDLESS = 1_000_000  # items taken from an iterator


class Opaque:
  """A value of a kind that does not cross. Equal to itself alone."""


def encode(value: Any) -> bytes:
  """The value as JSON text.

  Raises:
    Exception: whatever the value's own methods raise, and `RecursionError` where it goes too deep.
  """
  if _parts(value) > _LARGE or type(value) in (list, tuple) and sum(map(_parts, value)) > _LARGE:
    return json.dumps(_digest(value)).encode()
  try:
    return json.dumps(_tagged(value, wide=False)).encode()
  except ValueError:  # an integer with more digits than Python writes in decimal
    return json.dumps(_tagged(value, wide=True)).encode()


def decode(text: bytes, classes: Mapping[str, type] | None = None) -> Any:
  """The value that `encode` wrote; instances of `classes`, by name, are made without calling them.

  Raises:
    ValueError: the text is something else.
  """
  try:
    return _value(json.loads(text), classes or {})
  except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
    raise ValueError(f'no encoded value: {type(error).__name__}') from error


def _parts(value: Any) -> int:
  return len(value) if type(value) in (list, tuple, str) else 0


def _digest(value: list | tuple | str) -> dict[str, Any]:
  """Stands for a value that is too large to be sent. Kinds of numbers count: 1 is not 1.0 here."""
  import hashlib  # where it is used, since every program waits for what is imported

  state = hashlib.sha256()
  for start in range(0, len(value), _CHUNK):
    state.update(marshal.dumps(value[start : start + _CHUNK], 2))  # version 2 depends on values alone
  return {'digest': [type(value).__name__, len(value), state.hexdigest()]}


def _tagged(value: Any, wide: bool) -> Any:
  """The value as what JSON knows; `wide` writes integers so that any size passes."""
  kind = type(value)
  if kind is int and wide and value.bit_length() > 10_000:
    return {'int': hex(value)}
  if kind in ATOMS:
    return value
  if kind is list:
    return value if not wide and ATOMS.issuperset(map(type, value)) else [_tagged(v, wide) for v in value]
  for tag, wanted, parts in _KINDS:
    if isinstance(value, wanted):
      return {tag: _tagged(parts(value), wide)}
  for base in (str, int, float, list):  # a subclass counts as what it is
    if isinstance(value, base):
      return _tagged(_base(value, base), wide)
  return _other(value, wide)


def _base(value: Any, base: type) -> Any:
  whole = {str: str.__str__, int: int.__int__, float: float.__float__, list: list}[base](value)
  if type(whole) is not base:
    raise TypeError(f'{type(value).__name__} does not become {base.__name__}')
  return whole


def _other(value: Any, wide: bool) -> dict[str, Any]:
  kind = type(value)
  if hasattr(kind, '__next__'):
    return {'iterator': _tagged(list(itertools.islice(value, _ENDLESS)), wide)}
  if isinstance(getattr(value, '__dict__', None), dict) and kind.__module__ == 'program':
    return {'object': [kind.__name__, _tagged(dict(value.__dict__), wide)]}
  if kind is type and _TYPES.get(value.__name__) is value:
    return {'type': value.__name__}
  text = (kind.__module__, kind.__name__) in _TEXTS
  return {'text': [kind.__name__, str(value)]} if text else {'opaque': None}


def _pairs(value: Mapping) -> list[list[Any]]:
  return [[k, v] for k, v in value.items()]


_KINDS = (
  ('tuple', tuple, list),
  ('dict', dict, _pairs),
  ('set', set, list),
  ('frozenset', (frozenset, type({}.keys())), list),
  ('complex', complex, lambda v: [v.real, v.imag]),
  ('bytes', (bytes, bytearray), lambda v: v.hex()),
  ('range', range, lambda v: [v.start, v.stop, v.step]),
)
_TEXTS = {('decimal', 'Decimal'), ('fractions', 'Fraction')}
_TYPES = {t.__name__: t for t in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)}


def _value(node: Any, classes: Mapping[str, type]) -> Any:
  if type(node) is list:
    return node if ATOMS.issuperset(map(type, node)) else [_value(n, classes) for n in node]
  if type(node) is not dict:
    return node
  ((tag, content),) = node.items()
  if tag == 'object':
    return _instance(*content, classes)
  return _MAKERS[tag](_value(content, classes))


def _instance(name: str, state: Any, classes: Mapping[str, type]) -> Any:
  if not isinstance(name, str) or not isinstance(classes.get(name), type):
    return Opaque()
  made = object.__new__(classes[name])
  made.__dict__.update(_value(state, classes))
  return made


def _named(content: list[str]) -> Any:
  import decimal
  import fractions

  return {'Decimal': decimal.Decimal, 'Fraction': fractions.Fraction}[content[0]](content[1])


def _list(content: Any) -> list:
  if type(content) is not list:
    raise TypeError('no list')
  return content


def _iterator(content: Any) -> Iterator[Any]:
  return iter(_list(content))


class Digest(tuple):
  """What came in place of a large value: kind, length, hash. Equal to a digest of the same."""

  __slots__ = ()

  def __eq__(self, other: Any) -> bool:
    return type(other) is Digest and tuple.__eq__(self, other)

  def __hash__(self) -> int:
    return tuple.__hash__(self)


_MAKERS = {
  'int': lambda v: int(v, 16),
  'tuple': lambda v: tuple(_list(v)),
  'dict': lambda v: {key: value for key, value in _list(v)},
  'set': lambda v: set(_list(v)),
  'frozenset': lambda v: frozenset(_list(v)),
  'complex': lambda v: complex(*map(float, _list(v))),
  'bytes': bytes.fromhex,
  'range': lambda v: range(*_list(v)),
  'iterator': _iterator,
  'text': _named,
  'type': lambda v: _TYPES[v],
  'digest': lambda v: Digest(_list(v)),
  'opaque': lambda v: Opaque(),
}


def unlimited_digits() -> None:
  """Lets this process read and write integers of any length."""
  sys.set_int_max_str_digits(0)
