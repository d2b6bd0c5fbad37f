"""Checkpoints of a run: crash-safe, asynchronous, restorable onto any mesh.

A checkpoint is written under a temporary name and renamed when it is complete, so a folder with a
step's plain name is always whole. Orbax does the writing; this module decides what is kept and
turns its failures into one error that says what to do.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from orbax.checkpoint import v1 as ocp

from opsd_jax.checkpoint import errors
from opsd_jax.checkpoint.config import CheckpointConfig, validate
from opsd_jax.checkpoint.errors import CheckpointError


class Store:
  """The checkpoints of one folder; made by `open_store`, closed by `close` or a `with` block.

  Every process of a multi-process run must make the same calls.
  """

  def __init__(
    self, folder: str, checkpointer: ocp.training.Checkpointer, asynchronous: bool, read_only: bool
  ):
    self.folder = folder
    self._checkpointer = checkpointer
    self._asynchronous = asynchronous
    self._read_only = read_only
    self._saving: int | None = None  # The step being written in the background.

  @property
  def latest(self) -> int | None:
    """The newest complete step, or None; waits for a save under way."""
    self.wait()
    newest = self._checkpointer.latest
    return None if newest is None else newest.step

  @property
  def best(self) -> int | None:
    """The complete step with the highest score (the newest of equals), or None if none has one."""
    self.wait()
    scored = [(c.metrics['score'], c.step) for c in self._checkpointer.checkpoints if c.metrics]
    return max(scored)[1] if scored else None

  def save(self, step: int, state: Any, host: dict[str, Any], score: float | None = None) -> None:
    """Saves one step, in the background if the store is asynchronous.

    Waits for the save before it. The arrays are copied off the devices before this returns, so
    the caller may donate or change them.

    Args:
      step: number of updates done; must be above `latest`, or equal to it, which does nothing.
      state: pytree of jax arrays.
      host: JSON-able values that continue the run: counters, data position, config.
      score: higher is better; None or a non-finite score never counts as best.

    Raises:
      CheckpointError: this save or the one before it failed, or a later step is already there.
      TypeError: `host` is not JSON-able.
    """
    json.dumps(host)
    latest = self.latest
    if latest == step:
      return
    self._check_writable(step, latest)
    metrics = {'score': float(score)} if score is not None and math.isfinite(score) else None
    with self._reported(step):
      self._checkpointer.save_checkpointables_async(
        step, {'state': state, 'host': host}, force=True, metrics=metrics
      )
    self._saving = step
    if not self._asynchronous:
      self.wait()

  def restore(
    self, abstract_state: Any, step: int | Literal['best'] | None = None
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """Reads a checkpoint back, onto whatever sharding is asked for.

    Args:
      abstract_state: the state's tree of `jax.ShapeDtypeStruct(shape, dtype, sharding=...)`.
      step: None for the newest, 'best' for the best-scored, or a step.

    Returns:
      `(step, state, host)` as saved, or None when there is no such checkpoint and `step` is not a
      number.

    Raises:
      CheckpointError: the step is absent, or its state does not fit `abstract_state`.
    """
    found = self.best if step == 'best' else self.latest if step is None else step
    if found is None:
      return None
    self.wait()
    steps = [c.step for c in self._checkpointer.checkpoints]
    if found not in steps:
      raise CheckpointError(f'{self.folder} has no checkpoint of step {found}; it has {steps}.')
    loaded = errors.reading(
      f'{self.folder}, step {found}',
      lambda: self._checkpointer.load_checkpointables(found, {'state': abstract_state, 'host': None}),
    )
    return found, loaded['state'], loaded['host']

  def wait(self) -> None:
    """Blocks until the save under way is complete; raises `CheckpointError` if it failed."""
    step, self._saving = self._saving, None
    if step is not None:
      with self._reported(step):
        self._checkpointer.wait()

  def close(self) -> None:
    """Waits, then lets go of the folder; raises `CheckpointError` if the last save failed."""
    try:
      self.wait()
    finally:
      # Every save was waited for: what Orbax raises here repeats a failure already reported.
      with contextlib.suppress(Exception):
        self._checkpointer.close()

  def __enter__(self) -> 'Store':
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
    try:
      self.close()
    except CheckpointError as failure:
      if error is None:
        raise
      # The error that ended the block is what the user must see first.
      error.add_note(str(failure))

  def _check_writable(self, step: int, latest: int | None) -> None:
    if self._read_only:
      raise CheckpointError(f'{self.folder} was opened for reading; step {step} cannot be saved.')
    if latest is not None and latest > step:
      raise CheckpointError(
        f'Cannot save step {step} in {self.folder}: step {latest} is already there. '
        'Continue from it, or choose another --workdir.'
      )

  @contextlib.contextmanager
  def _reported(self, step: int) -> Iterator[None]:
    """Turns a failure to write `step` into a `CheckpointError` with the remedy."""
    try:
      yield
    except Exception as error:
      # A failed save leaves Orbax's list without the steps it meant to delete; the disk knows.
      self._checkpointer.reload()
      newest = self._checkpointer.latest
      start = f'continues from step {newest.step}' if newest else 'starts from the beginning'
      remedy = 'free space' if errors.is_full(error) else 'remove the cause'
      raise CheckpointError(
        f'Saving step {step} in {self.folder} failed: {errors.describe(error)}. Remedy: {remedy} '
        f'or choose another --workdir, then run the same command: it {start}.'
      ) from error


def open_store(
  folder: str | os.PathLike, cfg: CheckpointConfig = CheckpointConfig(), *, read_only: bool = False
) -> Store:
  """Opens a folder of checkpoints, made if absent.

  What a killed run left half written is ignored, and removed unless `read_only`: a reader must not
  remove what a run is writing at this moment.

  Raises:
    ConfigError: settings that cannot work.
    CheckpointError: `read_only` and no such folder.
  """
  validate(cfg)
  errors.silence_background_tracebacks()
  folder = _absolute(folder)
  if read_only and not ocp.path.Path(folder).exists():
    raise CheckpointError(f'There are no checkpoints in {folder}; check --workdir.')
  checkpointer = ocp.training.Checkpointer(
    folder,
    context=_json_host(),
    preservation_policy=_Retention(cfg.keep_last, cfg.keep_best),
    cleanup_tmp_directories=not read_only,
  )
  return Store(folder, checkpointer, cfg.asynchronous, read_only)


def _absolute(folder: str | os.PathLike) -> str:
  """Orbax wants absolute paths; a bucket's `gs://` address is one already."""
  folder = os.fspath(folder)
  return folder if '://' in folder else os.path.abspath(folder)


def _json_host() -> ocp.Context:
  """Writes 'host' as JSON: by default a dict would become a tree of arrays and lose its types."""
  context = ocp.Context()
  context.checkpointables.registry = ocp.handlers.local_registry()
  context.checkpointables.registry.add(ocp.handlers.JsonHandler, checkpointable_name='host')
  return context


@dataclasses.dataclass(frozen=True)
class _Retention:
  """Keeps the newest and, of those with a score, the best; Orbax asks it after every save.

  Orbax's own `BestN` keeps checkpoints without a score while there are no more than n.
  """

  last: int
  best: int

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """One answer for each checkpoint; `checkpoints` are in the order of their steps."""
    del context
    scored = sorted((c.metrics['score'], c.step) for c in checkpoints if c.metrics)
    best = {step for _, step in scored[max(0, len(scored) - self.best) :]}
    last = {c.step for c in checkpoints[-self.last :]}
    return [c.step in last | best for c in checkpoints]
