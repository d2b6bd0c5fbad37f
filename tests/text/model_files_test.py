"""Which of a model's files count, and what is said about those that are missing or broken."""

import gzip
import shutil

import pytest
from tokenizers import Tokenizer, processors

from opsd_jax.config import ConfigError
from opsd_jax.text.tokenizer import Message, TokenizerConfig, make_tokenizer, validate
from tests.text import small

RAW = Tokenizer.from_str(small.subwords_json())
END, TEXT_END = RAW.token_to_id('<|im_end|>'), RAW.token_to_id('<|endoftext|>')


def make(path, **settings):
  return make_tokenizer(TokenizerConfig(path=str(path), **settings))


def refused(path, message, **settings):
  with pytest.raises(ConfigError, match=message):
    validate(TokenizerConfig(path=str(path), **settings))


def test_a_file_is_read_with_its_neighbours(tmp_path):
  folder = small.write_subwords(tmp_path)
  tokenizer = make(folder / 'tokenizer.json')
  assert tokenizer.eos_ids == (END,) and tokenizer.chat([Message('user', 'a')]).startswith('<|im_start|>')


def test_contents_decide_what_a_file_is(tmp_path):
  folder = small.write_subwords(tmp_path)
  (folder / 'tokenizer.json').rename(folder / 'tokenizer.model')
  assert make(folder).encode('a') == RAW.encode('a').ids


def test_tokenizer_json_comes_before_tokenizer_model(tmp_path):
  small.write_pieces(small.write_subwords(tmp_path))
  assert make(tmp_path).vocab_size == RAW.get_vocab_size()


@pytest.mark.parametrize(
  ('named', 'generation', 'expected'),
  [
    ('<|im_end|>', None, (END,)),
    ('<|im_end|>', END, (END,)),
    ('<|im_end|>', [TEXT_END, END], (END, TEXT_END)),
    ({'content': '<|im_end|>', 'lstrip': False}, [TEXT_END], (END, TEXT_END)),
    (None, [TEXT_END, END, TEXT_END], (TEXT_END, END)),
    (None, 0, (0,)),
  ],
)
def test_what_ends_a_completion(tmp_path, named, generation, expected):
  small.write_subwords(tmp_path, eos_token=named)
  small.write_json(tmp_path / 'generation_config.json', {'eos_token_id': generation, 'top_k': 20})
  assert make(tmp_path).eos_ids == expected


def test_the_config_says_what_ends_a_completion(tmp_path):
  small.write_subwords(tmp_path)
  named = make(tmp_path, eos_tokens=('</think>', '<|endoftext|>', 'a'))
  assert named.eos_ids == (RAW.token_to_id('</think>'), TEXT_END, RAW.token_to_id('a'))


def test_special_tokens_map_fills_gaps(tmp_path):
  (small.write_subwords(tmp_path) / 'tokenizer_config.json').unlink()
  small.write_json(tmp_path / 'special_tokens_map.json', {'eos_token': {'content': '<|im_end|>'}})
  assert make(tmp_path).eos_ids == (END,)
  small.write_json(tmp_path / 'tokenizer_config.json', {'eos_token': '<|endoftext|>'})
  assert make(tmp_path / 'tokenizer.json').eos_ids == (TEXT_END,)


@pytest.mark.parametrize(
  ('settings', 'step', 'expected'),
  [
    ({}, False, ()),
    ({'bos_token': '<|endoftext|>'}, False, ()),
    ({'bos_token': '<|endoftext|>', 'add_bos_token': True}, False, (TEXT_END,)),
    ({'bos_token': '<|endoftext|>', 'add_bos_token': False}, True, ()),
    ({'bos_token': None, 'add_bos_token': True}, True, (END,)),
    ({}, True, (END,)),
  ],
)
def test_what_begins_a_prompt(tmp_path, settings, step, expected):
  folder = small.write_subwords(tmp_path, **settings)
  if step:
    raw = Tokenizer.from_str(small.subwords_json())
    both = [('<|im_end|>', END), ('<|endoftext|>', TEXT_END)]
    raw.post_processor = processors.TemplateProcessing('<|im_end|> $A <|endoftext|>', None, both)
    raw.save(str(folder / 'tokenizer.json'))
  tokenizer = make(folder)
  assert tokenizer.bos_ids == expected
  assert tokenizer.encode_template('a') == tokenizer.encode('a') == [RAW.token_to_id('a')]


