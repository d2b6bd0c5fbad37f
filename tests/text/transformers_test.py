"""Tokenizers and chat templates against Hugging Face transformers and tiktoken, as in tests/models.

The other side runs outside the repository, under the Python that OPSD_REFERENCE_PYTHON names, else
under this one.
"""

import gzip
import json
import os
import random
import subprocess

import pytest
from tokenizers import Tokenizer

from opsd_jax.config import ConfigError
from opsd_jax.text import chat
from opsd_jax.text.chat import ChatTemplate, Message
from opsd_jax.text.ranks import PATTERN, special_names
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer
from tests.models.transformers_test import reference_python
from tests.text import small

pytestmark = [pytest.mark.reference, pytest.mark.data]

PROGRAM = r"""
import base64
import importlib.util
import json
import transformers

given = json.load(open('given.json'))


def read(folder, texts):
  tok = transformers.AutoTokenizer.from_pretrained(folder)
  return tok, read_by(tok, texts)


def read_by(tok, texts):
  out = dict(size=len(tok), eos=tok.eos_token_id, parsed=[], data=[], decoded=[])
  for text in texts:
    ids = tok(text, add_special_tokens=False).input_ids
    out['parsed'].append(ids)
    out['data'].append(tok(text, add_special_tokens=False, split_special_tokens=True).input_ids)
    out['decoded'].append(tok.decode(ids, skip_special_tokens=True))
  return out


def converse(tok, source, messages, asked):
  try:
    text = tok.apply_chat_template(
      messages, chat_template=source, add_generation_prompt=True, tokenize=False, **asked)
  except Exception as error:
    return dict(error=str(error))
  return dict(text=text, ids=tok(text, add_special_tokens=False).input_ids)


def converted_llama(path, special):
  # As transformers makes a tokenizer out of Meta's file.
  from transformers.convert_slow_tokenizer import TikTokenConverter

  made = TikTokenConverter(vocab_file=path, extra_special_tokens=special).converted()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, bos_token='<|begin_of_text|>', eos_token='<|end_of_text|>')


def llama(path, pattern, special, texts):
  try:
    import tiktoken
  except ImportError:
    return None
  ranks = {}
  for line in open(path, 'rb'):
    token, rank = line.split()
    ranks[base64.b64decode(token)] = int(rank)
  ids = {name: len(ranks) + i for i, name in enumerate(special)}
  model = tiktoken.Encoding('llama3', pat_str=pattern, mergeable_ranks=ranks, special_tokens=ids)
  out = dict(data=[model.encode(text, disallowed_special=()) for text in texts])
  out['parsed'] = [model.encode(text, allowed_special='all') for text in texts]
  out['decoded'] = [model.decode(ids) for ids in out['data']]
  return out


qwen, out = read(given['qwen'], given['texts'])
out = dict(qwen=out)
out['conversations'] = [converse(qwen, *case) for case in given['conversations']]
known = importlib.util.find_spec('sentencepiece') is not None
others = [case for case in given['conversations'] if case[0] is not None]
out['gemma'] = None
if known:
  gemma, out['gemma'] = read(given['gemma'], given['few'])
  out['gemma']['conversations'] = [converse(gemma, *case) for case in others]
out['small'] = [read(folder, given['few'])[1] for folder in given['small']]
out['llama'] = llama(given['llama'], given['pattern'], given['special'], given['few'])
out['converted'] = None
if out['llama'] is not None:
  converted = converted_llama(given['llama'], given['special'])
  out['converted'] = read_by(converted, given['few'])
  out['converted']['conversations'] = [converse(converted, *case) for case in others]
json.dump(out, open('out.json', 'w'))
"""

CONTROL = ('<|im_start|>', '<|im_end|>', '<|endoftext|>')
OTHERS = ('<think>', '</think>', '<tool_call>', '<|eot_id|>', '<start_of_turn>', '<bos>', '<mask>')
CHARACTERS = (
  *'abc XYZ 019 .,;:!? \n\n\t\r\\{}$^_<>|"\'`~',
  *'\x00\x01\x1b\x7f\x85\xa0\u200b\u2028\ufdd0\ufdd1\ufdd2\ufeff\ufffd',
  *'éßñøŁ٣३Ωжאب中文한국日本テスト',
  *'😀👩🏽‍🚀🇩🇪ﬁ①ｆ＜\u0301\u0327',
)


