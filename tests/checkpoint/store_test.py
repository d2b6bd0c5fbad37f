"""The checkpoint store: exact round trips, retention, kills and full disks."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from opsd_jax.checkpoint.config import CheckpointConfig, validate
from opsd_jax.checkpoint.errors import CheckpointError
from opsd_jax.checkpoint.store import open_store
from opsd_jax.config import ConfigError

HOST = {
  'tokens': 2**40,
  'position': {'epoch': 1, 'index': 7},
  'name': 'run',
  'rate': 1e-4,
  'none': None,
  'list': [1, 'two', []],
  'empty': {},
  'on': True,
}

# A small model's state, filled with the step number: a mixture of two steps would show.
CHILD = """
import os, resource, sys
import jax, jax.numpy as jnp
from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.checkpoint.errors import CheckpointError
from opsd_jax.checkpoint.store import open_store
folder = sys.argv[1]

def state(step):
  return {f'w{i}': jnp.full((64, 1024), step, jnp.float32) for i in range(4)}
"""


@flax.struct.dataclass
class TrainState:
  """What a trainer saves."""

  step: Any
  params: Any
  optimizer: Any
  key: Any


def _train_state(fill=1.0):
  params = {'w': jnp.full((8, 4), fill), 'b': jnp.arange(4, dtype=jnp.bfloat16)}
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  optimizer = tx.init(params)
  _, optimizer = tx.update(jax.tree.map(jnp.ones_like, params), optimizer, params)
  return TrainState(jnp.int32(3), params, optimizer, jax.random.key(5))


def _abstract(tree, sharding=None):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if sharding is None else sharding),
    tree,
  )


def _assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    assert got.dtype == want.dtype
    if jnp.issubdtype(want.dtype, jax.dtypes.prng_key):
      got, want = jax.random.key_data(got), jax.random.key_data(want)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def _steps(folder):
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def _child(folder, code, **settings):
  script = CHILD + textwrap.dedent(code)
  return subprocess.Popen(
    [sys.executable, '-c', script, str(folder)],
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    **settings,
  )


@pytest.mark.parametrize('asynchronous', [True, False])
def test_a_train_state_comes_back_exactly(tmp_path, asynchronous):
  state = _train_state()
  with open_store(tmp_path / 'run', CheckpointConfig(asynchronous=asynchronous)) as store:
    store.save(3, state, HOST)
    if not asynchronous:
      assert _steps(tmp_path / 'run') == [3]
  with open_store(tmp_path / 'run') as store:
    step, restored, host = store.restore(_abstract(state))
  assert (step, host) == (3, HOST)
  assert isinstance(restored, TrainState)
  _assert_same(restored, state)


def test_an_empty_folder_has_nothing(tmp_path):
  with open_store(tmp_path / 'run') as store:
    assert store.latest is None and store.best is None
    assert store.restore({}) is None and store.restore({}, 'best') is None


def test_the_caller_may_donate_the_state_after_save(tmp_path):
  state = {'w': jnp.zeros(2**20)}
  add = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
  abstract = _abstract(state)
  with open_store(tmp_path) as store:
    for step in range(3):
      store.save(step, state, {})
      state = add(state)
    _, restored, _ = store.restore(abstract)
  assert float(restored['w'].min()) == float(restored['w'].max()) == 2.0


def test_restore_onto_another_mesh(tmp_path):
  devices = np.array(jax.devices())
  assert devices.size == 8
  rows = NamedSharding(Mesh(devices, 'x'), PartitionSpec('x'))
  grid = NamedSharding(Mesh(devices[:4].reshape(2, 2), ('a', 'b')), PartitionSpec('b', 'a'))
  values = np.arange(64, dtype=np.float32).reshape(8, 8)
  with open_store(tmp_path) as store:
    store.save(1, {'w': jax.device_put(values, rows)}, {})
    for sharding in (grid, rows, jax.sharding.SingleDeviceSharding(devices[3])):
      target = {'w': jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)}
      restored = store.restore(target)[1]['w']
      assert restored.sharding == sharding
      np.testing.assert_array_equal(np.asarray(restored), values)


def test_what_is_kept_are_the_last_and_the_best(tmp_path):
  scores = [0.1, 0.9, None, 0.5, float('nan'), 0.4, None]
  with open_store(tmp_path, CheckpointConfig(keep_last=2, keep_best=1)) as store:
    for step, score in enumerate(scores):
      store.save(step, {'w': jnp.float32(step)}, {'step': step}, score)
    assert (store.latest, store.best) == (6, 1)
    step, state, host = store.restore({'w': _abstract(jnp.float32(0))}, 'best')
    assert (step, float(state['w']), host) == (1, 1.0, {'step': 1})
  assert _steps(tmp_path) == [1, 5, 6]
  with open_store(tmp_path) as store:
    assert (store.latest, store.best) == (6, 1)


def test_without_scores_only_the_last_are_kept(tmp_path):
  with open_store(tmp_path, CheckpointConfig(keep_last=1, keep_best=2)) as store:
    for step in range(4):
      store.save(step, {'w': jnp.float32(step)}, {})
    assert store.best is None
  assert _steps(tmp_path) == [3]


def test_saving_the_latest_step_again_does_nothing_and_an_older_one_is_refused(tmp_path):
  with open_store(tmp_path) as store:
    store.save(5, {'w': jnp.float32(1)}, {})
    store.save(5, {'w': jnp.float32(2)}, {})
    with pytest.raises(CheckpointError, match='step 5 is already there'):
      store.save(4, {'w': jnp.float32(3)}, {})
    assert float(store.restore({'w': _abstract(jnp.float32(0))})[1]['w']) == 1.0


def test_a_state_that_does_not_fit_names_the_folder_and_the_shapes(tmp_path):
  with open_store(tmp_path) as store:
    store.save(1, {'w': jnp.zeros((2, 3))}, {})
    with pytest.raises(CheckpointError, match=r'step 1.*\(5,\).*\(2, 3\)'):
      store.restore({'w': _abstract(jnp.zeros(5))})
    with pytest.raises(CheckpointError, match='has no checkpoint of step 9'):
      store.restore({'w': _abstract(jnp.zeros((2, 3)))}, 9)


def test_host_values_must_be_json(tmp_path):
  with open_store(tmp_path) as store, pytest.raises(TypeError, match='JSON'):
    store.save(1, {'w': jnp.zeros(1)}, {'bad': object()})


def test_a_reader_changes_nothing(tmp_path):
  with open_store(tmp_path / 'run') as store:
    store.save(1, {'w': jnp.zeros(1)}, {})
  leftover = tmp_path / 'run' / '2.orbax-checkpoint-tmp'
  leftover.mkdir()
  with open_store(tmp_path / 'run', read_only=True) as store:
    assert store.latest == 1
    with pytest.raises(CheckpointError, match='for reading'):
      store.save(3, {'w': jnp.zeros(1)}, {})
  assert leftover.exists()
  with pytest.raises(CheckpointError, match='no checkpoints'):
    open_store(tmp_path / 'typo', read_only=True)


def test_killed_runs_continue_from_a_whole_checkpoint(tmp_path):
  loop = """
    with open_store(folder, CheckpointConfig(keep_last=1)) as store:
      step = store.latest or 1
      store.save(step, state(step), {'step': step}, score=-step)
      store.wait()
      print('ready', flush=True)
      while True:
        step += 1
        store.save(step, state(step), {'step': step}, score=-step)
    """
  generator, last = random.Random(0), 0
  for _ in range(5):
    child = _child(tmp_path, loop)
    assert child.stdout.readline() == 'ready\n', child.stderr.read()
    time.sleep(generator.uniform(0.2, 0.8))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    last = _assert_whole(tmp_path, last)
  assert last > 5


def _assert_whole(folder, at_least):
  """Reopens, checks that what restores is one step's state, and returns that step."""
  target = {f'w{i}': _abstract(jnp.zeros((64, 1024))) for i in range(4)}
  with open_store(folder, CheckpointConfig(keep_last=1)) as store:
    for which in (None, 'best'):
      step, state, host = store.restore(target, which)
      assert host == {'step': step}
      assert all((np.asarray(leaf) == step).all() for leaf in state.values())
    assert store.latest >= at_least
    # The next save runs after the leftovers are removed.
    store.save(
      store.latest + 1,
      jax.tree.map(lambda x: x * 0 + store.latest + 1, state),
      {'step': store.latest + 1},
      score=-(store.latest + 1),
    )
    store.wait()
    assert not [p.name for p in folder.iterdir() if not p.name.isdigit()]
    return store.latest


