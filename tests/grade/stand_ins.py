"""Gradings that hang, die or take all memory, for a pool to run in its processes."""

import ctypes
import os
import signal
import sys
import time

_hoard = []


def behave(how, *arguments):
  return _BEHAVIOURS[how](*arguments)


def _sleep(seconds):
  time.sleep(seconds)
  return 'awake'


def _spin():
  while True:
    pass


def _stubborn():
  for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
  _spin()


def _power():
  return 9 ** (9**9) % 10  # one call into C that never gives way to a signal handler written in Python


def _hoard_some(mebibytes):
  _hoard.append(b'x' * (mebibytes * 2**20))
  return 'kept'


def _fail():
  raise RuntimeError('on purpose')


def _modules():
  heavy = ('jax', 'numpy', 'flax', 'pytest', 'math_verify')
  return [name for name in heavy if name in sys.modules]


_BEHAVIOURS = {
  'echo': lambda *said: list(said),
  'sleep': _sleep,
  'spin': _spin,
  'stubborn': _stubborn,
  'power': _power,
  'hoard': _hoard_some,
  'exit': lambda code: os._exit(code),
  'crash': lambda: ctypes.string_at(0),
  'fail': _fail,
  'mute': lambda: os.closerange(3, 100),
  'whose': lambda: [os.getpid(), os.getppid()],
  'modules': _modules,
}
