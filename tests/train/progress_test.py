"""Progress: the right display, the right pace, nothing lost at the end."""

import pytest

from opsd_jax.train import progress as progress_lib
from opsd_jax.train.progress import clock, progress, seconds_left


def test_lines_show_position_numbers_speed_and_time_left(capsys, monkeypatch):
  seconds = iter([0.0, 4.0])
  monkeypatch.setattr(progress_lib.time, 'monotonic', lambda: next(seconds))
  with progress('opsd', 'lines') as show:
    show(0.25, {'loss': 0.123}, 5400.4, '10/40')
  assert capsys.readouterr().err == '[opsd] 10/40  loss 0.123  5,400 tokens/s  00:12 left\n'


def test_lines_are_rare_and_the_last_one_always_shows(capsys, monkeypatch):
  seconds = iter(float(i) for i in range(100))
  monkeypatch.setattr(progress_lib.time, 'monotonic', lambda: next(seconds))
  with progress('opsd', 'lines') as show:
    for update in range(1, 36):
      show(update / 40, {'loss': 1.0}, count=f'{update}/40')
  positions = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
  assert positions == ['1/40', '11/40', '21/40', '31/40', '35/40']


def test_auto_is_lines_where_there_is_no_terminal(capsys):
  with progress('opsd') as show:
    show(None, {'loss': 2.0})
  assert capsys.readouterr().err == '[opsd] loss 2\n'


@pytest.mark.parametrize('done', [None, 0.5])
def test_bar_shows_the_numbers(capsys, done):
  with progress('opsd', 'bar') as show:
    show(done, {'loss': 0.25}, 1234.0, '5/10')
  shown = capsys.readouterr().err.split('\r')[-1]
  assert '5/10  loss 0.25  1,234 tokens/s' in shown
  assert ('50%' in shown) == (done is not None)


def test_none_and_other_processes_are_silent(capsys, monkeypatch):
  with progress('opsd', 'none') as show:
    show(0.5, {'loss': 1.0})
  monkeypatch.setattr(progress_lib.jax, 'process_index', lambda: 1)
  with progress('opsd', 'lines') as show:
    show(0.5, {'loss': 1.0})
  assert capsys.readouterr().err == ''


def test_a_continued_run_is_timed_at_its_own_pace():
  assert seconds_left(0.75, start=0.5, elapsed=10.0) == pytest.approx(10.0)
  assert seconds_left(0.5, start=0.5, elapsed=10.0) is None
  assert seconds_left(None, start=0.0, elapsed=10.0) is None


def test_clock():
  assert (clock(12.4), clock(75), clock(3725)) == ('00:12', '01:15', '1:02:05')