def test_tokens_that_only_the_settings_list(tmp_path):
  size = RAW.get_vocab_size()
  listed = {str(size): {'content': '<tool>', 'special': False}, str(TEXT_END): {'content': '<|endoftext|>'}}
  small.write_subwords(tmp_path, added_tokens_decoder=listed, pad_token='</think>')
  tokenizer = make(tmp_path)
  assert tokenizer.encode_template('<tool>') == [size] and tokenizer.vocab_size == size + 1
  assert size not in tokenizer.encode('<tool>')
  assert tokenizer.decode(tokenizer.encode_template('a</think><tool>')) == 'a<tool>'


def test_an_ordinary_token_that_ends_a_completion_is_special(tmp_path):
  tokenizer = make(small.write_subwords(tmp_path, eos_token='~'))
  (tilde,) = tokenizer.eos_ids
  assert tokenizer.decode(tokenizer.encode_template('a~b')) == 'ab' and tilde == RAW.token_to_id('~')
  # The bytes of the character are the token itself, so text that is data has no other ids.
  assert tokenizer.encode_template(tokenizer.protect('a~b')) == tokenizer.encode('a~b')


TEMPLATES = {
  'chat_template.jinja': 'file',
  'chat_templates/default.jinja': 'folder',
  'chat_template.json': {'chat_template': 'json'},
  'tokenizer_config.json': {
    'chat_template': [{'name': 'rag', 'template': 'r'}, {'name': 'default', 'template': 'config'}]
  },
}


def test_where_the_chat_template_comes_from(tmp_path):
  (tmp_path / 'own.jinja').write_text('own')
  for first, expected in enumerate(['file', 'folder', 'json', 'config']):
    folder = small.write_subwords(tmp_path / str(first))
    (folder / 'chat_templates').mkdir()
    for name, content in list(TEMPLATES.items())[first:]:
      if isinstance(content, str):
        (folder / name).write_text(content)
      else:
        small.write_json(folder / name, {'eos_token': '<|im_end|>'} | content)
    assert make(folder).chat([]) == expected
    assert make(folder, chat_template=str(tmp_path / 'own.jinja')).chat([]) == 'own'


def test_no_chat_template(tmp_path):
  tokenizer = make(small.write_subwords(tmp_path, chat_template=None))
  with pytest.raises(ConfigError, match='no chat template; set tokenizer.chat_template.*views.chat=false'):
    tokenizer.chat([Message('user', 'a')])


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ('{% if %}', 'the chat template of .*tokenizer_config.json cannot be parsed, line 1'),
    ([{'name': 'rag', 'template': ''}], 'is a list without a default one.*rag.*tokenizer.chat_template'),
    (7, 'chat template of .*tokenizer_config.json is 7, not a text'),
  ],
)
def test_chat_templates_that_cannot_work(tmp_path, template, message):
  refused(small.write_subwords(tmp_path, chat_template=template), message)


def test_a_chat_template_that_is_missing(tmp_path):
  message = "tokenizer.chat_template is '.*no.jinja', which is no file"
  refused(small.write_subwords(tmp_path), message, chat_template=str(tmp_path / 'no.jinja'))


def test_a_path_that_does_not_exist(tmp_path):
  refused(tmp_path / 'no', "tokenizer.path is '.*no', which does not exist; set it to")


def test_folders_without_a_vocabulary(tmp_path):
  refused(tmp_path, 'neither tokenizer.json nor tokenizer.model; it holds nothing')
  (tmp_path / 'config.json').touch()
  refused(tmp_path, "it holds config.json; name a model's folder")
  for name in ('vocab.json', 'merges.txt', *map(str, range(20))):
    (tmp_path / name).touch()
  refused(tmp_path, r'it holds 0, .*, \.\.\.; save these once.*AutoTokenizer.*save_pretrained')


