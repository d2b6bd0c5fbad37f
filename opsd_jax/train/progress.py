"""How far a run is: a bar on a terminal, plain lines elsewhere. Writes to standard error."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax

LINE_SECONDS = 10.0

Show = Callable[..., None]


@contextlib.contextmanager
def progress(label: str, mode: str = 'auto', start: float = 0.0) -> Iterator[Show]:
  """Yields `show(done, values, tokens_per_second=None, count='')`.

  `done` is the fraction of the budget spent, 0 to 1, or None where it is unknown; `values` are the
  numbers worth watching; `count` is the position in words (`40/100`), else a percentage is shown.

  Args:
    label: what runs, shown in front.
    mode: 'bar', 'lines', 'none', or 'auto': a bar if standard error is a terminal. Processes other
      than the first show nothing.
    start: the fraction done before this process started, so that a continued run's time left is
      estimated from its own pace.
  """
  if mode == 'none' or jax.process_index() != 0:
    yield lambda *args, **kwargs: None
    return
  bar = mode == 'bar' or (mode == 'auto' and sys.stderr.isatty())
  with _bar(label, start) if bar else _lines(label, start) as show:
    yield show


@contextlib.contextmanager
def _bar(label: str, start: float) -> Iterator[Show]:
  import tqdm  # Only a terminal needs it.

  began = time.monotonic()
  known, unknown = '{desc} {bar} {percentage:3.0f}%{postfix}', '{desc}{postfix}'
  with tqdm.tqdm(total=1.0, initial=start, desc=label, bar_format=known, dynamic_ncols=True) as bar:

    def show(
      done: float | None, values: Mapping[str, float], tokens_per_second: float | None = None, count: str = ''
    ) -> None:
      bar.bar_format = unknown if done is None else known
      bar.n = bar.n if done is None else min(done, 1.0)
      words = _words(values, tokens_per_second, seconds_left(done, start, time.monotonic() - began))
      bar.set_postfix_str('  '.join(filter(None, [count, *words])))

    yield show


@contextlib.contextmanager
def _lines(label: str, start: float) -> Iterator[Show]:
  began, printed, pending = time.monotonic(), -LINE_SECONDS, ''

  def show(
    done: float | None, values: Mapping[str, float], tokens_per_second: float | None = None, count: str = ''
  ) -> None:
    nonlocal printed, pending
    elapsed = time.monotonic() - began
    position = count or ('' if done is None else f'{done:.0%}')
    words = _words(values, tokens_per_second, seconds_left(done, start, elapsed))
    pending = f'[{label}] ' + '  '.join(filter(None, [position, *words]))
    if elapsed - printed >= LINE_SECONDS:
      print(pending, file=sys.stderr, flush=True)
      printed, pending = elapsed, ''

  try:
    yield show
  finally:
    if pending:  # Where the run ended, or was when it failed, is worth a line in any case.
      print(pending, file=sys.stderr, flush=True)


def seconds_left(done: float | None, start: float, elapsed: float) -> float | None:
  """Seconds to go at this process's own pace, or None before there is one.

  Args:
    done: fraction of the budget spent, or None if unknown.
    start: fraction spent before this process.
    elapsed: seconds this process has run.
  """
  if done is None or done <= start:
    return None
  return max(1.0 - done, 0.0) * elapsed / (done - start)


def _words(values: Mapping[str, float], tokens_per_second: float | None, left: float | None) -> list[str]:
  words = [f'{name} {value:.4g}' for name, value in values.items()]
  words += [] if tokens_per_second is None else [f'{tokens_per_second:,.0f} tokens/s']
  return words + ([] if left is None else [f'{clock(left)} left'])


def clock(seconds: float) -> str:
  """`mm:ss`, or `h:mm:ss` from an hour on."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes:02d}:{seconds:02d}'
