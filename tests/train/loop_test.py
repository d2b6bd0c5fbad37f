"""The loop alone, with updates that cost nothing: budgets, records, checkpoints, bad numbers."""

import dataclasses
import functools
import json
import math
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opsd_jax import jsonlines
from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.checkpoint.store import open_store
from opsd_jax.distill.config import TeacherConfig
from opsd_jax.train import loop, stopping
from opsd_jax.train import state as states
from opsd_jax.train.config import Budget, LoopConfig
from opsd_jax.train.ledger import Ledger
from opsd_jax.train.loop import Checked, Outcome, Progress, TrainingStopped, Work
from opsd_jax.train.recorder import MetricsConfig
from opsd_jax.train.state import TrainState

SPENT = Ledger(sampled=7, scored_student=7, prompt_sampler=2, flops=10**15, needed_student=3, spent_student=4)
ASKED = Ledger(sampled=100, prompt_sampler=40, flops=10**12)


def fresh_state():
  return TrainState(params={'w': jnp.zeros(2)}, optimizer={'count': jnp.int32(0)}, teacher=None)


def layout_of(state):
  """Shapes and shardings, as `Work.layout` has them."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def make_setup(every=100, keep_last=1, keep_best=0, max_bad_updates=3, progress='none'):
  """What the loop reads of a `Setup`."""
  return types.SimpleNamespace(
    checkpoint=CheckpointConfig(every, keep_last, keep_best, asynchronous=False),
    metrics=MetricsConfig(tensorboard=False, progress=progress),
    loop=LoopConfig(max_bad_updates=max_bad_updates),
    resolved={'name': 'fake', 'seed': 5},
  )


def update(state, number, bad=(), crash=None, spent=SPENT, terminate=None):
  """Adds `number + 1` to the weights unless update `number` is bad."""
  if number == crash:
    raise KeyboardInterrupt
  if number == terminate:
    os.kill(os.getpid(), signal.SIGTERM)
  good = number not in bad
  state = state.replace(params={'w': state.params['w'] + good * (number + 1.0)})
  loss, norm = (1.0 / (number + 1), 2.0) if good else (math.nan, math.inf)
  metrics = {'loss': loss, 'grad_norm': norm}
  return state, Outcome(metrics, spent, good, {'rollout': 1.5, 'update': 0.5})


def run(folder, budget, setup=None, validate=None, validate_every=0, start=fresh_state, **changes):
  work = Work(
    'opsd',
    str(folder),
    budget,
    start,
    layout_of(fresh_state()),
    functools.partial(update, **changes),
    validate,
    validate_every,
  )
  return loop.run(work, setup or make_setup())


def rows(folder, timed=False):
  found = jsonlines.read(folder / 'metrics.jsonl')
  return found if timed else [{k: v for k, v in row.items() if k != 'time'} for row in found]


def updates(count):
  return Budget('updates', count)


# --- Budgets.


def test_so_many_updates(tmp_path):
  finished = run(tmp_path, updates(4))
  assert finished.progress.updates == 4
  assert finished.params['w'].tolist() == [10.0, 10.0]  # 1 + 2 + 3 + 4


def test_the_update_that_reaches_the_tokens_is_the_last(tmp_path):
  assert run(tmp_path / 'a', Budget('tokens', 21)).progress.updates == 3
  assert run(tmp_path / 'b', Budget('tokens', 22)).progress.updates == 4


def test_supervised_tokens_count_where_nothing_is_sampled(tmp_path):
  finished = run(tmp_path, Budget('tokens', 20), spent=Ledger(scored_student=10))
  assert finished.progress.updates == 2


def test_a_budget_may_have_a_ceiling_of_updates(tmp_path):
  assert run(tmp_path, Budget('tokens', 10**6, max_updates=3)).progress.updates == 3


def make_clock(monkeypatch, seconds):
  """Every look at the clock takes that long."""
  ticks = iter(range(10**6))
  clock = types.SimpleNamespace(monotonic=lambda: seconds * next(ticks))
  monkeypatch.setattr(loop, 'time', clock)


def test_minutes_are_those_of_updates_and_validations(tmp_path, monkeypatch):
  make_clock(monkeypatch, 30)
  assert run(tmp_path, Budget('minutes', 2)).progress == Progress(
    updates=4, seconds=120.0, ledger=sum([SPENT] * 4, Ledger())
  )


def test_minutes_go_on_counting_after_a_restart(tmp_path, monkeypatch):
  make_clock(monkeypatch, 30)
  assert run(tmp_path, updates(3)).progress.seconds == 90
  assert run(tmp_path, Budget('minutes', 2)).progress.updates == 4


# --- What is recorded.


def test_a_row_for_every_update(tmp_path):
  run(tmp_path, updates(3), bad=[1])
  found = rows(tmp_path, timed=True)
  assert [row['step'] for row in found] == [1, 2, 3]
  assert found[0]['loss'] == 1.0 and found[0]['grad_norm'] == 2.0
  assert math.isnan(found[1]['loss']) and found[1]['grad_norm'] == math.inf
  assert [row['total/sampled'] for row in found] == [7, 14, 21]
  assert [row['total/prompt_sampler'] for row in found] == [2, 4, 6]
  assert found[2]['total/flops'] == 3 * 10**15
  assert [row['utilisation/student'] for row in found] == [0.75] * 3 and found[2]['total/spent_student'] == 12
  assert 'utilisation/teacher' not in found[0]
  assert [row['total/skipped_updates'] for row in found] == [0, 1, 1]
  for row in found:
    assert row['time']['rollout'] == 1.5 and row['time']['tokens_per_second'] == 7 / 2
    assert row['time']['seconds'] > 0 and 'validation_accuracy' not in row


def test_a_person_sees_where_it_is(tmp_path, capsys):
  run(tmp_path, updates(3), make_setup(progress='lines'))
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith('[opsd] 3/3  loss 0.3333') and 'tokens/s' in last


def test_validation_keeps_its_rhythm(tmp_path):
  seen = []

  def validate(state):
    seen.append(float(state.params['w'][0]))
    return Checked(0.25 * len(seen), {'retention/other': len(seen)}, ASKED)

  finished = run(tmp_path, updates(5), validate=validate, validate_every=2)
  assert seen == [3.0, 10.0]  # After the second and the fourth update.
  scores = {row['step']: row.get('validation_accuracy') for row in rows(tmp_path)}
  assert scores == {1: None, 2: 0.25, 3: None, 4: 0.5, 5: None}
  others = {row['step']: row.get('retention/other') for row in rows(tmp_path)}
  assert others == {1: None, 2: 1, 3: None, 4: 2, 5: None}
  # Asking is counted apart: it is no part of what the run was trained on.
  assert finished.progress.validation == ASKED + ASKED
  assert finished.progress.ledger == sum([SPENT] * 5, Ledger())
  asked = {row['step']: row['total/validation_sampled'] for row in rows(tmp_path)}
  assert asked == {1: 0, 2: 100, 3: 100, 4: 200, 5: 200}


def test_no_validation_where_it_is_off(tmp_path):
  run(tmp_path, updates(2), validate=lambda state: 1 / 0, validate_every=0)


# --- Checkpoints.


def saved(folder, step):
  """Step, weights and host part of a checkpoint."""
  with open_store(str(folder / 'checkpoints'), read_only=True) as store:
    found, state, host = store.restore(layout_of(fresh_state()), step)
  return found, state.params['w'].tolist(), host


@pytest.mark.parametrize('every', [2, 5, 100])
def test_the_best_and_the_newest_are_kept(tmp_path, every):
  """Also where scores fall between the regular checkpoints."""
  scores = {3.0: 0.3, 10.0: 0.9, 21.0: 0.5}  # By the weight after 2, 4 and 6 updates.
  run(
    tmp_path,
    updates(7),
    make_setup(every, keep_best=1),
    lambda state: Checked(scores[float(state.params['w'][0])], {}, ASKED),
    2,
  )
  assert saved(tmp_path, 'best')[:2] == (4, [10.0, 10.0])
  assert saved(tmp_path, None)[:2] == (7, [28.0, 28.0])  # The last update is always saved.
  kept = {int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit()}
  assert kept == {4, 7}


def test_a_checkpoint_holds_the_progress(tmp_path):
  finished = run(tmp_path, updates(3), bad=[2])
  host = saved(tmp_path, 3)[2]
  assert Progress.from_json(host['progress']) == finished.progress
  assert host['config'] == {'name': 'fake', 'seed': 5}
  assert (finished.progress.skipped, finished.progress.bad_in_a_row) == (1, 1)
  assert finished.progress.ledger.flops == 3 * 10**15


@pytest.mark.parametrize('crash', [1, 3, 5])
def test_a_killed_run_continues_as_if_nothing_had_been(tmp_path, crash):
  setup = make_setup(every=2)
  whole = run(tmp_path / 'whole', updates(6), setup)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 'parts', updates(6), setup, crash=crash)
  assert len(rows(tmp_path / 'parts')) == crash
  parts = run(tmp_path / 'parts', updates(6), setup)
  assert rows(tmp_path / 'parts') == rows(tmp_path / 'whole')
  assert parts.params['w'].tolist() == whole.params['w'].tolist() == [21.0, 21.0]
  assert parts.progress.ledger == whole.progress.ledger


def test_a_longer_budget_goes_on_where_the_run_ended(tmp_path):
  run(tmp_path / 'a', updates(2))
  run(tmp_path / 'a', updates(4))
  run(tmp_path / 'b', updates(4))
  assert rows(tmp_path / 'a') == rows(tmp_path / 'b')


def test_a_finished_run_is_not_run_again_and_says_so(tmp_path, capsys):
  first = run(tmp_path, updates(2))
  again = run(tmp_path, updates(2), make_setup(progress='lines'), crash=2, start=lambda: 1 / 0)
  assert again.progress == first.progress and len(rows(tmp_path)) == 2
  assert again.params['w'].tolist() == [3.0, 3.0]
  assert capsys.readouterr().err == '[opsd] already done: 2 updates\n'


# --- Updates that are not finite.


def test_too_many_bad_updates_in_a_row_stop_the_run(tmp_path):
  with pytest.raises(TrainingStopped) as caught:
    run(tmp_path, updates(9), bad=[2, 3, 4])
  message = str(caught.value)
  for words in (
    '[opsd] 3 updates in a row were not finite',
    'the last is update 5',
    'not finite: loss, grad_norm',
    'weights are those of the last finite update',
    'optimizer.learning_rate',
    str(tmp_path / 'failure.json'),
  ):
    assert words in message
  assert len(rows(tmp_path)) == 5


def test_the_failure_says_what_is_not_finite(tmp_path):
  with pytest.raises(TrainingStopped):
    run(tmp_path, updates(9), make_setup(max_bad_updates=2), bad=[1, 3, 4])
  failure = json.loads((tmp_path / 'failure.json').read_text())
  assert failure['not_finite'] == ['loss', 'grad_norm']
  counts = [failure[k] for k in ('update', 'bad_updates_in_a_row', 'skipped_in_total')]
  assert counts == [5, 2, 3]
  assert failure['metrics'] == {'loss': 'nan', 'grad_norm': 'inf'}
  assert any('learning_rate' in remedy for remedy in failure['try'])


def test_a_finite_update_in_between_resets_the_count(tmp_path):
  finished = run(tmp_path, updates(8), bad=[0, 1, 3, 4, 6])
  assert (finished.progress.skipped, finished.progress.bad_in_a_row) == (5, 0)
  assert finished.params['w'].tolist() == [3.0 + 6.0 + 8.0] * 2
  assert not (tmp_path / 'failure.json').exists()


def test_the_count_survives_a_restart(tmp_path):
  setup = make_setup(every=1)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, updates(6), setup, bad=[1, 2, 3], crash=3)
  with pytest.raises(TrainingStopped, match='3 updates in a row.*the last is update 4'):
    run(tmp_path, updates(6), setup, bad=[1, 2, 3])


def test_a_stopped_run_continues_from_its_last_checkpoint(tmp_path):
  setup = make_setup(every=2)
  with pytest.raises(TrainingStopped):
    run(tmp_path, updates(6), setup, bad=[2, 3, 4])
  assert saved(tmp_path, None)[:2] == (4, [3.0, 3.0])
  finished = run(tmp_path, updates(6), setup)
  assert finished.params['w'].tolist() == [3.0 + 5.0 + 6.0] * 2
  assert [row['step'] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_bad_update_keeps_the_real_weights(tmp_path):
  """With the optimiser step of the project: a NaN loss at update 2 is as if it had not been."""
  optimizer, teacher = optax.adam(0.1), TeacherConfig()
  step = jax.jit(functools.partial(states.step, optimizer=optimizer, teacher=teacher))

  def train(folder, losses):
    def one(state, number):
      grads = {'w': jnp.array([1.0, -2.0])}
      state, _, stepped = step(state, grads, jnp.float32(losses[number]))
      return state, Outcome({'loss': losses[number]}, SPENT, bool(stepped), {'update': 1.0})

    start = functools.partial(states.create, {'w': jnp.zeros(2)}, optimizer, teacher)
    work = Work('opsd', str(folder), updates(len(losses)), start, layout_of(start()), one)
    return loop.run(work, make_setup())

  poisoned, clean = train(tmp_path / 'a', [1.0, math.nan, 1.0]), train(tmp_path / 'b', [1.0, 1.0])
  assert poisoned.progress.skipped == 1
  np.testing.assert_array_equal(poisoned.params['w'], clean.params['w'])


def test_progress_survives_json():
  progress = Progress(3, 1.5, 2, 1, dataclasses.replace(SPENT, flops=2**70), ASKED)
  assert Progress.from_json(json.loads(json.dumps(dataclasses.asdict(progress)))) == progress


# --- Asked to stop.


def test_sigterm_saves_and_stops(tmp_path):
  with pytest.raises(stopping.Stopped, match='stopped by SIGTERM after update 2, which is saved'):
    run(tmp_path, updates(4), terminate=1)
  finished = run(tmp_path, updates(4))
  assert finished.progress.updates == 4 and finished.params['w'].tolist() == [10.0, 10.0]
  assert [row['step'] for row in rows(tmp_path)] == [1, 2, 3, 4]


def test_sigterm_in_the_last_update_stops_what_would_follow(tmp_path):
  with pytest.raises(stopping.Stopped, match='after update 2, which is saved'):
    run(tmp_path, updates(2), terminate=1)
  assert run(tmp_path, updates(2)).progress.updates == 2


def test_sigterm_in_the_last_save_is_heard(tmp_path, monkeypatch):
  whole = loop._save

  def save(*arguments):
    whole(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(loop, '_save', save)
  with pytest.raises(stopping.Stopped, match='after update 2, which is saved'):
    run(tmp_path, updates(2))
