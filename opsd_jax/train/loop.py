"""The loop that every kind of training shares: restore, update, record, save, stop.

What an update does is the caller's function; this one knows budgets, ledgers, checkpoints and what
to do with updates that are not finite.
"""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from opsd_jax import files, hosts
from opsd_jax.checkpoint.store import Store, open_store
from opsd_jax.models.model import Params
from opsd_jax.rollout.engine.http import EngineError
from opsd_jax.train import stopping
from opsd_jax.train.config import Budget
from opsd_jax.train.ledger import Ledger
from opsd_jax.train.progress import progress
from opsd_jax.train.recorder import Recorder, open_recorder
from opsd_jax.train.setup import Setup
from opsd_jax.train.state import TrainState


class TrainingStopped(RuntimeError):
  """Too many updates in a row were not finite. The message says what happened and what to try."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What one update did.

  Attributes:
    metrics: reproducible scalars.
    spent: tokens and FLOPs of this update.
    stepped: False where loss or gradient was not finite and the weights were kept.
    time: wall-clock seconds of its parts.
    asked: the part of `spent` that a controller's questions took; None without a controller.
  """

  metrics: dict[str, float]
  spent: Ledger
  stepped: bool
  time: dict[str, float]
  asked: Ledger | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
  """What a look at held-out problems found.

  Attributes:
    accuracy: on the validation problems; the best checkpoint is the one that has most of it.
    metrics: what else was measured, by name.
    spent: tokens and FLOPs of the asking.
  """

  accuracy: float
  metrics: dict[str, float]
  spent: Ledger


@dataclasses.dataclass(frozen=True)
class Progress:
  """The host's side of a checkpoint.

  The data position is `updates`: data is a function of (seed, update). `validation` is counted apart from
  `ledger`; `controller` is a part of it.
  """

  updates: int = 0
  seconds: float = 0.0
  skipped: int = 0
  bad_in_a_row: int = 0
  ledger: Ledger = Ledger()
  validation: Ledger = Ledger()
  controller: Ledger = Ledger()

  @classmethod
  def from_json(cls, saved: dict[str, Any]) -> 'Progress':
    """Reads what `dataclasses.asdict` wrote."""
    ledgers = {name: Ledger(**value) for name, value in saved.items() if isinstance(value, dict)}
    return cls(**(saved | ledgers))


@dataclasses.dataclass(frozen=True)
class Finished:
  """A run that spent its budget. Its optimiser is not kept."""

  params: Params
  progress: Progress


@dataclasses.dataclass(frozen=True)
class Work:
  """What is run, and where.

  Attributes:
    label: shown in front of the progress.
    folder: holds `metrics.jsonl` and `checkpoints/`.
    budget: when it is done.
    start: makes the state before the first update; called only where there is no checkpoint.
    layout: shapes and shardings of that state.
    update: `(state, number of updates done) -> (state, outcome)`.
    validate: asks held-out problems, or None.
    validate_every: updates between two of those; 0 for never.
    optimizer_settings: where its optimiser is set, for advice.
  """

  label: str
  folder: str
  budget: Budget
  start: Callable[[], TrainState]
  layout: TrainState
  update: Callable[[TrainState, int], tuple[TrainState, Outcome]]
  validate: Callable[[TrainState], Checked] | None = None
  validate_every: int = 0
  optimizer_settings: str = 'optimizer'


def run(work: Work, setup: Setup) -> Finished:
  """Trains until the budget is spent, from the newest checkpoint in the folder if there is one.

  Raises:
    TrainingStopped: `loop.max_bad_updates` updates in a row were not finite.
    CheckpointError: a checkpoint could not be written; the ones before it are whole.
    EngineError: the server that draws rollouts stayed away; what was trained until then is saved.
    Stopped: SIGTERM came to one of the processes; the update under way was finished and is saved.
  """
  with open_store(os.path.join(work.folder, 'checkpoints'), setup.checkpoint) as store:
    state, done = _restore(store, work)
    _say_if_done(work, done, setup)
    began = time.monotonic() - done.seconds
    with (
      open_recorder(work.folder, setup.metrics, done.updates or None) as recorder,
      progress(work.label, setup.metrics.progress, min(_fraction(work, done), 1)) as show,
      stopping.heard() as asked,
    ):
      while _fraction(work, done) < 1:
        try:
          state, outcome = work.update(state, done.updates)
        except EngineError:  # before the state was touched
          if done.updates:
            _save(store, state, done, setup, None)
          raise
        done = _count(done, outcome)
        checked, done = _validate(work, state, done)
        stop, done = _agree(asked(), time.monotonic() - began, done)
        _record(recorder, show, work, outcome, done, checked)
        _stop_if_bad(work, done, outcome, setup.loop.max_bad_updates)
        if stop or _save_due(work, done, checked, setup.checkpoint.every):
          _save(store, state, done, setup, checked)
        _stop_if_asked(work, done, stop, store)
      # One that came during the last save: what follows this loop would not hear of it.
      _stop_if_asked(work, done, bool(hosts.told(asked()).any()), store)
  return Finished(state.params, done)


def _restore(store: Store, work: Work) -> tuple[TrainState, Progress]:
  found = store.restore(work.layout)
  return (work.start(), Progress()) if found is None else (found[1], Progress.from_json(found[2]['progress']))


