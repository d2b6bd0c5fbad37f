"""The parts of the sandbox that no program can be made to reach on every machine."""

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import threading
import types

import pytest

from opsd_jax.grade.programs import ending, process, sandbox
from opsd_jax.grade.programs.config import ProgramsConfig

CHILD = json.dumps({'child': 1})
LINE = json.dumps({'suite': 'base', 'verdict': 'correct', 'reason': ''})


def follow(program: str, referee: str, seconds: float = 20.0) -> sandbox.Outcome:
  """The outcome where the two processes print these texts."""
  with contextlib.ExitStack() as stack:
    pair = []
    for text in (program, referee):
      popen = subprocess.Popen(['sh', '-c', text], stdout=subprocess.PIPE, start_new_session=True)
      stack.callback(popen.wait)
      stack.callback(popen.stdout.close)
      stack.callback(os.killpg, popen.pid, signal.SIGKILL)
      pair.append(process.Process(popen, '/', None, True))
    return sandbox._follow(pair, ProgramsConfig(seconds=seconds))


@pytest.mark.parametrize('said', (LINE, 'no JSON', '[]', '{}', CHILD))
def test_what_the_programs_process_prints_is_no_verdict(said):
  program = f"echo '{CHILD}'; echo '{said}'; echo '{said}'"
  found = follow(program, f"sleep 0.3; echo '{CHILD}'")
  assert (found.verdicts, found.end) == ({}, 'done')
  found = follow(program, f"sleep 0.1; echo '{CHILD}'; echo '{LINE}'")
  assert (found.verdicts, found.end) == ({'base': 'correct'}, 'done')


def test_the_clock_starts_with_the_second_process():
  found = follow(f"echo '{CHILD}'", f"sleep 0.8; echo '{CHILD}'; echo '{LINE}'; sleep 9", seconds=0.5)
  assert (found.verdicts, found.end) == ({'base': 'correct'}, 'timeout')


def test_a_process_that_does_not_start_is_a_failure():
  assert follow('exit', f"echo '{CHILD}'").end == 'failed'
  assert follow(f"echo '{CHILD}'", 'exit').end == 'failed'


@pytest.fixture
def ids(monkeypatch):
  """The ids of a thread's two processes, and those beside them, in a namespace that ends there."""

  def of(end: int, thread: int) -> list[int]:
    monkeypatch.setattr(process, '_end_of_users', lambda: end)
    monkeypatch.setattr(threading, 'get_native_id', lambda: thread)
    return [user + more for user in map(process._user, ('serve', 'referee')) for more in (0, 1)]

  return of


@pytest.mark.parametrize('end', (1 << 32, 65_536))
def test_user_ids_are_nobodys(monkeypatch, ids, end):
  monkeypatch.setattr(pwd, 'getpwall', lambda: [types.SimpleNamespace(pw_uid=20_001)])
  for thread in (0, 1, 20_000, (1 << 22) - 1):
    for user in ids(end, thread):
      assert 2_000_200_000 < user < 1 << 31 if end > 65_536 else 20_002 <= user < 60_000


@pytest.mark.parametrize('end', (1 << 32, 65_536))
def test_user_ids_of_threads_side_by_side_differ(ids, end):
  assert len({user for thread in range(4000, 4020) for user in ids(end, thread)}) == 80


@pytest.mark.parametrize(('end', 'expected'), ((1, False), (65_536, True)))
def test_root_of_a_namespace_of_one_user_has_no_users(monkeypatch, end, expected):
  monkeypatch.setattr(os, 'geteuid', lambda: 0)
  monkeypatch.setattr(process, '_end_of_users', lambda: end)
  assert process.has_users() == expected


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')
def test_who_kills_strikes_a_user_that_cannot_strike_back():
  user = process._user('serve')
  as_user = {'user': user, 'group': user, 'extra_groups': ()}
  waiting = ending._AS_USER.replace('os.kill', 'print(flush=True); input(); os.kill')
  with (
    subprocess.Popen(['sleep', '20'], **as_user) as struck,
    subprocess.Popen(
      [sys.executable, '-I', '-S', '-c', waiting, str(user)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as striking,
  ):
    striking.stdout.readline()
    tried = subprocess.run(['sh', '-c', f'kill -9 {striking.pid}'], **as_user, stderr=subprocess.PIPE)
    assert b'not permitted' in tried.stderr
    assert struck.poll() is None
    striking.communicate(b'\n')
    assert struck.wait(10) == -signal.SIGKILL
