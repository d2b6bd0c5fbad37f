"""Few combinations of settings that hold every pair of settings at least once."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def cover(
  factors: Mapping[str, Sequence[Any]], allowed: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
  """Rows such that any two values that an allowed row can hold are together in one; greedy."""
  rows = every(factors, allowed)
  pairs = [set(itertools.combinations(enumerate(map(repr, row.values())), 2)) for row in rows]
  missing, chosen = set().union(*pairs), []
  while missing:
    best = max(range(len(rows)), key=lambda i: len(pairs[i] & missing))
    chosen.append(rows[best])
    missing -= pairs[best]
  return chosen


def every(
  factors: Mapping[str, Sequence[Any]], allowed: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
  """All allowed rows."""
  rows = [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]
  return [row for row in rows if allowed(row)]
