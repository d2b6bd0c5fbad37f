"""How generated programs are run."""

import dataclasses
from typing import Literal

from opsd_jax.config import require, require_choice


@dataclasses.dataclass(frozen=True)
class ProgramsConfig:
  """Limits of one program, and what keeps it in.

  Attributes:
    seconds: wall clock of one program for all its tests, at least; where their results are known without a
      canonical solution, a quarter of `call_seconds` for each test if that is more.
    call_seconds: wall clock of one call, the time to load the program included. A canonical solution whose
      results the others are compared with gets twelve times as much of both, since it is known to end; and a
      program always gets four times what that one took.
    memory_gib: address space of each of a program's processes. The largest canonical solution of HumanEval+
      and MBPP+, Mbpp/255, runs in 2.
    disk_mib: what a program may write, and the size of one file.
    output_mib: size of one result, or of all that a whole program prints for one input.
    processes: threads and processes of one program at a time.
    workers: programs that run at a time.
    namespaces: 'auto' uses Linux namespaces where the machine allows them and logs a warning where it does
      not; 'require' refuses to run without; 'off' goes without.
    wrapper: words put before the command of each process, as ('nice', '-n', '19') or ('bwrap', ...). The
      wrapper must pass open descriptors and the exit on, and show the temporary folder and Python.
    python: the interpreter that runs the programs, without its installed packages; '' for the one of this
      process.
  """

  seconds: float = 30.0
  call_seconds: float = 10.0
  memory_gib: float = 4.0
  disk_mib: int = 64
  output_mib: int = 64
  processes: int = 32
  workers: int = 2
  namespaces: Literal['auto', 'require', 'off'] = 'auto'
  wrapper: tuple[str, ...] = ()
  python: str = ''


def validate(config: ProgramsConfig, setting: str = 'programs') -> None:
  """Raises `ConfigError` for limits under which nothing runs; `setting` is what they go by in messages."""
  require_choice(f'{setting}.namespaces', config.namespaces, ('auto', 'require', 'off'))
  for name in ('seconds', 'call_seconds', 'memory_gib', 'disk_mib', 'output_mib', 'processes', 'workers'):
    value = getattr(config, name)
    require(value > 0, f'{setting}.{name} is {value}; it must be positive.')
  require(
    config.memory_gib >= 0.125, f'{setting}.memory_gib is {config.memory_gib}; Python itself needs 0.125.'
  )
