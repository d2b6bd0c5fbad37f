"""What EvalPlus knows of its tasks beyond their rows: comparisons, and the types that JSON lost.

The facts are those of EvalPlus 0.3.1, https://github.com/evalplus/evalplus (evalplus/data/mbpp.py and
evalplus/eval/_special_oracle.py), for HumanEval+ v0.1.10 and MBPP+ v0.2.0.
"""

from collections.abc import Callable
from typing import Any

_SAME_SETS = (
  'similar_elements',
  'find_char_long',
  'common_in_nested_lists',
  'extract_singly',
  'larg_nnum',
  'intersection_array',
  'find_dissimilar',
  'Diff',
)
_FOUND = ('check_str', 'text_match_three', 'text_starta_endb')  # a match object, or None

# By the name of the function; `compare` says what each rule means.
MBPP_RULES = (
  dict.fromkeys(_SAME_SETS, 'set')
  | dict.fromkeys(_FOUND, 'found')
  | {
    'are_equivalent': 'anything',
    'sum_div': 'or_zero',
    'surface_Area': 'pyramid',
    'digit_distance_nums': 'digits',
  }
)
HUMANEVAL_RULES = {'find_zero': 'root'}


def _deep(value: Any) -> Any:
  """Every list within is a tuple, and the value itself."""
  return tuple(map(_deep, value)) if isinstance(value, list) else value


def _rows(value: list[Any]) -> list[tuple]:
  """A list whose members are tuples."""
  return [tuple(member) for member in value]


def _each_tuple(call: list[Any]) -> list[Any]:
  return [tuple(argument) for argument in call]


def _each_rows(call: list[Any]) -> list[Any]:
  return [_rows(argument) for argument in call]


def _each_tuple_of_tuples(call: list[Any]) -> list[Any]:
  return [tuple(_rows(argument)) for argument in call]


def _first_rows(call: list[Any]) -> list[Any]:
  return [_rows(call[0]), *call[1:]]


def _first_tuple(call: list[Any]) -> list[Any]:
  return [tuple(call[0]), *call[1:]]


def _second_tuple(call: list[Any]) -> list[Any]:
  return [call[0], tuple(call[1])]


def _each_deep(call: list[Any]) -> list[Any]:
  return [_deep(argument) for argument in call]


def _sets(call: list[Any]) -> list[Any]:
  return [[set(m) if isinstance(m, list) and m else {} for m in call[0]]]


def _mixed_tuple(call: list[Any]) -> list[Any]:
  return [tuple(tuple(m) if isinstance(m, list) else m for m in call[0])]


def _values_tuples(call: list[Any]) -> list[Any]:
  return [{key: tuple(value) for key, value in call[0].items()}, *call[1:]]


def _real_and_complex(call: list[Any]) -> list[Any]:
  return [float(call[0]), complex(call[1])]


def _complex(call: list[Any]) -> list[Any]:
  return [complex(call[0])]


# What turns a row's arguments back into those that were meant, and the numbers of the tasks it serves.
_SHAPES: dict[Callable[[list[Any]], list[Any]], str] = {
  _each_tuple: '2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809',
  _each_rows: '63 64 70 94 120 237 272 299 400 409 417 438 473 614 780',
  _first_rows: '75 413 444 753',
  _second_tuple: '106 750',
  _sets: '115',
  _real_and_complex: '124',
  _first_tuple: '250 307 405 446 617 720 763 808',
  _each_tuple_of_tuples: '259 401 445',
  _mixed_tuple: '278',
  _values_tuples: '722',
  _complex: '252',
  _each_deep: '580 615 791',
}
_SHAPE_OF = {int(number): shape for shape, numbers in _SHAPES.items() for number in numbers.split()}


def mbpp_arguments(number: int, call: list[Any]) -> list[Any]:
  """The arguments of a call of MBPP+'s task of that number, from what its row holds."""
  shape = _SHAPE_OF.get(number)
  return shape(call) if shape else call
