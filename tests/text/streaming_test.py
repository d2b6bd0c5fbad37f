"""Whatever ids come, the streamed texts make up what decode gives; and no text waits longer than it must."""

import functools
import gzip
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from opsd_jax.text.tokenizer import Message, TokenizerConfig, make_tokenizer
from tests.text import small

TEXTS = (
  'Plain words, then 12 + 30 = 42.\n\n  Indented\ttext  \n',
  '中文字符，日本語テスト、한국어 조선말, العربية',
  '😀👩🏽‍🚀🇩🇪 e\u0301 ﬁ \x00 NUL \x00\x01 \ufffd \ufdd0 \u2028 𝄞',
  ' leading and trailing ',
  '   ',
)


def streamed(tokenizer, ids):
  """The texts of `ids` one by one, and that of the end."""
  stream, texts = tokenizer.stream(), []
  for token in ids:
    stream, text = stream.feed(token)
    texts.append(text)
  return [*texts, stream.finish()]


def assert_exact(tokenizer, ids):
  assert ''.join(streamed(tokenizer, ids)) == tokenizer.decode(ids), ids


def byte_fallback_json(*last):
  """A pipeline as Llama 2's tokenizer.json has it: bytes as pieces, a blank stripped at the beginning."""
  from tokenizers import AddedToken, Tokenizer, decoders, models

  words = [*(f'<0x{i:02X}>' for i in range(256)), '▁', 'a', '▁b', '▁▁', '中', '▁<0xE4>', '<unk>']
  vocabulary = {word: i for i, word in enumerate(words)}
  tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token='<unk>'))
  steps = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), *last]
  tokenizer.decoder = decoders.Sequence(steps)
  tokenizer.add_tokens([AddedToken('<s>', special=True), AddedToken('</s>', special=True), '<think>'])
  return tokenizer.to_str()


def from_json(folder, text):
  (folder / 'tokenizer.json').write_text(text)
  small.write_json(folder / 'tokenizer_config.json', {'eos_token': '</s>'})
  return make_tokenizer(TokenizerConfig(path=str(folder)))


@pytest.fixture(scope='module')
def kinds(tmp_path_factory):
  """A tokenizer of each kind and its ids."""
  from tokenizers import decoders

  new = functools.partial(tmp_path_factory.mktemp, 'streaming')
  load = lambda path: make_tokenizer(TokenizerConfig(path=str(path)))  # noqa: E731
  more = {
    'added_tokens_decoder': {
      '330': {'content': '<more>'},
      '331': {'content': '<hidden>', 'special': True},
      '332': {'content': '▁<x>'},
    }
  }
  return {
    'characters': make_tokenizer(TokenizerConfig(alphabet='ab é中😀\x00')),
    'subwords': load(small.write_subwords(new())),
    'llama2': from_json(new(), byte_fallback_json(decoders.Strip(' ', 1, 0))),
    'gemma': from_json(new(), byte_fallback_json()),
    'pieces': load(small.write_pieces(new(), {'eos_token': '</s>'})),
    'pieces with a blank first': load(small.write_pieces(new(), more, add_dummy_prefix=True)),
    'pieces without blanks': load(
      small.write_pieces(new(), more, add_dummy_prefix=True, remove_extra_whitespaces=True)
    ),
  }


KINDS = (
  'characters',
  'subwords',
  'llama2',
  'gemma',
  'pieces',
  'pieces with a blank first',
  'pieces without blanks',
)


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.settings(max_examples=150)
@hypothesis.given(data=st.data())
def test_any_ids(kinds, kind, data):
  tokenizer = kinds[kind]
  assert_exact(tokenizer, data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=24)))


@pytest.mark.parametrize('kind', KINDS[1:])
@hypothesis.settings(max_examples=150)
@hypothesis.given(data=st.data())
def test_bytes_among_blanks(kinds, kind, data):
  """Bytes good and bad, blanks and special tokens are where the rules meet."""
  tokenizer = kinds[kind]
  names = ['▁', '▁b', 'a', '▁a', '▁▁', '</s>', '<think>', '<|im_end|>', '<hidden>', '▁<x>', '<turn>', 'Ġ']
  bad = ['<0xE4>', '<0xB8>', '<0xAD>', '<0xFF>', '<0xF0>', '<0x9F>', '<0x98>', '<0x80>', '<0x41>', '<0xED>']
  known = [tokenizer.codec.token_id(name) for name in (*names, *bad, *'äĳĨÿðŁĺĢ')]
  choices = [i for i in known if i is not None]
  assert_exact(tokenizer, data.draw(st.lists(st.sampled_from(choices), max_size=12)))


