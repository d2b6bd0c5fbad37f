"""The launcher as a user starts it: printed, refused, through xmanager's mock, with stand-ins for the tools.

xmanager is optional. Tests that need it are skipped unless it is importable here or `OPSD_LAUNCH_PYTHON`
names a Python that has it.
"""

import importlib.util
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from experiments.launching import command, plan, platforms
from tests.experiments import tiny

TRAIN = ['experiments.train', '--experiment=quickstart']
TPU = ['--platform=tpu_vm', '--tpu=pod', '--zone=us-central1-a']
GKE = ['--platform=gke', '--cluster=big', '--zone=z', '--tpu_type=v6e-256', '--image=i']


def launcher() -> str:
  """A Python with xmanager, else skips."""
  named = os.environ.get('OPSD_LAUNCH_PYTHON')
  if not named and importlib.util.find_spec('xmanager') is None:
    pytest.skip('needs xmanager: OPSD_LAUNCH_PYTHON names a Python with requirements/launch.txt')
  return named or sys.executable


def launch(flags, words, python=sys.executable, **environment) -> subprocess.CompletedProcess:
  return subprocess.run(
    [python, '-m', 'experiments.launch_xm', *flags, '--', *words],
    cwd=tiny.REPOSITORY,
    env=tiny.environment() | environment,
    text=True,
    capture_output=True,
    timeout=600,
  )


@pytest.fixture
def tools(tmp_path) -> pathlib.Path:
  """A home for xmanager, with a `gcloud`, `xpk` and `git` in it that write down the words of each call."""
  for name in ('gcloud', 'xpk', 'git'):
    tool = tmp_path / 'bin' / name
    tool.parent.mkdir(exist_ok=True)
    code = f"""#!{sys.executable} -S
import json, os, sys
with open({str(tmp_path / 'calls')!r}, 'a') as file:
  file.write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')
sys.exit(3 if os.environ.get('FAIL', 'nothing') in ' '.join(sys.argv) else 0)
"""
    tool.write_text(code)
    tool.chmod(0o755)
  return tmp_path


def calls(tools) -> list[list[str]]:
  return [json.loads(line) for line in (tools / 'calls').read_text().splitlines()]


def at(tools, path=None) -> dict[str, str]:
  return {'HOME': str(tools), 'PATH': f'{tools / "bin"}:{os.environ["PATH"]}' if path is None else path}


def test_print_is_the_commands_and_nothing_else():
  flags = ['--print', '--nocheck', *TPU, '--prepare', '--sweep=seed=0,1']
  done = launch(flags, [*TRAIN, "--workdir=runs/it's"])
  where = platforms.Where('tpu_vm', tpu='pod', zone='us-central1-a', prepare=True)
  built = platforms.build(where, command.parse([*TRAIN, "--workdir=runs/it's"]), ['seed=0,1'])
  assert (done.returncode, done.stderr) == (0, '')
  lines = done.stdout.splitlines()
  assert lines == plan.lines(built) and len(lines) == 5
  assert shlex.split(lines[-1])[-1].endswith(
    "--experiment=quickstart --set=seed=1 '--workdir=runs/it'\"'\"'s/seed_1'"
  )


@pytest.mark.parametrize(
  ('words', 'sweep', 'said'),
  [
    (['--workdir=x'], 'sed=0,1', "'sed' is unknown: Experiment has no field 'sed'. Did you mean 'seed'?"),
    (
      ['--workdir=x', '--bugdet=updates:1'],
      'seed=0',
      "Unknown command line flag 'bugdet'. Did you mean: budget ?",
    ),
  ],
)
def test_settings_are_checked_before_anything_is_started(tmp_path, words, sweep, said):
  done = launch(['--print', *TPU, f'--sweep={sweep}'], [*TRAIN, *words])
  assert (done.returncode, done.stdout, done.stderr) == (2, '', f'error: {said}\n')


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (
      ['--platform=slurm'],
      "error: --platform is 'slurm', which is not a choice. Valid names: gke, local, tpu_vm.\n",
    ),
    (['--platform=tpu_vm', '--tpu=pod'], 'error: --platform=tpu_vm needs --zone: '),
    (['--sweep=seed='], 'error: --sweep=seed= has no values; write some'),
  ],
)
def test_what_is_refused(flags, said):
  done = launch(flags, [*TRAIN, '--workdir=x'])
  assert done.returncode == 2 and done.stderr.startswith(said) and not done.stdout


def test_without_xmanager():
  if importlib.util.find_spec('xmanager') is not None:
    pytest.skip('xmanager is installed here')
  done = launch(['--nocheck'], [*TRAIN, '--workdir=x'])
  assert done.returncode == 2 and 'pip install -r requirements/launch.txt' in done.stderr


@pytest.mark.parametrize(('flags', 'tool'), [(TPU, 'gcloud'), (GKE, 'xpk')])
def test_a_tool_that_is_not_there(tools, flags, tool):
  (tools / 'empty').mkdir()
  done = launch(flags, [*TRAIN, '--workdir=x'], launcher(), **at(tools, str(tools / 'empty')))
  assert done.returncode == 2 and done.stderr.startswith(f'error: {tool} is not on PATH; ')
  assert not (tools / '.xmanager').exists()


