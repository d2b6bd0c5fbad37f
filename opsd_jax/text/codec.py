"""What the readers of vocabulary files have in common: text to ids by one model's rules."""

import dataclasses
import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from opsd_jax.text.streaming import Stream


@dataclasses.dataclass(frozen=True)
class Slot:
  """Stands for a control token in a text to encode: `text` becomes the one id `id`."""

  text: str
  id: int


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
  """One model's vocabulary.

  Attributes:
    vocab_size: largest id + 1.
    control: control tokens and their ids.
    slots: the slot of each control token.
    whole_words: control tokens that are tokens between word boundaries only.
    token_id: id of a token by its name, or None.
    data: ids of a text in which nothing is a control token; slots become their ids.
    parse: ids of a text in which control tokens become their ids; None: `slots` do it.
    normalize: the text in which control tokens are looked for, if that is not the text itself.
    decode: text of ids, special tokens left out.
    token_text: one id as a person reads it.
    stream: the beginning of a text that `decode` would give.
    bos: ids that the file itself says to put first.
    eos: ids that end a completion, where no other file says so.
    names: bos_token, eos_token of the file itself, where it has them.
  """

  vocab_size: int
  control: Mapping[str, int]
  slots: Mapping[str, Slot]
  token_id: Callable[[str], int | None]
  data: Callable[[str], list[int]]
  parse: Callable[[str], list[int]] | None
  decode: Callable[[Sequence[int]], str]
  token_text: Callable[[int], str]
  stream: Stream
  whole_words: frozenset[str] = frozenset()
  normalize: Callable[[str], str] | None = None
  bos: tuple[int, ...] = ()
  eos: tuple[int, ...] = ()
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Found in no text, because it is drawn anew in each process. No id that leaves depends on it.
NONCE = f'\ufdd2{secrets.token_hex(8)}\ufdd2'


def is_control(name: str, special: bool) -> bool:
  """Whether an added token is a control token: all are but runs of blanks, which are ordinary text."""
  return special or bool(name.strip().strip('▁'))


def fill(ids: Sequence[int], slots: Sequence[Slot], control: Sequence[int]) -> list[int]:
  """`ids` with the id of each slot, in order, replaced by the control id that it stands for."""
  places, tokens = {slot.id for slot in slots}, iter(control)
  filled = [next(tokens) if i in places else i for i in ids]
  assert next(tokens, None) is None, 'a control token was lost in encoding'
  return filled


def show_bytes(raw: bytes) -> str:
  """UTF-8 text; bytes that are no complete character as `<0xE4>`."""
  text = raw.decode('utf-8', 'surrogateescape')
  return re.sub('[\udc80-\udcff]', lambda match: f'<0x{ord(match[0]) - 0xDC00:02X}>', text)


def piece_byte(piece: str) -> bytes:
  """The byte that a piece such as `<0xE4>` stands for, else none."""
  byte = re.fullmatch(r'<0x([0-9A-Fa-f]{2})>', piece)
  return bytes([int(byte[1], 16)]) if byte else b''


def show_piece(piece: str) -> str:
  """A SentencePiece piece: its blanks as blanks, a byte that is a character as that character."""
  byte = piece_byte(piece)
  return show_bytes(byte) if byte else piece.replace('▁', ' ')
