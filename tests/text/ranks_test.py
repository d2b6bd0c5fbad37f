"""Llama 3's rank file, without it."""

import base64

import pytest

from opsd_jax.config import ConfigError
from opsd_jax.text import ranks as lib
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer
from tests.text import small

RANKS = {token: rank for rank, token in enumerate(small.rank_tokens())}


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = small.write_ranks(tmp_path_factory.mktemp('model') / 'tokenizer.model')
  return make_tokenizer(TokenizerConfig(path=str(path)))


def merge(raw):
  """Ids by the definition: merge the two neighbours that make the token of the lowest rank, and again.

  A word that is a token is left alone.
  """
  if raw in RANKS:
    return [RANKS[raw]]
  parts = [raw[i : i + 1] for i in range(len(raw))]
  while True:
    made = [(RANKS.get(a + b, len(RANKS)), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
    rank, at = min(made, default=(len(RANKS), 0))
    if rank == len(RANKS):
      return [RANKS[part] for part in parts]
    parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize(
  'word', ['apple', ' apple', 'appleapp', 'aple', 'apppleap', 'é', '中文', '😀😀', 'x', 'zqj', 'zqjzqj']
)
def test_words_are_merged_by_rank(tokenizer, word):
  assert tokenizer.encode(word) == merge(word.encode())
  assert tokenizer.decode(tokenizer.encode(word)) == word


def test_text_is_split_before_it_is_merged(tokenizer):
  shown = [tokenizer.token_text(i) for i in tokenizer.encode("12345 apple's\n\n!")]
  assert shown == ['1', '2', '3', '4', '5', ' apple', "'", 's', '\n', '\n', '!']


def test_special_tokens(tokenizer):
  assert tokenizer.vocab_size == 128_256
  assert tokenizer.bos_ids == (128_000,) and tokenizer.eos_ids == (128_001, 128_008, 128_009)
  names = {2: 'reserved_special_token_0', 5: 'reserved_special_token_2', 11: 'reserved_special_token_3'}
  names |= {6: 'start_header_id', 7: 'end_header_id', 255: 'reserved_special_token_247'}
  assert {i: tokenizer.token_text(128_000 + i) for i in names} == {i: f'<|{n}|>' for i, n in names.items()}
  ids = tokenizer.encode_template('<|start_header_id|>x<|eot_id|>')
  assert ids == [128_006, RANKS[b'x'], 128_009] and tokenizer.decode(ids) == 'x'
  assert max(tokenizer.encode('<|eot_id|>')) < 128_000


def test_names_of_an_older_model():
  listed = {'128004': {'content': '<|reserved_special_token_2|>'}, '7': {'content': 'x'}}
  names = lib.special_names({'added_tokens_decoder': listed})
  assert names[4] == '<|reserved_special_token_2|>' and names[9] == '<|eot_id|>' and len(names) == 256


@pytest.mark.parametrize(
  ('lines', 'message'),
  [
    (['QQ== 0', 'Qg== 1'], 'holds 2 tokens.*Llama 3, with 128000.*AutoTokenizer'),
    (['QQ== 0', 'Q? 1'], r"line 2 is b'Q\? 1.*, not a token in base64"),
    (['QQ== 0', 'Qg=='], 'line 2 is .*, not a token'),
    (['QQ== 0', 'Qg== 2'], 'ranks of .* are not 0 to 1'),
    (['QQ== 0', 'Qg== 0'], 'ranks of .* are not 0 to 1'),
  ],
)
def test_files_that_cannot_be_used(tmp_path, lines, message):
  (tmp_path / 'tokenizer.model').write_text('\n'.join(lines) + '\n')
  with pytest.raises(ConfigError, match=message):
    make_tokenizer(TokenizerConfig(path=str(tmp_path)))


def test_base64_of_the_helper():
  assert base64.b64decode('QQ==') == b'A' and len(RANKS) == lib.COUNT
