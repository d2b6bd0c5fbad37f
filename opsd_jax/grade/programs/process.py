"""One process of the sandbox: started, and ended with all that came from it.

No function runs in a fork of this process (`preexec_fn`), which may have threads: all that shuts a process in
happens in the new interpreter (`driver`).
"""

import contextlib
import dataclasses
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from opsd_jax.grade.programs import ending
from opsd_jax.grade.programs.config import ProgramsConfig

_MODULES = ('channel', 'compare', 'confine', 'driver', 'referee', 'serve', 'values')
# Ids of no person: Linux distributions and directory services number people and containers below or above.
_MANY_USERS = range(0x78000000, 0x79000000)  # four for each thread that a machine can have
_FEW_USERS = range(20_000, 60_000)  # where a container has no more than 65,536
_RUN = 'import sys; sys.path.insert(0, {!r}); from opsd_jax.grade.programs import driver; driver.main({!r})'


@dataclasses.dataclass(frozen=True)
class Walls:
  """What keeps programs in on this machine.

  Attributes:
    namespaces: whether Linux namespaces are used.
    users: whether each process gets a user id of its own, which takes `has_users`.
  """

  namespaces: bool
  users: bool


@contextlib.contextmanager
def code_folder() -> Iterator[str]:
  """A temporary folder with the modules that run inside, which every user can read; then removed."""
  here = os.path.dirname(os.path.abspath(__file__))
  with tempfile.TemporaryDirectory(prefix='programs-') as made:
    folder = os.path.realpath(made)
    os.chmod(folder, 0o755)
    inside = os.path.join(folder, 'opsd_jax', 'grade', 'programs')
    os.makedirs(inside)
    for name in _MODULES:
      shutil.copyfile(os.path.join(here, f'{name}.py'), os.path.join(inside, f'{name}.py'))
    yield folder


@dataclasses.dataclass(frozen=True)
class Process:
  """A process of the sandbox: the one that keeps watch, its working folder and the user it may have."""

  popen: subprocess.Popen
  folder: str
  user: int | None
  namespaces: bool


@contextlib.contextmanager
def started(
  settings: Mapping[str, Any],
  paper: Mapping[str, Any],
  folder: str,
  walls: Walls,
  config: ProgramsConfig,
  errors: Any,
) -> Iterator[Process]:
  """Starts one process; on leaving, ends it with all that it started, and removes its folder."""
  user = _user(settings['role']) if walls.users else None
  with memory_file(json.dumps(paper).encode()) as descriptor:
    work = tempfile.mkdtemp(prefix='work-', dir=folder)
    try:
      if user is not None:
        os.chown(work, user, user)
      own = {'user': user, 'namespaces': walls.namespaces, 'folder': work, 'paper': descriptor}
      told = dict(settings) | own | _limits(config)
      passed = [told[name] for name in ('channel', 'paper', 'record') if told[name] is not None]
      popen = subprocess.Popen(
        _command(folder, told, config),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        pass_fds=passed,
        cwd='/',
        env={'PATH': '/usr/local/bin:/usr/bin:/bin', 'LANG': 'C.UTF-8', 'HOME': work, 'TMPDIR': work},
        start_new_session=True,
      )
      process = Process(popen, work, user, walls.namespaces)
      try:
        yield process
      finally:
        ending.end(popen, work, user, walls.namespaces)
    finally:
      ending.remove(work)


def _limits(config: ProgramsConfig) -> dict[str, float]:
  return {
    'seconds': config.seconds,
    'call_seconds': config.call_seconds,
    'memory': int(config.memory_gib * 2**30),
    'disk': config.disk_mib << 20,
    'output': config.output_mib << 20,
    'processes': config.processes,
  }


def _command(folder: str, settings: Mapping[str, Any], config: ProgramsConfig) -> list[str]:
  # The interpreter behind a virtual environment, since only the standard library is wanted.
  python = config.python or getattr(sys, '_base_executable', None) or sys.executable
  source = _RUN.format(folder, json.dumps(settings))
  return [*config.wrapper, python, '-I', '-S', '-c', source]


def has_users() -> bool:
  """Whether this process is root and has user ids to give away: in some namespaces root is the only one."""
  return os.geteuid() == 0 and _end_of_users() >= _FEW_USERS.stop


def _user(role: str) -> int:
  """A user id that nobody else has, and neither the one after it: threads have ids of their own."""
  number = 4 * threading.get_native_id() + (2 if role == 'referee' else 0)
  if _end_of_users() >= _MANY_USERS.stop:
    return _MANY_USERS[number]
  people = {entry.pw_uid for entry in pwd.getpwall()}
  free = [user for user in _FEW_USERS[::2] if people.isdisjoint((user, user + 1))]
  return free[number // 2 % len(free)]


def _end_of_users() -> int:
  """One more than the largest user id that this process can name."""
  with open('/proc/self/uid_map') as file:
    return max(int(first) + int(count) for first, _, count in map(str.split, file))


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[int]:
  """The descriptor of a file without a name."""
  descriptor = os.memfd_create('programs')
  try:
    view = memoryview(content)
    while view:
      view = view[os.write(descriptor, view) :]
    yield descriptor
  finally:
    os.close(descriptor)
