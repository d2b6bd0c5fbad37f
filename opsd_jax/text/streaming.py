"""Text of a completion that still grows: ids go in one at a time, text comes out once it is certain.

The texts that come out, with that of `finish`, make up `Tokenizer.decode` of all ids, to the character. A
token may hold a part of a character, which is held back until the others come or cannot come any more.
"""

import codecs
import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol


class Stream(Protocol):
  """An immutable point in a text."""

  def feed(self, token: int) -> tuple['Stream', str]:
    """The point after one more id, and the text that has become certain; often none."""

  def finish(self) -> str:
    """The text that is held back, where no id follows: parts of characters as `decode` shows them."""


@dataclasses.dataclass(frozen=True)
class ByteStream:
  """For vocabularies whose every token is some bytes of the text.

  Attributes:
    bytes_of: the bytes of an id; none for a special token.
    held: the bytes of a character that is not complete.
  """

  bytes_of: Callable[[int], bytes]
  held: bytes = b''

  def feed(self, token: int) -> tuple['ByteStream', str]:
    text, held = _decode(self.held + self.bytes_of(int(token)))
    return dataclasses.replace(self, held=held), text

  def finish(self) -> str:
    return self.held.decode('utf-8', 'replace')


@dataclasses.dataclass(frozen=True)
class PieceStream:
  """For vocabularies of pieces of text, where some pieces are single bytes and the first may lose a blank.

  Attributes:
    decode: text of ids.
    byte_of: the byte that an id stands for; none for pieces of text; None for an id without text.
    whole_runs: `decode` reads a run of byte pieces as a whole: one bad byte spoils all of them.
    before: ids whose text is out already, by which `decode` knows that others are not the first.
    held: ids whose text is not certain.
    run: the bytes at the end of `held` that do not make up a character, or those of its whole run.
  """

  decode: Callable[[Sequence[int]], str]
  byte_of: Callable[[int], bytes | None]
  whole_runs: bool = False
  before: tuple[int, ...] = ()
  held: tuple[int, ...] = ()
  run: bytes = b''

  def feed(self, token: int) -> tuple['PieceStream', str]:
    byte, held = self.byte_of(int(token)), (*self.held, int(token))
    if byte is None:
      return self, ''
    run = self.run + byte if byte else b''
    run = run if self.whole_runs else _decode(run)[1]
    if run:
      return dataclasses.replace(self, held=held, run=run), ''
    # Ids that alone have no text, such as the blank that a first piece loses, prove nothing to `decode`.
    before = held if self.decode(held) else (*self.before, *held)
    return dataclasses.replace(self, before=before, held=(), run=b''), self._text(held)

  def finish(self) -> str:
    return self._text(self.held)

  def _text(self, ids: tuple[int, ...]) -> str:
    return self.decode((*self.before, *ids))[len(self.decode(self.before)) :]


def _decode(raw: bytes) -> tuple[str, bytes]:
  """Text and the bytes at its end that may become a character; bytes that cannot are U+FFFD."""
  decoder = codecs.getincrementaldecoder('utf-8')('replace')
  return decoder.decode(raw), decoder.getstate()[0]
