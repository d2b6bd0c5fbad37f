"""The evaluate command on GSM8K says what transformers generates, and scores what lm-eval-harness scores.

As in tests/models, the PyTorch side is a program of its own, started outside the repository. Two models: one
with random weights, whose tokens are compared, and one made by hand that boxes a digit, whose score is. Its
known answers are the last digits of GSM8K's, so that it is right now and then.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.models.folder import write
from tests.experiments import boxing_model, model_folder, tiny
from tests.models.transformers_test import reference_python

pytestmark = [pytest.mark.reference, pytest.mark.data]

COUNT, TOKENS = 64, 24
SPEC = dataclasses.replace(
  boxing_model.SPEC, num_layers=2, vocab_size=151_669
)  # the tokenizer's ids, no more

PROGRAM = r"""
import json
import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM

given = json.load(open('given.json'))
rows = [json.loads(line) for line in open('asked.jsonl')]
SENTENCE = '\n\nPlease reason step by step, and put your final answer within \\boxed{}.'


def greedy(name):
  tok = transformers.AutoTokenizer.from_pretrained(name)
  net = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
  for row in rows:
    ids = tok.apply_chat_template(
      [dict(role='user', content=row['problem'] + SENTENCE)], add_generation_prompt=True,
      enable_thinking=True, return_dict=True, return_tensors='pt')['input_ids']
    new = net.generate(
      ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=given['tokens'],
      eos_token_id=given['eos'], pad_token_id=0)
    yield new[0, ids.shape[1]:].tolist()


out = {name: list(greedy(name)) for name in ('random', 'boxing')}
task = {
  'task': 'asked',
  'dataset_path': 'json',
  'dataset_kwargs': {'data_files': {'test': 'asked.jsonl'}},
  'test_split': 'test',
  'output_type': 'generate_until',
  'doc_to_text': '{{problem}}' + SENTENCE,
  'doc_to_target': '{{answer}}',
  'generation_kwargs': {'until': ['<|im_end|>'], 'max_gen_toks': given['tokens'], 'do_sample': False},
  'filter_list': [{
    'name': 'boxed',
    'filter': [
      {'function': 'regex', 'regex_pattern': r'\\boxed\{([^{}]*)\}', 'group_select': -1},
      {'function': 'take_first'},
    ],
  }],
  'metric_list': [{'metric': 'exact_match', 'aggregation': 'mean', 'higher_is_better': True}],
}
found = lm_eval.simple_evaluate(
  HFLM(pretrained='boxing', device='cpu', dtype='float32', batch_size=1), tasks=[task],
  apply_chat_template=True, log_samples=True, bootstrap_iters=0)
out['score'] = found['results']['asked']['exact_match,boxed']
out['right'] = [s['exact_match'] for s in sorted(found['samples']['asked'], key=lambda s: s['doc_id'])]
json.dump(out, open('out.json', 'w'))
"""


@pytest.fixture(scope='module')
def reference(tmp_path_factory, data_root):
  """A folder with both models and the problems, and what transformers and lm-eval-harness made of them."""
  python, folder = reference_python(), tmp_path_factory.mktemp('reference')
  texts = data_root / 'tokenizers' / 'qwen3_built'
  boxing_model.write_model(folder / 'boxing', texts, SPEC)
  write_random(folder / 'random')
  for file in texts.iterdir():
    shutil.copyfile(file, folder / 'random' / file.name)
  model_folder.write_lines(folder / 'asked.jsonl', gsm8k(data_root))
  (folder / 'given.json').write_text(json.dumps({'tokens': TOKENS, 'eos': 151_645}))
  (folder / 'program.py').write_text(PROGRAM)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  environment |= {'HF_HUB_OFFLINE': '1', 'HF_HOME': str(folder / 'cache')}
  done = subprocess.run(
    [python, 'program.py'], cwd=folder, env=environment, text=True, capture_output=True, timeout=1800
  )
  assert done.returncode == 0, done.stderr
  return folder, json.loads((folder / 'out.json').read_text())


def gsm8k(root):
  """The first problems, with the last digit of each answer."""
  with open(root / 'gsm8k' / 'test.jsonl', encoding='utf-8') as file:
    rows = [json.loads(line) for line, _ in zip(file, range(COUNT))]
  return [{'problem': row['question'], 'answer': row['answer'].strip()[-1]} for row in rows]


def write_random(folder):
  """Weights spread widely enough that no two tokens are nearly as likely."""
  rng, mesh = np.random.default_rng(0), meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
  shapes = model.abstract_params(SPEC, mesh)

  def one(path, leaf):
    middle, spread = (1.0, 0.2) if path[-1].key == 'scale' else (0.0, 0.25)
    return jax.device_put((middle + spread * rng.normal(size=leaf.shape)).astype(np.float32), leaf.sharding)

  write.save(folder, SPEC, jax.tree_util.tree_map_with_path(one, shapes))


def evaluated(folder, name):
  done = tiny.call(
    [
      *(sys.executable, '-m', 'experiments.evaluate', f'--model={folder / name}', '--temperature=0'),
      *(f'--benchmarks=asked={folder / "asked.jsonl"}', '--samples=1', f'--max_tokens={TOKENS}'),
      *(f'--output={folder / f"of_{name}"}', '--batch=32'),
    ]
  )
  assert done.returncode == 0, done.stderr
  text = (folder / f'of_{name}' / 'asked' / 'samples.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize('name', ['random', 'boxing'])
def test_greedy_samples_are_those_of_transformers(reference, name):
  folder, theirs = reference
  found = evaluated(folder, name)
  assert len(found) == COUNT and [row['ids'] for row in found] == theirs[name]
  assert len({tuple(row['ids']) for row in found}) > 2, 'a model that always says the same would prove little'


def test_the_score_is_that_of_lm_eval_harness(reference):
  folder, theirs = reference
  found = evaluated(folder, 'boxing')
  for rules in ('opsd', 'strict'):
    assert [row['verdicts'][rules] == 'correct' for row in found] == [bool(r) for r in theirs['right']]
  results = json.loads((folder / 'of_boxing' / 'results.json').read_text())
  assert results['benchmarks']['asked']['scores']['opsd']['average']['value'] == theirs['score']
  assert 0 < theirs['score'] < 1
