"""What programs under test reach of the machine, and what they can do, where there are namespaces."""

import contextlib
import dataclasses
import os
import tempfile
import threading

import pytest

from opsd_jax.grade.programs import judge, process, sandbox
from opsd_jax.grade.programs.task import program_paper, referee_paper
from tests.grade.programs import hostile, tasks

PATIENT = dataclasses.replace(hostile.LIMITS, seconds=20.0, call_seconds=10.0)


@pytest.fixture(scope='module')
def namespaced():
  """What runs one program in namespaces, else skips."""
  with process.code_folder() as folder:
    walls = judge.find_walls(folder, PATIENT)
    if not walls.namespaces:
      pytest.skip('this machine allows no namespaces')

    def run(program: str, task=tasks.calls(plus=None)) -> str:
      expected = ('0 2', '0 3') if task.needs_record else ()
      paper = referee_paper(task, expected)
      return sandbox.run(program_paper(task, program), paper, folder, walls, PATIENT).verdicts.get('base')

    yield run


def test_right_programs_are_right_there(namespaced):
  assert namespaced(tasks.RIGHT) == 'correct'
  assert namespaced(tasks.WRONG) == 'wrong'


# Each gives the right result only if what it tries is prevented.
PREVENTED = {
  'the network': 'import socket\nsocket.create_connection(("127.0.0.1", PORT), timeout=1)',
  'a file of the host': 'open("FILE", "w")',
  'a folder of the host': 'import os\nos.mkdir("/tmp/from-a-program-under-test")',
  'the signals of others': 'import os\nos.kill(PID, 0)',
  'the sight of others': 'open("/proc/1/cmdline")',
  'a mount': (
    'import ctypes\nif ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, None): raise OSError("refused")'
  ),
  'further namespaces': 'import ctypes\nif ctypes.CDLL(None).unshare(0x10020000): raise OSError("refused")',
  'a program that listens': 'import socket\nsocket.socket(socket.AF_UNIX).connect("SOCKET")',
  'the temporary files of others': 'import os\nos.stat("SOCKET")',
  'environment': 'import os\nif not set(os.environ) - {"PATH", "LANG", "HOME", "TMPDIR"}: raise OSError',
}


@pytest.mark.parametrize('name', PREVENTED)
def test_is_out_of_reach(namespaced, name, tmp_path):
  import socket

  file = tmp_path / 'file'
  file.write_text('')
  for path in (file, tmp_path, *list(tmp_path.parents)[:2]):
    path.chmod(0o777)
  with socket.create_server(('127.0.0.1', 0)) as server, listening() as path:
    given = {'PORT': str(server.getsockname()[1]), 'FILE': str(file), 'PID': str(os.getpid()), 'SOCKET': path}
    attempt = PREVENTED[name]
    for word, value in given.items():
      attempt = attempt.replace(word, value)
    body = '\n    '.join(attempt.split('\n'))
    program = f'def next_number(x):\n  try:\n    {body}\n  except OSError:\n    return x + 1\n'
    assert namespaced(program) == 'correct'


@contextlib.contextmanager
def listening():
  """The path of a socket that everybody may speak to."""
  import socket

  with tempfile.TemporaryDirectory(dir='/tmp') as folder, socket.socket(socket.AF_UNIX) as local:
    path = f'{folder}/socket'
    local.bind(path)
    local.listen()
    os.chmod(folder, 0o755)
    os.chmod(path, 0o777)
    yield path


def test_what_it_may_do_it_can_do(namespaced):
  program = """
import os, subprocess, tempfile, threading
def next_number(x):
  with tempfile.NamedTemporaryFile('w+') as file:
    file.write(str(x))
    file.flush()
    text = subprocess.run(['cat', file.name], capture_output=True, text=True).stdout
  found = []
  thread = threading.Thread(target=lambda: found.append(int(text) + 1))
  thread.start()
  thread.join()
  return found[0]
"""
  assert namespaced(program) == 'correct'


def test_kills_all_it_sees(namespaced):
  assert namespaced(hostile.KILLER) == 'wrong'


def test_strays_of_a_right_program_end_too(namespaced):
  program = f"import subprocess\nsubprocess.Popen('{hostile.STRAY}'.split(), start_new_session=True)\n"
  assert namespaced(program + tasks.RIGHT) == 'correct'
  assert hostile.running(hostile.STRAY) == []


def test_from_threads_with_jax_loaded(namespaced):
  import jax.numpy as jnp

  assert int(jnp.ones(3).sum()) == 3
  found = []
  threads = [threading.Thread(target=lambda: found.append(namespaced(tasks.RIGHT))) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == ['correct'] * 4
