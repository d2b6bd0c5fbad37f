"""Whole runs whose rollouts a server draws, against the same run with our own sampler in the process.

The server runs our own sampler too, on the weights in the folders that it was told of. It gets seeds alone
and finds the counters behind them, so that both runs draw the same tokens.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import common, recipes
from opsd_jax import jsonlines
from opsd_jax.distill import views
from opsd_jax.experiment import build
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.rollout.engine import client, http
from opsd_jax.rollout.engine.http import EngineError
from opsd_jax.train import cold_start, distill
from tests.experiments import tiny
from tests.rollout.server import Sampler, Server

UPDATES = 3
SETTINGS = (
  *tiny.ALONE,
  'cold_start.updates=0',
  'optimizer.learning_rate=0.01',
  'rollout.per_question=2',
  'rollout.sampling.max_tokens=12',
  f'loop.updates={UPDATES}',
  'loop.evaluate_every=0',
  'loop.show_every=0',
  'checkpoint.every=100',
)
LORA = ('lora.rank=4',)
_QUICK = 'jax_disable_most_optimizations'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(http, '_FIRST_S', 0.02)
  monkeypatch.setattr(client, '_BROKEN_OFF_S', 0.02)


@pytest.fixture(autouse=True, scope='module')
def compiled_once(tmp_path_factory):
  """Every run of this file compiles the same programs; without this, each would do it again."""
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs', _QUICK)
  before = [jax.config.values[name] for name in names]
  for name, value in zip(names, (str(tmp_path_factory.mktemp('compiled')), 0.0, True), strict=True):
    jax.config.update(name, value)
  yield
  for name, value in zip(names, before, strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@functools.cache
def prepared(*changes):
  """The workbench on one device, as if there were no more."""
  setup = build(common.with_settings(recipes.load('quickstart'), [*SETTINGS, *changes]))
  return dataclasses.replace(setup, mesh=make_mesh(MeshConfig(), jax.devices()[:1]))


def train(folder, setup):
  with jax.set_mesh(setup.mesh):
    return distill.run(setup, str(folder), cold_start.initial_params(setup))


def serve(setup, **faults):
  """A server that was started with the run's first weights."""
  with jax.set_mesh(setup.mesh):
    params = cold_start.initial_params(setup)
  prompts = views.student_batch(setup.views, list(setup.splits.train), setup.tokenizer)
  width = setup.views.student_tokens
  sampler = Sampler(
    setup.spec, params, setup.exam.valid_vocab, width, setup.seed, UPDATES, prompts.problem_id
  )
  return Server(sampler, **faults)


def by_server(setup, server, folder, **more):
  engine = dict(url=server.url, push_folder=str(folder), retries=40, timeout_s=120.0, deadline_s=60.0)
  return with_engine(setup, **engine, **more)


def with_engine(setup, **changes):
  engine = dataclasses.replace(setup.rollout.engine, **changes)
  return dataclasses.replace(setup, rollout=dataclasses.replace(setup.rollout, engine=engine))


def rows(folder):
  return [{k: v for k, v in row.items() if k != 'time'} for row in jsonlines.read(folder / 'metrics.jsonl')]


def assert_same(found, expected):
  """The same tokens, so the same counts; drawn a question at a time, which rounds otherwise.

  What a server computes to draw them, nobody tells.
  """
  own = {'utilisation/rollout', *(f'total/{what}_rollout' for what in ('positions', 'needed', 'spent'))}
  found, expected = ([{k: v for k, v in row.items() if k not in own} for row in x] for x in (found, expected))
  assert [row.keys() for row in found] == [row.keys() for row in expected]
  for ours, theirs in zip(found, expected, strict=True):
    for name, value in theirs.items():
      exact = isinstance(value, int) or name.startswith('length')
      assert ours[name] == (value if exact else pytest.approx(value, rel=1e-3, abs=2e-5)), name


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The run with our own sampler."""
  folder = tmp_path_factory.mktemp('whole')
  train(folder, prepared(*LORA))
  return rows(folder)


def test_the_meter_is_always_there(whole):
  for row in whole:
    assert 0 < row['parity_gap'] < 1e-5 and row['parity_gap'] == pytest.approx(row['logp_gap'], rel=1e-3)
    assert abs(row['logp_difference']) <= row['logp_gap'] <= row['logp_gap_max'] < 1e-4
    assert row['staleness'] == 0 and row['parity_alarm'] == 0
    assert 'correction_weight' not in row


def test_a_run_by_a_server_that_dies_twice(whole, tmp_path):
  """Once in the second update, from which it comes back anew; once for good, and the run is continued."""
  setup, run = prepared(*LORA), tmp_path / 'run'
  with serve(setup, script={6: 'die'}) as server:
    server.post = functools.partial(dies_at, server, server.post, update=2)
    ours = by_server(setup, server, tmp_path / 'pushed', push='adapter', concurrency=2)
    with pytest.raises(EngineError, match='failed .* times'):
      train(run, with_engine(ours, retries=7))
    asked = len(server.questions)
  assert len(rows(run)) == 2 and asked > 2 * 4
  assert [int(x.name) for x in (run / 'checkpoints').iterdir() if x.name.isdigit()] == [2]  # nothing is lost
  with serve(setup) as server:
    train(run, by_server(setup, server, tmp_path / 'pushed', push='adapter'))
    assert len(server.questions) == 4  # of the third update alone
  assert_same(rows(run), whole)


def dies_at(server, post, path, body, update):
  """The server's own answer, but it is gone for long once it has the weights of an update."""
  found = post(path, body)
  if path == '/v1/load_lora_adapter' and body['lora_name'].endswith(f'-{update}'):
    server.die(1000)
  return found


