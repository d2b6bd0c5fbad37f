"""A small tokenizer with a chat template, and a few worked problems: what a user's folders look like."""

import json
import pathlib

# The turns of ChatML; a template of one's own is short.
TEMPLATE = (
  "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
  "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
  "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}"
  '{%- endif %}{%- endif %}'
)
CONTROL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<think>', '</think>')
NAMES = ('Ann', 'Bartholomew', 'Eve', 'Kim')


def write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
  """A byte-level BPE of 300 ids and its control tokens, with the files that a model's folder has."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  )
  tokenizer.train_from_iterator([row['question'] for row in rows(40)], trainer)
  tokenizer.add_tokens([AddedToken(t, special=not t.endswith('think>'), normalized=False) for t in CONTROL])
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>', 'chat_template': TEMPLATE}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  ids = [tokenizer.token_to_id(t) for t in ('<|im_end|>', '<|endoftext|>')]
  (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': ids}))
  return folder


def rows(count: int, first: int = 0) -> list[dict[str, str]]:
  """Word problems in the form of GSM8K: the answer stands after #### in the worked solution."""
  found = []
  for i in range(first, first + count):
    name, more = NAMES[i % 4], i // 4 + 2
    found.append(
      {
        'question': f'{name} has {i} plums and picks {more} more. How many plums are there now?',
        'answer': f'{name} has {i} + {more} = {i + more} plums.\n#### {i + more}',
      }
    )
  return found


def write_data(folder: pathlib.Path, train: int = 24, test: int = 6) -> pathlib.Path:
  """train.jsonl and test.jsonl."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, some in (('train', rows(train)), ('test', rows(test, first=train))):
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in some))
  return folder


def settings(folder: pathlib.Path) -> tuple[str, ...]:
  """Settings that run `gsm8k_tiny` on these files, on a model that is smaller still."""
  return (
    f'data.path={write_data(folder / "data")}',
    f'tokenizer.path={write_tokenizer(folder / "tokenizer")}',
    'data.validation_problems=4',
    'data.test_problems=4',
    'model.vocab_size=320',
    'model.num_layers=1',
    'model.embed_dim=16',
    'model.num_heads=2',
    'model.num_kv_heads=1',
    'model.head_dim=8',
    'model.mlp_dim=32',
    'views.student_tokens=256',
    'views.teacher_tokens=768',
    'rollout.questions=4',
    'rollout.sampling.max_tokens=12',
    'evaluate.sampling.max_tokens=12',
    'evaluate.batch=4',
    'metrics.tensorboard=false',
    'metrics.progress=none',
  )
