import fractions
import math
import string
import types
from decimal import Decimal

import hypothesis
import hypothesis.strategies as st
import pytest

from opsd_jax.grade.programs import values

ATOMS = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False)
  | st.text()
  | st.binary()
  | st.complex_numbers(allow_nan=False)
)
KEYS = st.integers() | st.text() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
  ATOMS,
  lambda inner: (
    st.lists(inner)
    | st.lists(inner).map(tuple)
    | st.dictionaries(KEYS, inner)
    | st.sets(KEYS)
    | st.frozensets(KEYS)
  ),
)


def there_and_back(value):
  return values.decode(values.encode(value))


def alike(a, b) -> bool:
  """Equal, and of the same types throughout."""
  if type(a) is not type(b):
    return False
  if isinstance(a, list | tuple):
    return len(a) == len(b) and all(map(alike, a, b))
  if isinstance(a, dict):
    return alike(list(a.items()), list(b.items()))
  return a == b


@hypothesis.given(VALUES)
def test_plain_values_come_back(value):
  assert alike(there_and_back(value), value)


RARE = {
  'large': 10**5000,
  'large within': (1, [-(10**5000)]),
  'infinite': [math.inf, -math.inf],
  'half a character': '\ud800',
  'range': range(2, 9, 3),
}


@pytest.mark.parametrize('name', RARE)
def test_rare_values_come_back(name):
  value = RARE[name]
  assert alike(there_and_back(value), value)


def test_not_a_number_comes_back():
  assert math.isnan(there_and_back(math.nan))


def test_numbers_of_the_library_come_back():
  assert alike(there_and_back([Decimal('1.50'), fractions.Fraction(1, 3)])[0], Decimal('1.50'))
  assert alike(there_and_back(fractions.Fraction(1, 3)), fractions.Fraction(1, 3))


def test_builtin_types_come_back():
  assert there_and_back((int, [str, dict])) == (int, [str, dict])
  assert type(there_and_back(type('int', (), {}))) is values.Opaque


def test_iterators_come_back_as_iterators():
  found = there_and_back(map(str, [1, 2]))
  assert found != ['1', '2']
  assert list(found) == ['1', '2']


class Liar(int):
  def __eq__(self, other):
    return True

  __hash__ = int.__hash__


class Text(str):
  def __str__(self):
    return 'another'


def test_subclasses_count_as_what_they_are():
  assert alike(there_and_back([Liar(3), Text('one')]), [3, 'one'])


@pytest.mark.parametrize('value', (object(), len, string, types.SimpleNamespace(a=1), Liar), ids=range(5))
def test_other_kinds_equal_nothing(value):
  found = there_and_back(value)
  assert type(found) is values.Opaque
  assert found != value
  assert found != there_and_back(value)


def test_objects_of_known_classes_come_back_without_a_call():
  class Node:
    def __init__(self, *ignored):
      raise AssertionError('called')

  Node.__module__ = 'program'
  first, second = object.__new__(Node), object.__new__(Node)
  first.__dict__.update(value=(1, 2), next=second)
  second.__dict__.update(value=3, next=None)
  found = values.decode(values.encode(first), {'Node': Node})
  assert (type(found), found.value, found.next.value, found.next.next) == (Node, (1, 2), 3, None)
  assert type(values.decode(values.encode(first))) is values.Opaque


def test_large_values_compare_by_their_digest():
  rows = [(number, 'x') for number in range(600_000)]
  text = values.encode(rows)
  assert len(text) < 200
  assert values.decode(text) == there_and_back([*rows])
  for other in ([*rows[:-1], (0, 'x')], tuple(rows), rows[:-1], [(float(n), 'x') for n, _ in rows]):
    assert values.decode(text) != there_and_back(other)
  assert there_and_back('x' * 2_000_000) == there_and_back('x' * 2_000_000) != there_and_back('y' * 2_000_000)


@pytest.mark.parametrize(
  'text',
  (
    b'',
    b'{',
    b'{}',
    b'{"list": []}',
    b'{"tuple": 1}',
    b'{"tuple": "ab"}',
    b'{"tuple": [], "set": []}',
    b'{"set": [[]]}',
    b'{"dict": [[1]]}',
    b'{"dict": [[[], 1]]}',
    b'{"complex": ["a", 1]}',
    b'{"bytes": "xy"}',
    b'{"text": ["eval", "1"]}',
    b'{"object": 1}',
    b'{"int": 1}',
    b'{"type": "eval"}',
    b'{"type": []}',
    b'\xff',
    b'[' * 100_000,
  ),
)
def test_what_encode_did_not_write_is_refused(text):
  with pytest.raises(ValueError):
    values.decode(text)


@hypothesis.given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_value_or_refused(text):
  try:
    values.decode(text)
  except ValueError:
    pass
