"""Where and how processes that grade are started, and that nothing of them is left behind."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from experiments import footprint
from tests.grade.processes import gone

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent

SCRIPT = """
import sys, threading, time
from opsd_jax.grade import pool, server, worker
workers = pool.shared('tests.grade.stand_ins:behave', 60.0, 1.0, 2)
print(*workers.run([['whose']])[0], flush=True)
threading.Thread(target=workers.run, args=([['{how}'], ['{how}']],), daemon=True).start()
time.sleep(0.5)
print('busy', flush=True)
{ending}
"""


ELSEWHERE = """
from opsd_jax.grade import pool
workers = pool.Pool('tests.grade.stand_ins:behave', 5.0, 1.0, 1)
print(workers.run([['echo', 1]]))
workers.close()
"""


@pytest.mark.parametrize('closed', ['', '<&-', '<&- 2>&-'], ids=['open', 'no input', 'no errors'])
@pytest.mark.parametrize('found', ['by PYTHONPATH', 'in the working directory'])
def test_wherever_python_is_started(tmp_path, found, closed):
  for name in ('json', 'socket', 'selectors', 'logging', 'resource'):  # what the parent has, or has not, yet
    (tmp_path / f'{name}.py').write_text(f'raise SystemExit({name!r})\n')
  environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
  environment |= {'PYTHONWARNINGS': 'error'}
  script = ELSEWHERE
  if found == 'by PYTHONPATH':
    environment |= {'PYTHONPATH': str(REPOSITORY)}
    script = (
      f'import sys; here = sys.path.pop(0)\nfrom opsd_jax.grade import pool\nsys.path.insert(0, here){script}'
    )
  done = subprocess.run(
    ['bash', '-c', f'exec "$0" -c "$1" {closed}', sys.executable, script],
    cwd=tmp_path if found == 'by PYTHONPATH' else REPOSITORY,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=120,
  )
  assert (done.returncode, done.stdout) == (0, '[[1]]\n')


def test_the_interrupt_key_leaves_no_worker_and_nothing_said():
  script = textwrap.dedent(SCRIPT).format(how='spin', ending='time.sleep(60)')
  script = f'try:\n{textwrap.indent(script, "  ")}\nexcept KeyboardInterrupt:\n  sys.exit(7)'
  with subprocess.Popen(
    [sys.executable, '-c', script],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    cwd=REPOSITORY,
    text=True,
    start_new_session=True,  # a group of its own, all of which a terminal interrupts
  ) as parent:
    first, server = map(int, parent.stdout.readline().split())
    assert parent.stdout.readline() == 'busy\n'
    busy = footprint.descendants(server)
    assert len(busy) == 2
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(20) == 7 and parent.stderr.read() == ''
    assert gone({first, server} | busy, seconds=6.0)


@pytest.mark.parametrize('how', ['spin', 'power'])
@pytest.mark.parametrize('ending', ['killed', 'forked and killed', 'ended'])
def test_no_worker_outlives_the_process_that_grades(how, ending):
  last = {
    'killed': 'time.sleep(60)',
    'forked and killed': 'import os\nif os.fork() == 0: time.sleep(8); os._exit(0)\ntime.sleep(60)',
    'ended': '',
  }[ending]
  script = textwrap.dedent(SCRIPT).format(how=how, ending=last)
  with subprocess.Popen(
    [sys.executable, '-c', script], stdout=subprocess.PIPE, cwd=REPOSITORY, text=True
  ) as parent:
    first, server = map(int, parent.stdout.readline().split())
    assert parent.stdout.readline() == 'busy\n'
    busy = footprint.descendants(server)
    if ending != 'ended':
      assert len(busy) == 2
      parent.kill()
    parent.wait(20)
    assert gone({first, server} | busy, seconds=6.0)
