"""Checkpoints of a run: crash-safe, asynchronous, restorable onto any mesh.

A checkpoint is written under a temporary name and renamed when it is complete, so a folder with a
step's plain name is always whole. Orbax does the writing; this module decides what is kept and
turns its failures into one error that says what to do.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from orbax.checkpoint import v1 as ocp

from opsd_jax.checkpoint.config import CheckpointConfig, validate

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_FULL_WORDS = tuple(os.strerror(code) for code in _FULL) + ('RESOURCE_EXHAUSTED', 'ENOSPC')


class CheckpointError(RuntimeError):
  """A checkpoint that could not be written or read. The message names the folder and the remedy."""


class Store:
  """The checkpoints of one folder; made by `open_store`, closed by `close` or a `with` block.

  Every process of a multi-process run must make the same calls.
  """

  def __init__(self, folder: str, checkpointer: ocp.training.Checkpointer, asynchronous: bool,
               read_only: bool):
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
          step, {'state': state, 'host': host}, force=True, metrics=metrics)
    self._saving = step
    if not self._asynchronous:
      self.wait()

  def restore(self, abstract_state: Any, step: int | Literal['best'] | None = None,
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
    loaded = _reading(f'{self.folder}, step {found}', lambda: (
        self._checkpointer.load_checkpointables(found, {'state': abstract_state, 'host': None})))
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
          'Continue from it, or choose another --workdir.')

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
      remedy = 'free space' if _is_full(error) else 'remove the cause'
      raise CheckpointError(
          f'Saving step {step} in {self.folder} failed: {_describe(error)}. Remedy: {remedy} or '
          f'choose another --workdir, then run the same command: it {start}.') from error


def open_store(folder: str | os.PathLike, cfg: CheckpointConfig = CheckpointConfig(), *,
               read_only: bool = False) -> Store:
  """Opens a folder of checkpoints, made if absent.

  What a killed run left half written is ignored, and removed unless `read_only`: a reader must not
  remove what a run is writing at this moment.

  Raises:
    ConfigError: settings that cannot work.
    CheckpointError: `read_only` and no such folder.
  """
  validate(cfg)
  _without_background_tracebacks()
  folder = _absolute(folder)
  if read_only and not ocp.path.Path(folder).exists():
    raise CheckpointError(f'There are no checkpoints in {folder}; check --workdir.')
  checkpointer = ocp.training.Checkpointer(
      folder, context=_json_host(), preservation_policy=_Retention(cfg.keep_last, cfg.keep_best),
      cleanup_tmp_directories=not read_only)
  return Store(folder, checkpointer, cfg.asynchronous, read_only)


def save_tree(folder: str | os.PathLike, tree: Any) -> None:
  """Writes a bare tree of arrays as the new folder `folder`, whole or not at all.

  Raises:
    CheckpointError: the folder exists, or it could not be written.
  """
  _without_background_tracebacks()
  folder = _absolute(folder)
  if ocp.path.Path(folder).exists():
    raise CheckpointError(f'{folder} already exists; choose another folder or remove it.')
  try:
    ocp.save(folder, tree)
  except Exception as error:
    remedy = 'Free space or choose another folder.' if _is_full(error) else 'Choose another folder.'
    raise CheckpointError(f'Saving {folder} failed: {_describe(error)}. {remedy}') from error


def load_tree(folder: str | os.PathLike, abstract: Any) -> Any:
  """Reads what `save_tree` wrote, onto the shardings of the `jax.ShapeDtypeStruct`s in `abstract`.

  Raises:
    CheckpointError: the folder is absent or does not fit `abstract`.
  """
  folder = _absolute(folder)
  return _reading(folder, lambda: ocp.load(folder, abstract))


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
    best = {step for _, step in scored[max(0, len(scored) - self.best):]}
    last = {c.step for c in checkpoints[-self.last:]}
    return [c.step in last | best for c in checkpoints]


def _reading(where: str, load: Callable[[], Any]) -> Any:
  try:
    return load()
  except Exception as error:
    raise CheckpointError(
        # The root says what does not fit; what is raised over it lists Orbax's handlers.
        f'Loading {where} failed: {_describe(list(_chain(error))[-1])}. Remedy: use the model and '
        'optimizer settings it was saved with, or choose another --workdir.') from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """The error, the members of a group, and what caused them; the root comes last."""
  while error is not None:
    yield error
    for member in getattr(error, 'exceptions', ()):
      yield from _chain(member)
    error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
  # The array writer reports the operating system's message in a ValueError, without its number.
  return any(getattr(e, 'errno', None) in _FULL or any(word in str(e) for word in _FULL_WORDS)
             for e in _chain(error))


def _describe(error: BaseException) -> str:
  """The error's type and message on one line of bounded length."""
  message = ' '.join(str(error).split()).rstrip('.')
  return f'{type(error).__name__}: {message[:400]}' if message else type(error).__name__


def _without_background_tracebacks() -> None:
  """Silences Orbax's own error log, once.

  A failed background save prints the same traceback from each of its threads, hundreds of lines
  that bury the `CheckpointError` which carries the same cause.
  """
  logger = logging.getLogger('absl')
  if _is_not_orbax_error not in logger.filters:
    logger.addFilter(_is_not_orbax_error)


def _is_not_orbax_error(record: logging.LogRecord) -> bool:
  in_orbax = f'{os.sep}orbax{os.sep}' in record.pathname
  return not (in_orbax and record.levelno == logging.ERROR)
