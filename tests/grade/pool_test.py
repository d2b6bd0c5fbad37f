"""Worker processes: limits that hold, order, threads, and nothing left behind."""

import os
import signal
import sys
import threading
import time

import pytest

from experiments import footprint
from opsd_jax.config import ConfigError
from opsd_jax.grade import pool, server, worker
from opsd_jax.grade.pool import DIED, TIMEOUT, Pool
from tests.grade.processes import gone

FUNCTION = 'tests.grade.stand_ins:behave'


@pytest.fixture
def make():
  """Pools that are closed at the end, when nothing of them may be left."""
  made = []

  def make_pool(seconds=0.5, memory_gib=1.0, workers=2, function=FUNCTION):
    made.append(Pool(function, seconds, memory_gib, workers))
    return made[-1]

  before, files = footprint.descendants(), footprint.files()
  yield make_pool
  for each in made:
    each.close()
  assert footprint.descendants() == before and footprint.files() == files


def test_nothing_starts_before_the_first_task(make):
  before = footprint.descendants()
  workers = make()
  assert workers.run([]) == [] and footprint.descendants() == before


@pytest.mark.parametrize('workers', [1, 2, 3])
def test_results_keep_the_order_however_many_work(make, workers):
  tasks = [['sleep', 0.1], *(['echo', i, 'é\ud800\n'] for i in range(30)), ['sleep', 0.01], ['echo', 'last']]
  expected = ['awake', *([i, 'é\ud800\n'] for i in range(30)), 'awake', ['last']]
  assert make(workers=workers).run(tasks) == expected


def test_workers_know_nothing_of_jax(make):
  assert make().run([['modules']]) == [[]]


@pytest.mark.parametrize('how', ['spin', 'stubborn', 'power'])
def test_what_hangs_is_killed_and_the_rest_goes_on(make, how):
  began = time.monotonic()
  results = make(seconds=0.4).run([[how], *(['echo', i] for i in range(20)), [how], ['echo', 20]])
  assert results == [TIMEOUT, *([i] for i in range(20)), TIMEOUT, [20]]
  assert time.monotonic() - began < 10


def test_a_task_that_waits_for_a_processor_is_not_late(make):
  workers = make(seconds=0.3)
  assert workers.run([['sleep', 1.0], ['echo', 1]]) == ['awake', [1]]


def test_waiting_comes_to_an_end_as_well(make):
  began = time.monotonic()
  assert make(seconds=0.1).run([['sleep', 60], ['echo', 1]]) == [TIMEOUT, [1]]
  assert time.monotonic() - began >= 0.1 * server.PATIENCE


def test_where_the_system_tells_no_processor_time_the_clock_counts(make, monkeypatch):
  monkeypatch.setattr(worker, 'processor_seconds', lambda process: None)
  assert make(seconds=0.3).run([['sleep', 60], ['echo', 1]]) == [TIMEOUT, [1]]


def test_processor_time_is_what_the_process_itself_counts():
  before = worker.processor_seconds(os.getpid()), time.process_time()
  while time.process_time() < before[1] + 0.3:
    pass
  after = worker.processor_seconds(os.getpid()), time.process_time()
  assert after[0] - before[0] == pytest.approx(after[1] - before[1], abs=0.05)
  assert worker.processor_seconds(2**30) is None


def test_one_that_hangs_delays_the_others_no_longer_than_they_take(make):
  workers = make(seconds=3.0)
  workers.run([['echo', 0]] * 4)
  done = {}

  def ask(name, tasks):
    workers.run(tasks)
    done[name] = time.monotonic()

  began = time.monotonic()
  hanging = threading.Thread(target=ask, args=('hanging', [['spin']]))
  hanging.start()
  ask('quick', [['echo', i] for i in range(50)])
  hanging.join()
  assert done['quick'] - began < 2.0 and done['hanging'] - began >= 3.0


@pytest.mark.parametrize(
  'task',
  [['exit', 0], ['exit', 7], ['crash'], ['fail'], ['mute']],
  ids=['exit-0', 'exit-7', 'crash', 'fail', 'mute'],
)
def test_what_dies_has_no_result_and_takes_nothing_with_it(make, task):
  assert make().run([['echo', 1], task, ['echo', 2], task, ['echo', 3]]) == [[1], DIED, [2], DIED, [3]]


