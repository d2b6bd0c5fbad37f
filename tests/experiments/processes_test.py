"""Several processes: what the environment says of them, and two that really meet."""

import json
import socket
import subprocess

import pytest

from experiments import processes
from experiments.processes import Peers
from opsd_jax.config import ConfigError
from tests.experiments import tiny

BY_HAND = {'JAX_COORDINATOR_ADDRESS': 'h:1', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}


@pytest.mark.parametrize(
  ('environment', 'peers'),
  [
    ({}, None),
    ({'OPSD_PROCESSES': 'auto'}, Peers()),
    (BY_HAND, Peers('h:1', 4, 3)),
    (BY_HAND | {'OPSD_PROCESSES': '1'}, None),
    (BY_HAND | {'OPSD_PROCESSES': 'auto'}, Peers('h:1', 4, 3)),
    (BY_HAND | {'JAX_NUM_PROCESSES': '1'}, None),
    ({'SLURM_STEP_NUM_TASKS': '16'}, Peers()),
    ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '8'}, None),  # a step of one task within a larger job
    ({'SLURM_NTASKS': '8'}, None),  # a shell of salloc, not a step
    ({'OMPI_COMM_WORLD_SIZE': '2'}, Peers()),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, Peers()),
    ({'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, Peers()),
    ({'TPU_PROCESS_ADDRESSES': 'a:1,b:1', 'OPSD_PROCESSES': '1'}, None),
  ],
)
def test_found(environment, peers):
  assert processes.find(environment) == peers


@pytest.mark.parametrize(
  ('environment', 'said'),
  [
    ({'OPSD_PROCESSES': 'yes'}, "OPSD_PROCESSES is 'yes'; it is auto, 1 or absent."),
    ({'JAX_NUM_PROCESSES': '2'}, 'JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID is missing'),
    (BY_HAND | {'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES is 'two', which is not a number"),
    (BY_HAND | {'JAX_PROCESS_ID': '4'}, 'JAX_PROCESS_ID is 4; of 4 processes it is 0 to 3.'),
    (BY_HAND | {'JAX_COORDINATOR_ADDRESS': 'h'}, "JAX_COORDINATOR_ADDRESS is 'h', without a port"),
    ({'OMPI_COMM_WORLD_SIZE': ''}, "OMPI_COMM_WORLD_SIZE is '', which is not a number"),
  ],
)
def test_refused(environment, said):
  with pytest.raises(ConfigError) as caught:
    processes.find(environment)
  assert said in str(caught.value)


def test_the_times_that_jax_is_given(monkeypatch):
  import jax

  given = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **more: given.append(more))
  processes.join({})
  assert given == []
  processes.join(BY_HAND)
  where = {'coordinator_address': 'h:1', 'num_processes': 4, 'process_id': 3}
  assert given == [where | {'initialization_timeout': 300, 'heartbeat_timeout_seconds': 30}]


def test_others_that_do_not_come(monkeypatch):
  import jax

  def fails(**_):
    raise RuntimeError('deadline exceeded')

  monkeypatch.setattr(jax.distributed, 'initialize', fails)
  with pytest.raises(
    ConfigError, match='did not meet: deadline exceeded. Start the same command on every host'
  ):
    processes.join(BY_HAND)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  """The same command twice, told apart by variables alone; what they learn is what one process learns."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  settings = (*tiny.ALONE, 'loop.updates=2')
  several = {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}', 'JAX_NUM_PROCESSES': '2'}
  started = [
    subprocess.Popen(
      tiny.command('train', tmp_path / 'two', settings),
      cwd=tiny.REPOSITORY,
      env=tiny.environment() | several | {'JAX_PROCESS_ID': str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in (0, 1)
  ]
  said = [process.communicate(timeout=600)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0], said
  alone = tiny.environment() | {'JAX_NUM_CPU_DEVICES': '2'}
  command = tiny.command('train', tmp_path / 'one', settings)
  subprocess.run(command, cwd=tiny.REPOSITORY, env=alone, check=True, timeout=600)
  two, one = (json.loads((tmp_path / name / 'results.json').read_text()) for name in ('two', 'one'))
  assert two['opsd'] == one['opsd']