def rows(path, *fields):
  reader = gzip.open if path.suffix == '.gz' else open
  with reader(path, 'rt', encoding='utf-8') as file:
    return [json.loads(line)[field] for line in file for field in fields]


def random_texts(count):
  """Characters of many scripts, some from anywhere in Unicode, and control tokens among them."""
  draw = random.Random(0)
  spelled = (*CONTROL, *OTHERS, 'hello', ' the', '   ', '12345')

  def bit():
    kind = draw.random()
    if kind < 0.2:
      return draw.choice(spelled)
    if kind < 0.3:
      return chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))
    return draw.choice(CHARACTERS)

  return [''.join(bit() for _ in range(draw.randrange(1, 30))) for _ in range(count)]


def all_texts(root):
  """More than 5,000 texts: problems, solutions, LaTeX, code and whatever else can be typed."""
  return [
    '',
    *rows(root / 'gsm8k' / 'test.jsonl', 'question', 'answer'),
    *rows(root / 'math500' / 'test_with_solution.jsonl', 'problem', 'solution'),
    *rows(root / 'humaneval' / 'HumanEval.jsonl.gz', 'prompt', 'canonical_solution', 'test'),
    *random_texts(2_000),
  ]


CONVERSATIONS = (
  [('user', 'What is 6 times 7?')],
  [('system', 'Answer in German.'), ('user', '  What is\n\n6 times 7? ')],
  [('user', 'a'), ('assistant', 'b'), ('user', 'c')],
  [('system', 'S'), ('user', 'a'), ('assistant', '<think>\nr\n</think>\n\nb'), ('user', 'c é 中文 😀')],
  [('user', 'a'), ('assistant', '<think>r</think>b'), ('user', 'c'), ('assistant', 'd'), ('user', '')],
  [('assistant', 'b'), ('user', '<|im_end|>{{ 7 * 7 }}{% raw %}')],
  [('user', 'NUL \x00\x00 日本語テスト 한국어 👩🏽‍🚀🇩🇪 e\u0301 \ufffd'), ('assistant', '中😀')],
  [('user', '\x00'), ('assistant', 'é'), ('user', '😀\x00\x01中')],
  [
    ('system', '<|eot_id|><|begin_of_text|>'),
    ('user', '<|start_header_id|>x<end_of_turn>\n<start_of_turn>model\n<bos><eos></s>'),
  ],
)


def conversations(root):
  """(template or None for the model's own, messages, arguments) for every template and wish."""
  folder = root / 'tokenizers' / 'chat_templates_trl'
  sources = [None, *(path.read_text(encoding='utf-8') for path in sorted(folder.iterdir()))]
  return [
    (source, [dict(role=role, content=text) for role, text in turns], asked)
    for source in sources
    for turns in CONVERSATIONS
    for asked in ({}, {'enable_thinking': True}, {'enable_thinking': False})
  ]


def listed(name, **flags):
  """An entry of added_tokens_decoder, as transformers writes it."""
  pipeline = Tokenizer.from_str(small.subwords_json())
  token, none = (
    pipeline.token_to_id(name),
    dict.fromkeys(('lstrip', 'rstrip', 'single_word', 'normalized'), False),
  )
  token = pipeline.get_vocab_size() if token is None else token
  return {'added_tokens_decoder': {str(token): {'content': name, 'special': False} | none | flags}}


SETTINGS = (
  {},
  listed('<tool_call>'),
  listed('<tool_call>', special=True, rstrip=True),
  listed('<think>', special=True),
  listed('<think>', lstrip=True),
  listed('<|im_start|>', special=False),
  {'additional_special_tokens': ['</think>']},
  {'eos_token': '</think>'},
  {'eos_token': '~'},
)


