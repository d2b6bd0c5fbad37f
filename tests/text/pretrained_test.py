"""A model's own tokenizer.json: what is data, what is control, and what people see."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from opsd_jax.config import ConfigError
from opsd_jax.text.marks import CLOSE, OPEN
from opsd_jax.text.tokenizer import Message, TokenizerConfig, make_tokenizer
from tests.text import small

RAW = Tokenizer.from_str(small.subwords_json())
IDS = {name: RAW.token_to_id(name) for name, *_ in small.ADDED}
CONTROL_IDS = {IDS[name] for name in small.CONTROL}
BITS = st.sampled_from(
  [
    *small.CONTROL,
    OPEN,
    CLOSE,
    '\ufdd2',
    ' ',
    '\n',
    '   ',
    '<',
    '|',
    'S',
    'x',
    '<|im_',
    '＜sep＞',
    '中',
    'é',
    '😀',
  ]
)
TEXTS = st.lists(BITS | st.text(max_size=4), max_size=10).map(''.join)
PLAIN = TEXTS.filter(lambda text: OPEN not in text and CLOSE not in text)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small.write_subwords(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def tokenizer(folder):
  return make_tokenizer(TokenizerConfig(path=str(folder)))


def raw_ids(text):
  return RAW.encode(text, add_special_tokens=False).ids


@given(TEXTS)
def test_data_never_becomes_control(tokenizer, text):
  assert not CONTROL_IDS & set(tokenizer.encode(text))
  assert not CONTROL_IDS & set(tokenizer.encode_template(tokenizer.protect(text)))


@given(TEXTS)
def test_data_survives(tokenizer, text):
  """The vocabulary normalizes to NFKC, and knows every byte."""
  expected = unicodedata.normalize('NFKC', text)
  assert tokenizer.decode(tokenizer.encode(text)) == expected
  assert tokenizer.plain(tokenizer.protect(text)) == text


@given(TEXTS)
def test_protected_data_is_encoded_as_data(tokenizer, text):
  assert tokenizer.encode_template(tokenizer.protect(text)) == tokenizer.encode(text)


@given(PLAIN)
def test_a_template_is_what_the_package_makes_of_it(tokenizer, text):
  assert tokenizer.encode_template(text) == raw_ids(text)


@given(PLAIN.filter(lambda text: '＜' not in text))
def test_marks_elsewhere_change_nothing(tokenizer, text):
  """Half a mark means nothing, but takes the way of texts with marks."""
  assert tokenizer.encode_template(text + CLOSE) == raw_ids(text)


@given(TEXTS)
def test_a_conversation_keeps_its_turns(tokenizer, text):
  ids = tokenizer.encode_template(tokenizer.chat([Message('user', tokenizer.protect(text))]))
  start, end = [IDS['<|im_start|>']], [IDS['<|im_end|>']]
  head, middle = [*start, *raw_ids('user\n')], [*end, *raw_ids('\n'), *start, *raw_ids('assistant\n')]
  assert ids[: len(head) - 1] == head[:-1] and ids[-len(middle) :] == middle
  inside = ids[1 : -len(middle)]
  assert not CONTROL_IDS & set(inside)
  assert tokenizer.decode(inside) == unicodedata.normalize('NFKC', 'user\n' + text)


@given(PLAIN)
def test_data_may_be_parsed_as_transformers_does(folder, text):
  parsing = make_tokenizer(TokenizerConfig(path=str(folder), control_tokens_in_data=True))
  assert parsing.encode(text) == parsing.encode_template(parsing.protect(text)) == raw_ids(text)
  assert parsing.protect(text) == parsing.plain(text) == text


def test_parsed_data_may_hold_the_marks(folder):
  parsing = make_tokenizer(TokenizerConfig(path=str(folder), control_tokens_in_data=True))
  text = f'a{OPEN}<think>{CLOSE}b'
  assert parsing.plain(text) == text and parsing.encode_template(text) == raw_ids(text)


def test_control_tokens_are_the_added_ones_but_for_blanks(tokenizer):
  assert set(tokenizer.codec.control) == set(small.CONTROL)
  assert IDS['   '] in tokenizer.encode('a   b')
  assert tokenizer.encode('a   b') == raw_ids('a   b')


def test_tokens_take_the_blanks_that_they_took_before(tokenizer):
  text = tokenizer.protect('<think>') + 'a  <mask>  b  <pad>  c  <both>  d'
  expected = [*tokenizer.encode('<think>a'), IDS['<mask>'], *raw_ids('  b  '), IDS['<pad>'], *raw_ids('c')]
  assert tokenizer.encode_template(text) == [*expected, IDS['<both>'], *raw_ids('d')]


def test_the_longest_token_counts(tokenizer):
  text = '<|im_start|>x<|im_start|>'
  assert tokenizer.encode_template(text) == [IDS['<|im_start|>x'], IDS['<|im_start|>']]
  assert tokenizer.encode_template(text + CLOSE) == [IDS['<|im_start|>x'], IDS['<|im_start|>']]


def test_letters_that_normalize_to_a_token_are_data_too(tokenizer):
  assert raw_ids('＜sep＞') == [IDS['<sep>']]
  assert IDS['<sep>'] not in tokenizer.encode_template(tokenizer.protect('＜sep＞'))
  assert tokenizer.encode_template(tokenizer.protect('＜sep＞') + '<sep>')[-1] == IDS['<sep>']


def test_decoding_leaves_special_tokens_out(tokenizer):
  ids = tokenizer.encode_template('<|im_start|>a<think>b</think>c<|im_end|>')
  assert tokenizer.decode(ids) == 'a<think>b</think>c'
  assert tokenizer.decode([*ids, tokenizer.vocab_size, 10**6]) == 'a<think>b</think>c'
  assert tokenizer.decode([]) == ''


def test_one_id_as_a_person_reads_it(tokenizer):
  shown = [tokenizer.token_text(i) for i in tokenizer.encode_template('<|im_start|> x\n\x00ÿ<é><think>')]
  assert shown == ['<|im_start|>', ' ', 'x', '\n', '\x00', '<0xC3>', '<0xBF>', '<é>', '<think>']
  assert [tokenizer.token_text(i) for i in (tokenizer.vocab_size, -1)] == [
    f'<{tokenizer.vocab_size}>',
    '<-1>',
  ]


@settings(max_examples=30)
@given(TEXTS)
def test_shown_ids_hold_every_byte(tokenizer, text):
  raw = b''
  for shown in map(tokenizer.token_text, tokenizer.encode(text)):
    head, *parts = shown.split('<0x') if len(shown) > 3 else [shown]
    raw += head.encode() + b''.join(bytes([int(p[:2], 16)]) + p[3:].encode() for p in parts)
  assert raw.decode() == unicodedata.normalize('NFKC', text)


def test_every_id_is_below_the_size(tokenizer):
  assert tokenizer.vocab_size == RAW.get_vocab_size() == max(IDS.values()) + 1


def test_truncation_and_padding_of_the_file_do_not_count(tmp_path):
  cut = Tokenizer.from_str(small.subwords_json())
  cut.enable_truncation(3)
  cut.enable_padding(length=5)
  cut.save(str(small.write_subwords(tmp_path) / 'tokenizer.json'))
  tokenizer = make_tokenizer(TokenizerConfig(path=str(tmp_path)))
  for text in ('a', 'twelve apples and <think>'):
    assert tokenizer.encode_template(text) == raw_ids(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_chat_template_gets_the_tokens_and_the_wish_to_think(tmp_path):
  source = '{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ enable_thinking }}'
  bos = {'content': '<|endoftext|>', 'lstrip': False}
  small.write_subwords(tmp_path, bos_token=bos, unk_token=None, chat_template=source)
  tokenizer = make_tokenizer(TokenizerConfig(path=str(tmp_path)))
  assert tokenizer.chat([Message('user', 'a')], thinking=True) == '<|endoftext|>|<|im_end|>||True'


def test_contents_go_into_a_conversation_as_they_are(tokenizer):
  text = tokenizer.chat([Message('system', 's'), Message('user', '<|im_end|>')], thinking=False)
  assert text == (
    '<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n<|im_end|><|im_end|>\n'
    '<|im_start|>assistant\n<think>\n\n</think>\n\n'
  )


@pytest.mark.parametrize('scheme', ['first', 'always', 'never'])
def test_pipelines_that_look_at_the_beginning_of_a_text(tmp_path, scheme):
  """Where blanks are put before the first word alone, the text after a token is no beginning."""
  from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

  raw = Tokenizer(models.BPE(unk_token='<unk>'))
  raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
  raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
  trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=['<unk>'], show_progress=False)
  raw.train_from_iterator(small.CORPUS, trainer)
  raw.add_tokens([AddedToken('<|im_end|>', special=True, normalized=False)])
  raw.save(str(small.write_subwords(tmp_path) / 'tokenizer.json'))
  tokenizer = make_tokenizer(TokenizerConfig(path=str(tmp_path)))
  text = 'Ann has<|im_end|>apples<|im_end|> fährtä'
  ids = raw.encode(text, add_special_tokens=False).ids
  assert tokenizer.encode_template(text) == tokenizer.encode_template(text + CLOSE) == ids
  shown = ''.join(tokenizer.token_text(i) for i in ids)
  assert (
    shown
    == {
      'first': ' Ann has<|im_end|>apples<|im_end|> fährtä',
      'always': ' Ann has<|im_end|> apples<|im_end|> fährtä',
      'never': text,
    }[scheme]
  )


def test_half_characters_are_named(tokenizer):
  for method in (tokenizer.encode, tokenizer.encode_template):
    with pytest.raises(ConfigError, match=r"'seven \\ud83d apples' holds half a character.*repair the data"):
      method('seven \ud83d apples')
