"""Times `transformers.generate` on a CPU; runs by itself, in the environment of requirements/peers-torch.txt.

.venv/peers-torch/bin/python experiments/benching/peer_transformers.py runs/bench/workload.json out.json
"""

import os
import sys
from typing import Any

import clock


def main(workload: str, out: str) -> None:
  """Times the cases that only sample."""
  import transformers

  work = clock.read(workload)
  model = load(work['model'])
  cases = {name: _timed(model, case) for name, case in work['cases'].items() if not case['teacher']}
  clock.report(out, {'cases': cases, 'versions': {'transformers': transformers.__version__} | versions()})


def load(folder: str) -> Any:
  """The model in float32, on all the cores that this process may use."""
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def versions() -> dict[str, str]:
  """Of PyTorch."""
  import torch

  return {'torch': torch.__version__, 'threads': str(torch.get_num_threads())}


def generate(model: Any, rows: Any, budget: int, eos_ids: list[int]) -> Any:
  """Token ids [B, T'] after prompts [B, P] without padding, at temperature 1 from the whole vocabulary."""
  import torch

  with torch.no_grad():
    drawn = model.generate(
      rows,
      attention_mask=torch.ones_like(rows),
      max_new_tokens=budget,
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      eos_token_id=eos_ids or None,
      pad_token_id=0,
    )
  return drawn[:, rows.shape[1] :]


def _timed(model: Any, case: dict[str, Any]) -> dict[str, Any]:
  """Tokens and seconds of all requests of a case, in batches of as many rows as it has slots."""
  import torch

  rows = torch.tensor(case['prompts']).repeat_interleave(case['per_question'], dim=0)
  batches = rows.split(case['slots'])
  ends = torch.tensor(case['eos_ids'], dtype=torch.long)

  def run(batch: Any, budget: int) -> list[int]:
    drawn = generate(model, batch, budget, case['eos_ids'])
    ended = torch.isin(drawn, ends)
    return torch.where(ended.any(1), ended.int().argmax(1) + 1, drawn.shape[1]).tolist()

  run(batches[0], 4)
  lengths, seconds = clock.timed(lambda: [n for batch in batches for n in run(batch, case['budget'])])
  return {'tokens': sum(lengths), 'requests': len(lengths)} | seconds


if __name__ == '__main__':
  main(*sys.argv[1:])
