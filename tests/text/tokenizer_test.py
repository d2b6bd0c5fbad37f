"""Characters to ids and back, and what the tokenizer refuses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.text import tokenizer as lib
from opsd_jax.text.tokenizer import TextConfig, make_tokenizer

ALPHABET = TextConfig().alphabet
TOKENIZER = make_tokenizer(TextConfig())


@settings(max_examples=50)
@given(st.text(ALPHABET, max_size=40))
def test_text_survives_the_round_trip(text):
  ids = TOKENIZER.encode(text)
  assert len(ids) == len(text)
  assert TOKENIZER.decode(ids) == text == ''.join(map(TOKENIZER.token_text, ids))


@settings(max_examples=30)
@given(st.lists(st.integers(3, TOKENIZER.vocab_size - 1), max_size=40))
def test_ids_survive_the_round_trip(ids):
  assert TOKENIZER.encode(TOKENIZER.decode(ids)) == ids


def test_ids_are_positions_after_the_special_ones():
  assert TOKENIZER.encode('019') == [3, 4, 12]
  assert TOKENIZER.encode(ALPHABET) == list(range(3, 3 + len(ALPHABET)))
  assert TOKENIZER.vocab_size == 3 + 17 and TOKENIZER.encode('') == []


def test_special_ids():
  assert (TOKENIZER.bos_ids, TOKENIZER.eos_ids) == ((1,), (2,))
  assert [TOKENIZER.token_text(i) for i in range(3)] == ['<pad>', '<bos>', '<eos>']


def test_special_tokens_are_left_out_of_text():
  assert TOKENIZER.decode([1, 3, 0, 4, 2, 2]) == '01'


def test_no_character_becomes_a_special_token():
  tokenizer = make_tokenizer(TextConfig(alphabet='<eosbpad>'))
  assert min(tokenizer.encode('<eos><pad>')) >= 3
  assert tokenizer.decode(tokenizer.encode('<eos><pad>')) == '<eos><pad>'


def test_ids_of_a_padded_head_are_shown_by_number():
  assert TOKENIZER.token_text(TOKENIZER.vocab_size - 1) == ':'
  assert TOKENIZER.token_text(TOKENIZER.vocab_size) == '<20>'


def test_unknown_characters_are_named():
  with pytest.raises(ConfigError, match=r"'1x\+y'.*\['x', 'y'\].*text.alphabet"):
    TOKENIZER.encode('1x+y')


def test_a_repeated_character_is_named():
  with pytest.raises(ConfigError, match=r"text.alphabet is 'abca'.*\['a'\].*more than once"):
    lib.validate(TextConfig(alphabet='abca'))


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (TextConfig(alphabet=''), 'text.alphabet is empty'),
    (TextConfig(tokenizer='character'), "text.tokenizer is 'character'.*'characters'"),
  ],
)
def test_settings_that_cannot_work(config, message):
  with pytest.raises(ConfigError, match=message):
    lib.validate(config)


def test_the_default_is_valid():
  lib.validate(TextConfig())
