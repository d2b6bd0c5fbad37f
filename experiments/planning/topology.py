"""Chips that are not here: their compiler, and a mesh of them."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from unittest import mock

import jax

from opsd_jax.analyze.chips import Slice
from opsd_jax.config import ConfigError


def devices(where: Slice) -> Sequence[jax.Device]:
  """The chips of a slice, to compile for.

  Raises:
    ConfigError: the TPU's compiler is not installed, or knows no such slice.
  """
  os.environ |= dict(ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost')
  from jax.experimental import topologies

  bounds = tuple(min(a, b) for a, b in zip(where.chip.host, (*where.sizes, 1), strict=False))
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=where.name, chips_per_host_bounds=bounds, num_slices=1
    )
  except Exception as error:  # of several types, by the cause
    raise ConfigError(
      f'--topology={where.name} cannot be compiled for: {str(error).splitlines()[0][:300]}. The compiler '
      'comes with libtpu (requirements/tpu-compile.txt); TPU_LIBRARY_PATH names its libtpu.so where it is '
      'not in this environment.'
    ) from error
  return found.devices


@contextlib.contextmanager
def compiling(mesh: jax.sharding.Mesh) -> Iterator[None]:
  """The mesh set, to trace and compile for it; what is chosen by the backend is chosen as on its chips.

  Nothing can be computed meanwhile, as the chips are not there: shapes are found before.
  """
  platform = mesh.devices.flat[0].platform
  with jax.set_mesh(mesh), mock.patch.object(jax, 'default_backend', lambda: platform):
    yield
