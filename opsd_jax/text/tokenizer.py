"""Text to token ids and back."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, Protocol

from opsd_jax.config import require, require_choice


class Tokenizer(Protocol):
  """What the rest of the project asks of a tokenizer. Ids are the truth; text is for people."""

  @property
  def vocab_size(self) -> int:
    """Number of ids; the model's head may be wider."""

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """Ids that end a completion."""

  @property
  def bos_ids(self) -> tuple[int, ...]:
    """Ids that begin a prompt; may be empty."""

  def encode(self, text: str) -> list[int]:
    """Ids of `text`, with no special token added."""

  def decode(self, ids: Sequence[int]) -> str:
    """Text of `ids`, special tokens left out."""

  def token_text(self, token: int) -> str:
    """How one id is shown to a person; special tokens by name."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Which tokenizer.

  Attributes:
    tokenizer: `characters`: one id a character of `alphabet`, after <pad>, <bos> and <eos>.
    alphabet: characters known to the `characters` tokenizer.
  """

  tokenizer: Literal['characters'] = 'characters'
  alphabet: str = '0123456789+-*=,|:'


@dataclasses.dataclass(frozen=True)
class CharacterTokenizer:
  """One id a character. Ids 0, 1, 2 are <pad>, <bos>, <eos>."""

  alphabet: str
  special: tuple[str, ...] = ('<pad>', '<bos>', '<eos>')

  @property
  def vocab_size(self) -> int:
    return len(self.special) + len(self.alphabet)

  @property
  def bos_ids(self) -> tuple[int, ...]:
    return (self.special.index('<bos>'),)

  @property
  def eos_ids(self) -> tuple[int, ...]:
    return (self.special.index('<eos>'),)

  def encode(self, text: str) -> list[int]:
    unknown = sorted(set(text) - set(self.alphabet))
    require(not unknown, f'text {text!r} holds {unknown}, which text.alphabet lacks; add them to it.')
    ids = _ids(self.alphabet, len(self.special))
    return [ids[c] for c in text]

  def decode(self, ids: Sequence[int]) -> str:
    return ''.join(self.token_text(i) for i in ids if i >= len(self.special))

  def token_text(self, token: int) -> str:
    if token < len(self.special):
      return self.special[token]
    inside = token - len(self.special) < len(self.alphabet)
    return self.alphabet[token - len(self.special)] if inside else f'<{token}>'


@functools.lru_cache
def _ids(alphabet: str, first: int) -> dict[str, int]:
  return {character: first + i for i, character in enumerate(alphabet)}


def validate(config: TextConfig) -> None:
  """Raises `ConfigError` for a tokenizer that cannot be made."""
  require_choice('text.tokenizer', config.tokenizer, ('characters',))
  repeated = sorted({c for c in config.alphabet if config.alphabet.count(c) > 1})
  require(bool(config.alphabet), 'text.alphabet is empty; list every character that a prompt may hold.')
  require(not repeated, f'text.alphabet is {config.alphabet!r}: {repeated} stand in it more than once.')


def make_tokenizer(config: TextConfig) -> Tokenizer:
  """The tokenizer that the config names."""
  return CharacterTokenizer(config.alphabet)
