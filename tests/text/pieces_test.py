"""SentencePiece models: their control pieces and symbols, and what a settings file adds."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from opsd_jax.text.marks import CLOSE, OPEN
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer
from tests.text import small

RAW = SentencePieceProcessor(model_proto=small.pieces_model())
CONTROL = ('<s>', '</s>', '<image>', '<turn>', '<end>')
IDS = {name: RAW.piece_to_id(name) for name in CONTROL}
BITS = st.sampled_from(
  [*CONTROL, OPEN, CLOSE, '\ufdd2', ' ', '  ', '\n', '\n\n', '<', 'x', '中', '<0x41>', 'é']
)
# SentencePiece writes a blank as ▁ and reads ▁ back as a blank, so that character is lost.
TEXTS = st.lists(BITS | st.text(max_size=4), max_size=10).map(lambda bits: ''.join(bits).replace('▁', '_'))


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return make_tokenizer(TokenizerConfig(path=str(small.write_pieces(tmp_path_factory.mktemp('model')))))


@given(TEXTS)
def test_data_never_becomes_control_and_survives(tokenizer, text):
  ids = tokenizer.encode(text)
  assert not set(IDS.values()) & set(ids)
  assert tokenizer.decode(ids) == text == tokenizer.plain(tokenizer.protect(text))
  assert tokenizer.encode_template(tokenizer.protect(text)) == ids


@given(TEXTS.filter(lambda text: not any(name in text for name in ('<s>', '</s>', '<image>'))))
def test_a_template_is_what_the_package_makes_of_it(tokenizer, text):
  """The package finds symbols in a text by itself, but no control pieces."""
  if OPEN not in text and CLOSE not in text:
    assert tokenizer.encode_template(text) == tokenizer.encode_template(text + CLOSE) == RAW.encode(text)


def test_control_pieces_are_found_in_templates(tokenizer):
  ids = tokenizer.encode_template('<s><turn>a\n\n<end></s>')
  assert ids == [IDS['<s>'], IDS['<turn>'], *RAW.encode('a\n\n'), IDS['<end>'], IDS['</s>']]
  assert tokenizer.decode(ids) == '<turn>a\n\n<end>'


def test_runs_of_blanks_are_text(tokenizer):
  assert tokenizer.encode('a\n\nb') == RAW.encode('a\n\nb')
  assert '\n\n' not in tokenizer.codec.control and set(tokenizer.codec.control) == set(CONTROL)


def test_one_id_as_a_person_reads_it(tokenizer):
  ids = tokenizer.encode_template('<turn> xÿ\x00<s>')
  shown = ['<turn>', ' ', 'x', '<0xC3>', '<0xBF>', '\x00', '<s>']
  assert [tokenizer.token_text(i) for i in ids] == shown
  assert [tokenizer.token_text(i) for i in (0, tokenizer.vocab_size, -1)] == ['<unk>', '<330>', '<-1>']
  assert tokenizer.decode([*ids, tokenizer.vocab_size, -1]) == '<turn> xÿ\x00'


def test_a_model_that_begins_every_text_with_a_blank(tmp_path):
  options = dict(add_dummy_prefix=True, remove_extra_whitespaces=True, normalization_rule_name='nmt_nfkc')
  tokenizer = make_tokenizer(TokenizerConfig(path=str(small.write_pieces(tmp_path, **options))))
  raw = SentencePieceProcessor(model_proto=small.pieces_model(**options))
  for text in ('apples', '<turn>apples of Ben<end>Ann', 'Ann   has<turn>'):
    assert tokenizer.encode_template(text) == tokenizer.encode_template(text + CLOSE) == raw.encode(text)
  assert tokenizer.decode(tokenizer.encode('Ben  has <turn>')) == 'Ben has <turn>'


@pytest.mark.parametrize(
  ('settings', 'bos', 'eos'),
  [
    (None, (), (2,)),
    ({'bos_token': '<s>', 'eos_token': '<end>'}, (), (IDS['<end>'],)),
    ({'bos_token': '<s>', 'add_bos_token': True}, (1,), (2,)),
    ({'bos_token': '<s>', 'add_bos_token': False}, (), (2,)),
  ],
)
def test_first_and_last_tokens(tmp_path, settings, bos, eos):
  tokenizer = make_tokenizer(TokenizerConfig(path=str(small.write_pieces(tmp_path, settings))))
  assert (tokenizer.bos_ids, tokenizer.eos_ids) == (bos, eos)


def test_tokens_that_only_the_settings_list(tmp_path):
  listed = {
    '330': {'content': '<tool>', 'special': False},
    '331': {'content': '<pad>', 'special': True},
    str(IDS['<turn>']): {'content': '<turn>', 'special': True},
  }
  tokenizer = make_tokenizer(
    TokenizerConfig(path=str(small.write_pieces(tmp_path, {'added_tokens_decoder': listed})))
  )
  ids = tokenizer.encode_template('<turn>a<tool>b<pad>c')
  a, b, c = (RAW.encode(letter) for letter in 'abc')
  assert ids == [IDS['<turn>'], *a, 330, *b, 331, *c] and tokenizer.vocab_size == 332
  assert tokenizer.decode(ids) == 'a<tool>bc'
  assert [tokenizer.token_text(i) for i in (330, 331, 332)] == ['<tool>', '<pad>', '<332>']
  assert not {330, 331} & set(tokenizer.encode('<tool><pad>'))


def test_the_chat_template_knows_the_models_own_tokens(tmp_path):
  (small.write_pieces(tmp_path) / 'chat_template.jinja').write_text('{{ bos_token }}|{{ eos_token }}')
  assert make_tokenizer(TokenizerConfig(path=str(tmp_path))).chat([]) == '<s>|</s>'


def test_what_a_model_is_read_from_does_not_change():
  """The trainer is given its sentences in order, so that ids in these tests stay."""
  assert isinstance(io.BytesIO(small.pieces_model()).getvalue(), bytes) and RAW.get_piece_size() == 330
