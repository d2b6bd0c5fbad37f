"""How accuracy is measured."""

import dataclasses

from opsd_jax.config import require
from opsd_jax.rollout.config import SamplingConfig, validate_sampling


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Sampled and greedy accuracy on held-out problems.

  Attributes:
    samples: completions n of each problem for avg@n and pass@k.
    sampling: how they are drawn.
    validation_samples: completions of each problem in the curves during training.
    batch: problems decoded at a time.
    seed: of the draws; apart from the run's seed, so that all arms are asked alike.
  """

  samples: int = 8
  sampling: SamplingConfig = SamplingConfig()
  validation_samples: int = 1
  batch: int = 128
  seed: int = 12345


def validate(config: EvaluateConfig, vocab: int) -> None:
  """Raises `ConfigError` where nothing would be measured."""
  for field in ('samples', 'validation_samples', 'batch'):
    require(getattr(config, field) > 0, f'evaluate.{field} is {getattr(config, field)}; it must be positive.')
  validate_sampling('evaluate.sampling', config.sampling, vocab)
