"""Which updates a profile holds, what it is called, and the names of what ran in it."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax import jsonlines
from opsd_jax.config import ConfigError
from opsd_jax.distill import scoring
from opsd_jax.models import model
from opsd_jax.rollout import decode, drawing
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig
from opsd_jax.train import loop, profiling
from opsd_jax.train.config import Budget, LoopConfig, parse_budget
from opsd_jax.train.profiling import Window
from opsd_jax.train.state import TrainState
from tests.experiments import tiny
from tests.models.transformer_test import SPEC, make_params
from tests.train import loop_test
from tests.train.sharded_step_test import OPTIMIZER, VALID, distill_step, make_batch

UPDATES = Budget('updates', 20)


def profiles(folder):
  """Session -> names of its profiles."""
  found = sorted(pathlib.Path(folder).glob('plugins/profile/*/*.xplane.pb'))
  return {path.parent.name: [p.name for p in found if p.parent == path.parent] for path in found}


def events(folder, session):
  """(name, statistics) of everything that the first process's profile tells."""
  [path] = (pathlib.Path(folder) / 'plugins' / 'profile' / session).glob('process_0_*.xplane.pb')
  planes = jax.profiler.ProfileData.from_file(str(path)).planes
  return [(e.name, dict(e.stats)) for plane in planes for line in plane.lines for e in line.events]


def steps(folder, session):
  """The updates that a profile holds."""
  return [stats['step_num'] for name, stats in events(folder, session) if name == 'train']


@pytest.mark.parametrize(
  'text, budget, window',
  [
    ('10:13', UPDATES, (10, 13)),
    ('1:2', UPDATES, (1, 2)),
    ('20:21', UPDATES, (20, 21)),  # the last update
    ('7:9', Budget('tokens', 5), (7, 9)),  # nobody knows how many updates these are
    ('7:9', Budget('minutes', 5, 8), (7, 9)),
    (None, UPDATES, None),
  ],
)
def test_windows(text, budget, window):
  assert profiling.parse_window(text, budget) == window


@pytest.mark.parametrize(
  'text, budget, words',
  [
    ('10', UPDATES, "profile_steps is '10'; write FIRST:STOP, as 10:13"),
    ('', UPDATES, "is ''; write FIRST:STOP"),
    ('10:', UPDATES, 'write FIRST:STOP'),
    ('-1:3', UPDATES, 'write FIRST:STOP'),
    ('1.5:3', UPDATES, 'write FIRST:STOP'),
    ('1:3:5', UPDATES, 'write FIRST:STOP'),
    ('1:3\n', UPDATES, 'write FIRST:STOP'),
    ('0:3', UPDATES, 'is 0:3; the first update is 1'),
    ('3:3', UPDATES, 'is 3:3, which holds no update'),
    ('5:3', UPDATES, 'holds no update'),
    ('20:22', UPDATES, 'up to update 21, but the run ends after update 20; name earlier ones'),
    ('7:10', Budget('minutes', 5, 8), 'up to update 9, but the run ends after update 8'),
    ('7:10', Budget('updates', 20, 8), 'the run ends after update 8'),
  ],
)
def test_windows_that_cannot_be(text, budget, words):
  with pytest.raises(ConfigError, match=words):
    profiling.parse_window(text, budget)


def test_the_window_is_checked_against_the_budget_of_the_run():
  assert profiling.parse_window('7:8', parse_budget(LoopConfig(updates=7))) == (7, 8)
  with pytest.raises(ConfigError, match='after update 7'):
    profiling.parse_window('7:9', parse_budget(LoopConfig(updates=7)))


@jax.jit
@jax.named_scope('student')
def double(x):
  return 2 * x


def update(weights, number):
  return double(weights).block_until_ready(), number


def go(folder, window, numbers):
  """The updates after so many others, as the loop does them."""
  weights = jnp.ones(3)
  with profiling.traced(window, str(folder)) as watch:
    watched = watch(update)
    for number in numbers:
      weights, given = watched(weights, number)
      assert given == number
  np.testing.assert_array_equal(weights, 2.0 ** len(numbers) * np.ones(3))


def test_a_profile_holds_its_window_alone(tmp_path):
  go(tmp_path, Window(2, 4), range(5))
  assert list(profiles(tmp_path)) == ['from_update_2']
  assert steps(tmp_path, 'from_update_2') == [2, 3]
  [profile] = (tmp_path / 'plugins/profile/from_update_2').glob('*.xplane.pb')
  assert b'jit(double)/student/mul' in profile.read_bytes()
  assert [path.name for path in tmp_path.iterdir()] == ['plugins']  # nothing half-written is left


def test_a_profile_ends_with_the_run(tmp_path):
  go(tmp_path, Window(2, 9), range(3))
  assert steps(tmp_path, 'from_update_2') == [2, 3]
  go(tmp_path, Window(1, 2), range(1))  # there can be but one at a time
  assert sorted(profiles(tmp_path)) == ['from_update_1', 'from_update_2']


def test_without_a_window_an_update_is_left_as_it_is(tmp_path):
  with profiling.traced(None, str(tmp_path)) as watch:
    assert watch(update) is update


def test_a_run_that_is_continued(tmp_path):
  go(tmp_path, Window(2, 5), range(3, 7))  # inside the window: what is left of it
  assert steps(tmp_path, 'from_update_4') == [4]
  go(tmp_path / 'after', Window(2, 5), range(4, 7))
  assert not (tmp_path / 'after').exists()