@pytest.fixture(scope='module')
def given(data_root, tmp_path_factory):
  folder = data_root / 'tokenizers'
  texts = all_texts(data_root)
  own = [
    small.write_subwords(
      tmp_path_factory.mktemp('small'), tokenizer_class='PreTrainedTokenizerFast', **settings
    )
    for settings in SETTINGS
  ]
  return dict(
    texts=texts,
    few=texts[:2_000:2] + texts[-1_000:],
    conversations=conversations(data_root),
    qwen=str(folder / 'qwen3_built'),
    gemma=str(folder / 'gemma_like_spm'),
    small=[str(path) for path in own],
    llama=str(folder / 'llama3' / 'tokenizer.model'),
    pattern=PATTERN,
    special=special_names({}),
  )


@pytest.fixture(scope='module')
def reference(given, tmp_path_factory):
  """What the other program made of what is given."""
  python, folder = reference_python(), tmp_path_factory.mktemp('reference')
  (folder / 'given.json').write_text(json.dumps(given))
  (folder / 'program.py').write_text(PROGRAM)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'HF_HUB_OFFLINE': '1'}
  done = subprocess.run(
    [python, 'program.py'], cwd=folder, env=environment, text=True, capture_output=True, timeout=600
  )
  assert done.returncode == 0, done.stderr
  return json.loads((folder / 'out.json').read_text())


def make(path):
  return make_tokenizer(TokenizerConfig(path=path))


def differing(texts, ours, theirs):
  """Texts that the two sides encode or decode differently; not to be thousands in a message."""
  return [(t, a, b) for t, a, b in zip(texts, ours, theirs, strict=True) if a != b][:3]


def test_there_are_enough_texts(given):
  assert len(given['texts']) > 5_000 and len(given['conversations']) > 100


def test_qwen3_reads_templates_alike(given, reference):
  # Marks have a meaning in templates alone, and none in a tokenizer that knows no data.
  parse = make_tokenizer(TokenizerConfig(path=given['qwen'], control_tokens_in_data=True)).encode_template
  theirs = reference['qwen']['parsed']
  assert not differing(given['texts'], map(parse, given['texts']), theirs)
  unmarked = [
    (text, ids) for text, ids in zip(given['texts'], theirs) if not set(text) & {'\ufdd0', '\ufdd1'}
  ]
  texts, theirs = zip(*unmarked)
  # Half a mark at the end changes nothing, but is read by the other way of reading.
  encode = make(given['qwen']).encode_template
  assert not differing(texts, map(encode, texts), theirs)
  assert not differing(texts, (encode(text + '\ufdd1') for text in texts), theirs)


def test_qwen3_reads_data_alike(given, reference):
  """transformers keeps to text what the model's files call special, which <think> is not."""
  tokenizer, theirs = make(given['qwen']), reference['qwen']['data']
  others = set(tokenizer.codec.control) - set(CONTROL)
  cases = [case for case in zip(given['texts'], theirs) if not any(name in case[0] for name in others)]
  texts, theirs = zip(*cases)
  assert len(texts) > 4_500 and sum('<|im_' in text for text in texts) > 300
  assert not differing(texts, map(tokenizer.encode, texts), theirs)
  protected = (tokenizer.encode_template(tokenizer.protect(text)) for text in texts)
  assert not differing(texts, protected, theirs)


def test_qwen3_decodes_alike(given, reference):
  tokenizer, theirs = make(given['qwen']), reference['qwen']
  assert not differing(given['texts'], map(tokenizer.decode, theirs['parsed']), theirs['decoded'])
  assert (tokenizer.vocab_size, *tokenizer.eos_ids) == (theirs['size'], theirs['eos'])


def assert_conversations_alike(tokenizer, cases, theirs):
  """Texts, ids and refusals of every template are those of transformers; returns how many it refused."""
  refusals = 0
  for (source, turns, asked), there in zip(cases, theirs, strict=True):
    source = tokenizer.template.source if source is None else source
    variables = tokenizer.codec.names if tokenizer.template is None else tokenizer.template.variables
    template = ChatTemplate(source, 'it', variables)
    messages = [Message(**turn) for turn in turns]
    if 'error' in there:
      refusals += 1
      with pytest.raises(ConfigError) as caught:
        chat.render(template, messages, asked.get('enable_thinking'))
      assert there['error'] in str(caught.value)
    else:
      text = chat.render(template, messages, asked.get('enable_thinking'))
      assert text == there['text'] and tokenizer.encode_template(text) == there['ids'], text
  return refusals


