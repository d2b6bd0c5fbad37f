"""Where devices stand in the mesh: neighbours along tensor, slices apart along data or fsdp."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.mesh import AXES, MeshConfig, make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a device as its place is chosen by."""

  id: int
  platform: str
  device_kind: str
  process_index: int
  slice_index: int
  coords: tuple[int, int, int] = (0, 0, 0)
  core_on_chip: int = 0


def tpus(kind, bounds, slices=1):
  """Slices of a torus; hosts have 2 x 2 chips."""
  x_y_z = [c[::-1] for c in itertools.product(*(range(size) for size in reversed(bounds)))]
  hosts = {}
  return [
    Device(i, 'tpu', kind, hosts.setdefault((part, x // 2, y // 2, z), len(hosts)), part, (x, y, z))
    for i, (part, (x, y, z)) in enumerate(itertools.product(range(slices), x_y_z))
  ]


def gpus(hosts):
  """Eight a host, a process each, as Slurm starts them."""
  return [Device(i, 'gpu', 'NVIDIA H100', i, i // 8) for i in range(8 * hosts)]


V5E, V5P, V6E = 'TPU v5 lite', 'TPU v5', 'TPU v6 lite'


def along(mesh, axis, what):
  """What the devices of each line along an axis have: a set a line."""
  lines = np.moveaxis(mesh.devices, AXES.index(axis), -1).reshape(-1, mesh.shape[axis])
  return [{what(device) for device in line} for line in lines]


@pytest.mark.parametrize(
  ('devices', 'sizes'),
  [
    (tpus(V5E, (4, 4, 1)), (1, 4, 4)),
    (tpus(V6E, (8, 8, 1)), (1, 16, 4)),
    (tpus(V6E, (8, 8, 1)), (2, 8, 4)),
    (tpus(V5P, (4, 4, 4)), (1, 16, 4)),
    (tpus(V5P, (4, 4, 4)), (1, 8, 8)),
  ],
)
def test_tensor_lies_within_a_neighbourhood_of_the_torus(devices, sizes):
  mesh = make_mesh(MeshConfig(*sizes), devices)
  assert mesh.devices.shape == sizes and set(mesh.devices.flat) == set(devices)
  for line in along(mesh, 'tensor', lambda device: device.coords):
    apart = [max(c[axis] for c in line) - min(c[axis] for c in line) + 1 for axis in range(3)]
    assert np.prod(apart) == sizes[2], 'a box, so that no other device is between them'


@pytest.mark.parametrize(
  ('devices', 'sizes', 'crossed'),
  [
    (tpus(V5E, (4, 4, 1), 2), (2, 4, 4), 'data'),
    (tpus(V5E, (4, 4, 1), 2), (4, 2, 4), 'data'),
    (tpus(V5E, (4, 4, 1), 2), (1, 32, 1), 'fsdp'),
    (tpus(V6E, (8, 8, 1), 4), (4, 16, 4), 'data'),
    (gpus(2), (2, 8, 1), 'data'),
    (gpus(2), (1, 16, 1), 'fsdp'),
    (gpus(2), (1, 2, 8), 'fsdp'),
    (gpus(4), (4, 1, 8), 'data'),
  ],
)
def test_slices_are_apart_on_one_axis(devices, sizes, crossed):
  mesh = make_mesh(MeshConfig(*sizes), devices)
  assert mesh.devices.shape == sizes and set(mesh.devices.flat) == set(devices)
  slices = len({d.slice_index for d in devices})
  for axis in AXES:
    seen = along(mesh, axis, lambda device: device.slice_index)
    assert {len(s) for s in seen} == {slices if axis == crossed else 1}, axis


def test_data_takes_as_many_slices_as_it_has_and_fsdp_the_rest():
  mesh = make_mesh(MeshConfig(2, 8, 4), tpus(V5E, (4, 4, 1), 4))
  counts = {axis: {len(s) for s in along(mesh, axis, lambda d: d.slice_index)} for axis in AXES}
  assert counts == {'data': {2}, 'fsdp': {2}, 'tensor': {1}}


@pytest.mark.parametrize('sizes', [(1, 1, 16), (1, -1, 16)])
def test_tensor_does_not_cross_slices(sizes):
  with pytest.raises(
    ConfigError, match=r'2 slices of 8 devices, .*; let mesh.data be a multiple of 2, or mesh.f'
  ):
    make_mesh(MeshConfig(*sizes), gpus(2))


def test_processes_of_cpus_are_no_slices():
  """Some versions of JAX number them; nothing there is slow."""
  cpus = [Device(i, 'cpu', 'cpu', i // 2, i // 2) for i in range(8)]
  mesh = make_mesh(MeshConfig(2, 1, -1), cpus)
  assert [d.id for d in mesh.devices.flat] == list(range(8)) and mesh.shape['tensor'] == 4


def test_devices_of_this_machine():
  mesh = make_mesh(MeshConfig(2, -1, 2))
  assert mesh.shape == {'data': 2, 'fsdp': 2, 'tensor': 2} and list(mesh.devices.flat) == jax.devices()
  assert mesh == jax.make_mesh((2, 2, 2), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ((3, 1, 2), r'needs 6 devices but 8 are present; change mesh.data, mesh.fsdp or mesh.tensor'),
    ((-1, -1, 1), 'at most one of them -1'),
    ((0, 1, 8), 'sizes must be positive'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
  with pytest.raises(ConfigError, match=message):
    make_mesh(MeshConfig(*sizes))
