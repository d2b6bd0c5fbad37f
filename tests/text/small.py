"""Small vocabularies of each kind, made in a moment, with every flag that an added token can have."""

import base64
import functools
import io
import json
import pathlib

TEMPLATE = (
  '{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
  '{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}'
  '{%- if enable_thinking is defined and not enable_thinking -%}<think>\n\n</think>\n\n{% endif -%}'
)
# name, special, lstrip, rstrip, single_word, normalized
ADDED = (
  ('<|endoftext|>', True, False, False, False, False),
  ('<|im_start|>', True, False, False, False, False),
  ('<|im_end|>', True, False, False, False, False),
  ('<think>', False, False, False, False, False),
  ('</think>', False, False, False, False, False),
  ('<|im_start|>x', True, False, False, False, False),
  ('<mask>', True, True, False, False, False),
  ('<pad>', True, False, True, False, False),
  ('<both>', True, True, True, False, False),
  ('STOP', False, False, False, True, False),
  ('<sep>', False, False, False, False, True),
  ('<é>', True, False, False, False, False),
  ('   ', False, False, False, False, False),
)
CONTROL = tuple(name for name, *_ in ADDED if name.strip())
CORPUS = (
  'Ann has 12 apples and gives 5 of them to Ben, so she keeps 12 - 5 = 7 apples.',
  'What is the sum of the numbers from 1 to 100? It is 50 times 101, which is 5050.',
  'Der Zug fährt um 8 Uhr ab; 中文 und العربية und 😀 stehen auch hier.',
  '<|im_start|>user\nHow many apples?<|im_end|>\n',
)


@functools.cache
def subwords_json() -> str:
  """A byte-level BPE of 400 ids with NFKC, under which full-width letters spell <sep>."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

  tokenizer = Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.NFKC()
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
  tokenizer.train_from_iterator(CORPUS * 3, trainer)
  for name, special, lstrip, rstrip, single_word, normalized in ADDED:
    flags = dict(lstrip=lstrip, rstrip=rstrip, single_word=single_word, normalized=normalized)
    tokenizer.add_tokens([AddedToken(name, special=special, **flags)])
  return tokenizer.to_str()


def write_subwords(folder: pathlib.Path, **settings: object) -> pathlib.Path:
  """A model's folder with a tokenizer.json; `settings` go into its tokenizer_config.json."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'tokenizer.json').write_text(subwords_json())
  settings = {'eos_token': '<|im_end|>', 'chat_template': TEMPLATE} | settings
  write_json(folder / 'tokenizer_config.json', settings)
  return folder


def write_json(path: pathlib.Path, value: object) -> None:
  path.write_text(json.dumps(value))


@functools.cache
def pieces_model(**options: object) -> bytes:
  """A SentencePiece model of 300 pieces with Gemma's kind of turns."""
  import sentencepiece

  out = io.BytesIO()
  settings = dict(
    vocab_size=330,
    model_type='bpe',
    byte_fallback=True,
    normalization_rule_name='identity',
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    control_symbols=['<image>'],
    user_defined_symbols=['<turn>', '<end>', '\n\n'],
    minloglevel=2,
  )
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS * 3), model_writer=out, **settings | options
  )
  return out.getvalue()


def write_pieces(folder: pathlib.Path, settings: object = None, **options: object) -> pathlib.Path:
  """A folder with a SentencePiece tokenizer.model and, if given, a tokenizer_config.json."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'tokenizer.model').write_bytes(pieces_model(**options))
  if settings is not None:
    write_json(folder / 'tokenizer_config.json', settings)
  return folder


@functools.cache
def rank_tokens() -> tuple[bytes, ...]:
  """128,000 tokens by rank: bytes, a few words, of which no merge makes the last, and triples of bytes."""
  words = [b'ap', b'app', b'le', b'apple', b' apple', b' a', b'pl', b'zqj']
  tokens = dict.fromkeys([*(bytes([i]) for i in range(256)), *words])
  for number in range(256 * 256 * 2):
    if len(tokens) == 128_000:
      break
    # Above ASCII, so that the words merge as the list says.
    tokens[bytes([128 + number // 65536, *divmod(number % 65536, 256)])] = None
  return tuple(tokens)


def write_ranks(path: pathlib.Path) -> pathlib.Path:
  """A rank file of Llama 3's size."""
  lines = (b'%s %d\n' % (base64.b64encode(token), rank) for rank, token in enumerate(rank_tokens()))
  path.write_bytes(b''.join(lines))
  return path