@pytest.mark.parametrize('content', ['{', '{"model": {}}', '{"version": "1.0", "model": {"type": "New"}}'])
def test_a_broken_vocabulary(tmp_path, content):
  (tmp_path / 'tokenizer.json').write_text(content)
  refused(tmp_path, 'tokenizer.json cannot be read as a tokenizer.json: .*get the file again')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'neither a SentencePiece model nor a rank file'),
    (b'\x00\x01\x02 no model', 'neither a SentencePiece model nor a rank file.*tokenizer.json'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'is a Git LFS pointer.*git lfs pull'),
    (gzip.compress(b'{}', mtime=0), 'is compressed; unpack it'),
  ],
)
def test_files_that_are_no_vocabulary(tmp_path, content, message):
  (tmp_path / 'tokenizer.model').write_bytes(content)
  refused(tmp_path, f'tokenizer.model .*{message}')


@pytest.mark.parametrize(
  'name', ['tokenizer_config.json', 'generation_config.json', 'special_tokens_map.json']
)
def test_broken_settings(tmp_path, name):
  small.write_subwords(tmp_path)
  for content, message in (
    (b'{', 'is not JSON'),
    (b'[]', 'holds no JSON object'),
    (b'\xff', 'cannot be read'),
  ):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, f'{name} {message}.*get the file again')


def test_tokens_that_do_not_exist(tmp_path):
  folder = small.write_subwords(tmp_path)
  refused(
    folder, r"tokenizer.eos_tokens has '<im_end>'.*Did you mean '<\|im_end\|>'", eos_tokens=('<im_end>',)
  )
  small.write_subwords(tmp_path, eos_token='<end>')
  refused(folder, "eos_token of tokenizer_config.json has '<end>', which is no token")
  small.write_subwords(tmp_path, bos_token='<bos>', add_bos_token=True)
  refused(folder, "bos_token of tokenizer_config.json has '<bos>', which is no token")


@pytest.mark.parametrize('value', [10**6, [0, 10**6], [-1], ['<|im_end|>']])
def test_ids_of_another_model(tmp_path, value):
  small.write_subwords(tmp_path)
  small.write_json(tmp_path / 'generation_config.json', {'eos_token_id': value})
  refused(tmp_path, 'eos_token_id of generation_config.json is .*ids 0 to .*tokenizer.eos_tokens')


def test_settings_of_another_model(tmp_path):
  small.write_subwords(tmp_path, added_tokens_decoder={'9999': {'content': '<tool>'}})
  refused(tmp_path, "gives '<tool>' the id 9999, but .* not of one model")


@pytest.mark.parametrize(
  ('listed', 'message'),
  [
    ([], r'is \[\], not tokens by id'),
    ([{'content': 'x'}], 'is .*, not tokens by id'),
    ('x' * 999, 'is .{64}, not tokens by id'),
    ({'one': {'content': 'x'}}, "has the id 'one', which is no number"),
    ({'7': {'special': True}}, '7 is .*, which has no text `content`'),
    ({'7': {'content': 7}}, '7 is .*, which has no text `content`'),
    ({'7': 'x'}, "7 is 'x', which has no text `content`"),
    ({'7': {'content': 'x', 'special': 'no'}}, "7.special is 'no'; it must be true or false"),
    ({'7': {'content': 'x', 'lstrip': None}}, '7.lstrip is None; it must be true or false'),
  ],
)
def test_malformed_tokens_of_the_settings(tmp_path, listed, message):
  subwords = small.write_subwords(tmp_path / 'subwords', added_tokens_decoder=listed)
  pieces = small.write_pieces(tmp_path / 'pieces', {'added_tokens_decoder': listed})
  for folder in (subwords, pieces):
    refused(folder, f'{folder}/tokenizer_config.json: added_tokens_decoder.*{message}')


def test_paths_of_ones_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  small.write_subwords(tmp_path / 'model')
  (tmp_path / 'own.jinja').write_text('own')
  assert make('~/model', chat_template='~/own.jinja').chat([]) == 'own'
  assert make('~/model/tokenizer.json').eos_ids == (END,)


def test_nothing_ends_a_completion(tmp_path):
  folder = small.write_subwords(tmp_path, eos_token=None)
  refused(folder, 'nothing beside .* says which token ends a completion.*tokenizer.eos_tokens')
  assert make(folder, eos_tokens=('<|im_end|>',)).eos_ids == (END,)
  shutil.rmtree(folder)
