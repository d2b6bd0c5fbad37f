"""A program compiled and read: its memory, its work and its least time on one chip."""

import dataclasses
import itertools
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from experiments.planning.programs import Program
from opsd_jax.analyze import chips, counting, hlo
from opsd_jax.analyze.chips import Roofline, Slice

_LOOP = 'Transformer/'  # stands in the name of the loop over the pieces of a cache
_UNITS = {'G': 2**30, 'M': 2**20, 'K': 2**10, '': 1}


@dataclasses.dataclass(frozen=True)
class Phase:
  """What a program takes on one chip; bytes unless said otherwise.

  Attributes:
    name: of the program.
    compiled_in: seconds.
    arguments: that it is given.
    outputs: that it makes beside what it may reuse.
    temporaries: that it needs in between: one block, which is there while it runs.
    peak: all these together, and the program itself.
    others: that the run holds meanwhile.
    flops: of matrix products.
    bytes: of main memory, read and written.
    sent: to other chips.
    sent_by: the same by the kind of exchange.
    largest: exchanges that send most: their kind, the chips of a group, bytes, and what they are part of.
    seconds: the terms of the roofline.
    refused: what the compiler said where the program does not fit a chip; counts are then 0.
  """

  name: str
  compiled_in: float
  arguments: int = 0
  outputs: int = 0
  temporaries: int = 0
  peak: int = 0
  others: int = 0
  flops: int = 0
  bytes: int = 0
  sent: float = 0.0
  sent_by: Mapping[str, float] = dataclasses.field(default_factory=dict)
  largest: tuple[tuple[str, int, float, str], ...] = ()
  seconds: Roofline = Roofline(0.0, 0.0, 0.0, 0.0)
  refused: str | None = None

  @property
  def together(self) -> int:
    """Bytes of the chip that are taken at the worst moment."""
    return self.peak + self.others

  def to_dict(self) -> dict[str, Any]:
    """As plain values."""
    times = self.seconds._asdict() | {'least': self.seconds.least, 'most': self.seconds.most}
    return dataclasses.asdict(self) | {'together': self.together, 'seconds': times}


def compile_program(program: Program, where: Slice) -> list[Phase]:
  """Compiles a program and reads it; with the mesh set. One with a loop over tokens is two phases."""
  began = time.perf_counter()
  try:
    compiled = program.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return [_refused(program, str(error), time.perf_counter() - began)]
  seconds, memory, text = time.perf_counter() - began, compiled.memory_analysis(), compiled.as_text()
  sizes = (
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes - memory.alias_size_in_bytes,
    memory.temp_size_in_bytes,
  )
  peak = sum(sizes) + memory.generated_code_size_in_bytes
  phase = Phase(program.name, seconds, *sizes, peak, program.others)
  if not program.steps:
    return [_counted(phase, counting.count(text, chips=where.chips), where)]
  body = hlo.loop(hlo.parse(text))
  own = f'body=%{body},'
  turns = {own: program.steps, _LOOP: program.pieces}
  whole = counting.count(text, turns, where.chips)
  loop = counting.count(text, turns, where.chips, body, program.steps)
  inside = {one.name for one in loop}
  prefill = dataclasses.replace(phase, name='prefill')
  decode = dataclasses.replace(phase, name='decode', compiled_in=0.0)
  return [
    _counted(prefill, [one for one in whole if one.name not in inside], where),
    _counted(decode, loop, where),
  ]


def merged(found: list[Phase]) -> list[Phase]:
  """One phase of those that have the same name and follow each other: the worst memory, all of the work."""
  return [_together(list(same)) for _, same in itertools.groupby(found, lambda phase: phase.name)]


def _together(same: list[Phase]) -> Phase:
  worst = max(same, key=lambda phase: (phase.refused is not None, phase.together))
  kinds = sorted({kind for phase in same for kind in phase.sent_by})
  return dataclasses.replace(
    worst,
    compiled_in=sum(phase.compiled_in for phase in same),
    flops=sum(phase.flops for phase in same),
    bytes=sum(phase.bytes for phase in same),
    sent=sum(phase.sent for phase in same),
    sent_by={kind: sum(phase.sent_by.get(kind, 0) for phase in same) for kind in kinds},
    largest=_largest(one for phase in same for one in phase.largest),
    seconds=sum((phase.seconds for phase in same), Roofline(0.0, 0.0, 0.0, 0.0)),
  )


def _largest(sent: Iterable[tuple[str, int, float, str]]) -> tuple[tuple[str, int, float, str], ...]:
  return tuple(sorted(sent, key=lambda one: -one[2])[:5])


def _counted(phase: Phase, counted: list[counting.Counted], where: Slice) -> Phase:
  """The phase with its work and its times."""
  sums = counting.total(counted)
  sent = ((e.kind, e.chips, e.sent, one.operation) for one in counted for e in one.exchanges)
  return dataclasses.replace(
    phase,
    flops=sums['flops'],
    bytes=sums['bytes'],
    sent=sums['sent'],
    sent_by={k.removeprefix('sent_'): v for k, v in sums.items() if k.startswith('sent_')},
    largest=_largest(sent),
    seconds=chips.roofline(counted, where),
  )


def _refused(program: Program, message: str, seconds: float) -> Phase:
  """A program that is too large for a chip by itself, with the size that the compiler found."""
  used = re.search(r'Used ([\d.]+)([GMK]?) of [\d.]+[GMK]? hbm', message)
  used = used or re.search(
    r'temporaries \(([\d.]+)([GMK]?)\) exceeds available HBM \([\d.]+[GMK]?\)', message
  )
  peak = int(float(used.group(1)) * _UNITS[used.group(2)]) if used else 0
  words = used.group(0) if used else message.strip().splitlines()[0][:200]
  return Phase(program.name, seconds, peak=peak, others=program.others, refused=words)
