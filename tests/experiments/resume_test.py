"""A run that is killed at any moment, also during a save, ends as an uninterrupted one does."""

import json
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from opsd_jax import jsonlines
from tests.experiments import tiny

RUNS = ('cold_start', '.', 'controls/no_privilege')
# An average and two temperatures, so that more than the defaults must survive a kill.
SETTINGS = (
  *tiny.SETTINGS,
  'objective.teacher_temperature=0.9',
  'objective.student_temperature=0.8',
  'teacher.kind=ema',
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> pathlib.Path:
  """A run that nothing interrupted."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  done = tiny.call(tiny.command('train', folder, SETTINGS))
  assert done.returncode == 0, done.stderr
  return folder


def start_and_kill(
  folder: pathlib.Path, moment: Callable[[], bool], command: list[str] | None = None
) -> bool:
  """Starts the run and kills it as soon as `moment()` is true; False if it ended before."""
  process = subprocess.Popen(
    command or tiny.command('train', folder, SETTINGS),
    cwd=tiny.REPOSITORY,
    env=tiny.environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 300
  while process.poll() is None and not moment():
    assert time.monotonic() < deadline, 'the moment never came'
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  return process.wait() == -signal.SIGKILL


def lines(folder: pathlib.Path) -> int:
  path = folder / 'metrics.jsonl'
  return path.read_bytes().count(b'\n') if path.exists() else 0


def saving(folder: pathlib.Path) -> bool:
  """Whether a checkpoint is half written at this moment."""
  return any('tmp' in path.name for path in (folder / 'checkpoints').glob('*'))


def without_times(path: pathlib.Path) -> list[dict]:
  return [{k: v for k, v in row.items() if k != 'time'} for row in jsonlines.read(path)]


def test_killed_run_equals_the_uninterrupted_one(whole, tmp_path):
  folder = tmp_path / 'killed'
  # A save can be too short to be caught in the act: the run is then killed a little later.
  moments = {
    'in the cold start, between two checkpoints': lambda: lines(folder / 'cold_start') == 3,
    'during a save of the cold start': lambda: saving(folder / 'cold_start') or lines(folder) > 0,
    'in the main run, between two checkpoints': lambda: lines(folder) == 3,
    'during a save of the main run': lambda: saving(folder) or lines(folder) > 4,
    'in a control': lambda: lines(folder / 'controls/no_privilege') >= 3,
    'in the evaluation': lambda: (folder / 'evaluation/base.json').exists(),
  }
  killed = {name: start_and_kill(folder, moment) for name, moment in moments.items()}
  assert all(killed.values()), killed
  done = tiny.call(tiny.command('train', folder, SETTINGS))
  assert done.returncode == 0, done.stderr

  for run in RUNS:
    ours, theirs = (without_times(f / run / 'metrics.jsonl') for f in (folder, whole))
    assert ours == theirs, run
  for path in sorted((whole / 'rollouts').iterdir()):
    assert (folder / 'rollouts' / path.name).read_text() == path.read_text()
  ours, theirs = (json.loads((f / 'results.json').read_text()) for f in (folder, whole))
  for results in (ours, theirs):
    del results['seconds']
  assert ours == theirs


def test_finished_run_is_not_run_again(whole):
  before = (whole / 'metrics.jsonl').read_bytes()
  began = time.time()
  done = tiny.call(tiny.command('train', whole, SETTINGS))
  assert done.returncode == 0, done.stderr
  assert (whole / 'metrics.jsonl').read_bytes() == before
  assert all(p.stat().st_mtime < began for p in (whole / 'evaluation').iterdir())


@pytest.mark.slow
def test_larger_budget_continues_a_finished_run(whole, tmp_path):
  folder = tmp_path / 'longer'
  settings = (*SETTINGS, 'controls=()')
  for updates in (3, 6):
    done = tiny.call(tiny.command('train', folder, settings, f'--budget=updates:{updates}'))
    assert done.returncode == 0, done.stderr
    assert lines(folder) == updates
  assert without_times(folder / 'metrics.jsonl') == without_times(whole / 'metrics.jsonl')


def test_sampler_and_scorer_agree_at_the_temperature_of_the_loss(whole):
  rows = jsonlines.read(whole / 'metrics.jsonl')
  assert all(row['logp_gap'] < 1e-5 for row in rows)  # float32 rounding; another temperature gives 0.1


def test_outputs_of_a_run(whole):
  config = json.loads((whole / 'config.json').read_text())
  assert config['name'] == 'quickstart' and config['model']['embed_dim'] == 16
  results = json.loads((whole / 'results.json').read_text())
  for arm in ('base', 'teacher_view', 'opsd', 'opsd_best', 'no_privilege', 'sharpened_no_privilege'):
    assert 0 <= results[arm]['sampled_accuracy'] <= 1 and 0 <= results[arm]['greedy_accuracy'] <= 1
  assert set(results['seconds']) == {'cold_start', 'opsd', 'controls', 'evaluation', 'total'}
  assert results['tokens']['sampled'] == results['tokens']['scored_student'] > 0
  assert (whole / 'report.html').stat().st_size > 10_000
  assert (whole / 'curves.png').read_bytes().startswith(b'\x89PNG')
  arms = results['arms']
  for control in ('no_privilege', 'sharpened_no_privilege'):
    assert arms[control]['sampled'] >= arms['opsd']['sampled'], 'a control spends no fewer tokens'