@pytest.mark.parametrize('limit', [64, 20_000])
def test_a_full_disk_stops_the_run_and_spares_the_checkpoint_before(tmp_path, limit):
  code = f"""
    store = open_store(folder, CheckpointConfig(keep_last=1))
    store.save(1, state(1), {{'step': 1}}, score=-1.0)
    store.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
    noise = jax.random.normal(jax.random.key(0), (64, 1024))
    try:
      store.save(2, jax.tree.map(lambda x: x + noise, state(1)), {{}})
      print('in the background')
      store.close()
    except CheckpointError as error:
      print(error)
      print(store.latest)
    store.close()
    """
  child = _child(tmp_path, code)
  out, err = child.communicate(timeout=60)
  assert child.returncode == 0, err
  started, message, latest = out.strip().splitlines()
  assert started == 'in the background' and latest == '1'
  assert f'Saving step 2 in {tmp_path} failed' in message and 'File too large' in message
  assert (
    'free space or choose another --workdir, then run the same command: it continues from step 1'
  ) in message
  # No traceback of ours or of Orbax; the array writer's threads may still find their loop closed.
  assert f'opsd_jax{os.sep}checkpoint' not in err and f'{os.sep}orbax{os.sep}' not in err, err
  assert _assert_whole(tmp_path, 1) == 2


