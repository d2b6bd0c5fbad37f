"""One id a character: the tokenizer of tasks that are small enough for a laptop."""

import dataclasses
import functools
from collections.abc import Sequence

from opsd_jax.config import ConfigError, require
from opsd_jax.text.chat import Message
from opsd_jax.text.streaming import ByteStream, Stream


@dataclasses.dataclass(frozen=True)
class CharacterTokenizer:
  """One id a character. Ids 0, 1, 2 are <pad>, <bos>, <eos>, which no text can spell."""

  alphabet: str
  special: tuple[str, ...] = ('<pad>', '<bos>', '<eos>')

  @property
  def vocab_size(self) -> int:
    return len(self.special) + len(self.alphabet)

  @property
  def control_ids(self) -> frozenset[int]:
    return frozenset(range(len(self.special)))

  @property
  def bos_ids(self) -> tuple[int, ...]:
    return (self.special.index('<bos>'),)

  @property
  def eos_ids(self) -> tuple[int, ...]:
    return (self.special.index('<eos>'),)

  def encode(self, text: str) -> list[int]:
    unknown = sorted(set(text) - set(self.alphabet))
    require(not unknown, f'text {text!r} holds {unknown}, which tokenizer.alphabet lacks; add them to it.')
    ids = _ids(self.alphabet, len(self.special))
    return [ids[c] for c in text]

  def protect(self, text: str) -> str:
    return text

  def encode_template(self, text: str) -> list[int]:
    return self.encode(text)

  def plain(self, text: str) -> str:
    return text

  def decode(self, ids: Sequence[int]) -> str:
    return ''.join(self.token_text(i) for i in ids if i >= len(self.special))

  def stream(self) -> Stream:
    return ByteStream(lambda token: self.decode([token]).encode())

  def token_text(self, token: int) -> str:
    if token < len(self.special):
      return self.special[token]
    inside = token - len(self.special) < len(self.alphabet)
    return self.alphabet[token - len(self.special)] if inside else f'<{token}>'

  def chat(self, messages: Sequence[Message], *, thinking: bool | None = None) -> str:
    raise ConfigError(
      'tokenizer.path is none: one id a character has no chat template; set views.chat=false, or '
      "tokenizer.path to a model's folder."
    )


@functools.lru_cache
def _ids(alphabet: str, first: int) -> dict[str, int]:
  return {character: first + i for i, character in enumerate(alphabet)}
