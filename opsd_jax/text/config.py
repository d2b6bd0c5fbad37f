"""Which tokenizer a run reads and writes text with."""

import dataclasses

from opsd_jax.config import require


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Which tokenizer.

  Attributes:
    path: a model's folder, or its tokenizer.json or tokenizer.model (SentencePiece, or Llama 3's rank
      file); none: one id a character of `alphabet`.
    alphabet: characters that are known where `path` is none.
    chat_template: a .jinja file to use instead of the model's own chat template.
    eos_tokens: tokens that end a completion; empty: those that the model's files name.
    control_tokens_in_data: whether a control token that a problem's text spells out becomes one, as
      transformers has it. If not, such a text cannot end its own turn.
  """

  path: str | None = None
  alphabet: str = '0123456789+-*=,|:'
  chat_template: str | None = None
  eos_tokens: tuple[str, ...] = ()
  control_tokens_in_data: bool = False


def check(config: TokenizerConfig) -> None:
  """Raises `ConfigError` for settings that contradict each other; reads no file."""
  if config.path is None:
    _check_characters(config)
  repeated = sorted({name for name in config.eos_tokens if config.eos_tokens.count(name) > 1})
  require(not repeated, f'tokenizer.eos_tokens names {repeated} more than once.')


def _check_characters(config: TokenizerConfig) -> None:
  alphabet, default = config.alphabet, TokenizerConfig()
  repeated = sorted({c for c in alphabet if alphabet.count(c) > 1})
  require(bool(alphabet), 'tokenizer.alphabet is empty; list every character that a prompt may hold.')
  require(not repeated, f'tokenizer.alphabet is {alphabet!r}: {repeated} stand in it more than once.')
  for name in ('chat_template', 'eos_tokens', 'control_tokens_in_data'):
    value = getattr(config, name)
    require(
      value == getattr(default, name),
      f'tokenizer.{name} is {value!r}, which only a model of its own reads; set tokenizer.path as well.',
    )
