"""What a check of training problems found, in numbers and with examples."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opsd_jax.data.contamination import Overlap
from opsd_jax.data.filters import Prints

_SHOWN = 10  # groups of conflicts, and examples of a benchmark


@dataclasses.dataclass(frozen=True)
class Repeated:
  """One benchmark in the training problems.

  Attributes:
    problems: how many it has.
    repeated: how many of them a training problem repeats.
    train: how many training problems repeat one.
    examples: those with the largest shares and those with the smallest, a few of each, descending.
  """

  problems: int
  repeated: int
  train: int
  examples: tuple[Overlap, ...]


@dataclasses.dataclass(frozen=True)
class Report:
  """What was looked at, found and left out.

  Attributes:
    read: training problems there were.
    kept: training problems that are left.
    left_out: reason -> how many; one reason each.
    copies: how many stand there before with the same answer.
    conflicts: ids of the problems that stand there with different answers, a group each; a few groups.
    conflicting: how many such groups there are.
    repeated: by benchmark, what the training problems repeat that no filter leaves out; `test` and
      `validation` are the run's own.
    held_out: the same for the validation problems, which are never left out, and the benchmarks.
    reasons: id -> reason of every problem that was left out.
  """

  read: int
  kept: int
  left_out: Mapping[str, int]
  copies: int
  conflicts: tuple[tuple[str, ...], ...]
  conflicting: int
  repeated: Mapping[str, Repeated]
  held_out: Mapping[str, Repeated]
  reasons: Mapping[str, str]

  def to_dict(self) -> dict[str, Any]:
    """Plain values, as JSON has them, without `reasons`, which may be many."""
    plain = dataclasses.asdict(self)
    del plain['reasons']
    return plain


def report(
  ids: Sequence[str], out: Mapping[int, str], prints: Sequence[Prints], repeated: Mapping[str, Repeated]
) -> Report:
  """The report of problems by their positions.

  Args:
    ids: of all problems.
    out: position -> why it is left out.
    prints: the problems that stand more than once.
    repeated: by benchmark.
  """
  conflicts = [one for one in prints if not one.agreed]
  return Report(
    read=len(ids),
    kept=len(ids) - len(out),
    left_out=dict(sorted(collections.Counter(out.values()).items())),
    copies=sum(len(one.positions) - 1 for one in prints if one.agreed),
    conflicts=tuple(tuple(ids[p] for p in one.positions) for one in conflicts[:_SHOWN]),
    conflicting=len(conflicts),
    repeated=repeated,
    held_out={},
    reasons={ids[position]: out[position] for position in sorted(out)},
  )


def repeated(found: Iterable[Sequence[Overlap]], sizes: Mapping[str, int]) -> dict[str, Repeated]:
  """What was found, by benchmark."""
  every = [overlap for overlaps in found for overlap in overlaps]
  result = {}
  for name, size in sizes.items():
    mine = [o for o in every if o.benchmark == name]
    mine.sort(key=lambda o: -o.share)  # stable: of equal shares, earlier problems first
    half = _SHOWN // 2
    examples = mine if len(mine) <= _SHOWN else mine[:half] + mine[-half:]
    others, trained = {o.other for o in mine}, {o.problem for o in mine}
    result[name] = Repeated(size, len(others), len(trained), tuple(examples))
  return result
