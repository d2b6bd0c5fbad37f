"""Times `transformers.generate` on a CPU; runs by itself, in an environment with PyTorch.

.venv/bench-torch/bin/python experiments/benching/peer_transformers.py runs/bench/workload.json out.json
"""

import json
import os
import resource
import sys
import time


def main(workload: str, out: str) -> None:
  import torch
  import transformers

  with open(workload) as file:
    work = json.load(file)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_pretrained(work['model'], dtype=torch.float32).eval()
  cases = {name: _timed(model, case) for name, case in work['cases'].items()}
  result = {
    'cases': cases,
    'versions': {'torch': torch.__version__, 'transformers': transformers.__version__},
    'threads': torch.get_num_threads(),
    'max_rss_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
  }
  with open(out, 'w') as file:
    json.dump(result, file, indent=2)


def _timed(model, case: dict) -> dict:
  """Tokens and seconds of all requests of a case, in batches of as many rows as it has slots."""
  import torch

  rows = torch.tensor(case['prompts']).repeat_interleave(case['per_question'], dim=0)
  batches = rows.split(case['slots'])
  ends = torch.tensor(case['eos_ids'], dtype=torch.long)

  def run(batch, budget):
    with torch.inference_mode():
      drawn = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        max_new_tokens=budget,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=case['eos_ids'] or None,
        pad_token_id=0,
      )[:, batch.shape[1] :]
    ended = torch.isin(drawn, ends)
    first = torch.where(ended.any(1), ended.int().argmax(1) + 1, drawn.shape[1])
    return first.tolist()

  run(batches[0], 4)
  load, began = os.getloadavg()[0], time.perf_counter()
  lengths = [n for batch in batches for n in run(batch, case['budget'])]
  seconds = time.perf_counter() - began
  return {'tokens': sum(lengths), 'requests': len(lengths), 'seconds': seconds, 'load': load}


if __name__ == '__main__':
  main(*sys.argv[1:])