def test_memory_is_limited(make):
  assert make(seconds=20, memory_gib=0.5).run([['hoard', 2000], ['echo', 1]]) == [DIED, [1]]


def test_a_limit_that_no_system_has_is_none(make):
  assert make(memory_gib=1e12).run([['echo', 1]]) == [[1]]


def test_a_worker_that_has_grown_is_replaced(make):
  workers = make(seconds=20, memory_gib=2.0, workers=1)
  (first,), (kept,), (second,) = (workers.run([task]) for task in (['whose'], ['hoard', 400], ['whose']))
  assert kept == 'kept' and first[0] != second[0] and first[1] == second[1]
  assert gone([first[0]])


def test_a_worker_is_replaced_after_many_tasks(make, monkeypatch):
  monkeypatch.setattr(worker, 'TASKS', 3)
  seen = [process for process, _ in make(workers=1).run([['whose']] * 7)]
  assert [seen.index(process) for process in seen] == [0, 0, 0, 3, 3, 3, 6]


def test_a_worker_or_the_server_killed_while_idle_is_replaced(make):
  workers = make(workers=1, seconds=5.0)
  ((first, server),) = workers.run([['whose']])
  os.kill(first, signal.SIGKILL)
  assert gone([first])
  ((second, same),) = workers.run([['whose']])
  assert same == server and second != first
  os.kill(server, signal.SIGKILL)
  assert gone([second])  # it notices that its server is gone
  ((third, other),) = workers.run([['whose']])
  assert other != server and third != second


def test_threads_share_the_workers(make):
  before, workers, found = footprint.descendants(), make(), {}

  def ask(name):
    found[name] = workers.run([['echo', name, i] for i in range(40)] + [['exit', 1]])

  threads = [threading.Thread(target=ask, args=(name,)) for name in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {name: [[name, i] for i in range(40)] + [DIED] for name in range(6)}
  assert len(footprint.descendants() - before) <= 3  # the server and two workers


def test_nothing_leaks_over_many_kills(make):
  workers = make(seconds=0.05)
  workers.run([['echo', 0]] * 4)
  files, processes = footprint.files(), len(footprint.descendants())
  for _ in range(10):
    workers.run([['spin'], ['exit', 1], ['fail'], *[['echo', 1]] * 300])
  workers.run([['echo', 0]] * 4)
  assert footprint.files() <= files and len(footprint.descendants()) <= processes


def test_a_closed_pool_starts_again(make):
  workers = make()
  assert workers.run([['echo', 1]]) == [[1]]
  workers.close()
  assert workers.run([['echo', 2]]) == [[2]]


def test_a_module_that_cannot_be_imported(make):
  before = footprint.descendants()
  with pytest.raises(ConfigError, match='do not start.*no_such_module.*pip install'):
    make(function='tests.no_such_module:f').run([['echo']])
  assert footprint.descendants() == before


def test_a_python_that_does_not_know_its_program(make, monkeypatch):
  monkeypatch.setattr(sys, 'executable', '')
  with pytest.raises(ConfigError, match='sys.executable is empty.*grade.rules=text'):
    make().run([['echo']])


def test_one_pool_for_the_same_limits():
  assert pool.shared(FUNCTION, 1.0, 1.0, 1) is pool.shared(FUNCTION, 1.0, 1.0, 1)
  assert pool.shared(FUNCTION, 1.0, 1.0, 1) is not pool.shared(FUNCTION, 2.0, 1.0, 1)


def test_processes_of_other_limits_do_not_pile_up():
  first, second = (pool.shared(FUNCTION, seconds, 1.0, 1) for seconds in (11.0, 12.0))
  try:
    ((one, its_server),) = first.run([['whose']])
    ((other, _),) = second.run([['whose']])
    assert footprint.alive(one) and footprint.alive(other)  # both were there before
    asking = threading.Thread(target=second.run, args=([['sleep', 2.0]],))
    asking.start()
    time.sleep(0.3)
    pool.shared(FUNCTION, 13.0, 1.0, 1)
    assert gone([one, its_server]) and footprint.alive(other)  # which is in use
    asking.join()
    assert first.run([['echo', 1]]) == [[1]]
  finally:
    first.close()
    second.close()


def test_threads_that_ask_at_once_get_one_pool():
  found = []
  threads = [
    threading.Thread(target=lambda: found.append(pool.shared(FUNCTION, 14.0, 1.0, 1))) for _ in range(8)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == 8 and len(set(found)) == 1
