"""Several processes that train together, on simulated devices: what they learn, and how they end."""

import json
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from opsd_jax import jsonlines
from tests.experiments import replaying, several, tiny

pytestmark = pytest.mark.slow

SHOWN = (*tiny.ALONE, 'loop.show_every=1')
LONG = (*tiny.ALONE, 'loop.updates=24', 'loop.evaluate_every=0', 'data.chains.test=2', 'evaluate.samples=1')


def lines(folder) -> list[dict]:
  return [{k: v for k, v in row.items() if k != 'time'} for row in jsonlines.read(folder / 'metrics.jsonl')]


def wait_for_updates(folder, count: int, started) -> None:
  path, end = folder / 'metrics.jsonl', time.monotonic() + 600
  while not path.exists() or len(path.read_text().splitlines()) < count:
    assert time.monotonic() < end and all(process.poll() is None for process in started)
    time.sleep(0.2)


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> list[dict]:
  """The lines of a `LONG` run of two processes that nobody disturbed."""
  folder = tmp_path_factory.mktemp('whole')
  several.run(tiny.command('train', folder, LONG), 2, 2)
  return lines(folder)


@pytest.mark.parametrize(('processes', 'devices'), [(2, 2), (4, 2)])
def test_replayed_steps_are_those_of_one_process(processes, devices, tmp_path):
  """Losses and gradients to 1e-5 relative of one process with one device, which drew the rollouts."""
  command = [sys.executable, '-m', 'tests.experiments.replaying', str(tmp_path / 'notes')]
  several.run([*command, str(tmp_path / 'one')], 1, 1)
  several.run([*command, str(tmp_path / 'several')], processes, devices)
  losses = [[row['loss'] for row in lines(tmp_path / name)] for name in ('several', 'one')]
  assert len(losses[0]) == replaying.UPDATES
  np.testing.assert_allclose(*losses, rtol=1e-5)
  for number in range(replaying.UPDATES):
    ours, alone = (np.load(tmp_path / name / f'gradient_{number}.npz') for name in ('several', 'one'))
    assert set(ours) == set(alone)
    for name in alone:
      apart = np.linalg.norm(ours[name] - alone[name]) / np.linalg.norm(alone[name])
      assert apart < 1e-5, (number, name, apart)


def test_evaluations_are_those_of_one_process(tmp_path):
  settings = (*tiny.ALONE, 'loop.updates=2')
  several.run(tiny.command('train', tmp_path / 'four', settings), 4, 2)
  several.run(tiny.command('train', tmp_path / 'one', settings), 1, 8)
  four, one = (json.loads((tmp_path / name / 'results.json').read_text()) for name in ('four', 'one'))
  for arm in ('base', 'teacher_view', 'opsd'):
    assert four[arm] == one[arm], arm


def test_a_checkpoint_goes_to_other_hosts(tmp_path):
  """What two processes of two devices have saved, one process of four and one of one continue."""
  several.run(tiny.command('train', tmp_path / 'saved', (*SHOWN, 'loop.updates=2')), 2, 2)
  found = {}
  for processes, devices in ((2, 2), (1, 4), (1, 1)):
    folder = tmp_path / f'{processes}x{devices}'
    shutil.copytree(tmp_path / 'saved', folder)
    several.run(tiny.command('train', folder, (*SHOWN, 'loop.updates=3')), processes, devices)
    shown = json.loads((folder / 'rollouts' / '000003.json').read_text())
    found[folder.name] = [[each['student_prompt'], each['tokens']] for each in shown], lines(folder)[2]
  (batch, line), *others = found.values()
  assert line['step'] == 3
  for other, after in others:
    assert other == batch
    np.testing.assert_allclose(after['loss'], line['loss'], rtol=1e-5)


@pytest.mark.parametrize('lost', [0, 1])
def test_a_process_that_is_killed(lost, whole, tmp_path):
  """The other one ends within a minute and says why; both together continue from the last checkpoint."""
  command = tiny.command('train', tmp_path, (*LONG, 'checkpoint.every=4'))
  started = several.start(command, 2, 2)
  wait_for_updates(tmp_path, 10, started)
  started[lost].kill()
  began = time.monotonic()
  other = several.ended([started[1 - lost]])[0]
  assert time.monotonic() - began < 60
  started[lost].communicate()
  assert 127 <= other.code % 256, other  # what launchers start again
  assert 'another task died' in other.said
  saved = max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdecimal())
  assert saved >= 8
  several.run(command, 2, 2)
  assert lines(tmp_path) == whole


def test_a_run_that_is_asked_to_stop(whole, tmp_path):
  """SIGTERM to one of two: both save the update under way and end with a code that launchers retry."""
  command = tiny.command('train', tmp_path, (*LONG, 'checkpoint.every=1000'))
  started = several.start(command, 2, 2)
  wait_for_updates(tmp_path, 5, started)
  started[-1].send_signal(signal.SIGTERM)
  found = several.ended(started, 120)
  done = len(lines(tmp_path))
  assert done < len(whole)
  assert [each.code for each in found] == [128 + signal.SIGTERM] * 2, found
  assert all(f'[opsd] stopped by SIGTERM after update {done}, which is saved' in each.said for each in found)
  assert (tmp_path / 'checkpoints' / str(done)).is_dir()
  several.run(command, 2, 2)
  assert lines(tmp_path) == whole
