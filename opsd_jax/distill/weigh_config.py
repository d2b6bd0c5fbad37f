"""How samples are weighed: the settings of `weighing`."""

import dataclasses
from typing import Literal, get_args

from opsd_jax.config import require, require_choice
from opsd_jax.distill.signals import OTHERS, SIGNALS

Normalise = Literal['batch_mean', 'clamp', 'none']
Scope = Literal['global', 'micro']
Source = Literal['sampler', 'pass']
Keep = Literal['all', 'correct', 'incorrect']

_LARGEST_LOG = 80.0  # beyond it float32 has no exponential


@dataclasses.dataclass(frozen=True)
class WeighConfig:
  """How samples are weighed against each other.

  Attributes:
    kind: `none`: all alike; `length`: by the number of tokens; or a name of `signals.SIGNALS`, among them
      `renio`: by what the student is surer of than the teacher, and `entropy`: by the student's entropy.
    cap: upper bound on a token's signal, in nats.
    threshold: tokens at or above it are averaged.
    temperature: divides the mean before the exponential.
    normalise: `batch_mean` divides by the mean weight and bounds by `largest`; `clamp` bounds to
      1 / `largest` .. `largest` and then divides by the mean; `none`.
    largest: see `normalise`.
    scope: what the mean is over: all samples of the update (`global`), or each `micro` consecutive ones, as
      the published code does with what a device holds.
    micro: samples of such a group.
    source: where the student's log-probs come from: the `sampler`, which told them as it drew, or a `pass` of
      its own without gradient, which costs a forward. The sampler tells no entropy: that of a token is then
      taken to be -log p of what was drawn, whose mean is the same but for cap and threshold.
    keep: which samples are trained on at all: `all`, or those whose answer is `correct` or `incorrect`.
  """

  kind: str = 'none'
  cap: float = 2.5
  threshold: float = 0.8
  temperature: float = 1.0
  normalise: Normalise = 'batch_mean'
  largest: float = 10.0
  scope: Scope = 'global'
  micro: int = 8
  source: Source = 'sampler'
  keep: Keep = 'all'


def validate(config: WeighConfig, samples: int) -> None:
  """Raises `ConfigError` where `samples` of an update could not be weighed, or would all weigh alike."""
  require_choice('weigh.kind', config.kind, (*OTHERS, *SIGNALS))
  choices = dict(normalise=Normalise, scope=Scope, source=Source, keep=Keep)
  for name, kind in choices.items():
    require_choice(f'weigh.{name}', getattr(config, name), get_args(kind))
  for name in ('cap', 'temperature'):
    require(getattr(config, name) > 0, f'weigh.{name} is {getattr(config, name)}; it must be positive.')
  require(config.largest >= 1, f'weigh.largest is {config.largest}; it must be at least 1, the mean weight.')
  require(config.micro > 0, f'weigh.micro is {config.micro}; it must be positive.')
  require(
    config.threshold < config.cap,
    f'weigh.threshold is {config.threshold}, but no token is above weigh.cap ({config.cap}), so that every '
    'sample would weigh 1; lower the threshold.',
  )
  require(
    config.cap / config.temperature <= _LARGEST_LOG,
    f'weigh.cap / weigh.temperature is {config.cap / config.temperature:g}, whose exponential is not finite; '
    f'keep it to {_LARGEST_LOG:g}.',
  )
  require(
    config.source == 'sampler' or config.kind in SIGNALS,
    f'weigh.source is pass, but weigh.kind={config.kind} needs no log-probs of the student; use sampler.',
  )
  if config.kind != 'none' and config.scope == 'micro':
    require(
      config.micro > 1 and samples % config.micro == 0,
      f'weigh.micro is {config.micro}; it must be above 1, where every sample weighs 1, and divide the '
      f'{samples} samples of an update (rollout.questions · rollout.per_question). Or set '
      'weigh.scope=global.',
    )
