"""Programs that attack the grader: contained, never counted as right, and gone afterwards."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import pytest

from opsd_jax.grade.programs import judge
from opsd_jax.records import Verdict
from tests.grade.programs import hostile, tasks

QUICK = dataclasses.replace(hostile.LIMITS, seconds=0.8, call_seconds=0.6)
PROGRAMS = {name: text for name, text in hostile.PROGRAMS.items() if name not in hostile.ALIKE}
REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope='module')
def judged() -> dict[str, str]:
  """By program its verdict under calls; no file and no process is left behind."""
  folder = tempfile.mkdtemp()
  os.chmod(folder, 0o755)
  before, tempfile.tempdir = tempfile.tempdir, folder
  try:
    found = judge.judge(list(PROGRAMS.values()), [tasks.calls(plus=None)] * len(PROGRAMS), QUICK)
  finally:
    tempfile.tempdir = before
  assert os.listdir(folder) == []
  os.rmdir(folder)
  assert hostile.running(folder, hostile.STRAY) == []
  return dict(zip(PROGRAMS, found['base'].verdicts))


@pytest.mark.parametrize('name', PROGRAMS)
def test_counts_as_wrong_or_too_slow(judged, name):
  assert judged[name] in (Verdict.WRONG, Verdict.TIMEOUT)


def test_the_slow_ones_are_said_to_be_slow(judged):
  for name in ('endless loop', 'ignores signals', 'endless output', 'endless loop while loading'):
    assert judged[name] == Verdict.TIMEOUT


@pytest.mark.slow
@pytest.mark.parametrize('namespaces', ('require', 'off'))
@pytest.mark.parametrize('user', (None, 61_234))
def test_as_another_user_and_without_namespaces(namespaces, user):
  python = runnable(user)
  command = [python, '-m', 'tests.grade.programs.hostile', namespaces, *([python] if user is None else [])]
  found = subprocess.run(
    command, cwd=REPOSITORY, capture_output=True, text=True, env=environment(), **credentials(user)
  )
  if namespaces == 'require' and 'Programs cannot be run here' in found.stderr:
    pytest.skip('this machine allows no namespaces')
  assert found.returncode == 0, found.stderr
  verdicts = {v for row in json.loads(found.stdout).values() for v in row}
  assert verdicts == {'wrong', 'timeout'}
  assert hostile.running(hostile.SLEEP) == []


def runnable(user: int | None) -> str:
  """A Python with the project's packages that every user can run, else skips."""
  if os.geteuid() != 0:
    if user is not None:
      pytest.skip('only root can become another user')
    return sys.executable
  other = credentials(user or 61_234)
  for python in (sys.executable, '/usr/bin/python3'):
    try:
      command = [python, '-c', 'import opsd_jax.grade.programs.judge, fractions']
      if not subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, **other
      ).returncode:
        return python
    except OSError:
      continue
  pytest.skip('no Python here with these packages that another user can run')


def credentials(user: int | None) -> dict:
  return {} if user is None else {'user': user, 'group': user, 'extra_groups': ()}


def environment() -> dict[str, str]:
  packages = [path for path in sys.path if path.endswith('site-packages')]
  return {
    'PATH': os.defpath,
    'PYTHONPATH': os.pathsep.join(packages),
    'PYTHONDONTWRITEBYTECODE': '1',
    'JAX_PLATFORMS': 'cpu',
  }


def test_a_program_does_not_outlive_a_grader_that_is_killed():
  code = (
    'from opsd_jax.grade.programs import judge\n'
    'from tests.grade.programs import tasks\n'
    f'program = "import subprocess\\nsubprocess.run(\'{hostile.STRAY}\'.split())\\n"\n'
    'judge.judge([program], [tasks.calls()])\n'
  )
  grader = subprocess.Popen([sys.executable, '-c', code], cwd=REPOSITORY)
  wait_until(lambda: hostile.running(hostile.STRAY))
  grader.kill()
  grader.wait()
  wait_until(lambda: not hostile.running(hostile.STRAY))


def wait_until(happened) -> None:
  end = time.monotonic() + 30
  while not happened():
    assert time.monotonic() < end
    time.sleep(0.05)
