"""Times the `Sampler` of google-tunix; runs by itself, in the environment of requirements/peers.txt.

    .venv/peers/bin/python experiments/benching/peer_tunix.py runs/bench/workload.json out.json

Its fair best: prompts padded to their own length and a cache of just the size that is needed, `top_p` 1
(which leaves out its sort), the model and all shapes compiled before the clock starts.
"""

import json
import os
import resource
import sys
import time
from importlib import metadata


class Ids:
  """A tokenizer whose texts are the ids themselves, with spaces between."""

  def encode(self, text: str) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids: list[int]) -> str:
    return ''

  def bos_id(self) -> int:
    return 0  # none

  def eos_id(self) -> int:
    return -1  # no token is it; ids that end a row are given with the call

  def pad_id(self) -> int:
    return 0


def main(workload: str, out: str) -> None:
  with open(workload) as file:
    work = json.load(file)
  model, config = _model(work['model'])
  cases = {name: _timed(model, config, case) for name, case in work['cases'].items()}
  result = {
    'cases': cases,
    'versions': {name: metadata.version(name) for name in ('google-tunix', 'jax', 'flax')},
    'max_rss_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
  }
  with open(out, 'w') as file:
    json.dump(result, file, indent=2)


def _model(folder: str):
  from tunix.models.qwen3 import model, params

  with open(os.path.join(folder, 'config.json')) as file:
    found = json.load(file)
  config = model.ModelConfig(
    num_layers=found['num_hidden_layers'],
    vocab_size=found['vocab_size'],
    embed_dim=found['hidden_size'],
    hidden_dim=found['intermediate_size'],
    num_heads=found['num_attention_heads'],
    head_dim=found['head_dim'],
    num_kv_heads=found['num_key_value_heads'],
    rope_theta=found.get('rope_theta') or found['rope_parameters']['rope_theta'],
    norm_eps=found['rms_norm_eps'],
    use_tied_embedding=True,
  )
  return params.create_model_from_safe_tensors(folder, config), config


def _timed(model, config, case: dict) -> dict:
  """Tokens and seconds of all requests of a case, in batches of as many rows as it has slots."""
  from tunix.generate import sampler as samplers

  width = len(case['prompts'][0])
  # A sampler for every case: it compiles its EOS ids in.
  size = samplers.CacheConfig(width + case['budget'], config.num_layers, config.num_kv_heads, config.head_dim)
  sampler = samplers.Sampler(model, Ids(), size)
  texts = [' '.join(map(str, ids)) for ids in case['prompts'] for _ in range(case['per_question'])]
  batches = [texts[i : i + case['slots']] for i in range(0, len(texts), case['slots'])]

  def run(batch, seed):
    result = sampler(
      batch,
      case['budget'],
      max_prompt_length=width,
      eos_tokens=case['eos_ids'] or None,
      temperature=1.0,
      top_p=1.0,
      seed=seed,
    )
    ends = set(case['eos_ids'])
    return [_length(row.tolist(), ends, case['budget']) for row in result.tokens]

  run(batches[0], 0)
  load, began = os.getloadavg()[0], time.perf_counter()
  lengths = [n for seed, batch in enumerate(batches, 1) for n in run(batch, seed)]
  seconds = time.perf_counter() - began
  return {'tokens': sum(lengths), 'requests': len(lengths), 'seconds': seconds, 'load': load}


def _length(row: list[int], ends: set[int], budget: int) -> int:
  """Tokens of a row with the EOS that ended it, which the sampler may have cut off."""
  for i, token in enumerate(row):
    if token in ends:
      return i + 1
  return min(len(row) + 1, budget) if ends else len(row)


if __name__ == '__main__':
  main(*sys.argv[1:])
