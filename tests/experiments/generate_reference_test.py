"""The generate command on a folder that transformers wrote says what transformers itself generates.

As in tests/models, the PyTorch side is a program of its own, started outside the repository.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.experiments import model_folder, real_text, tiny
from tests.models.transformers_test import reference_python

pytestmark = pytest.mark.reference

TOKENS = 64
PROMPTS = ('Ann has 3 plums.', 'How many plums are there now? 中文 😀', 'Kim <|im_end|> picks 7')

PROGRAM = """
import json
import torch
import transformers

given = json.load(open('given.json'))
torch.manual_seed(0)
config = transformers.Qwen3Config(
  vocab_size=given['vocab'], hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
  num_key_value_heads=2, head_dim=16, max_position_embeddings=512, tie_word_embeddings=False)
net = transformers.Qwen3ForCausalLM(config).eval()
with torch.no_grad():
  for name, weights in net.named_parameters():
    middle, spread = (1.0, 0.2) if 'norm' in name else (0.0, 0.25)
    weights.normal_(middle, spread)
  net.lm_head.weight[given['known']:] = 0  # padding rows, which transformers does not mask
net.save_pretrained('model')

tok = transformers.AutoTokenizer.from_pretrained('tokenizer')
out = []
for text in given['prompts']:
  ids = tok.apply_chat_template(
    [dict(role='user', content=text)], add_generation_prompt=True, return_dict=True, return_tensors='pt')
  ids = ids['input_ids']
  new = net.generate(
    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=given['tokens'],
    eos_token_id=None, pad_token_id=0)[0, ids.shape[1]:]
  out.append(dict(ids=new.tolist(), text=tok.decode(new, skip_special_tokens=True)))
json.dump(out, open('out.json', 'w'))
"""


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """A folder with weights by transformers, and its greedy continuations."""
  python, folder = reference_python(), tmp_path_factory.mktemp('reference')
  real_text.write_tokenizer(folder / 'tokenizer')
  given = dict(prompts=PROMPTS, tokens=TOKENS, known=305, vocab=320)
  (folder / 'given.json').write_text(json.dumps(given))
  (folder / 'program.py').write_text(PROGRAM)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'HF_HUB_OFFLINE': '1'}
  done = subprocess.run(
    [python, 'program.py'], cwd=folder, env=environment, text=True, capture_output=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  real_text.write_tokenizer(folder / 'model')
  return folder / 'model', json.loads((folder / 'out.json').read_text())


def test_greedy_completions_are_those_of_transformers(reference, tmp_path):
  folder, theirs = reference
  asked = model_folder.write_lines(tmp_path / 'asked.jsonl', [{'prompt': text} for text in PROMPTS])
  output = tmp_path / 'out.jsonl'
  done = tiny.call(
    [
      sys.executable,
      '-m',
      'experiments.generate',
      f'--model={folder}',
      f'--prompts={asked}',
      f'--output={output}',
      f'--max_tokens={TOKENS}',
      '--temperature=0',
      '--control_tokens_in_data',  # as transformers reads a prompt
      '--eos_tokens=<|im_start|>',  # drawn by neither: what ends a completion is not compared here
    ]
  )
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in output.read_text(encoding='utf-8').splitlines()]
  assert [row['ids'] for row in rows] == [there['ids'] for there in theirs]
  assert [row['completion'] for row in rows] == [there['text'] for there in theirs]
  assert len({i for row in rows for i in row['ids']}) > 20, 'a loop would prove little'
  told = tiny.call(
    [
      *(sys.executable, '-m', 'experiments.generate', f'--model={folder}', f'--prompt={PROMPTS[0]}'),
      *(f'--max_tokens={TOKENS}', '--temperature=0', '--eos_tokens=<|im_start|>'),
    ]
  )
  assert told.stdout == rows[0]['completion'] + '\n'