def test_xmanager_packages_once_and_writes_the_words_that_are_printed():
  where = platforms.Where('gke', cluster='c', zone='z', tpu_type='t', image='i')
  words = [*TRAIN, '--workdir=runs/x', "--set=a=it's", '--set=b=x, y']
  for built in (
    platforms.build(where, command.parse(words), ['seed=0,1']),
    platforms.build(platforms.Where('local', python='/py'), command.parse(words), ['seed=0,1', 'x="a b"']),
  ):
    given = {'program': built.program, 'shared': built.shared, 'runs': built.runs}
    done = subprocess.run(
      [launcher(), '-m', 'tests.experiments.launching.mocked'],
      input=json.dumps(given),
      cwd=tiny.REPOSITORY,
      text=True,
      capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told['packaged'] == built.program and told['failed'] == [] and told['units'] == 2
    assert told['names'] == [run.name for run in built.runs]
    assert told['seen'] == [json.loads(json.dumps(run.flags)) for run in built.runs]
    assert [[built.program, *shlex.split(line)] for line in told['commands']] == [
      plan.words(built, run) for run in built.runs
    ]


@pytest.mark.parametrize('flags', [[*TPU, '--prepare'], GKE])
def test_a_sweep_calls_the_tools(tools, flags):
  words = [*TRAIN, "--workdir=runs/it's"]
  done = launch([*flags, '--nocheck', '--sweep=seed=0,1'], words, launcher(), **at(tools))
  assert done.returncode == 0, done.stderr
  printed = launch([*flags, '--nocheck', '--sweep=seed=0,1', '--print'], words).stdout
  commands = [shlex.split(line) for line in printed.splitlines()]
  assert calls(tools) == commands and len(commands) == (5 if '--prepare' in flags else 2)


def test_a_run_that_fails_leaves_the_others_running(tools):
  words = [*TRAIN, '--workdir=x']
  done = launch([*TPU, '--nocheck', '--sweep=seed=0,1'], words, launcher(), FAIL='seed=0', **at(tools))
  assert done.returncode == 1 and len(calls(tools)) == 2
  assert done.stderr.splitlines()[-1] == 'error: failed: seed_0; the same command continues them.'


def test_nothing_is_started_where_preparing_fails(tools):
  words = [*TRAIN, '--workdir=x']
  done = launch([*TPU, '--nocheck', '--prepare'], words, launcher(), FAIL='scp', **at(tools))
  assert done.returncode == 2 and 'ended with code 3, so that nothing was started' in done.stderr
  assert [call[0] for call in calls(tools)] == ['git', 'gcloud']


@pytest.mark.parametrize('how', [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_who_ends_the_launcher_ends_the_run(tools, how):
  program = tools / 'program'
  program.write_text(
    f'#!/bin/sh\ntrap "echo ended >> {tools}/said; exit" TERM\necho began >> {tools}/said\n'
    'for i in $(seq 600); do sleep 0.1; done\n'
  )
  program.chmod(0o755)
  flags = ['--nocheck', f'--python={program}', '--sweep=seed=0,1']
  started = subprocess.Popen(
    [launcher(), '-m', 'experiments.launch_xm', *flags, '--', *TRAIN, f'--workdir={tools}/x'],
    cwd=tiny.REPOSITORY,
    env=os.environ | at(tools),
    stderr=subprocess.PIPE,
    text=True,
  )
  while not (tools / 'said').exists():
    assert started.poll() is None
    time.sleep(0.1)
  started.send_signal(how)
  assert started.communicate(timeout=100)[1].endswith('stopped\n') and started.returncode == 130
  assert (tools / 'said').read_text() == 'began\nended\n'


@pytest.mark.slow
def test_a_local_sweep_really_runs(tools):
  """Two seeds through xmanager, each as if it had been started by itself."""
  root = tools / 'a sweep'
  settings = [f'--set={each}' for each in (*tiny.ALONE, 'loop.updates=2')]
  flags = [f'--python={sys.executable}', '--sweep=seed=3,4']
  done = launch(flags, [*TRAIN, f'--workdir={root}', *settings], launcher(), HOME=str(tools))
  assert done.returncode == 0, done.stderr
  alone = tiny.call(tiny.command('train', tools / 'alone', (*tiny.ALONE, 'loop.updates=2', 'seed=4')))
  assert alone.returncode == 0, alone.stderr
  found = [json.loads((root / f'seed_{seed}' / 'results.json').read_text()) for seed in (3, 4)]
  assert [one['seed'] for one in found] == [3, 4]
  by_itself = json.loads((tools / 'alone' / 'results.json').read_text())
  assert found[1]['opsd'] == by_itself['opsd'] != found[0]['opsd']
  assert (tools / '.xmanager' / 'experiments.sqlite3').exists()
