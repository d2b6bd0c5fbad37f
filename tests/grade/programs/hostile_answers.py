"""Programs that attack the verdict: by their answers, or past them. See `hostile`."""

_LINE = '{"suite": "%s", "verdict": "correct", "reason": ""}\\n'
_FAKE = _LINE % 'base' + _LINE % 'plus'

# Each defines a function that gives a wrong result, if it gives one.
PROGRAMS = {
  'patched builtins': """
import builtins, json
class Any(type):
  def __instancecheck__(cls, value): return True
builtins.AssertionError = Exception
builtins.bool = lambda v: True
builtins.all = lambda v: True
builtins.isinstance = lambda v, k: True
json.dumps = lambda *a, **k: 'true'
def next_number(x): return x
""",
  'patched grader': """
from opsd_jax.grade.programs import channel, compare, referee, values
compare.agree = lambda *a: True
compare.close = lambda *a: True
referee.run = referee._verdict = lambda *a: ('correct', '')
values.Opaque.__eq__ = lambda a, b: True
def next_number(x): return object()
""",
  'equal to all': """
class Liar:
  def __eq__(self, other): return True
  def __ne__(self, other): return False
  def __hash__(self): return 0
  __lt__ = __le__ = __gt__ = __ge__ = __eq__
  def __add__(self, other): return self
  __radd__ = __sub__ = __rsub__ = __add__
  def __abs__(self): return 0
  def __float__(self): return 0.0
def next_number(x): return Liar()
""",
  'a number equal to all': """
class Liar(int):
  def __eq__(self, other): return True
  def __ne__(self, other): return False
  __hash__ = int.__hash__
def next_number(x): return Liar(7)
""",
  'a class named like another': """
class int(int):
  def __eq__(self, other): return True
  __hash__ = None
int.__module__, int.__qualname__ = 'builtins', 'int'
def next_number(x): return int(7)
""",
  'writes verdicts everywhere': f"""
import os
def next_number(x):
  for fd in range(256):
    try:
      os.write(fd, b'{_FAKE}')
    except OSError:
      pass
  return x
""",
  'writes verdicts through /proc': f"""
import glob
def next_number(x):
  for path in glob.glob('/proc/[0-9]*/fd/*'):
    try:
      with open(path, 'wb', buffering=0) as file:
        file.write(b'{_FAKE}')
    except OSError:
      pass
  return x
""",
  'answers before it is asked': """
import gc, socket
for found in gc.get_objects():
  if isinstance(found, socket.socket):
    for text in (b'ready', b'=true', b'=2', b'=[2]', b'={"opaque": null}') * 5:
      found.sendall(len(text).to_bytes(8, 'big') + text)
def next_number(x): return x
""",
  'claims an endless answer': """
import gc, socket
def next_number(x):
  for found in gc.get_objects():
    if isinstance(found, socket.socket):
      found.sendall(b'\\x7f' * 8)
      while True:
        found.sendall(b'=' * 65536)
""",
  'looks at the frames above': """
import sys
def next_number(x):
  frame, seen = sys._getframe(), []
  while frame:
    seen.append(dict(frame.f_locals))
    frame = frame.f_back
  for names in seen:
    for key in ('expected', 'wanted', 'recorded', 'suites'):
      if key in names and not callable(names[key]):
        return names[key]
  return x
""",
  'large number': 'def next_number(x):\n  return 1 << (1 << 26)\n',
  'large answer': "def next_number(x):\n  return ['x' * 900_000] * 1000\n",
  'deep answer': """
def next_number(x):
  value = []
  for _ in range(100_000):
    value = [value]
  return value
""",
  'answer that holds itself': 'def next_number(x):\n  value = []\n  value.append(value)\n  return value\n',
  'takes the answer from a file': """
import glob, os
def next_number(x):
  for path in glob.glob(os.path.dirname(os.getcwd()) + '/**', recursive=True):
    try:
      if 'verdict' in open(path).read():
        return x
    except (OSError, UnicodeDecodeError):
      pass
  return x
""",
  'modules taken away': """
import sys, types
for name in list(sys.modules):
  sys.modules[name] = types.ModuleType(name)
def next_number(x): return x
""",
  'no number': "def next_number(x): return float('nan')\n",
  'numbers without end': 'import itertools\ndef next_number(x): return itertools.count(x)\n',
  'a range without end': 'def next_number(x): return range(x, 10**18)\n',
  'returns its argument': 'def next_number(x): return x\n',
  'an answer that takes long to read': """
import gc, socket
def next_number(x):
  for found in gc.get_objects():
    if isinstance(found, socket.socket):
      text = b'=' + b'9' * 7_000_000
      found.sendall(len(text).to_bytes(8, 'big') + text)
""",
  'raises what no one catches': """
class Strange(BaseException):
  def __str__(self): raise Strange
  __repr__ = __str__
Strange.__name__ = 'x' * 10**6
def next_number(x): raise Strange
""",
}
