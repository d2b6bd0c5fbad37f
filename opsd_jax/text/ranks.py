"""Llama 3's tokenizer.model: a line a token, its bytes in base64 and its rank (tiktoken's format)."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from opsd_jax.config import ConfigError, require
from opsd_jax.text import subwords
from opsd_jax.text.codec import Codec

COUNT = 128_000
# The file holds no pattern to split text by, so it is known for one family of models alone.
PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
SPECIAL_COUNT = 256
NAMED = {
  0: '<|begin_of_text|>',
  1: '<|end_of_text|>',
  4: '<|finetune_right_pad_id|>',
  6: '<|start_header_id|>',
  7: '<|end_header_id|>',
  8: '<|eom_id|>',
  9: '<|eot_id|>',
  10: '<|python_tag|>',
}
BOS, EOS = NAMED[0], (NAMED[1], NAMED[8], NAMED[9])


def read(path: str, settings: Mapping[str, Any]) -> Codec:
  """The vocabulary of Llama 3's rank file.

  Raises:
    ConfigError: a line is no token, or the file is another model's.
  """
  ranks = read_ranks(path)
  require(
    len(ranks) == COUNT,
    f'{path} holds {len(ranks)} tokens, but of files in this format only those of Llama 3, with {COUNT}, '
    'are known; save the tokenizer once with transformers: AutoTokenizer.from_pretrained(...)'
    '.save_pretrained(folder), and set tokenizer.path to that folder.',
  )
  pipeline = make_pipeline(ranks, special_names(settings))
  subwords.add_tokens(pipeline, settings, path)
  ids = {name: pipeline.token_to_id(name) for name in (BOS, *EOS)}
  found = tuple(ids[name] for name in EOS if ids[name] is not None)
  names = {'bos_token': BOS, 'eos_token': EOS[0]}
  return subwords.make(pipeline, bos=(ids[BOS],), eos=found, names=names)


def read_ranks(path: str) -> dict[bytes, int]:
  """Tokens and their ranks.

  Raises:
    ConfigError: a line is not a token in base64 and a number, or the ranks are not 0, 1, 2, ...
  """
  ranks: dict[bytes, int] = {}
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      try:
        token, rank = line.split()
        ranks[base64.b64decode(token, validate=True)] = int(rank)
      except (ValueError, binascii.Error) as error:
        raise ConfigError(
          f'{path}, line {number} is {line[:60]!r}, not a token in base64 and its rank; get the file again.'
        ) from error
  require(
    sorted(ranks.values()) == list(range(len(ranks))),
    f'the ranks of {path} are not 0 to {len(ranks) - 1}, each once; get the file again.',
  )
  return ranks


def special_names(settings: Mapping[str, Any]) -> list[str]:
  """Names of the 256 special tokens: those of Llama 3.1 and later, unless the settings know better."""
  listed = {int(i): entry['content'] for i, entry in (settings.get('added_tokens_decoder') or {}).items()}
  names, reserved = [], 0
  for place in range(SPECIAL_COUNT):
    name = NAMED.get(place) or f'<|reserved_special_token_{reserved}|>'
    reserved += place not in NAMED
    names.append(listed.get(COUNT + place, name))
  return names


def make_pipeline(ranks: Mapping[bytes, int], special: list[str]) -> Any:
  """A pipeline that merges bytes in the order of ranks; special tokens come after the others."""
  from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

  character = {byte: c for c, byte in subwords.byte_of().items()}
  text = {token: ''.join(character[byte] for byte in token) for token in ranks}
  pairs = [(text[left], text[right]) for left, right in merges(ranks)]
  vocabulary = {text[token]: rank for token, rank in ranks.items()}
  pipeline = Tokenizer(models.BPE(vocabulary, pairs, fuse_unk=False, ignore_merges=True))
  pipeline.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(PATTERN), behavior='isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  pipeline.decoder = decoders.ByteLevel()
  pipeline.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
  return pipeline


def merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
  """Pairs of tokens that make a third, in the order in which they are merged.

  Ranks merge whichever neighbours make the token of lowest rank, so all ways to cut a token count.
  """
  pairs = []
  for token, rank in ranks.items():
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in ranks and right in ranks:
        pairs.append((rank, ranks[left], ranks[right], left, right))
  return [pair[3:] for pair in sorted(pairs)]
