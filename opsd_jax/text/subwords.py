"""tokenizer.json, and any other pipeline of the `tokenizers` package."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opsd_jax.config import ConfigError
from opsd_jax.text.codec import NONCE, Codec, Slot, is_control, piece_byte, show_bytes, show_piece
from opsd_jax.text.streaming import ByteStream, PieceStream, Stream

FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized')


def read(path: str, settings: Mapping[str, Any]) -> Codec:
  """The vocabulary of a tokenizer.json; `settings` are those of tokenizer_config.json.

  Raises:
    ConfigError: the file cannot be read, or does not fit `settings`.
  """
  from tokenizers import Tokenizer

  try:
    pipeline = Tokenizer.from_file(path)
  except Exception as error:  # the package raises plain exceptions
    raise ConfigError(
      f'{path} cannot be read as a tokenizer.json: {error}; get the file again, or a newer `tokenizers` '
      'if the file is newer than the installed one.'
    ) from error
  add_tokens(pipeline, settings, path)
  return make(pipeline)


def add_tokens(pipeline: Any, settings: Mapping[str, Any], path: str) -> None:
  """Adds the tokens that `settings` list beyond the pipeline's own; their flags count where both differ.

  Raises:
    ConfigError: a token would not get the id that `settings` give it.
  """
  from tokenizers import AddedToken

  listed = settings.get('added_tokens_decoder') or {}
  for token, entry in sorted(((int(i), entry) for i, entry in listed.items()), key=lambda pair: pair[0]):
    flags = {flag: entry[flag] for flag in (*FLAGS, 'special') if flag in entry}
    pipeline.add_tokens([AddedToken(entry['content'], **flags)])
    _check_id(pipeline, entry['content'], token, path)
  own = pipeline.get_added_tokens_decoder()
  for name in map(text_of, (value for key, value in settings.items() if key.endswith('_token'))):
    token = None if name is None else pipeline.token_to_id(name)
    if token is not None:
      pipeline.add_special_tokens([_special(own[token]) if token in own else AddedToken(name, special=True)])


def _check_id(pipeline: Any, name: str, token: int, path: str) -> None:
  if pipeline.token_to_id(name) != token:
    raise ConfigError(
      f'tokenizer_config.json gives {name!r} the id {token}, but in {path} it is '
      f'{pipeline.token_to_id(name)}; the two files are not of one model: get both again.'
    )


def text_of(value: Any) -> str | None:
  """The text of a token that a settings file gives as a string or with its flags."""
  value = value.get('content') if isinstance(value, Mapping) else value
  return value if isinstance(value, str) else None


def _special(token: Any) -> Any:
  from tokenizers import AddedToken

  return AddedToken(token.content, special=True, **{flag: getattr(token, flag) for flag in FLAGS})


def make(pipeline: Any, **facts: Any) -> Codec:
  """The codec of a pipeline; `facts` are fields of `Codec` that it does not know itself."""
  pipeline.no_truncation()
  pipeline.no_padding()
  added = pipeline.get_added_tokens_decoder()
  tokens = {t.content: t for t in added.values() if is_control(t.content, t.special)}
  data, slots = _data_pipeline(pipeline, tokens)
  normalizer = pipeline.normalizer if any(t.normalized for t in tokens.values()) else None
  byte_level = pipeline.decoder is not None and b'"ByteLevel"' in pipeline.decoder.__getstate__()
  fields = dict(
    vocab_size=max(pipeline.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
    control={name: pipeline.token_to_id(name) for name in tokens},
    slots=slots,
    whole_words=frozenset(name for name, token in tokens.items() if token.single_word),
    token_id=pipeline.token_to_id,
    data=_encoder(data),
    parse=_encoder(pipeline),
    normalize=None if normalizer is None else normalizer.normalize_str,
    decode=functools.partial(_decode, pipeline),
    token_text=functools.partial(_token_text, pipeline, frozenset(added), byte_level),
    stream=_stream(pipeline, frozenset(i for i, token in added.items() if token.special)),
    bos=_first_ids(pipeline),
  )
  return Codec(**fields | facts)


def _data_pipeline(pipeline: Any, tokens: Mapping[str, Any]) -> tuple[Any, dict[str, Slot]]:
  """A copy that finds no control token but slots, which strip the blanks that their tokens strip."""
  from tokenizers import AddedToken, Tokenizer

  data = Tokenizer.from_str(pipeline.to_str())
  data.add_special_tokens([_special(token) for token in tokens.values()])
  data.encode_special_tokens = True  # the package's name for: find no special token
  slots = {}
  for name, token in tokens.items():
    text = f'{NONCE}{token.lstrip:d}{token.rstrip:d}{NONCE}'
    slot = AddedToken(text, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False, special=False)
    data.add_tokens([slot])
    slots[name] = Slot(text, data.token_to_id(text))
  return data, slots


def _encoder(pipeline: Any) -> Callable[[str], list[int]]:
  return lambda text: pipeline.encode(text, add_special_tokens=False).ids


def _first_ids(pipeline: Any) -> tuple[int, ...]:
  """What the pipeline's last step puts before a text."""
  bare, whole = (pipeline.encode('a', add_special_tokens=flag).ids for flag in (False, True))
  starts = range(len(whole) - len(bare) + 1)
  return next((tuple(whole[:i]) for i in starts if whole[i : i + len(bare)] == bare), ())


def _decode(pipeline: Any, ids: Sequence[int]) -> str:
  return pipeline.decode([int(i) for i in ids], skip_special_tokens=True)


def _stream(pipeline: Any, special: frozenset[int]) -> Stream:
  """The stream that fits the pipeline's decoder."""
  decoder = None if pipeline.decoder is None else json.loads(pipeline.decoder.__getstate__())
  if decoder is not None and decoder['type'] == 'ByteLevel':
    return ByteStream(functools.partial(_bytes, pipeline, special))
  steps = [] if decoder is None else decoder.get('decoders', [decoder])
  fallback = any(step['type'] == 'ByteFallback' for step in steps)
  byte_of = functools.partial(_fallback_byte, pipeline, special, fallback)
  return PieceStream(functools.partial(_decode, pipeline), byte_of, whole_runs=True)


def _bytes(pipeline: Any, special: frozenset[int], token: int) -> bytes:
  """As `ByteStream.bytes_of` promises; an added token may have characters that stand for no byte."""
  text = None if token in special else _name(pipeline, token)
  raw = [byte_of().get(character) for character in text or '']
  return (text or '').encode() if None in raw else bytes(raw)


def _fallback_byte(pipeline: Any, special: frozenset[int], fallback: bool, token: int) -> bytes | None:
  """As `PieceStream.byte_of` promises."""
  text = None if token in special else _name(pipeline, token)
  return None if text is None else piece_byte(text) if fallback else b''


def _name(pipeline: Any, token: int) -> str | None:
  return pipeline.id_to_token(token) if token >= 0 else None


def _token_text(pipeline: Any, added: frozenset[int], byte_level: bool, token: int) -> str:
  text = _name(pipeline, int(token))
  if text is None:
    return f'<{token}>'
  if token in added:
    return text
  raw = [byte_of().get(character) for character in text] if byte_level else [None]
  return show_piece(text) if None in raw else show_bytes(bytes(raw))


@functools.cache
def byte_of() -> dict[str, int]:
  """The byte that each character of a byte-level vocabulary stands for.

  Printable bytes stand for themselves, and the others, in order, for the characters from 256 on.
  """
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