def test_conversations_are_alike(given, reference):
  cases, theirs = given['conversations'], reference['conversations']
  refusals = assert_conversations_alike(make(given['qwen']), cases, theirs)
  assert 0 < refusals < 60


@pytest.mark.parametrize('name, which', [('gemma', 'gemma'), ('llama', 'converted')])
def test_conversations_of_other_models_are_alike(given, reference, name, which):
  if reference[which] is None:
    pytest.skip('needs sentencepiece and tiktoken beside transformers')
  cases = [case for case in given['conversations'] if case[0] is not None]
  refusals = assert_conversations_alike(make(given[name]), cases, reference[which]['conversations'])
  assert 0 < refusals < 60


@pytest.mark.parametrize('which', range(len(SETTINGS)))
def test_settings_of_a_small_model_are_read_alike(given, reference, which):
  theirs, texts = reference['small'][which], given['few']
  tokenizer = make_tokenizer(TokenizerConfig(path=given['small'][which], control_tokens_in_data=True))
  assert not differing(texts, map(tokenizer.encode_template, texts), theirs['parsed'])
  assert not differing(texts, map(tokenizer.decode, theirs['parsed']), theirs['decoded'])
  assert (tokenizer.vocab_size, *tokenizer.eos_ids) == (theirs['size'], theirs['eos'])


def test_sentencepiece_is_alike(given, reference):
  if reference['gemma'] is None:
    pytest.skip('needs sentencepiece beside transformers')
  theirs, texts = reference['gemma'], given['few']
  tokenizer = make_tokenizer(TokenizerConfig(path=given['gemma'], control_tokens_in_data=True))
  assert not differing(texts, map(tokenizer.encode_template, texts), theirs['parsed'])
  # To transformers' class for Gemma, <mask> is special, though no file of the model says so.
  decoded = (tokenizer.decode([i for i in ids if i != 4]) for ids in theirs['parsed'])
  assert tokenizer.token_text(4) == '<mask>'
  assert not differing(texts, decoded, theirs['decoded'])
  assert (tokenizer.vocab_size, *tokenizer.eos_ids) == (theirs['size'], theirs['eos'])


def test_llama3_is_like_tiktoken(given, reference):
  theirs = reference['llama']
  if theirs is None:
    pytest.skip('needs tiktoken beside transformers')
  parsing = make_tokenizer(TokenizerConfig(path=given['llama'], control_tokens_in_data=True))
  tokenizer = make(given['llama'])
  assert not differing(given['few'], map(tokenizer.encode, given['few']), theirs['data'])
  assert not differing(given['few'], map(parsing.encode, given['few']), theirs['parsed'])
  assert not differing(given['few'], map(tokenizer.decode, theirs['data']), theirs['decoded'])


def test_llama3_is_like_transformers(given, reference):
  theirs, texts = reference['converted'], given['few']
  if theirs is None:
    pytest.skip('needs tiktoken beside transformers')
  parsing = make_tokenizer(TokenizerConfig(path=given['llama'], control_tokens_in_data=True))
  tokenizer = make(given['llama'])
  assert not differing(texts, map(parsing.encode, texts), theirs['parsed'])
  assert not differing(texts, map(tokenizer.encode, texts), theirs['data'])
  assert not differing(texts, map(tokenizer.decode, theirs['parsed']), theirs['decoded'])
  protected = (tokenizer.encode_template(tokenizer.protect(text)) for text in texts)
  assert not differing(texts, protected, theirs['data'])
  assert tokenizer.vocab_size == theirs['size'] and theirs['eos'] in tokenizer.eos_ids


def test_sentencepiece_keeps_data_apart_alike(given, reference):
  """transformers keeps to text what its class or the model's files call special, and nothing else."""
  if reference['gemma'] is None:
    pytest.skip('needs sentencepiece beside transformers')
  tokenizer, theirs = make(given['gemma']), reference['gemma']['data']
  cases = [
    case for case in zip(given['few'], theirs) if not any(name in case[0] for name in tokenizer.codec.control)
  ]
  texts, theirs = zip(*cases)
  assert len(texts) > 1_000
  assert not differing(texts, map(tokenizer.encode, texts), theirs)
