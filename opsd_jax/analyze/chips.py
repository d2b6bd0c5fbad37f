"""What chips can do at most, and how long a program takes at least: the roofline of a plan.

Peaks are those that the makers publish. Nobody reaches them; a plan says what is left when everything else is
hidden, and which of the terms it is that does not let go.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from opsd_jax.analyze.counting import Counted
from opsd_jax.config import ConfigError, nearest, require

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip.

  Attributes:
    flops: bfloat16 operations a second.
    memory: bytes that programs may use.
    bandwidth: of that memory, bytes a second.
    interconnect: bytes a second in and out over all links together.
    links: of a chip; two for every dimension of the torus.
    wraps: chips along a dimension from which on, at multiples of it, its ends are joined.
    host: chips of a host, by dimension.
    source: of these numbers.
  """

  flops: float
  memory: float
  bandwidth: float
  interconnect: float
  links: int
  wraps: int
  host: tuple[int, int, int]
  source: str


_CLOUD = 'https://docs.cloud.google.com/tpu/docs'
# Memory: what the compiler of libtpu 0.0.42 says is there when a program does not fit (`exceeds available HBM
# (15.75G)`).
CHIPS = {
  'v5e': Chip(197e12, 15.75 * GIB, 819e9, 400e9, 4, 16, (2, 2, 1), f'{_CLOUD}/v5e'),
  'v5p': Chip(459e12, 95.74 * GIB, 2765e9, 1200e9, 6, 4, (2, 2, 1), f'{_CLOUD}/v5p'),
  'v6e': Chip(918e12, 31.25 * GIB, 1638e9, 800e9, 4, 16, (2, 2, 1), f'{_CLOUD}/v6e'),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips of one kind that a run has.

  Attributes:
    name: as it was asked for, such as `v5e:4x4`.
    chip: their kind.
    sizes: chips along each dimension.
  """

  name: str
  chip: Chip
  sizes: tuple[int, ...]

  @property
  def chips(self) -> int:
    """How many there are."""
    return math.prod(self.sizes)

  @property
  def ring(self) -> float:
    """Bytes a second that a chip sends to its neighbours along one dimension.

    Both ways around where every dimension is closed, else one way: a line has a last chip.
    """
    link = self.chip.interconnect / 2 / self.chip.links
    closed = all(size % self.chip.wraps == 0 for size in self.sizes if size > 1)
    return link * (2 if closed else 1)


def parse(topology: str) -> Slice:
  """The slice that a name such as `v5e:4x4` or `v5p:4x4x4` stands for.

  Raises:
    ConfigError: there is no such chip, or what follows it are no sizes that such a slice has.
  """
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', topology)
  require(found is not None, f'--topology={topology} is no slice; write chip:AxB, such as v5e:4x4.')
  kind, sizes = found.group(1), tuple(int(n) for n in found.group(2).split('x'))
  if kind not in CHIPS:
    raise ConfigError(f'--topology={topology}: no chip {kind!r} is known.{nearest(kind, CHIPS)}')
  wanted = CHIPS[kind].links // 2
  require(
    len(sizes) == wanted and min(sizes) > 0,
    f'--topology={topology} has {len(sizes)} sizes, but {kind} is wired in {wanted} dimensions; write '
    f'{kind}:{"x".join(["4"] * wanted)}, for example.',
  )
  return Slice(topology, CHIPS[kind], sizes)


class Roofline(NamedTuple):
  """Seconds of a program on one chip.

  Attributes:
    compute: of its matrix products at the peak rate.
    memory: of its bytes of main memory at full bandwidth.
    both: each instruction takes the longer of the two, one after the other.
    exchange: of what it sends, along one dimension of the torus at a time.
  """

  compute: float
  memory: float
  both: float
  exchange: float

  @property
  def least(self) -> float:
    """All exchanges behind the rest, or the rest behind them."""
    return max(self.both, self.exchange)

  @property
  def most(self) -> float:
    """No exchange behind anything: what a plan calculates with."""
    return self.both + self.exchange

  def __add__(self, other: Any) -> 'Roofline':
    return Roofline(*(a + b for a, b in zip(self, other, strict=True)))


def roofline(counted: Iterable[Counted], where: Slice) -> Roofline:
  """The terms of a program that was counted."""
  chip, terms = where.chip, Roofline(0.0, 0.0, 0.0, 0.0)
  for one in counted:
    compute, memory = one.flops / chip.flops, one.bytes / chip.bandwidth
    sent = sum(e.sent for e in one.exchanges) / where.ring
    terms += Roofline(compute, memory, max(compute, memory), sent)
  return terms
