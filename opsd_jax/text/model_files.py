"""The files of a model that tell how to read and write text. Contents decide; names may mislead."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from opsd_jax.config import ConfigError, nearest, require

Kind = Literal['subwords', 'ranks', 'pieces']
VOCABULARIES = ('tokenizer.json', 'tokenizer.model')
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
SAVE = 'AutoTokenizer.from_pretrained(folder).save_pretrained(folder)'


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFiles:
  """What was found.

  Attributes:
    vocabulary: path of the vocabulary, a tokenizer.json, a rank file or a SentencePiece model.
    kind: which of these it is.
    settings: tokenizer_config.json, with what only special_tokens_map.json says.
    generation: generation_config.json.
    template: the chat template, or None.
    template_name: where that came from.
  """

  vocabulary: str
  kind: Kind
  settings: Mapping[str, Any]
  generation: Mapping[str, Any]
  template: str | None
  template_name: str


def read(path: str, chat_template: str | None) -> ModelFiles:
  """Finds the files of `path`, the value of tokenizer.path; `chat_template` replaces the model's own.

  Raises:
    ConfigError: a file is missing, or is not what it should be.
  """
  vocabulary = find_vocabulary(path)
  folder = os.path.dirname(vocabulary)
  settings = _json(folder, 'special_tokens_map.json') | _json(folder, 'tokenizer_config.json')
  _check_added(settings.get('added_tokens_decoder'), os.path.join(folder, 'tokenizer_config.json'))
  template, name = find_template(folder, settings, chat_template)
  return ModelFiles(
    vocabulary, kind_of(vocabulary), settings, _json(folder, 'generation_config.json'), template, name
  )


def find_vocabulary(path: str) -> str:
  """The vocabulary at `path`, a file or a folder.

  Raises:
    ConfigError: there is none.
  """
  path = os.path.expanduser(path)
  require(
    os.path.exists(path),
    f"tokenizer.path is {path!r}, which does not exist; set it to a model's folder, or to its "
    'tokenizer.json or tokenizer.model.',
  )
  if not os.path.isdir(path):
    return path
  for name in VOCABULARIES:
    if os.path.isfile(os.path.join(path, name)):
      return os.path.join(path, name)
  found = sorted(os.listdir(path))
  shown = ', '.join(found[:12]) + (', ...' if len(found) > 12 else '') if found else 'nothing'
  parts = {'vocab.json', 'merges.txt'} <= set(found)
  remedy = f'save these once with transformers: {SAVE}' if parts else "name a model's folder"
  raise ConfigError(
    f'tokenizer.path is {path!r}, a folder with neither {" nor ".join(VOCABULARIES)}; it holds {shown}; '
    f'{remedy}.'
  )


def kind_of(path: str) -> Kind:
  """What a vocabulary is, by its first bytes; one that is no text is taken for a SentencePiece model.

  Raises:
    ConfigError: the file is packed, or only points to the real one.
  """
  with open(path, 'rb') as file:
    head = file.read(4096)
  require(
    not head.startswith(b'version https://git-lfs'),
    f'{path} is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`.',
  )
  require(not head.startswith(b'\x1f\x8b'), f'{path} is compressed; unpack it with gunzip.')
  if head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'{'):
    return 'subwords'
  return 'ranks' if re.match(rb'[A-Za-z0-9+/]+={0,2} \d+\r?\n', head) else 'pieces'


def find_template(folder: str, settings: Mapping[str, Any], named: str | None) -> tuple[str | None, str]:
  """The chat template and where it came from: the named file, else the model's own, else None.

  Raises:
    ConfigError: the named file is missing, or the model has several and none is the default.
  """
  if named is not None:
    named = os.path.expanduser(named)
    require(
      os.path.isfile(named),
      f'tokenizer.chat_template is {named!r}, which is no file; set it to a .jinja file, or to none.',
    )
    return _text(named), named
  for name in ('chat_template.jinja', os.path.join('chat_templates', 'default.jinja')):
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return _text(path), path
  for name, source in (
    ('chat_template.json', _json(folder, 'chat_template.json')),
    ('tokenizer_config.json', settings),
  ):
    where = f'the chat template of {os.path.join(folder, name)}'
    if source.get('chat_template'):
      return _default(source['chat_template'], where), where
  return None, folder


def _default(template: Any, where: str) -> str:
  """The template itself, or the one called `default` of a list of named ones."""
  if isinstance(template, list):
    by_name = {entry.get('name'): entry.get('template') for entry in template if isinstance(entry, dict)}
    require(
      'default' in by_name,
      f'{where} is a list without a default one.{nearest("default", map(str, by_name))} Save the one you '
      'want as a .jinja file and name that in tokenizer.chat_template.',
    )
    template = by_name['default']
  require(
    isinstance(template, str),
    f'{where} is {template!r}, not a text; name a .jinja file in tokenizer.chat_template.',
  )
  return template


def _check_added(listed: Any, path: str) -> None:
  """Every kind of vocabulary reads `added_tokens_decoder`: by id, the text of a token and its flags."""
  where = f'{path}: added_tokens_decoder'
  if listed is None:
    return
  require(isinstance(listed, dict), f'{where} is {_cut(listed)}, not tokens by id; get the file again.')
  for token, entry in listed.items():
    require(token.isdecimal(), f'{where} has the id {token!r}, which is no number; get the file again.')
    require(
      isinstance(entry, dict) and isinstance(entry.get('content'), str),
      f'{where}.{token} is {_cut(entry)}, which has no text `content`; get the file again.',
    )
    for flag in _FLAGS:
      value = entry.get(flag, False)
      require(
        isinstance(value, bool),
        f'{where}.{token}.{flag} is {_cut(value)}; it must be true or false: mend it, or get the file again.',
      )


def _cut(value: Any) -> str:
  shown = repr(value)
  return shown if len(shown) <= 60 else shown[:60] + ' ...'


def _text(path: str) -> str:
  try:
    with open(path, encoding='utf-8') as file:
      return file.read()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f'{path} cannot be read: {error}; get the file again.') from error


def _json(folder: str, name: str) -> dict[str, Any]:
  """The object in a JSON file; empty if there is no such file."""
  path = os.path.join(folder, name)
  if not os.path.isfile(path):
    return {}
  try:
    value = json.loads(_text(path))
  except json.JSONDecodeError as error:
    raise ConfigError(f'{path} is not JSON: {error}; get the file again.') from error
  require(isinstance(value, dict), f'{path} holds no JSON object; get the file again.')
  return value
