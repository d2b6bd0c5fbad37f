"""The process that runs a program and answers calls of it. Nothing that it says is believed.

It is sent arguments and sends results back, or the name of the exception. What is expected of the results
it never learns, and nothing here decides a verdict: a program that takes this process over can only send
other results.

Runs inside the sandbox: imports the standard library alone.
"""

import atexit
import builtins
import os
import socket
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from opsd_jax.grade.programs import channel as channels
from opsd_jax.grade.programs import values

READY, RESULT, FAILURE = b'ready', b'=', b'!'
_CALL_LIMIT = 1 << 31


def run(channel: socket.socket, paper: Mapping[str, str], output: int) -> None:
  """Answers until the other side is gone; the first call loads `paper['prelude']` and `paper['program']`.

  Args:
    channel: receives the calls.
    paper: with `entry`, the name of a function, else each call is text for a whole program's standard input.
    output: bytes of one answer, at most.
  """
  _silence()
  builtins.exit = builtins.quit = sys.exit  # as `site` sets them, which is not loaded
  channels.send(channel, READY)
  answer = None
  while True:
    try:
      message = channels.receive(channel, _CALL_LIMIT)
    except EOFError:
      return
    try:
      # The first question says that the referee has shut itself in: only now the program is loaded.
      answer = answer or (_function(paper) if paper['entry'] else _whole_program(paper, output))
      reply = RESULT + answer(message)
    except BaseException as error:  # sys.exit in a program is its failure as well
      reply = FAILURE + type(error).__name__.encode('utf-8', 'replace')[:100]
    channels.send(channel, reply)


def _silence() -> None:
  """Standard input is empty from here on, and what is printed is lost."""
  null = os.open(os.devnull, os.O_RDWR)
  for descriptor in (0, 1, 2):
    os.dup2(null, descriptor)
  os.close(null)


def _function(paper: Mapping[str, str]) -> Callable[[bytes], bytes]:
  """A function from encoded arguments to the encoded result; raises what the program raised."""
  try:
    module = _module('program', paper)
    wanted = _find(module, paper['entry'])
  except BaseException as error:
    failure = error

    def wanted(*positional: Any, **named: Any) -> Any:
      raise failure

    module = types.ModuleType('program')

  def answer(message: bytes) -> bytes:
    positional, named = values.decode(message, vars(module))
    return values.encode(wanted(*positional, **named))

  return answer


def _find(module: types.ModuleType, entry: str) -> Callable[..., Any]:
  """The method of that name of a new `Solution`, or the function; a prelude may have one of that name too."""
  solution = getattr(module, 'Solution', None)
  return getattr(solution(), entry) if hasattr(solution, entry) else getattr(module, entry)


def _module(name: str, paper: Mapping[str, str]) -> types.ModuleType:
  module = types.ModuleType(name)
  sys.modules[name] = module
  exec(compile(paper['prelude'], 'prelude', 'exec'), vars(module))
  exec(compile(paper['program'], 'program', 'exec', dont_inherit=True), vars(module))
  return module


def _whole_program(paper: Mapping[str, str], output: int) -> Callable[[bytes], bytes]:
  _module('prelude', {'prelude': paper['prelude'], 'program': ''})  # imports once what each run will import
  return lambda text: _whole_run(paper, text, output)


def _whole_run(paper: Mapping[str, str], text: bytes, output: int) -> bytes:
  """What the program prints, given this standard input, in a process of its own.

  Raises:
    RuntimeError: it ended with a failure.
  """
  with open('printed', 'wb') as printed, open('typed', 'wb') as typed:
    typed.write(text)
  child = os.fork()
  if not child:
    _as_main(paper)
  status = os.waitpid(child, 0)[1]
  if status:
    raise RuntimeError(f'the program ended with status {status}')
  with open('printed', 'rb') as printed:
    return printed.read(output)


def _as_main(paper: Mapping[str, str]) -> None:
  code = 1
  try:
    for descriptor, (name, flags) in enumerate((('typed', os.O_RDONLY), ('printed', os.O_WRONLY))):
      os.dup2(os.open(name, flags), descriptor)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, 'w', closefd=False)
    _module('__main__', paper)
    code = 0
  except SystemExit as end:
    code = 0 if end.code in (None, 0) else 1
  except BaseException:
    pass
  try:
    _finish()
  except BaseException:
    code = 1
  os._exit(code)


def _finish() -> None:
  """What the interpreter does at its end: waits for threads, calls what asked for it, writes what is held."""
  if 'threading' in sys.modules:
    sys.modules['threading']._shutdown()
  atexit._run_exitfuncs()
  for stream in (sys.stdout, sys.__stdout__):
    if stream is not None and not getattr(stream, 'closed', False):
      stream.flush()
