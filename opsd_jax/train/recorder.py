"""Metrics of a run: a strict JSON-lines file always, TensorBoard, wandb and trackio when asked.

`metrics.jsonl` is the record; the others are views of it. Every wall-clock figure of a line lives
under its key "time", so two runs can be compared line by line without it.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from opsd_jax import files, jsonlines
from opsd_jax.config import ConfigError, require, require_choice

FILENAME = 'metrics.jsonl'
PROGRESS = ('auto', 'bar', 'lines', 'none')

Log = Callable[[int, dict[str, float]], None]


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
  """Where metrics go besides `metrics.jsonl`.

  Attributes:
    tensorboard: write event files under `tensorboard/` in the run's folder.
    wandb: project name, or None for no wandb.
    trackio: project name, or None for no trackio.
    progress: 'bar' or 'lines' on the terminal, 'none', or 'auto': a bar where there is a terminal.
  """

  tensorboard: bool = True
  wandb: str | None = None
  trackio: str | None = None
  progress: Literal['auto', 'bar', 'lines', 'none'] = 'auto'


def validate(cfg: MetricsConfig) -> None:
  """Raises `ConfigError` for settings that cannot work."""
  require_choice('metrics.progress', cfg.progress, PROGRESS)
  for setting in ('wandb', 'trackio'):
    require(getattr(cfg, setting) != '', f"metrics.{setting} is ''; name a project, or use none.")


class Recorder:
  """Open files and trackers of one run; made by `open_recorder`. Silent except on process 0."""

  def __init__(self, logs: list[Log], stack: contextlib.ExitStack):
    self._logs = logs
    self._stack = stack

  def write(self, step: int, metrics: Mapping[str, Any], time: Mapping[str, Any] | None = None) -> None:
    """Records one line.

    Args:
      step: number of updates done.
      metrics: scalars that a repetition of the run would reproduce.
      time: wall-clock scalars: `seconds`, `tokens_per_second`, ...

    Raises:
      ValueError: a metric is named 'step' or 'time'.
    """
    if not {'step', 'time'}.isdisjoint(metrics):
      raise ValueError("'step' and 'time' are names of the line itself, not of a metric")
    line = {'step': int(step)} | _plain(metrics)
    if time:
      line['time'] = _plain(time)
    for log in self._logs:
      log(int(step), line)

  def close(self) -> None:
    """Flushes and closes everything; a second call does nothing."""
    self._logs = []
    self._stack.close()

  def __enter__(self) -> 'Recorder':
    return self

  def __exit__(self, *exc_info: Any) -> None:
    self.close()


def open_recorder(
  folder: str | os.PathLike, cfg: MetricsConfig = MetricsConfig(), resume_step: int | None = None
) -> Recorder:
  """Opens the metrics of a run.

  Args:
    folder: the run's folder, made if absent.
    cfg: where metrics go.
    resume_step: the step the run continues from: later lines are dropped, they will be written
      again. None starts anew and drops all.

  Raises:
    ConfigError: a tracker is asked for that is not installed.
  """
  validate(cfg)
  logs, stack = [], contextlib.ExitStack()
  if jax.process_index() == 0:
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    openers = [_open_lines]
    openers += [_open_tensorboard] if cfg.tensorboard else []
    openers += [_open_wandb] if cfg.wandb else []
    openers += [_open_trackio] if cfg.trackio else []
    with contextlib.ExitStack() as undo:  # A tracker that fails to open closes those before it.
      logs = [opener(folder, cfg, resume_step, undo) for opener in openers]
      stack = undo.pop_all()
  return Recorder(logs, stack)


def _open_lines(folder: str, cfg: MetricsConfig, resume_step: int | None, stack: contextlib.ExitStack) -> Log:
  del cfg
  path = os.path.join(folder, FILENAME)
  if os.path.exists(path):
    _truncate(path, -1 if resume_step is None else resume_step)
  file = stack.enter_context(open(path, 'a', encoding='utf-8'))

  def log(step: int, line: dict[str, float]) -> None:
    del step
    file.write(jsonlines.dumps(line) + '\n')
    file.flush()  # A killed run must not lose lines.

  return log


def _truncate(path: str, last_step: int) -> None:
  """Rewrites the file without later steps; a kill in between leaves the old file whole."""
  kept = [row for row in jsonlines.read(path) if row['step'] <= last_step]
  files.write_text(path, ''.join(jsonlines.dumps(row) + '\n' for row in kept))


def _open_tensorboard(
  folder: str, cfg: MetricsConfig, resume_step: int | None, stack: contextlib.ExitStack
) -> Log:
  del cfg
  import tensorboardX  # Slow to import; only the process that writes pays.

  # purge_step hides what an earlier attempt wrote from that step on.
  writer = tensorboardX.SummaryWriter(
    os.path.join(folder, 'tensorboard'), purge_step=0 if resume_step is None else resume_step + 1
  )
  stack.callback(writer.close)

  def log(step: int, line: dict[str, float]) -> None:
    for name, value in _scalars(line).items():
      writer.add_scalar(name, value, step)

  return log


def _open_wandb(folder: str, cfg: MetricsConfig, resume_step: int | None, stack: contextlib.ExitStack) -> Log:
  wandb = _imported('wandb', cfg.wandb)
  # One id a folder, so that a continued run goes on in the same plot.
  run = wandb.init(
    project=cfg.wandb,
    name=os.path.basename(folder),
    dir=folder,
    id=hashlib.sha256(folder.encode()).hexdigest()[:16],
    resume=None if resume_step is None else 'allow',
  )
  stack.callback(run.finish)
  return lambda step, line: run.log(_scalars(line), step=step)


def _open_trackio(
  folder: str, cfg: MetricsConfig, resume_step: int | None, stack: contextlib.ExitStack
) -> Log:
  trackio = _imported('trackio', cfg.trackio)
  trackio.init(
    project=cfg.trackio, name=os.path.basename(folder), resume='never' if resume_step is None else 'allow'
  )
  stack.callback(trackio.finish)
  return lambda step, line: trackio.log(_scalars(line), step=step)


def _imported(package: str, project: str) -> types.ModuleType:
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise ConfigError(
      f'metrics.{package} is {project!r}, but {package} is not installed: '
      f'run `pip install {package}`, or use metrics.{package}=none.'
    ) from error


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
  """Numpy and jax scalars as Python numbers."""
  return {name: np.asarray(value).item() for name, value in values.items()}


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
  """A line flattened for a tracker: numbers only, wall-clock figures as `time/...`."""
  flat = dict(line) | {f'time/{name}': value for name, value in line.get('time', {}).items()}
  return {name: value for name, value in flat.items() if name != 'step' and isinstance(value, (int, float))}
