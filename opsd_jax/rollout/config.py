"""How continuations are drawn."""

import dataclasses
from collections.abc import Collection
from typing import Literal, get_args

from opsd_jax.config import require, require_choice
from opsd_jax.rollout.engine import config as engines
from opsd_jax.rollout.engine.config import EngineConfig

Kind = Literal['compute', 'bfloat16', 'int8']
_COLDEST = 1e-4  # beside it, float32 still holds logits divided by it


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Temperature first, then top-k, top-p and min-p, each on what the one before left.

  Attributes:
    temperature: divides the logits; 0 is greedy.
    top_k: keep the k most probable tokens, or all.
    top_p: keep the smallest set of most probable tokens that holds this mass.
    min_p: keep tokens at least this fraction as probable as the most probable.
    max_tokens: budget of new tokens a row, EOS included.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0
  min_p: float = 0.0
  max_tokens: int = 48


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
  """How rows are decoded; the tokens do not depend on it, up to rounding.

  Attributes:
    slots: rows that are decoded at a time: one that has ended takes the next request. Rounded up to a
      multiple of the devices that rows are split over. None for all rows at once, with each prompt's keys
      and values held once for all its rollouts.
    compact: with `slots`, halve their number when no request waits and half of them are idle, as long as
      each device has an even number above 4. Saves time where a step's time grows with its rows (a CPU);
      the last bits of a row then depend on the others.
    cache: type of the cached keys and values: the one that the model computes in, `bfloat16`, or `int8`
      with a scale a token and head. On a CPU bfloat16 is slower.
  """

  slots: int | None = None
  compact: bool = False
  cache: Kind = 'compute'


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Rollouts of one update.

  Attributes:
    questions: distinct questions Q of an update.
    per_question: rollouts n of each question; B = Q·n.
    sampling: how each token is drawn.
    decode: how many rows at a time, and in what memory.
    buckets: completion widths that the update may be compiled for; the longest row picks one.
    engine: a server that draws the rollouts instead of our own sampler.
  """

  questions: int = 64
  per_question: int = 1
  sampling: SamplingConfig = SamplingConfig()
  decode: DecodeConfig = DecodeConfig()
  buckets: tuple[int, ...] = ()
  engine: EngineConfig = EngineConfig()


def truncates(config: SamplingConfig) -> bool:
  """Whether tokens are left out of the draw."""
  return config.top_k is not None or config.top_p < 1 or config.min_p > 0


def drawable(tokenizer_size: int, rows: int, control_ids: Collection[int]) -> int:
  """How many ids can be drawn: those that the tokenizer has, and the model a row for.

  Args:
    tokenizer_size: number of its ids.
    rows: of the model's embedding; more than there are ids where it is padded.
    control_ids: of the tokenizer's control tokens. Published models of text (Gemma 3 1B) have some
      without a row, which stand for an image; no text becomes one.

  Raises:
    ConfigError: a token without a row may come of a text.
  """
  lost = [i for i in range(rows, tokenizer_size) if i not in control_ids]
  require(
    not lost,
    f'model.vocab_size is {rows}, but the tokenizer has {tokenizer_size} ids, of which {lost[:1]} and '
    f'{max(len(lost) - 1, 0)} others are no control tokens; raise model.vocab_size to {tokenizer_size}, or '
    'take tokenizer and weights from one model.',
  )
  return min(rows, tokenizer_size)


def validate_sampling(name: str, config: SamplingConfig, vocab: int) -> None:
  """Raises `ConfigError` where no token could be drawn."""
  require(
    config.temperature == 0 or config.temperature >= _COLDEST,
    f'{name}.temperature is {config.temperature}; use 0 for greedy, or at least {_COLDEST}.',
  )
  require(
    config.top_k is None or 0 < config.top_k <= vocab,
    f'{name}.top_k is {config.top_k}; it must lie in 1..{vocab} (the vocabulary), or be none.',
  )
  require(0 < config.top_p <= 1, f'{name}.top_p is {config.top_p}; it must lie in (0, 1].')
  require(0 <= config.min_p < 1, f'{name}.min_p is {config.min_p}; it must lie in [0, 1).')
  require(config.max_tokens > 0, f'{name}.max_tokens is {config.max_tokens}; it must be positive.')


def validate_decode(name: str, config: DecodeConfig) -> None:
  """Raises `ConfigError` where rows could not be decoded so."""
  require(
    config.slots is None or config.slots > 0,
    f'{name}.slots is {config.slots}; it must be positive, or none for all rows at once.',
  )
  require(
    not config.compact or config.slots is not None,
    f'{name}.compact is true, but it is slots that become fewer; set {name}.slots.',
  )
  require_choice(f'{name}.cache', config.cache, get_args(Kind))


def validate(config: RolloutConfig, vocab: int) -> None:
  """Raises `ConfigError` where an update could not be rolled out."""
  require(config.questions > 0, f'rollout.questions is {config.questions}; it must be positive.')
  require(config.per_question > 0, f'rollout.per_question is {config.per_question}; it must be positive.')
  validate_sampling('rollout.sampling', config.sampling, vocab)
  validate_decode('rollout.decode', config.decode)
  require(
    config.engine.url is None or config.decode == DecodeConfig(),
    'rollout.decode is set, but the server of rollout.engine.url decodes as it likes; leave one of them out.',
  )
  require(
    all(b > 0 for b in config.buckets) and list(config.buckets) == sorted(config.buckets),
    f'rollout.buckets is {config.buckets}; widths must be positive and ascending.',
  )
  engines.validate(config.engine)


def bucket(length: int, buckets: tuple[int, ...], largest: int) -> int:
  """The narrowest allowed width that holds `length` tokens; `largest` is always allowed."""
  return min((b for b in buckets if length <= b < largest), default=largest)
