"""The tokenizer and the chat template that come with a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from opsd_jax.config import ConfigError, nearest, require
from opsd_jax.text import chat as chat_lib
from opsd_jax.text import marks as marks_lib
from opsd_jax.text import model_files, pieces, ranks, subwords
from opsd_jax.text.chat import ChatTemplate, Message
from opsd_jax.text.codec import Codec, fill
from opsd_jax.text.config import TokenizerConfig
from opsd_jax.text.marks import Marks
from opsd_jax.text.model_files import ModelFiles
from opsd_jax.text.streaming import Stream

READERS = {'subwords': subwords.read, 'ranks': ranks.read, 'pieces': pieces.read}


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedTokenizer:
  """A model's own tokenizer; see `tokenizer.Tokenizer` for what its methods promise.

  A text that a template builds out of two contents is not looked at as a whole: if one ends in
  `<|im_` and the next, with nothing between, begins with `end|>`, that is a control token.
  """

  codec: Codec
  marks: Marks
  eos_ids: tuple[int, ...]
  bos_ids: tuple[int, ...]
  template: ChatTemplate | None
  path: str
  control_tokens_in_data: bool = False

  @property
  def vocab_size(self) -> int:
    return self.codec.vocab_size

  @property
  def control_ids(self) -> frozenset[int]:
    return frozenset(self.codec.control.values())

  def encode(self, text: str) -> list[int]:
    _check_text(text)
    return self._parse(text) if self.control_tokens_in_data else self.codec.data(text)

  def protect(self, text: str) -> str:
    if self.control_tokens_in_data:
      return text
    marked = marks_lib.protect(self.marks, text)
    # A control token may also come about when the text is normalized, out of its full-width letters
    # say. Half a mark says no more than that the text holds data, and that is enough.
    return marked + marks_lib.CLOSE if self._normalizes_to_control(text) else marked

  def _normalizes_to_control(self, text: str) -> bool:
    if self.codec.normalize is None:
      return False
    found = self.marks.control.findall(self.codec.normalize(text))
    return len(found) > len(self.marks.control.findall(text))

  def encode_template(self, text: str) -> list[int]:
    _check_text(text)
    if self.control_tokens_in_data or not marks_lib.marked(text):
      return self._parse(text)
    return self._encode_pieces(list(marks_lib.pieces(self.marks, text)))

  def _parse(self, text: str) -> list[int]:
    """Ids of a text without marks."""
    if self.codec.parse is not None:
      return self.codec.parse(text)
    return self._encode_pieces(list(marks_lib.unmarked_pieces(self.marks, text)))

  def _encode_pieces(self, parts: Sequence[tuple[bool, str]]) -> list[int]:
    """Ids of (is a control token, text) pieces in one call, as neighbours matter."""
    slots = self.codec.slots
    names = [text for is_control, text in parts if is_control]
    joined = ''.join(slots[text].text if is_control else text for is_control, text in parts)
    control = [self.codec.control[name] for name in names]
    return fill(self.codec.data(joined), [slots[name] for name in names], control)

  def plain(self, text: str) -> str:
    return text if self.control_tokens_in_data else marks_lib.plain(self.marks, text)

  def decode(self, ids: Sequence[int]) -> str:
    return self.codec.decode(ids)

  def stream(self) -> Stream:
    return self.codec.stream

  def token_text(self, token: int) -> str:
    return self.codec.token_text(token)

  def chat(self, messages: Sequence[Message], *, thinking: bool | None = None) -> str:
    if self.template is None:
      raise ConfigError(
        f'tokenizer.path is {self.path!r}, which has no chat template; set tokenizer.chat_template to a '
        '.jinja file, or views.chat=false.'
      )
    return chat_lib.render(self.template, messages, thinking)


def _check_text(text: str) -> None:
  """Raises `ConfigError` for what Python lets stand in a text, but Unicode does not."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    near = text[max(0, error.start - 20) : error.start + 20]
    raise ConfigError(
      f'text {near!r} holds half a character, {text[error.start]!r}, which has no bytes; repair the data.'
    ) from error


def load(config: TokenizerConfig) -> PretrainedTokenizer:
  """The tokenizer of `config.path`.

  Raises:
    ConfigError: a file is missing or cannot be read, or the files contradict each other.
  """
  files = model_files.read(config.path, config.chat_template)
  codec = READERS[files.kind](files.vocabulary, files.settings)
  return PretrainedTokenizer(
    codec=codec,
    marks=marks_lib.make(codec.control, codec.whole_words),
    eos_ids=find_eos(config, files, codec),
    bos_ids=find_bos(files, codec),
    template=_template(files, codec),
    path=config.path,
    control_tokens_in_data=config.control_tokens_in_data,
  )


def _template(files: ModelFiles, codec: Codec) -> ChatTemplate | None:
  if files.template is None:
    return None
  texts = {key: subwords.text_of(value) for key, value in files.settings.items() if key.endswith('_token')}
  variables = dict(codec.names) | {key: text for key, text in texts.items() if text is not None}
  template = ChatTemplate(files.template, files.template_name, variables)
  chat_lib.compile_template(template)  # so that a broken one is refused before the run
  return template


def find_eos(config: TokenizerConfig, files: ModelFiles, codec: Codec) -> tuple[int, ...]:
  """Ids that end a completion: those that the config names, else those of the model's files.

  Raises:
    ConfigError: a name is unknown, or nothing says what ends a completion.
  """
  if config.eos_tokens:
    return tuple(_token(name, codec, 'tokenizer.eos_tokens') for name in config.eos_tokens)
  name = subwords.text_of(files.settings.get('eos_token'))
  found = [] if name is None else [_token(name, codec, 'eos_token of tokenizer_config.json')]
  found += _generation_ids(files.generation, codec)
  ids = tuple(dict.fromkeys(found)) or codec.eos
  require(
    bool(ids),
    f'nothing beside {files.vocabulary} says which token ends a completion (eos_token of '
    'tokenizer_config.json, eos_token_id of generation_config.json); name it in tokenizer.eos_tokens.',
  )
  return ids


def _token(name: str, codec: Codec, setting: str) -> int:
  token = codec.token_id(name)
  require(
    token is not None,
    f'{setting} has {name!r}, which is no token of the model.{nearest(name, codec.control)}',
  )
  return token


def _generation_ids(generation: Mapping[str, Any], codec: Codec) -> list[int]:
  """The ids of generation_config.json, which has one, several or none."""
  value = generation.get('eos_token_id')
  ids = value if isinstance(value, list) else [] if value is None else [value]
  for token in ids:
    require(
      isinstance(token, int) and 0 <= token < codec.vocab_size,
      f'eos_token_id of generation_config.json is {value}, but the tokenizer has ids 0 to '
      f'{codec.vocab_size - 1}; the files are not of one model: name the tokens in tokenizer.eos_tokens.',
    )
  return ids


def find_bos(files: ModelFiles, codec: Codec) -> tuple[int, ...]:
  """Ids that the model's files put before a text; a chat template writes its own.

  Raises:
    ConfigError: the files ask for a token that the model lacks.
  """
  adds = files.settings.get('add_bos_token')
  name = subwords.text_of(files.settings.get('bos_token'))
  if adds is None or (adds and name is None):
    return codec.bos
  return (_token(name, codec, 'bos_token of tokenizer_config.json'),) if adds else ()
