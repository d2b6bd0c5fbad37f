"""Settings of the checkpoint store."""

import dataclasses

from opsd_jax.config import require


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep.

  Attributes:
    every: updates between two saves.
    keep_last: how many of the newest checkpoints to keep.
    keep_best: how many of the best-scored checkpoints to keep besides; 0 keeps none for its score.
    asynchronous: write in the background while training goes on.
  """

  every: int = 50
  keep_last: int = 2
  keep_best: int = 1
  asynchronous: bool = True


def validate(cfg: CheckpointConfig) -> None:
  """Raises `ConfigError` for settings that cannot work."""
  require(cfg.every >= 1, f'checkpoint.every is {cfg.every}; it must be at least 1 update.')
  require(
    cfg.keep_last >= 1,
    f'checkpoint.keep_last is {cfg.keep_last}; it must be at least 1, else a run could not be continued.',
  )
  require(cfg.keep_best >= 0, f'checkpoint.keep_best is {cfg.keep_best}; use 0 to keep none.')