def test_a_run_that_fails_leaves_no_profile(tmp_path):
  def fails(weights, number):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), profiling.traced(Window(1, 3), str(tmp_path)) as watch:
    watch(fails)(jnp.ones(3), 0)
  assert list(tmp_path.iterdir()) == []
  go(tmp_path, Window(1, 2), range(1))
  assert steps(tmp_path, 'from_update_1') == [1]


def test_processes_share_a_session(tmp_path, monkeypatch):
  for index in range(2):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    go(tmp_path, Window(1, 2), range(1))
  [names] = profiles(tmp_path).values()
  assert [name[:10] for name in names] == ['process_0_', 'process_1_']


def test_what_the_loop_does_between_updates_is_in_the_profile(tmp_path):
  with profiling.traced(Window(2, 3), str(tmp_path / 'profile')) as watch:
    work = loop.Work(
      'fake',
      str(tmp_path / 'run'),
      Budget('updates', 3),
      start=loop_test.fresh_state,
      layout=loop_test.layout_of(loop_test.fresh_state()),
      update=watch(loop_test.update),
      validate=lambda _: loop.Checked(0.5, {}, loop_test.ASKED),
      validate_every=2,
    )
    loop.run(work, loop_test.make_setup(every=2))
  told = [name for name, _ in events(tmp_path / 'profile', 'from_update_2')]
  assert [told.count(name) for name in ('train', 'evaluate', 'save')] == [1, 1, 1]


def test_seconds_of_a_phase_add_up(monkeypatch):
  clock = iter([1.0, 3.0, 10.0, 10.5, 20.0, 24.0])
  monkeypatch.setattr(profiling.time, 'monotonic', lambda: next(clock))
  seconds = {}
  for phase in ('rollout', 'grade', 'rollout'):
    with profiling.measured(seconds, phase):
      pass
  assert seconds == {'rollout': 6.0, 'grade': 0.5}


def scopes(lowered, *asked):
  """Which of the names the operations of a program carry, and which of these a backward pass has."""
  text = lowered.as_text(debug_info=True)
  carried = [name for name in asked if f'/{name}/' in text or f'jvp({name})/' in text]
  return carried, [name for name in asked if f'transpose(jvp({name}))/' in text]


NAMES = ('prefill', 'decode', 'teacher', 'weigh', 'student', 'loss', 'optimizer')


def test_the_update_carries_the_names_of_its_phases():
  asked, seen, rollout = make_batch()
  params = make_params(SPEC)
  score = jax.jit(functools.partial(scoring.score_teacher, SPEC))
  assert scopes(score.lower(params, [seen], rollout), *NAMES) == (['teacher'], [])
  own = jax.jit(jax.named_scope('weigh')(functools.partial(scoring.score_teacher, SPEC)))
  assert scopes(own.lower(params, [seen], rollout), *NAMES)[0] == ['teacher', 'weigh']
  scores = jax.eval_shape(score, params, [seen], rollout)
  state = TrainState(params, OPTIMIZER.init(params), None)
  step = distill_step('frozen', 'chunked', params)
  lowered = step.lower(state, asked, rollout, scores, model.head(SPEC, params))
  assert scopes(lowered, *NAMES) == (['student', 'loss', 'optimizer'], ['student', 'loss'])


def test_the_sampler_carries_the_names_of_its_phases():
  asked, _, _ = make_batch()
  config = SamplingConfig(max_tokens=4)
  setting = decode.setting_of(SPEC, config, (2,), 2, VALID, DecodeConfig())
  budget, law = decode.budgets(asked, 2, config, None), drawing.law_of(config, 1.0)
  counters = decode.Counters(np.uint32(0), np.uint32(0))
  lowered = decode._sample.lower(setting, make_params(SPEC), asked, budget, counters, law)
  assert scopes(lowered, *NAMES) == (['prefill', 'decode'], [])


@pytest.mark.slow
def test_a_run_is_profiled_once_and_says_so(tmp_path):
  """The command itself: a profile of update 2, in the report, and none when the run is continued."""
  command = functools.partial(tiny.command, 'train', tmp_path / 'run', tiny.ALONE)
  refused = tiny.call(command('--budget=updates:3', '--profile_steps=3:5'))
  assert refused.returncode == 2 and 'profile_steps is 3:5, up to update 4' in refused.stderr
  assert not (tmp_path / 'run').exists()
  first = tiny.call(command('--budget=updates:3', '--profile_steps=2:3'))
  assert first.returncode == 0, first.stderr
  folder = tmp_path / 'run' / 'profile'
  assert list(profiles(folder)) == ['from_update_2']
  names = [name for name, _ in events(folder, 'from_update_2')]
  for name in ('train', 'rollout', 'grade', 'plan', 'update', 'score', 'weigh', 'evaluate', 'save'):
    assert names.count(name) == 1, name
  [path] = folder.glob('plugins/profile/*/*.xplane.pb')
  profile = path.read_bytes()
  for name in ('/prefill/', '/decode/', '/teacher/', 'jvp(student)/', 'jvp(loss)/', '/optimizer/'):
    assert name.encode() in profile, name
  assert b'transpose(jvp(student))/' in profile

  later = tiny.call(command('--budget=updates:4', '--profile_steps=2:3'))
  assert later.returncode == 0, later.stderr
  assert list(profiles(folder)) == ['from_update_2'] and path.read_bytes() == profile
  rows = jsonlines.read(tmp_path / 'run' / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  assert {'rollout', 'grade', 'plan', 'update'} <= rows[-1]['time'].keys()
  report = (tmp_path / 'run' / 'report.html').read_text()
  assert 'Phases of an update' in report and f'xprof --logdir={folder}' in report
