"""Who is asked: fingerprints of weights, and checkpoints of runs that are found before they are loaded."""

import pytest

from experiments.sitting import subject


def files(*paths):
  return subject.fingerprint((path.name, str(path)) for path in paths)


@pytest.mark.parametrize('size', [0, 5, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_fingerprint_sees_both_ends_and_the_size(tmp_path, size):
  path = tmp_path / 'weights'
  content = bytearray(i % 251 for i in range(size))
  path.write_bytes(content)
  before = files(path)
  assert before == files(path)
  for place in {0, size - 1} if size else ():
    changed = bytearray(content)
    changed[place] ^= 1
    path.write_bytes(changed)
    assert files(path) != before
  path.write_bytes(content + b'\0')
  assert files(path) != before


def test_a_fingerprint_sees_a_training_step_and_a_swap(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  one.write_bytes(bytes(4 << 20))
  two.write_bytes(bytes(4 << 20))
  before = files(one, two)
  assert files(two, one) != before
  one.write_bytes(
    bytes(2 << 20) + b'\1' * 70_000 + bytes((2 << 20) - 70_000)
  )  # wider than between two blocks
  assert files(one, two) != before