@pytest.mark.parametrize('kind', KINDS[1:])
def test_texts(kinds, kind):
  for text in TEXTS:
    assert_exact(kinds[kind], kinds[kind].encode(text))


@pytest.mark.parametrize('kind', ['subwords', 'pieces'])
def test_a_character_comes_out_with_its_last_byte(kinds, kind):
  tokenizer = kinds[kind]
  ids = tokenizer.encode('a😁😂')  # characters that no text of the vocabulary had
  texts = streamed(tokenizer, ids)
  assert len(ids) >= 6 and [text for text in texts if text] == ['a', '😁', '😂'] and texts[-1] == ''


def test_a_run_of_bytes_that_is_read_as_a_whole_waits_for_its_end(kinds):
  """One more byte could still spoil the character before it."""
  tokenizer, name = kinds['llama2'], kinds['llama2'].codec.token_id
  run = [name(piece) for piece in ('<0xE4>', '<0xB8>', '<0xAD>')]
  assert streamed(tokenizer, [*run, name('a')]) == ['', '', '', '中a', '']
  assert streamed(tokenizer, [*run, name('<0xFF>')]) == ['', '', '', '', '\ufffd' * 4]


def test_what_is_incomplete_at_the_end_is_shown(kinds):
  tokenizer = kinds['subwords']
  ids = tokenizer.encode('a😁')[:-1]
  assert streamed(tokenizer, ids)[-1] == '\ufffd' and tokenizer.decode(ids) == 'a\ufffd'


def test_special_tokens_are_left_out_and_break_no_character(kinds):
  tokenizer = kinds['subwords']
  first, *others = tokenizer.encode('😁')
  ids = [first, tokenizer.codec.token_id('<|im_end|>'), *others]
  assert ''.join(streamed(tokenizer, ids)) == '😁'


def test_a_point_in_a_text_is_a_value(kinds):
  stream, _ = kinds['subwords'].stream().feed(kinds['subwords'].encode('😁')[0])
  one, other = stream.feed(5), stream.feed(9)
  assert stream.feed(5) == one and one != other


def test_a_long_text_takes_no_longer_a_token(kinds):
  tokenizer = kinds['subwords']
  stream = tokenizer.stream()
  for token in tokenizer.encode('😁')[:1] * 20_000:  # the worst: every token begins a character
    stream, _ = stream.feed(token)
  assert len(stream.held) <= 3


# Real vocabularies.


REAL = ('qwen3_built', 'llama3', 'deepseek_r1', 'gemma_like_spm', 'llama2_spm', 'c4_32k_spm', 'spm_test')


@pytest.fixture(scope='module', params=REAL)
def real(request, data_root, tmp_path_factory):
  folder = data_root / 'tokenizers' / request.param
  if request.param == 'spm_test':
    folder = folder / 'test_model.model'
  if request.param == 'deepseek_r1':
    packed, folder = folder, tmp_path_factory.mktemp('deepseek')
    (folder / 'tokenizer.json').write_bytes(gzip.decompress((packed / 'tokenizer.json.gz').read_bytes()))
    (folder / 'tokenizer_config.json').write_bytes((packed / 'tokenizer_config.json').read_bytes())
  return make_tokenizer(TokenizerConfig(path=str(folder)))


@pytest.mark.data
def test_real_vocabularies_with_any_ids(real):
  draw = random.Random(0)
  for _ in range(400):
    assert_exact(real, [draw.randrange(real.vocab_size + 2) for _ in range(draw.randrange(40))])


@pytest.mark.data
def test_real_vocabularies_with_low_ids(real):
  """Where single bytes, blanks and special tokens are."""
  draw = random.Random(1)
  for _ in range(400):
    assert_exact(real, [draw.randrange(300) for _ in range(draw.randrange(20))])


@pytest.mark.data
def test_real_vocabularies_with_texts_cut_anywhere(real):
  draw = random.Random(2)
  for text in (*TEXTS, ''.join(TEXTS)):
    ids = real.encode(text)
    for _ in range(20):
      start, end = sorted((draw.randrange(len(ids) + 1), draw.randrange(len(ids) + 1)))
      assert_exact(real, ids[start:end])


@pytest.mark.data
def test_qwen3_holds_back_no_complete_character(data_root):
  qwen = make_tokenizer(TokenizerConfig(path=str(data_root / 'tokenizers' / 'qwen3_built')))
  ids = qwen.encode_template('hi 🦜' + qwen.chat([Message('user', '中')]))
  shown = ''
  for i, text in enumerate(streamed(qwen, ids)[:-1]):
    shown += text
    assert shown == qwen.decode(ids[: i + 1]).rstrip('\ufffd')
