"""Several processes of one run: found by what the environment says, and joined before JAX is used.

One command is started on every host. Who started it has said where the others are: Slurm, Open MPI and GKE
do so in variables of their own; a TPU VM in its metadata, which is asked where `OPSD_PROCESSES=auto`; and by
hand it takes `JAX_COORDINATOR_ADDRESS=HOST:PORT JAX_NUM_PROCESSES=N JAX_PROCESS_ID=I`. `OPSD_PROCESSES=1`
means that this process is alone, whatever the others say.
"""

from collections.abc import Mapping
from typing import NamedTuple

from opsd_jax.config import ConfigError, require

# A process that is gone is noticed after this long (JAX waits 100 s), one that has not come yet after that.
HEARTBEAT_SECONDS = 30
ARRIVAL_SECONDS = 300

_BY_HAND = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'MEGASCALE_NUM_SLICES')
_LISTS = ('TPU_PROCESS_ADDRESSES', 'TPU_WORKER_HOSTNAMES')


class Peers(NamedTuple):
  """Where the processes meet, as `jax.distributed.initialize` takes it; None is found out by JAX."""

  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


def find(environment: Mapping[str, str]) -> Peers | None:
  """The other processes as the environment tells them; None for a process that is alone.

  Raises:
    ConfigError: a variable is missing beside others, or says what cannot be.
  """
  chosen = environment.get('OPSD_PROCESSES', '')
  require(chosen in ('', '1', 'auto'), f'OPSD_PROCESSES is {chosen!r}; it is auto, 1 or absent.')
  if chosen == '1':
    return None
  if 'JAX_NUM_PROCESSES' in environment:
    return _by_hand(environment)
  several = any(_number(environment, name, '1') > 1 for name in _COUNTS)
  listed = any(',' in environment.get(name, '') for name in _LISTS)
  return Peers() if chosen == 'auto' or several or listed else None


def _by_hand(environment: Mapping[str, str]) -> Peers | None:
  count = _number(environment, 'JAX_NUM_PROCESSES', '')
  if count == 1:
    return None
  missing = [name for name in _BY_HAND if not environment.get(name)]
  require(
    not missing, f'JAX_NUM_PROCESSES is {count}, but {" and ".join(missing)} is missing; set all three.'
  )
  index = _number(environment, 'JAX_PROCESS_ID', '')
  require(0 <= index < count, f'JAX_PROCESS_ID is {index}; of {count} processes it is 0 to {count - 1}.')
  address = environment['JAX_COORDINATOR_ADDRESS']
  require(':' in address, f'JAX_COORDINATOR_ADDRESS is {address!r}, without a port; write HOST:PORT.')
  return Peers(address, count, index)


def _number(environment: Mapping[str, str], name: str, missing: str) -> int:
  text = environment.get(name, missing)
  try:
    return int(text)
  except ValueError:
    raise ConfigError(f'{name} is {text!r}, which is not a number of processes.') from None


def join(environment: Mapping[str, str]) -> None:
  """Joins the other processes, if there are any. Before anything else is asked of JAX; once is enough.

  Raises:
    ConfigError: the environment cannot be (`find`), or the others did not come in time.
  """
  import jax

  peers = find(environment)
  if peers is None or jax.distributed.is_initialized():
    return
  try:
    jax.distributed.initialize(
      **peers._asdict(), initialization_timeout=ARRIVAL_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
  except (RuntimeError, ValueError) as error:
    raise ConfigError(
      f'the processes of this run did not meet: {error}. Start the same command on every host, or set '
      'OPSD_PROCESSES=1 for a run of one process.'
    ) from error
