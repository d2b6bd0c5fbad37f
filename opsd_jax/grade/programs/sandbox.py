"""Runs one program against one task's tests in processes of their own, and leaves nothing behind.

Two pairs of processes stand for one program (`driver`): the program's own, and the referee's, which alone
knows what is expected and alone writes verdicts. They share one socket. This process starts both, reads the
referee's lines, keeps the wall clock and ends everything; it never decodes what a program sent.

What is contained depends on the machine (`Walls`):

- with namespaces: the network, other processes (no sight of them, no signals, no orphans), and every file
  system, read-only but for a working folder of bounded size. /run and /tmp, where the user's other programs
  listen, are empty. What the user may read elsewhere, a program may read, and it may speak to sockets in the
  file system there that the user may open;
- as root without namespaces: each process has a user id of its own and is ended by it. The network is open,
  and folders like /tmp, which all may write to, can be filled;
- as an ordinary user without namespaces: limits, a session of its own and a search for what is left over.
  This is not a security sandbox: the program can do what the user can do, among it signals to the user's
  other processes and changes to the user's files. Run what is not trusted as a user made for it, or name a
  `wrapper` that contains it.

Everywhere: no inherited environment, no inherited descriptors, and limits on memory, processor time, sizes
of files, open files and processes. Memory is limited for each process, not for all together, and files that
a program makes in memory count apart: where others need the machine, limit the memory of the grader's cgroup.
"""

import contextlib
import dataclasses
import json
import os
import select
import socket
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Literal

from opsd_jax.grade.programs import ending, process
from opsd_jax.grade.programs.config import ProgramsConfig
from opsd_jax.grade.programs.process import Process, Walls

_START_SECONDS = 60  # for two processes to appear, on a busy machine
_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of one program.

  Attributes:
    verdicts: by name of the suite, 'correct', 'wrong' or 'timeout'; of those that the referee decided.
    end: 'done' where the referee finished, 'timeout' where the clock ran out, 'failed' where a process of the
      sandbox did not start or ended early, 'disk' where the program wrote too much.
    reason: why a suite failed, for people.
    seconds: wall clock from the start of both processes.
    recorded: for each call its seconds and its encoded result, where they were asked for.
  """

  verdicts: Mapping[str, str]
  end: Literal['done', 'timeout', 'failed', 'disk']
  reason: str = ''
  seconds: float = 0.0
  recorded: tuple[str, ...] = ()


def run(
  program: Mapping[str, str],
  referee: Mapping[str, Any],
  folder: str,
  walls: Walls,
  config: ProgramsConfig,
  record: bool = False,
) -> Outcome:
  """Runs one program to its end, the clock's or the referee's.

  Args:
    program: `task.program_paper`.
    referee: `task.referee_paper`.
    folder: of `code_folder`.
    walls: what to use of the machine.
    config: limits.
    record: keep the results of calls instead of comparing them.
  """
  with contextlib.ExitStack() as stack:
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    stack.callback(theirs.close)
    keep = stack.enter_context(process.memory_file(b'')) if record else None
    errors = stack.enter_context(tempfile.TemporaryFile())
    pair = []
    for role, channel, paper, kept in (('serve', theirs, program, None), ('referee', ours, referee, keep)):
      settings = {'role': role, 'channel': channel.fileno(), 'record': kept}
      pair.append(stack.enter_context(process.started(settings, paper, folder, walls, config, errors)))
    ours.close()
    theirs.close()
    outcome = _follow(pair, config)
    if outcome.end == 'failed':
      errors.seek(0)
      return dataclasses.replace(outcome, reason=errors.read().decode('utf-8', 'replace')[-2000:])
    lines = _read_all(keep).decode().split('\n')[:-1] if record else ()
    return dataclasses.replace(outcome, recorded=tuple(lines))


def _read_all(descriptor: int) -> bytes:
  with open(os.dup(descriptor), 'rb') as file:
    file.seek(0)
    return file.read()


def _follow(pair: list[Process], config: ProgramsConfig) -> Outcome:
  """Reads the referee's lines until it or the clock ends; of the program's process only that it lives."""
  program, referee = (p.popen.stdout.fileno() for p in pair)
  waiting, rest = {program, referee}, b''  # for the first sign of life
  verdicts, reason = {}, ''
  begin, limit = time.monotonic(), _START_SECONDS
  poll = select.poll()  # unlike select, for descriptors of any number
  for descriptor in (program, referee):
    poll.register(descriptor, select.POLLIN)
  while True:
    left = begin + limit - time.monotonic()
    if left <= 0:
      return Outcome(verdicts, 'failed' if waiting else 'timeout', reason)
    for descriptor, _ in poll.poll(1000 * min(left, _POLL_SECONDS)):
      part = os.read(descriptor, 65536)
      if part and descriptor in waiting:
        waiting.remove(descriptor)
        begin, limit = (begin, limit) if waiting else (time.monotonic(), config.seconds)
      if descriptor == program:
        poll.unregister(descriptor)  # whatever comes from there now is no verdict
        continue
      if not part:
        return Outcome(verdicts, 'failed' if waiting else 'done', reason, time.monotonic() - begin)
      *lines, rest = (rest + part).split(b'\n')
      for line in map(json.loads, lines):
        if 'suite' in line:
          verdicts[line['suite']] = line['verdict']
          reason = reason or line['reason']
    if not pair[0].namespaces and ending.holds_more(pair[0].folder, config.disk_mib << 20):
      return Outcome(verdicts, 'disk', 'too much written')
