"""What this process and those that it started hold, as Linux tells it in /proc."""

import dataclasses
import os

_TICKS = os.sysconf('SC_CLK_TCK')
_STATE, _PARENT, _TIMES, _PAGES = 0, 1, slice(11, 15), 21  # fields of /proc/ID/stat after the name


@dataclasses.dataclass(frozen=True)
class Footprint:
  """What this process and those it started hold."""

  processes: int
  files: int
  own_mib: float
  workers_mib: float
  cpu_seconds: float


def footprint() -> Footprint:
  """Of this process and its descendants; memory as each sees it, so that shared pages count repeatedly.

  Processor time is that of the dead as well.
  """
  own, started = os.getpid(), descendants()
  fields = [found for process in (own, *started) if (found := _stat(process))]
  return Footprint(
    processes=1 + len(started),
    files=files(),
    own_mib=resident(own) / 2**20,
    workers_mib=sum(map(resident, started)) / 2**20,
    cpu_seconds=sum(int(ticks) for found in fields for ticks in found[_TIMES]) / _TICKS,
  )


def descendants(of: int | None = None) -> set[int]:
  """Ids of the processes that a process has started, and those have; `of` is this one by default."""
  stats = {int(name): _stat(int(name)) for name in os.listdir('/proc') if name.isdecimal()}
  parents = {process: int(found[_PARENT]) for process, found in stats.items() if found}
  known, size = {os.getpid() if of is None else of}, 0
  while len(known) > size:
    size = len(known)
    known |= {process for process, parent in parents.items() if parent in known}
  return known - {os.getpid() if of is None else of}


def alive(process: int) -> bool:
  """Whether there is such a process that has not ended; one that nobody has asked about yet has."""
  found = _stat(process)
  return bool(found) and found[_STATE] not in (b'Z', b'X')


def resident(process: int) -> int:
  """Bytes of memory that a process holds; 0 where it is gone."""
  found = _stat(process)
  return int(found[_PAGES]) * os.sysconf('SC_PAGE_SIZE') if found else 0


def files() -> int:
  """How many descriptors this process has open."""
  return len(os.listdir('/proc/self/fd')) - 1  # without that of the list itself


def _stat(process: int) -> list[bytes]:
  """What the system says of a process, after its name, which may hold anything; empty where it is gone."""
  try:
    with open(f'/proc/{process}/stat', 'rb') as file:
      return file.read().rpartition(b')')[2].split()
  except OSError:
    return []
