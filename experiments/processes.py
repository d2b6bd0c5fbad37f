"""Several processes of one run: found by what the environment says, and joined before JAX is used.

One command is started on every host. Who started it has said where the others are: Slurm, Open MPI and GKE
do so in variables of their own; a TPU VM in its metadata, which is asked where `OPSD_PROCESSES=auto`; and by
hand it takes `JAX_COORDINATOR_ADDRESS=HOST:PORT JAX_NUM_PROCESSES=N JAX_PROCESS_ID=I`. `OPSD_PROCESSES=1`
means that this process is alone, whatever the others say.
"""

import faulthandler
import os
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

from opsd_jax.config import ConfigError, require

# A process that is gone is noticed after this long (JAX waits 100 s), one that has not come yet after that.
HEARTBEAT_SECONDS = 30
ARRIVAL_SECONDS = 300
# What the others may still take to say why they end as well, before the first process takes its leave.
_LAST_WORDS_SECONDS = 5

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
  # It would take SIGTERM for itself, which `train.stopping` hears.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **peers._asdict(), initialization_timeout=ARRIVAL_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
  except (RuntimeError, ValueError) as error:
    raise ConfigError(
      f'the processes of this run did not meet: {error}. Start the same command on every host, or set '
      'OPSD_PROCESSES=1 for a run of one process.'
    ) from error
  # When another process is gone, JAX says which and aborts: a hundred idle threads would hide the words.
  faulthandler.enable(all_threads=False)


def joined() -> bool:
  """Whether there are others."""
  return 'jax' in sys.modules and sys.modules['jax'].distributed.is_initialized()


def leave(code: int, *, perhaps_a_peer: bool = False) -> None:
  """Ends this process, which failed, without the others; does nothing where it is alone.

  They wait for it, and JAX would first wait for them: five minutes. With `perhaps_a_peer` the failure may be
  that another process is gone. Then JAX ends this one soon, and says so.
  """
  if not joined():
    return
  import jax

  sys.stdout.flush()
  sys.stderr.flush()
  if perhaps_a_peer:
    time.sleep(2 * HEARTBEAT_SECONDS)  # JAX needs one to notice, and a little to say so
  elif jax.process_index() == 0:
    time.sleep(_LAST_WORDS_SECONDS)
  os._exit(code)