def _save(store: Store, state: TrainState, done: Progress, setup: Setup, checked: Checked | None) -> None:
  host = {'progress': dataclasses.asdict(done), 'config': setup.resolved}
  with jax.profiler.TraceAnnotation('save'):
    store.save(done.updates, state, host, checked.accuracy if checked else None)


def _say_if_done(work: Work, done: Progress, setup: Setup) -> None:
  """A call that finds nothing left to do says so."""
  if _fraction(work, done) >= 1 and setup.metrics.progress != 'none' and jax.process_index() == 0:
    print(f'[{work.label}] already done: {done.updates} updates', file=sys.stderr)


def _fraction(work: Work, done: Progress) -> float:
  # Equal where the student learns from all that it draws; not where completions are given, or thrown away.
  return work.budget.fraction(done.updates, done.ledger.completions, done.seconds)


def _agree(asked: bool, seconds: float, done: Progress) -> tuple[bool, Progress]:
  """Whether any process was asked to stop, and the time as the first one has it."""
  told = hosts.told(asked, seconds)
  return bool(told[:, 0].any()), dataclasses.replace(done, seconds=float(told[0, 1]))


def _stop_if_asked(work: Work, done: Progress, stop: bool, store: Store) -> None:
  if not stop:
    return
  store.wait()
  raise stopping.Stopped(
    f'[{work.label}] stopped by SIGTERM after update {done.updates}, which is saved; the same command '
    'continues from there.'
  )


def _save_due(work: Work, done: Progress, checked: Checked | None, every: int) -> bool:
  """At intervals, at the end, and wherever there is a score to be the best by."""
  return done.updates % every == 0 or checked is not None or _fraction(work, done) >= 1


def _count(done: Progress, outcome: Outcome) -> Progress:
  return dataclasses.replace(
    done,
    updates=done.updates + 1,
    ledger=done.ledger + outcome.spent,
    controller=done.controller + (outcome.asked or Ledger()),
    skipped=done.skipped + (not outcome.stepped),
    bad_in_a_row=0 if outcome.stepped else done.bad_in_a_row + 1,
  )


def _validate(work: Work, state: TrainState, done: Progress) -> tuple[Checked | None, Progress]:
  due = work.validate is not None and work.validate_every and done.updates % work.validate_every == 0
  if not due:
    return None, done
  with jax.profiler.TraceAnnotation('evaluate'):
    checked = work.validate(state)
  return checked, dataclasses.replace(done, validation=done.validation + checked.spent)


def _record(
  recorder: Recorder,
  show: Callable[..., None],
  work: Work,
  outcome: Outcome,
  done: Progress,
  checked: Checked | None,
) -> None:
  metrics = dict(outcome.metrics)
  metrics |= {f'utilisation/{k}': v for k, v in outcome.spent.utilisation.items()}
  metrics |= {f'total/{k}': v for k, v in dataclasses.asdict(done.ledger).items()}
  metrics |= {'total/skipped_updates': done.skipped}
  metrics |= {
    'total/validation_sampled': done.validation.sampled,
    'total/validation_flops': done.validation.flops,
  }
  if outcome.asked is not None:
    metrics |= {
      'total/controller_sampled': done.controller.sampled,
      'total/controller_flops': done.controller.flops,
    }
  if checked is not None:
    metrics |= {'validation_accuracy': checked.accuracy} | checked.metrics
  tokens = outcome.spent.completions
  rate = tokens / max(sum(outcome.time.values()), 1e-9)
  timing = outcome.time | {'seconds': done.seconds, 'tokens_per_second': rate}
  recorder.write(done.updates, metrics, timing)
  watch = {k: v for k, v in metrics.items() if k in ('loss', 'accuracy', 'validation_accuracy')}
  show(_fraction(work, done), watch, rate, _position(work.budget, done))


def _position(budget: Budget, done: Progress) -> str:
  in_updates = budget.unit == 'updates'
  return f'{done.updates}/{budget.limit:g}' if in_updates else f'update {done.updates}'


def _stop_if_bad(work: Work, done: Progress, outcome: Outcome, limit: int) -> None:
  """Ends the run after `limit` non-finite updates in a row, leaving a report beside the metrics."""
  if done.bad_in_a_row < limit:
    return
  names = [k for k, v in outcome.metrics.items() if not math.isfinite(v)]
  report = {
    'update': done.updates,
    'bad_updates_in_a_row': done.bad_in_a_row,
    'skipped_in_total': done.skipped,
    'not_finite': names,
    'metrics': {k: repr(v) for k, v in outcome.metrics.items()},
    'try': [
      f'a lower {work.optimizer_settings}.learning_rate',
      f'{work.optimizer_settings}.clip_norm=1.0',
      'model.dtype=float32',
      'objective.entry_clip_max or objective.token_clip',
    ],
  }
  path = os.path.join(work.folder, 'failure.json')
  if jax.process_index() == 0:
    files.write_json(path, report)
  raise TrainingStopped(
    f'[{work.label}] {done.bad_in_a_row} updates in a row were not finite (the last is update '
    f'{done.updates}; not finite: {", ".join(names)}). The weights are those of the last finite '
    f'update. Try {", ".join(report["try"][:2])}. Details: {path}.'
  )
