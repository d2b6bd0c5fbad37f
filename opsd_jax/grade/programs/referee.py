"""The process that puts a task's questions to a program's process and compares its answers.

The program never runs here. Its results arrive as plain values (`values`), so no method of the program's
own takes part in a comparison. A test script of a data set runs here as well, with a stand-in for the
function under test that asks the other process.

Runs inside the sandbox: imports the standard library alone.
"""

import json
import os
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from opsd_jax.grade.programs import channel as channels
from opsd_jax.grade.programs import compare, values
from opsd_jax.grade.programs.serve import READY, RESULT


class ProgramFailed(Exception):
  """The program raised an exception, ended, or answered what is no value."""


class ProgramSlow(BaseException):
  """One call took too long. No exception that a test script would catch."""


# From encoded arguments to the encoded result, or from what is typed to what is printed; and how long the
# canonical solution took for it, in seconds, where that is known.
Ask = Callable[..., bytes]
_PATIENCE = 4  # times the canonical solution's time is what a call may take, if that is more than the limit


def run(channel: socket.socket, paper: Mapping[str, Any], output: int, record: int | None) -> None:
  """Prints a line of JSON for each suite of tests: 'correct', 'wrong' or 'timeout', and why.

  After the first suite that fails the others share its verdict and are not run.

  Args:
    channel: leads to the program's process; its time-out is that of one call.
    paper: `suites` and `expected`, as `task.referee_paper` makes them.
    output: bytes of one answer, at most.
    record: a descriptor that gets a line for each call, seconds and encoded result, instead of a comparison;
      or None.
  """
  values.unlimited_digits()
  expected = iter(paper['expected'])
  limit = channel.gettimeout()
  channel.settimeout(None)  # no call yet: the other process may need long to start
  if channels.receive(channel, 100) != READY:
    raise ValueError('the program spoke first')

  def ask(arguments: bytes, known: float = 0.0) -> bytes:
    channel.settimeout(max(limit, _PATIENCE * known))
    return _ask(channel, arguments, output)

  verdict, reason = 'correct', ''
  for suite in paper['suites']:
    if verdict == 'correct':
      verdict, reason = _verdict(suite, ask, expected, record)
    line = {'suite': suite['name'], 'verdict': verdict, 'reason': reason[:300]}
    print(json.dumps(line), flush=True)


def _verdict(
  suite: Mapping[str, Any], ask: Ask, expected: Iterator[str], record: int | None
) -> tuple[str, str]:
  """The verdict, and why the program fails the suite, else ''."""
  kind = {'calls': _calls, 'script': _script, 'streams': _streams}[suite['kind']]
  try:
    reason = kind(suite, ask, expected, record)
  except ProgramSlow:
    return 'timeout', 'one call took too long'
  except BaseException as error:  # a test script may raise anything
    reason = f'{type(error).__name__}: {error}'
  return ('wrong', reason) if reason else ('correct', '')


def _ask(channel: socket.socket, arguments: bytes, output: int) -> bytes:
  try:
    channels.send(channel, arguments)
    reply = channels.receive(channel, output)
  except TimeoutError as error:
    raise ProgramSlow from error
  except (EOFError, OSError, ValueError) as error:
    raise ProgramFailed(f'the program gave no answer: {error}') from error
  if not reply.startswith(RESULT):
    raise ProgramFailed(reply[1:].decode('utf-8', 'replace'))
  return reply[1:]


def _calls(suite: Mapping[str, Any], ask: Ask, expected: Iterator[str], record: int | None) -> str:
  for place, call in enumerate(suite['calls']):
    if record is not None:
      _record(ask, call.encode(), record)
      continue
    seconds, _, wanted = next(expected).partition(' ')
    found = values.decode(ask(call.encode(), float(seconds)))
    arguments = values.decode(call.encode())[0]
    if not compare.agree(suite['rule'], arguments, found, values.decode(wanted.encode()), suite['tolerance']):
      return f'call {place}: another result'
  return ''


def _record(ask: Ask, call: bytes, record: int) -> None:
  begin = time.monotonic()
  reply = ask(call)
  values.decode(reply)
  line = b'%.3f %s\n' % (time.monotonic() - begin, reply)
  while line:
    line = line[os.write(record, line) :]


def _streams(suite: Mapping[str, Any], ask: Ask, expected: Iterator[str], record: int | None) -> str:
  same = compare.exact_text if suite['exact'] else compare.same_text
  for place, (typed, wanted) in enumerate(zip(suite['typed'], suite['printed'], strict=True)):
    found = ask(typed.encode()).decode('utf-8', 'replace')
    if not same(found, wanted):
      return f'input {place}: another output'
  return ''


def _script(suite: Mapping[str, Any], ask: Ask, expected: Iterator[str], record: int | None) -> str:
  module = types.ModuleType('program')
  sys.modules['program'] = module
  names = vars(module)
  exec(compile(suite['solution'], 'solution', 'exec'), names)

  def stand_in(*positional: Any, **named: Any) -> Any:
    return values.decode(ask(values.encode([list(positional), named])), names)

  names[suite['entry']] = stand_in
  for statement in _parts(suite['script']):
    exec(statement, names)
  if suite['check']:
    names[suite['check']](stand_in)
  return ''


def _parts(script: str | Sequence[str]) -> list[Any]:
  return [compile(part, 'tests', 'exec') for part in ([script] if isinstance(script, str) else script)]
