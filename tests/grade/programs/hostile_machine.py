"""Programs that attack the machine: its processes, its memory, its files. See `hostile`."""

import os

# What a stray is called, so that a test can look for it in the list of processes.
SLEEP = 'sleep 86399.'
STRAY = f'{SLEEP}{os.getpid()}'

# Each defines a function that gives a wrong result, if it gives one.
PROGRAMS = {
  'fork bomb': """
import os
def next_number(x):
  while True:
    try:
      os.fork()
    except OSError:
      pass
""",
  'fork bomb while loading': """
import os
while True:
  try:
    os.fork()
  except OSError:
    pass
""",
  'endless output': """
import os
def next_number(x):
  while True:
    os.write(1, b'x' * 65536)
    os.write(2, b'x' * 65536)
""",
  'ends with status 0': 'import os\ndef next_number(x):\n  os._exit(0)\n',
  'ends while loading': 'import os\nos._exit(0)\n',
  'sys.exit': 'import sys\ndef next_number(x):\n  sys.exit(0)\n',
  'one large file': """
def next_number(x):
  with open('large', 'wb') as file:
    while True:
      file.write(bytes(1 << 20))
""",
  'many files': """
def next_number(x):
  number = 0
  while True:
    number += 1
    try:
      with open(f'file{number}', 'wb') as file:
        file.write(bytes(1 << 20))
    except OSError:
      pass
""",
  'a tower of folders': """
import os
def next_number(x):
  for _ in range(3000):
    os.mkdir('d')
    os.chdir('d')
  os.chmod('.', 0)
  return x
""",
  'leaves a sleeper': f"""
import os, subprocess
def next_number(x):
  subprocess.Popen('{STRAY}'.split(), start_new_session=True)
  return x
""",
  'leaves a daemon': f"""
import os, signal
def next_number(x):
  if not os.fork():
    os.setsid()
    if not os.fork():
      for number in range(1, 65):
        try:
          signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
          pass
      os.closerange(0, 256)
      os.execlp('sleep', *'{STRAY}'.split())
    os._exit(0)
  return x
""",
  'unties itself from its parent': f"""
import ctypes, os
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
try:
  os.setsid()
except OSError:
  pass
def next_number(x):
  os.execlp('sleep', *'{STRAY}'.split())
""",
  'ignores signals': """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGXCPU):
  signal.signal(number, signal.SIG_IGN)
def next_number(x):
  while True:
    time.sleep(1)
""",
  'endless loop': 'def next_number(x):\n  while True:\n    pass\n',
  'endless loop while loading': 'while True:\n  pass\n',
  'memory bomb': 'def next_number(x):\n  held = []\n  while True:\n    held.append(bytearray(1 << 28))\n',
  'deep recursion': """
import sys
sys.setrecursionlimit(10**9)
def next_number(x): return next_number(x) + 1
""",
  'segmentation fault': 'import ctypes\ndef next_number(x):\n  return ctypes.string_at(0)\n',
  'kills its parent': """
import os, signal, time
def next_number(x):
  os.kill(os.getppid(), signal.SIGKILL)
  time.sleep(0.3)
  return x
""",
  'kills its group': 'import os\ndef next_number(x):\n  os.killpg(0, 9)\n',
  'reads standard input': 'import sys\ndef next_number(x):\n  return sys.stdin.read() or input()\n',
  'closes what is open': 'import os\ndef next_number(x):\n  os.closerange(3, 256)\n  return x + 1\n',
  'raises its limits': """
import resource
def next_number(x):
  resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
  return x + 1
""",
  'becomes another program': "import os\nos.execv('/bin/true', ['true'])\n",
  'stops its parent': """
import os, signal
def next_number(x):
  os.kill(os.getppid() or os.getpid(), signal.SIGSTOP)
  return x
""",
  'links to the folders of others': """
import os
def next_number(x):
  os.symlink('/', 'all')
  os.symlink('/etc', 'settings')
  os.mkfifo('pipe')
  return x
""",
}
