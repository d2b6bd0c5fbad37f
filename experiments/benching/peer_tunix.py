"""Times the `Sampler` of google-tunix; runs by itself, in the environment of requirements/peers.txt.

    .venv/peers/bin/python experiments/benching/peer_tunix.py runs/bench/workload.json out.json

Its fair best: prompts padded to their own length and a cache of just the size that is needed, `top_p` 1
(which leaves out its sort), the model and all shapes compiled before the clock starts.
"""

import os
import sys
from importlib import metadata
from typing import Any

import clock


class Ids:
  """A tokenizer whose texts are the ids themselves, with spaces between."""

  def encode(self, text: str) -> list[int]:
    """The ids that the text names."""
    return [int(word) for word in text.split()]

  def decode(self, ids: list[int]) -> str:
    """Nothing: no text is looked at."""
    return ''

  def bos_id(self) -> int:
    """0: none is put before a prompt."""
    return 0

  def eos_id(self) -> int:
    """No token; ids that end a row are given with the call."""
    return -1

  def pad_id(self) -> int:
    """0, which no prompt holds."""
    return 0


def main(workload: str, out: str) -> None:
  """Times the cases that only sample."""
  work = clock.read(workload)
  model, config = _model(work['model'])
  cases = {name: _timed(model, config, case) for name, case in work['cases'].items() if not case['teacher']}
  versions = {name: metadata.version(name) for name in ('google-tunix', 'jax', 'flax')}
  clock.report(out, {'cases': cases, 'versions': versions})


def _model(folder: str) -> tuple[Any, Any]:
  from tunix.models.qwen3 import model, params

  found = clock.read(os.path.join(folder, 'config.json'))
  config = model.ModelConfig(
    num_layers=found['num_hidden_layers'],
    vocab_size=found['vocab_size'],
    embed_dim=found['hidden_size'],
    hidden_dim=found['intermediate_size'],
    num_heads=found['num_attention_heads'],
    head_dim=found['head_dim'],
    num_kv_heads=found['num_key_value_heads'],
    rope_theta=found['rope_theta'],
    norm_eps=found['rms_norm_eps'],
    use_tied_embedding=True,
  )
  return params.create_model_from_safe_tensors(folder, config), config


def _timed(model: Any, config: Any, case: dict[str, Any]) -> dict[str, Any]:
  """Tokens and seconds of all requests of a case, in batches of as many rows as it has slots."""
  from tunix.generate import sampler as samplers

  size = samplers.CacheConfig(
    case['prompt'] + case['budget'], config.num_layers, config.num_kv_heads, config.head_dim
  )
  sampler = samplers.Sampler(model, Ids(), size)  # one for every case: it compiles its EOS ids in
  texts = [' '.join(map(str, ids)) for ids in case['prompts'] for _ in range(case['per_question'])]
  batches = [texts[i : i + case['slots']] for i in range(0, len(texts), case['slots'])]

  def run(batch: list[str], seed: int) -> list[int]:
    drawn = sampler(
      batch,
      case['budget'],
      max_prompt_length=case['prompt'],
      eos_tokens=case['eos_ids'] or None,
      temperature=1.0,
      top_p=1.0,
      seed=seed,
    )
    # It leaves out the EOS that ended a row.
    return [min(len(row) + 1, case['budget']) if case['eos_ids'] else len(row) for row in drawn.tokens]

  run(batches[0], 0)
  lengths, seconds = clock.timed(lambda: [n for i, batch in enumerate(batches, 1) for n in run(batch, i)])
  return {'tokens': sum(lengths), 'requests': len(lengths)} | seconds


if __name__ == '__main__':
  main(*sys.argv[1:])