def _break_writes(monkeypatch, message):
  """Makes the last act of a background save, the rename, fail."""
  from orbax.checkpoint._src.path import async_path

  async def fail(*args, **kwargs):
    raise OSError(28, message)

  monkeypatch.setattr(async_path, 'rename', fail)


@pytest.mark.parametrize('report', ['save', 'wait', 'latest', 'restore', 'close'])
def test_a_failed_background_save_surfaces_at_the_next_call(tmp_path, monkeypatch, report):
  state = {'w': jnp.zeros(4)}
  store = open_store(tmp_path, CheckpointConfig(keep_last=1))
  store.save(1, state, {})
  store.wait()
  with monkeypatch.context() as patch:
    _break_writes(patch, 'No space left on device')
    store.save(2, state, {})
    calls = {
      'save': lambda: store.save(3, state, {}),
      'wait': store.wait,
      'close': store.close,
      'latest': lambda: store.latest,
      'restore': lambda: store.restore(_abstract(state)),
    }
    with pytest.raises(CheckpointError, match='step 2 .*No space left.*free space.*from step 1'):
      calls[report]()
  if report != 'close':
    assert store.latest == 1
    store.save(3, state, {})  # Space was freed: the same store goes on.
    store.close()
    assert _steps(tmp_path) == [3]


def test_the_error_that_ended_the_run_is_shown_before_a_failed_save(tmp_path, monkeypatch):
  _break_writes(monkeypatch, 'No space left on device')
  with pytest.raises(KeyError, match='cause') as caught:
    with open_store(tmp_path) as store:
      store.save(1, {'w': jnp.zeros(4)}, {})
      raise KeyError('cause')
  assert 'starts from the beginning' in caught.value.__notes__[0]


@pytest.mark.parametrize(
  'cfg', [CheckpointConfig(every=0), CheckpointConfig(keep_last=0), CheckpointConfig(keep_best=-1)]
)
def test_settings_that_cannot_work(cfg):
  with pytest.raises(ConfigError, match='checkpoint'):
    validate(cfg)
