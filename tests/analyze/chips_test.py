"""Slices by name, and the terms of a roofline by hand."""

import pytest

from opsd_jax.analyze import chips
from opsd_jax.analyze.counting import Counted, Exchange
from opsd_jax.config import ConfigError


@pytest.mark.parametrize(
  'name, count, ring',
  [
    ('v5e:4x4', 16, 50e9),  # a line has a last chip
    ('v5e:16x16', 256, 100e9),
    ('v5p:4x4x4', 64, 200e9),
    ('v5p:2x2x1', 4, 100e9),
    ('v6e:8x8', 64, 100e9),
  ],
)
def test_a_slice(name, count, ring):
  where = chips.parse(name)
  assert (where.chips, where.ring) == (count, ring)


@pytest.mark.parametrize(
  'name, words',
  [
    ('v5e', 'write chip:AxB'),
    ('v5x:4x4', "Did you mean 'v5"),
    ('v5e:4x4x4', 'v5e:4x4'),
    ('v5e:0x4', 'v5e:4x4'),
  ],
)
def test_bad_names(name, words):
  with pytest.raises(ConfigError, match=words):
    chips.parse(name)


def test_the_longer_of_two_terms_counts_for_each_instruction():
  where = chips.parse('v5e:4x4')
  busy = Counted('a', 'fusion', '', 1, int(197e12), 819_000_000, ())  # 1 s, 1 ms
  moving = Counted(
    'b', 'copy', '', 1, 0, 2 * 819_000_000_000, (Exchange('all-gather', 4, 25e9),)
  )  # 2 s, 0.5 s
  found = chips.roofline([busy, moving], where)
  assert found.compute == pytest.approx(1.0)
  assert found.memory == pytest.approx(2.001)
  assert found.both == pytest.approx(3.0)
  assert found.exchange == pytest.approx(0.5)
  assert (found.least, found.most) == (pytest.approx(3.0), pytest.approx(3.5))
