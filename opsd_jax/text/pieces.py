"""SentencePiece models, read by the `sentencepiece` package."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from opsd_jax.config import ConfigError
from opsd_jax.text.codec import NONCE, Codec, Slot, is_control, piece_byte, show_piece
from opsd_jax.text.streaming import PieceStream
from opsd_jax.text.subwords import text_of


def read(path: str, settings: Mapping[str, Any]) -> Codec:
  """The vocabulary of a SentencePiece model; `settings` are those of tokenizer_config.json.

  Raises:
    ConfigError: the file is no SentencePiece model.
  """
  from google.protobuf.message import DecodeError
  from sentencepiece import SentencePieceProcessor
  from sentencepiece import sentencepiece_model_pb2 as schema

  with open(path, 'rb') as file:
    raw = file.read()
  try:
    model = schema.ModelProto.FromString(raw)
    processor = SentencePieceProcessor()
    processor.load_from_serialized_proto(raw)  # the constructor takes an empty file for no file
  except (DecodeError, RuntimeError) as error:
    raise ConfigError(
      f'{path} is neither a SentencePiece model nor a rank file (a token in base64 and its rank a '
      'line); get the file again, or set tokenizer.path to a folder with a tokenizer.json.'
    ) from error
  return make(model, processor, settings)


def make(model: Any, processor: Any, settings: Mapping[str, Any]) -> Codec:
  """The codec of a model; tokens of tokenizer_config.json that it lacks are control tokens too."""
  kinds = type(model.pieces[0])
  user = {p.piece: i for i, p in enumerate(model.pieces) if p.type == kinds.USER_DEFINED}
  reserved = {p.piece: i for i, p in enumerate(model.pieces) if p.type == kinds.CONTROL}
  listed = settings.get('added_tokens_decoder') or {}
  added = {entry['content']: int(i) for i, entry in listed.items()}
  special = {entry['content'] for entry in listed.values() if entry.get('special')} | set(named(settings))
  tokens = user | reserved | added
  control = {name: i for name, i in tokens.items() if is_control(name, name in reserved)}
  extra = {i: name for name, i in added.items() if processor.piece_to_id(name) != i}
  size = processor.get_piece_size()
  hidden = frozenset(i for name, i in control.items() if name in special or name in reserved)
  slot = Slot(NONCE, size)
  data = _data_processor(model, control)
  decode = functools.partial(_decode, processor, extra, hidden)
  return Codec(
    vocab_size=max(size, *(i + 1 for i in extra)) if extra else size,
    control=control,
    slots=dict.fromkeys(control, slot),
    token_id=functools.partial(_token_id, processor, control),
    data=lambda text: data.encode(text),
    parse=None,
    decode=decode,
    token_text=functools.partial(_token_text, processor, {i: name for name, i in control.items()} | extra),
    stream=PieceStream(decode, functools.partial(_byte, processor, extra, hidden)),
    eos=(processor.eos_id(),) if processor.eos_id() >= 0 else (),
    names=_names(processor),
  )


def named(settings: Mapping[str, Any]) -> list[str]:
  """Names of the special tokens that the settings list."""
  found = [text_of(value) for key, value in settings.items() if key.endswith('_token')]
  for key in ('additional_special_tokens', 'extra_special_tokens'):
    more = settings.get(key) or ()
    found += map(text_of, more.values() if isinstance(more, Mapping) else more)
  return [name for name in found if name]


def _data_processor(model: Any, control: Mapping[str, int]) -> Any:
  """A copy that finds no control token in a text, but slots."""
  from sentencepiece import SentencePieceProcessor

  copy = type(model)()
  copy.CopyFrom(model)
  for piece in copy.pieces:
    if piece.type == piece.USER_DEFINED and piece.piece in control:
      piece.type = piece.CONTROL  # a control piece keeps its id, and is never found in a text
  copy.pieces.add(piece=NONCE, score=0.0, type=type(model.pieces[0]).USER_DEFINED)
  return SentencePieceProcessor(model_proto=copy.SerializeToString())


def _token_id(processor: Any, control: Mapping[str, int], name: str) -> int | None:
  if name in control:
    return control[name]
  token = processor.piece_to_id(name)
  return token if processor.id_to_piece(token) == name else None


def _names(processor: Any) -> dict[str, str]:
  ids = {'bos_token': processor.bos_id(), 'eos_token': processor.eos_id()}
  return {name: processor.id_to_piece(token) for name, token in ids.items() if token >= 0}


def _decode(processor: Any, extra: Mapping[int, str], hidden: frozenset[int], ids: Sequence[int]) -> str:
  parts: list[str] = []
  run: list[int] = []
  for token in [int(i) for i in ids if i not in hidden]:
    if token in extra:
      parts += [processor.decode(run), extra[token]]
      run = []
    elif 0 <= token < processor.get_piece_size():
      run.append(token)
  return ''.join([*parts, processor.decode(run)])


def _byte(processor: Any, extra: Mapping[int, str], hidden: frozenset[int], token: int) -> bytes | None:
  """As `PieceStream.byte_of` promises."""
  if token in extra:
    return None if token in hidden else b''
  if token in hidden or not 0 <= token < processor.get_piece_size():
    return None
  return piece_byte(processor.id_to_piece(token)) if processor.is_byte(token) else b''


def _token_text(processor: Any, names: Mapping[int, str], token: int) -> str:
  if token in names:
    return names[token]
  inside = 0 <= token < processor.get_piece_size()
  return show_piece(processor.id_to_piece(int(token))) if inside else f'<{token}>'
