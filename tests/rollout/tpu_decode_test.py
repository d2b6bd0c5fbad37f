"""The sampler compiled for real TPUs, on a machine that has none: it fits and reads what it must."""

import dataclasses
import importlib.util
import os

import pytest

from experiments.benching import tpu_decode as lib

LIBRARY = os.environ.get('TPU_LIBRARY_PATH')
pytestmark = pytest.mark.skipif(
  not os.path.exists(LIBRARY) if LIBRARY else importlib.util.find_spec('libtpu') is None,
  reason='needs the TPU compiler, which make test-all installs: requirements/tpu-compile.txt',
)


def name_of(case):
  return f'{case.topology[:3]} {case.name} {"refill" if case.refill else "at once"}'


@pytest.mark.slow
@pytest.mark.parametrize('case', lib.CASES, ids=name_of)
def test_a_step_reads_weights_and_cache_once_and_sends_no_weight(case):
  found = lib.compile_apart(case)
  assert not lib.check(found)
  # The whole model was counted: less would mean that something was overlooked.
  assert found['over_floor'] > 0.95


def test_the_same_of_two_layers():
  case = dataclasses.replace(lib.CASES[1], layers=2)
  found = lib.compile_apart(case)
  assert not lib.check(found)
