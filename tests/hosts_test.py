"""What processes share, with the other processes played by this one."""

import hypothesis
import jax
import numpy as np
from hypothesis import strategies as st
from jax.experimental import multihost_utils

from opsd_jax import hosts


@hypothesis.given(rows=st.integers(0, 40), processes=st.integers(1, 9))
def test_every_row_has_one_process(rows, processes):
  shares = [hosts.share(rows, index, processes) for index in range(processes)]
  assert np.concatenate([np.arange(rows)[share] for share in shares]).tolist() == list(range(rows))
  assert max(share.stop - share.start for share in shares) == -(-rows // processes)


def test_alone_everything_is_mine():
  rows = np.arange(6.0).reshape(3, 2)
  assert hosts.share(3) == slice(0, 3)
  assert hosts.gather(rows, 3) is rows
  assert hosts.told(True, 2.5).tolist() == [[1.0, 2.5]]


def test_gathered_bit_by_bit(monkeypatch):
  """Five rows over three processes, the last of which has one; float64 keeps its last bit."""
  whole = np.random.default_rng(0).random((5, 2))
  sent = []
  for process in range(3):
    played(monkeypatch, process, sent.append)
    hosts.gather(whole[hosts.share(5)], 5)
  assert len({part.shape for part in sent}) == 1  # a collective takes nothing else
  played(monkeypatch, 1, lambda _: None, np.stack(sent))
  np.testing.assert_array_equal(hosts.gather(whole[hosts.share(5)], 5), whole)


def played(monkeypatch, process, send, received=None):
  """Makes this process one of three; it sends to `send` and gets `received`."""

  def exchange(mine):
    send(mine)
    return np.stack([mine] * 3) if received is None else received

  monkeypatch.setattr(jax, 'process_index', lambda: process)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(multihost_utils, 'process_allgather', exchange)