@pytest.mark.slow
@pytest.mark.parametrize('lora', [(), LORA])
@pytest.mark.parametrize('flavour', ['vllm', 'sglang'])
def test_all_weights_through_a_folder(lora, flavour, tmp_path):
  setup = prepared(*lora)
  train(tmp_path / 'own', setup)
  with serve(setup) as server:
    train(
      tmp_path / 'by_server', by_server(setup, server, tmp_path / 'pushed', push='weights', flavour=flavour)
    )
  assert_same(rows(tmp_path / 'by_server'), rows(tmp_path / 'own'))


def test_stale_rollouts_are_measured_and_weighed(whole, tmp_path):
  """The server keeps its first weights; the student moves away from them, and no alarm is raised for that."""
  setup = prepared(*LORA, 'objective.correction=token', 'loop.parity_alarm=1e-4')
  with serve(setup) as server:
    train(tmp_path / 'run', by_server(setup, server, tmp_path, push='none'))
  found = rows(tmp_path / 'run')
  assert [row['staleness'] for row in found] == [0, 1, 2]
  assert found[0]['correction_weight'] == pytest.approx(1, abs=1e-5)
  assert found[0]['loss'] == pytest.approx(whole[0]['loss'], rel=1e-4)
  assert [row['parity_alarm'] for row in found] == [0, 0, 0] and found[2]['parity_gap'] == 0
  assert found[2]['logp_gap'] > 1e-3 and abs(found[2]['correction_weight'] - 1) > 1e-5
  assert all(0 <= row['correction_capped'] < 0.5 for row in found)


@pytest.mark.slow
def test_a_server_with_other_weights_raises_the_alarm(tmp_path, capsys):
  """It says that it draws with what it was given, but it does not: the meter sees it."""
  setup = prepared(*LORA)

  class Wrong(Sampler):
    def weights(self, folder, adapter):
      return jax.tree.map(lambda x: x * 1.1, super().weights(folder, None))

  with serve(setup) as server:
    server.draw.__class__ = Wrong
    short = dataclasses.replace(setup, loop=dataclasses.replace(setup.loop, updates=1))
    train(tmp_path / 'run', by_server(short, server, tmp_path / 'pushed', push='adapter'))
  (row,) = rows(tmp_path / 'run')
  assert row['parity_alarm'] == 1 and row['parity_gap'] > 1e-3 and row['staleness'] == 0
  assert '[opsd] warning: update 1: sampler and scorer disagree by' in capsys.readouterr().err


def test_the_ids_are_those_that_were_sampled(tmp_path):
  """Of one update, row by row."""
  setup = prepared(*LORA)
  with jax.set_mesh(setup.mesh):
    params = cold_start.initial_params(setup)
    prompts = views.student_batch(setup.views, list(setup.splits.train[:5]), setup.tokenizer)
    ours = distill.own_sampler(setup)(params, prompts, 1).rollout
  with serve(setup) as server:
    theirs = distill.source(by_server(setup, server, tmp_path))(params, prompts, 1).rollout
  for name in ('ids', 'length', 'stopped', 'rollout_index'):
    np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name))
  np.testing.assert_allclose(theirs.raw_logp, ours.raw_logp, atol=1e-5)
  assert ours.policy_version.tolist() == [1] * 10 and theirs.policy_version.tolist() == [0] * 10
