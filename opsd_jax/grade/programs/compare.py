"""When two results are the same, by the rules of the code benchmarks.

The rules are those of EvalPlus 0.3.1, https://github.com/evalplus/evalplus, with its defect in
HumanEval/32 mended, and with two of its accidents left out: a tolerance does not stay on for the calls
that follow, and arrays of different shapes are not stretched to fit.

Runs inside the sandbox: imports the standard library alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

_RELATIVE = 1e-7  # of NumPy's assert_allclose
_ABSOLUTE = 1e-6  # where the task names none and floats are expected


def agree(rule: str, arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  """Whether `found` is a right result of the call, given the canonical solution's `expected`.

  Args:
    rule: a name from `RULES`.
    arguments: of the call.
    found: the program's result.
    expected: the canonical solution's result.
    tolerance: absolute, 0 to compare exactly all but floats.

  Raises:
    Exception: what Python raises where results of these kinds do not compare; they disagree.
  """
  return bool(RULES[rule](arguments, found, expected, tolerance))


def close(found: Any, expected: Any, tolerance: float) -> bool:
  """Equal, or of one kind and each number within `tolerance` + 1e-7 of the expected one."""
  if found == expected:
    return True
  tolerance = tolerance or (_ABSOLUTE if _floats(expected) else 0)
  return bool(tolerance) and type(found) is type(expected) and _near(found, expected, tolerance)


def _floats(value: Any) -> bool:
  if isinstance(value, list | tuple) and value:
    return all(isinstance(v, float) for v in value)
  return isinstance(value, float)


def _near(found: Any, expected: Any, tolerance: float) -> bool:
  if isinstance(expected, list | tuple):
    return (
      isinstance(found, list | tuple)
      and len(found) == len(expected)
      and all(_near(f, e, tolerance) for f, e in zip(found, expected))
    )
  if not isinstance(found, int | float | complex) or not isinstance(expected, int | float | complex):
    return False
  return found == expected or abs(found - expected) <= tolerance + _RELATIVE * abs(expected) < math.inf


def _close(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  return close(found, expected, tolerance)


def _same_set(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  return set(found) == set(expected)


def _is_found(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  """Something or nothing, as with the canonical solution; True and False say so themselves."""
  return found is (expected is not None) if isinstance(found, bool) else (found is None) == (expected is None)


def _anything(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  return True


def _or_zero(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  return close(found, expected, tolerance) or found == 0


def _root(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  """The polynomial with these coefficients, lowest first, is nearly zero there."""
  return abs(sum(c * math.pow(found, power) for power, c in enumerate(arguments[0]))) <= tolerance


def _pyramid(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  """The second argument may also be read as the pyramid's height, instead of its slant height."""
  base, height = arguments
  surface = round(base**2 + 2 * base * math.hypot(base / 2, height))
  return close(found, expected, tolerance) or abs(found - surface) <= tolerance


def _digits(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  """The distance may also be taken digit by digit, the shorter number filled up with zeros."""
  first, second = map(str, arguments)
  width = max(len(first), len(second))
  pairs = zip(first.zfill(width), second.zfill(width))
  return close(found, expected, tolerance) or found == sum(abs(int(a) - int(b)) for a, b in pairs)


def _plain(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  """Equal once tuples are lists, as after a way through JSON."""
  return _listed(found) == expected


def _boxed(arguments: Sequence[Any], found: Any, expected: Any, tolerance: float) -> bool:
  """As `json`; the expected result may stand in a list of its own."""
  return _listed(found) == expected or [_listed(found)] == expected


def _listed(value: Any) -> Any:
  return [_listed(v) for v in value] if isinstance(value, list | tuple) else value


RULES: dict[str, Callable[[Sequence[Any], Any, Any, float], bool]] = {
  'close': _close,
  'set': _same_set,
  'found': _is_found,
  'anything': _anything,
  'or_zero': _or_zero,
  'root': _root,
  'pyramid': _pyramid,
  'digits': _digits,
  'json': _plain,
  'boxed': _boxed,
}


def exact_text(found: str, expected: str) -> bool:
  """Letter by letter, without outer blanks: few data sets keep the last end of a line."""
  return found.strip() == expected.strip()


def same_text(found: str, expected: str) -> bool:
  """Line by line, without outer blanks; a line may also agree number by number."""
  ours, theirs = ([line.strip() for line in t.strip().split('\n')] for t in (found, expected))
  return len(ours) == len(theirs) and all(a == b or _same_numbers(a, b) for a, b in zip(ours, theirs))


def _same_numbers(found: str, expected: str) -> bool:
  import decimal  # where it is used, since every program waits for what is imported

  try:
    return [decimal.Decimal(t) for t in found.split()] == [decimal.Decimal(t) for t in expected.split()]
  except decimal.InvalidOperation:
    return False
