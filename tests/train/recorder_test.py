"""The metrics file: strict JSON, continued without gaps or repeats, and its views."""

import json
import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax import jsonlines
from opsd_jax.config import ConfigError
from opsd_jax.train import recorder as recorder_lib
from opsd_jax.train.recorder import MetricsConfig, open_recorder, validate

QUIET = MetricsConfig(tensorboard=False)


def _write(folder, steps, cfg=QUIET, resume_step=None):
  with open_recorder(folder, cfg, resume_step) as recorder:
    for step in steps:
      recorder.write(step, {'loss': 1.0 / step}, {'seconds': 0.5, 'tokens_per_second': 10})


def _strict(line):
  def refuse(constant):
    raise ValueError(constant)

  return json.loads(line, parse_constant=refuse)


def test_lines_hold_scalars_with_wall_clock_figures_apart(tmp_path):
  with open_recorder(tmp_path, QUIET) as recorder:
    recorder.write(3, {'loss': jnp.float32(0.5), 'tokens': np.int64(7)}, {'seconds': 2.0})
    # Read before closing: each line is on disk as soon as it is written.
    assert jsonlines.read(tmp_path / 'metrics.jsonl') == [
      {'step': 3, 'loss': 0.5, 'tokens': 7, 'time': {'seconds': 2.0}}
    ]


def test_names_of_the_line_are_refused(tmp_path):
  with open_recorder(tmp_path, QUIET) as recorder, pytest.raises(ValueError, match='time'):
    recorder.write(1, {'time': 3.0})


def test_non_finite_numbers_are_strict_json_and_come_back(tmp_path):
  with open_recorder(tmp_path, QUIET) as recorder:
    recorder.write(
      1, {'loss': math.nan, 'up': math.inf, 'down': jnp.float32(-jnp.inf)}, {'seconds': math.nan}
    )
  line = (tmp_path / 'metrics.jsonl').read_text()
  assert _strict(line)['loss'] == 'nan'
  row = jsonlines.read(tmp_path / 'metrics.jsonl')[0]
  assert math.isnan(row['loss']) and row['up'] == math.inf and row['down'] == -math.inf
  assert math.isnan(row['time']['seconds'])


def test_resuming_drops_later_lines_and_a_torn_one(tmp_path):
  _write(tmp_path, range(1, 6))
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 6, "lo')
  _write(tmp_path, range(4, 7), resume_step=3)
  assert [row['step'] for row in jsonlines.read(tmp_path / 'metrics.jsonl')] == [1, 2, 3, 4, 5, 6]
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_torn_line_is_dropped_even_where_its_step_is_kept(tmp_path):
  _write(tmp_path, range(1, 4))
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[:-5])
  assert [row['step'] for row in jsonlines.read(path)] == [1, 2]
  _write(tmp_path, [3], resume_step=2)
  assert [row['step'] for row in jsonlines.read(path)] == [1, 2, 3]


def test_resuming_keeps_non_finite_numbers(tmp_path):
  with open_recorder(tmp_path, QUIET) as recorder:
    recorder.write(1, {'loss': math.nan})
  _write(tmp_path, [2], resume_step=1)
  assert math.isnan(jsonlines.read(tmp_path / 'metrics.jsonl')[0]['loss'])


def test_a_new_start_drops_everything(tmp_path):
  _write(tmp_path, range(1, 3))
  _write(tmp_path, [1])
  assert len(jsonlines.read(tmp_path / 'metrics.jsonl')) == 1


def test_tensorboard_holds_the_scalars(tmp_path):
  _write(tmp_path, range(1, 4), MetricsConfig())
  _write(tmp_path, [3], MetricsConfig(), resume_step=2)
  files = list((tmp_path / 'tensorboard').glob('events.out.tfevents.*'))
  assert files and all(file.stat().st_size > 0 for file in files)
  content = b''.join(file.read_bytes() for file in files)
  assert b'loss' in content and b'time/tokens_per_second' in content


@pytest.mark.parametrize('package', ['wandb', 'trackio'])
def test_a_missing_tracker_says_how_to_install_it(tmp_path, monkeypatch, package):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(ConfigError, match=f'pip install {package}'):
    open_recorder(tmp_path, MetricsConfig(tensorboard=False, **{package: 'mine'}))


def test_wandb_gets_flat_scalars_and_one_run_a_folder(tmp_path, monkeypatch):
  calls, ids = [], []
  run = types.SimpleNamespace(
    log=lambda data, step: calls.append((step, data)), finish=lambda: calls.append('finish')
  )

  def init(**settings):
    return ids.append((settings['id'], settings['resume'])) or run

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  cfg = MetricsConfig(tensorboard=False, wandb='mine')
  _write(tmp_path, [1], cfg)
  _write(tmp_path, [2], cfg, resume_step=1)
  assert calls[0] == (1, {'loss': 1.0, 'time/seconds': 0.5, 'time/tokens_per_second': 10})
  assert calls[1] == 'finish' and len(calls) == 4
  assert ids[0][0] == ids[1][0] and [i[1] for i in ids] == [None, 'allow']


def test_trackio_gets_flat_scalars(tmp_path, monkeypatch):
  calls = []
  module = types.SimpleNamespace(
    init=lambda **settings: calls.append(settings['project']),
    log=lambda data, step: calls.append((step, data['loss'])),
    finish=lambda: calls.append('finish'),
  )
  monkeypatch.setitem(sys.modules, 'trackio', module)
  _write(tmp_path, [1], MetricsConfig(tensorboard=False, trackio='mine'))
  assert calls == ['mine', (1, 1.0), 'finish']


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(recorder_lib.jax, 'process_index', lambda: 1)
  _write(tmp_path / 'run', [1], MetricsConfig())
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('cfg', [MetricsConfig(progress='loud'), MetricsConfig(wandb='')])
def test_settings_that_cannot_work(cfg):
  with pytest.raises(ConfigError, match='metrics'):
    validate(cfg)
