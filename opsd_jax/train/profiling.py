"""A profile of some updates of a run, as xprof reads it, and the seconds of an update's phases.

What runs on the devices carries the names of `jax.named_scope`: prefill, decode, teacher, weigh, student,
loss and optimizer; the backward pass is `transpose(...)` of them. What the host does is annotated as rollout,
grade, plan, update (in it score and weigh), controller, evaluate and save. Names change no number.
"""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from opsd_jax.config import require
from opsd_jax.train.config import Budget

Around = Callable[[Callable[..., Any]], Callable[..., Any]]

FOLDER = 'profile'  # in a run's folder; below it `plugins/profile/<session>/`, where xprof looks


class Window(NamedTuple):
  """The updates `first` to `stop` - 1, counted from 1 as `metrics.jsonl` does."""

  first: int
  stop: int


def parse_window(text: str | None, budget: Budget) -> Window | None:
  """Reads 'FIRST:STOP', of which the last update is STOP - 1; None stands for no window.

  A budget of tokens or minutes does not tell how many updates there will be; if they end sooner, so does the
  profile.

  Raises:
    ConfigError: not two numbers, no update between them, or updates that the run does not have.
  """
  if text is None:
    return None
  match = re.fullmatch(r'(\d+):(\d+)', text, re.ASCII)
  require(match, f'--profile_steps is {text!r}; write FIRST:STOP, as 10:13 for updates 10, 11 and 12.')
  window = Window(*map(int, match.groups()))
  require(window.first >= 1, f'--profile_steps is {text}; the first update is 1.')
  require(
    window.stop > window.first,
    f'--profile_steps is {text}, which holds no update; STOP is the first that is not profiled, and must be '
    'larger than FIRST.',
  )
  limits = [budget.limit] if budget.unit == 'updates' else []
  limits += [] if budget.max_updates is None else [budget.max_updates]
  require(
    all(window.stop - 1 <= limit for limit in limits),
    f'--profile_steps is {text}, up to update {window.stop - 1}, but the run ends after update '
    f'{min(limits, default=0):g}; name earlier ones, or raise the budget.',
  )
  return window


@contextlib.contextmanager
def traced(window: Window | None, folder: str) -> Iterator[Around]:
  """Yields what is put around an update `(state, updates done) -> ...`, so that the window is profiled.

  The profile begins with the window's first update and ends before the next update after its last, or with
  this context: what the loop does between them is in it. A run that is continued inside the window profiles
  what is left of it, one that is continued after it nothing. A run that fails meanwhile leaves no profile.

  Args:
    window: which updates; None for none.
    folder: of the profile.
  """
  with contextlib.ExitStack() as recording:
    yield lambda update: update if window is None else _watched(update, window, folder, recording)


def _watched(
  update: Callable[..., Any], window: Window, folder: str, recording: contextlib.ExitStack
) -> Callable[..., Any]:
  running = False

  def watched(weights: Any, number: int) -> Any:
    nonlocal running
    step = number + 1
    inside = window.first <= step < window.stop
    if running and not inside:
      recording.close()
    if inside and not running:
      recording.enter_context(_recorded(folder, f'from_update_{step}'))
    running = inside
    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      return update(weights, number)

  return watched


@contextlib.contextmanager
def _recorded(folder: str, session: str) -> Iterator[None]:
  """A profile of this process in the session that all processes share.

  JAX names the file after the host; several processes of one host would write the same, hence a folder of its
  own until it is whole.
  """
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # every call of every function: slow, and the phases are annotated
  options.session_id = session
  os.makedirs(folder, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder) as own:
    with jax.profiler.trace(own, profiler_options=options):
      yield
    written, kept = (os.path.join(where, 'plugins', 'profile', session) for where in (own, folder))
    os.makedirs(kept, exist_ok=True)
    for name in os.listdir(written):
      os.replace(os.path.join(written, name), os.path.join(kept, f'process_{jax.process_index()}_{name}'))


@contextlib.contextmanager
def measured(seconds: dict[str, float], phase: str) -> Iterator[None]:
  """Adds the wall-clock seconds of a phase, which a profile shows under its name."""
  began = time.monotonic()
  with jax.profiler.TraceAnnotation(phase):
    yield
  seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - began
