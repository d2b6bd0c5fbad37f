"""One id a character, and which settings go together."""

import inspect
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.text import tokenizer as lib
from opsd_jax.text.pretrained import PretrainedTokenizer
from opsd_jax.text.tokenizer import Message, TokenizerConfig, make_tokenizer

ALPHABET = TokenizerConfig().alphabet
TOKENIZER = make_tokenizer(TokenizerConfig())


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
  tokenizer = make_tokenizer(TokenizerConfig(alphabet='<eosbpad>'))
  assert min(tokenizer.encode('<eos><pad>')) >= 3
  assert tokenizer.decode(tokenizer.encode('<eos><pad>')) == '<eos><pad>'


def test_a_template_is_text_like_any_other():
  assert TOKENIZER.encode_template('1+1=') == TOKENIZER.encode('1+1=')
  assert TOKENIZER.protect('1+1') == TOKENIZER.plain('1+1') == '1+1'


def test_characters_have_no_chat_template():
  with pytest.raises(ConfigError, match='tokenizer.path is none.*no chat template.*views.chat=false'):
    TOKENIZER.chat([Message('user', '1')])


def test_ids_of_a_padded_head_are_shown_by_number():
  assert TOKENIZER.token_text(TOKENIZER.vocab_size - 1) == ':'
  assert TOKENIZER.token_text(TOKENIZER.vocab_size) == '<20>'


def test_unknown_characters_are_named():
  with pytest.raises(ConfigError, match=r"'1x\+y'.*\['x', 'y'\].*tokenizer.alphabet"):
    TOKENIZER.encode('1x+y')


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (TokenizerConfig(alphabet=''), 'tokenizer.alphabet is empty'),
    (TokenizerConfig(alphabet='abca'), r"tokenizer.alphabet is 'abca'.*\['a'\].*more than once"),
    (TokenizerConfig(chat_template='a.jinja'), "chat_template is 'a.jinja'.*set tokenizer.path"),
    (TokenizerConfig(eos_tokens=('a',)), r"eos_tokens is \('a',\).*set tokenizer.path"),
    (TokenizerConfig(control_tokens_in_data=True), 'control_tokens_in_data is True.*set tokenizer.path'),
    (TokenizerConfig(path='a', eos_tokens=('b', 'b')), r"eos_tokens names \['b'\] more than once"),
  ],
)
def test_settings_that_cannot_work(config, message):
  with pytest.raises(ConfigError, match=message):
    lib.validate(config)


def test_the_default_is_valid():
  lib.validate(TokenizerConfig())


def test_a_tokenizer_is_made_once():
  assert make_tokenizer(TokenizerConfig()) is TOKENIZER


@pytest.mark.parametrize('kind', [type(TOKENIZER), PretrainedTokenizer])
def test_every_tokenizer_does_what_the_protocol_asks(kind):
  for name, member in vars(lib.Tokenizer).items():
    if not name.startswith('_'):
      own = inspect.getattr_static(kind, name, None)
      known = own is not None or name in kind.__dataclass_fields__
      assert known, f'{kind.__name__} has no {name}'
      if inspect.isfunction(member):
        assert inspect.signature(own) == inspect.signature(member)


def test_small_runs_do_not_wait_for_what_they_do_not_use():
  program = (
    'import sys, opsd_jax.text.tokenizer as t; t.make_tokenizer(t.TokenizerConfig()); print(*sys.modules)'
  )
  loaded = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout
  assert not {'tokenizers', 'jinja2', 'sentencepiece', 'google.protobuf'} & set(loaded.split())
