"""What the sandbox's processes run: shuts itself in, then serves a program's calls or is the referee.

Two processes stand behind each: the one that was started keeps watch, and the one that it forks, which is
first in its namespace of processes, does the work. The watching one writes a line with the other's id.

Runs inside the sandbox: imports the standard library alone.
"""

import json
import os
import socket
import sys
import types

from opsd_jax.grade.programs import confine, referee, serve

_RECORD = 1 << 31  # bytes of a canonical solution's results


def main(text: str) -> None:
  """Runs one process of the sandbox to its end.

  Args:
    text: a JSON object with
      role: 'serve' runs the program; 'referee' puts the questions and compares the answers.
      user: user and group id to take, or None.
      namespaces: whether to make namespaces.
      folder: working folder.
      seconds, call_seconds: limits of time, of all and of one call.
      memory, disk, processes: limits; bytes, and the number of threads and processes.
      output: bytes of one answer, at most.
      channel: descriptor of the socket between the two.
      paper: descriptor of a file: the program, or what the referee asks and expects.
      record: descriptor to which the referee writes the answers instead of comparing them, or None.
  """
  settings = types.SimpleNamespace(**json.loads(text))
  paper = json.loads(_whole(settings.paper))
  confine.enter(settings.user, settings.namespaces, settings.folder, settings.disk)
  processes = settings.processes
  if not settings.namespaces and settings.user is None:
    processes += confine.tasks_of_user()
  child = confine.fork()
  if child:
    _watch(child, settings.channel)
  file_size = _RECORD if settings.record is not None else settings.disk
  confine.limit(settings.seconds, settings.memory, file_size, processes)
  channel = socket.socket(fileno=settings.channel)
  if settings.role == 'serve':
    channel.settimeout(None)
    serve.run(channel, paper, settings.output)
  else:
    channel.settimeout(settings.call_seconds)
    if not settings.namespaces and settings.user is None:
      confine.hide()
    referee.run(channel, paper, settings.output, settings.record)
  os._exit(0)


def _whole(descriptor: int) -> bytes:
  """All of a file, whatever its position; then closed."""
  text = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
  os.close(descriptor)
  return text


def _watch(child: int, channel: int) -> None:
  os.close(channel)
  os.write(1, json.dumps({'child': child}).encode() + b'\n')
  os.close(1)
  while True:
    try:
      if os.waitpid(-1, 0)[0] == child:
        os._exit(0)
    except ChildProcessError:
      os._exit(0)


if __name__ == '__main__':
  main(sys.argv[1])
