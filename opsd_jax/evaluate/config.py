"""How accuracy is measured."""

import dataclasses

from opsd_jax.config import require
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig, validate_decode, validate_sampling


@dataclasses.dataclass(frozen=True)
class RetentionConfig:
  """Problems of other tasks, asked whenever the validation problems are, so that forgetting shows.

  They are drawn as `evaluate.sampling` says, its token budget included. Mathematics is graded as `grade`
  says (`grade.rules=strict` for published benchmarks), multiple choice and programs by rules of their own.

  Attributes:
    benchmarks: names as of `experiments.evaluate`, or name=FILE.jsonl.
    path: folder that holds them.
    problems: at most so many of each, the first; none for all.
    samples: completions k of each problem, for accuracy and pass@k.
  """

  benchmarks: tuple[str, ...] = ()
  path: str | None = None
  problems: int | None = 64
  samples: int = 4


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Sampled and greedy accuracy on held-out problems.

  Attributes:
    samples: completions n of each problem for avg@n and pass@k.
    sampling: how they are drawn.
    validation_samples: completions of each problem in the curves during training.
    batch: problems whose prompts are read at a time.
    decode: how many of their completions at a time, and in what memory.
    seed: of the draws; apart from the run's seed, so that all arms are asked alike.
    retention: problems of other tasks.
  """

  samples: int = 8
  sampling: SamplingConfig = SamplingConfig()
  validation_samples: int = 1
  batch: int = 128
  decode: DecodeConfig = DecodeConfig()
  seed: int = 12345
  retention: RetentionConfig = RetentionConfig()


def validate(config: EvaluateConfig, vocab: int) -> None:
  """Raises `ConfigError` where nothing would be measured."""
  for field in ('samples', 'validation_samples', 'batch'):
    require(getattr(config, field) > 0, f'evaluate.{field} is {getattr(config, field)}; it must be positive.')
  for field in ('problems', 'samples'):
    value = getattr(config.retention, field)
    require(value is None or value > 0, f'evaluate.retention.{field} is {value}; it must be positive.')
  names = [name.split('=')[0] for name in config.retention.benchmarks]
  require(
    len(set(names)) == len(names),
    f'evaluate.retention.benchmarks names one twice: {", ".join(config.retention.benchmarks)}.',
  )
  validate_sampling('evaluate.sampling', config.sampling, vocab)
  validate_decode('evaluate.decode', config.decode)
