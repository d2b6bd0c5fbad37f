"""Text to token ids and back: what the project asks of a tokenizer, and the one a config names."""

import functools
import os
from collections.abc import Sequence
from typing import Protocol

from opsd_jax.text import config as config_lib
from opsd_jax.text import model_files, pretrained
from opsd_jax.text.characters import CharacterTokenizer
from opsd_jax.text.chat import Message
from opsd_jax.text.config import TokenizerConfig
from opsd_jax.text.streaming import Stream


class Tokenizer(Protocol):
  """Ids are the truth; text is for people.

  Data (a problem, a solution) and templates are encoded differently: a control token such as
  `<|im_end|>` is one id where a template writes it, and ordinary text where a problem does. To put
  data into a template: `encode_template(chat([Message('user', protect(data))]))`.
  """

  @property
  def vocab_size(self) -> int:
    """Number of ids, added ones included; the model's head may be wider."""

  @property
  def control_ids(self) -> frozenset[int]:
    """Ids that no data text has: only a template or a model writes them."""

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """Ids that end a completion."""

  @property
  def bos_ids(self) -> tuple[int, ...]:
    """Ids that begin a prompt made without the chat template; may be empty."""

  def encode(self, text: str) -> list[int]:
    """Ids of a text that is data: no special token is added, none is read from it."""

  def protect(self, text: str) -> str:
    """Marks the control tokens spelled out in a data text, so that `encode_template` spares them."""

  def encode_template(self, text: str) -> list[int]:
    """Ids of a rendered template; control tokens that no `protect` marked become their ids."""

  def plain(self, text: str) -> str:
    """A protected or rendered text without its marks, as a person reads it."""

  def decode(self, ids: Sequence[int]) -> str:
    """Text of `ids`, special tokens left out."""

  def stream(self) -> Stream:
    """The beginning of a text that grows by one id at a time into what `decode` gives."""

  def token_text(self, token: int) -> str:
    """How one id is shown to a person; special tokens by name."""

  def chat(self, messages: Sequence[Message], *, thinking: bool | None = None) -> str:
    """The conversation up to where the model's answer begins; contents go in as they are.

    Args:
      messages: the turns.
      thinking: whether the model is to think first; None leaves that to its template.

    Raises:
      ConfigError: there is no chat template, or it refuses the conversation.
    """


def validate(config: TokenizerConfig) -> None:
  """Raises `ConfigError` for a tokenizer that cannot be made. Loads it, which `make_tokenizer` keeps."""
  make_tokenizer(config)


def is_in(folder: str) -> bool:
  """Whether a folder holds a tokenizer."""
  return any(os.path.isfile(os.path.join(folder, name)) for name in model_files.VOCABULARIES)


@functools.lru_cache
def difference(ours: Tokenizer, theirs: Tokenizer) -> str | None:
  """How the ids of two tokenizers differ, in words; None where every id stands for the same token.

  Looks at all ids, a second or two for 150,000, and remembers what it found.
  """
  if ours.vocab_size != theirs.vocab_size:
    return f'{theirs.vocab_size} ids instead of {ours.vocab_size}'
  for token in range(ours.vocab_size):
    known, found = ours.token_text(token), theirs.token_text(token)
    if known != found:
      return f'id {token} is {found!r} instead of {known!r}'
  return None


@functools.lru_cache
def make_tokenizer(config: TokenizerConfig) -> Tokenizer:
  """The tokenizer that the config names; loaded once, because many ask for it.

  Raises:
    ConfigError: settings that contradict each other, or files that are missing or cannot be read.
  """
  config_lib.check(config)
  if config.path is None:
    return CharacterTokenizer(config.alphabet)
  return pretrained.load(config)
