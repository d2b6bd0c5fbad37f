"""SIGTERM: heard within the block, once; obeyed outside of it."""

import os
import signal
import threading

import pytest

from opsd_jax.train import stopping


@pytest.fixture(autouse=True)
def obeyed(monkeypatch):
  """What SIGTERM does outside of the block, here without an end of the tests."""
  told, before = [], signal.getsignal(signal.SIGTERM)
  signal.signal(signal.SIGTERM, lambda *_: told.append('obeyed'))
  yield told
  signal.signal(signal.SIGTERM, before)


def test_heard(obeyed):
  with stopping.heard() as asked:
    assert not asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked() and obeyed == []
  os.kill(os.getpid(), signal.SIGTERM)
  assert obeyed == ['obeyed']


def test_a_second_one_is_obeyed(obeyed):
  with stopping.heard() as asked:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked() and obeyed == ['obeyed']


def test_another_thread_is_not_told(obeyed):
  found = []

  def listen():
    with stopping.heard() as asked:
      found.append(asked())

  thread = threading.Thread(target=listen)
  thread.start()
  thread.join()
  assert found == [False]
