"""Times a plain PyTorch step of on-policy self-distillation; runs by itself, beside `peer_transformers`.

    .venv/peers-torch/bin/python experiments/benching/torch_step.py runs/bench/workload.json out.json

`transformers.generate` draws the rollouts; student and teacher then read every prompt with its completion
whole, the logits of the completion alone are made, and AdamW follows the forward KL over the vocabulary.
Gradients are summed over micro-batches, so that the logits of 8 rollouts exist at a time.
"""

import copy
import sys
from typing import Any

import clock
import peer_transformers

ROWS = 8
STEPS = 3


def main(workload: str, out: str) -> None:
  """One step to warm up, then the timed ones."""
  import torch

  work = clock.read(workload)
  (case,) = (case for case in work['cases'].values() if case['teacher'])
  student = peer_transformers.load(work['model'])
  teacher = copy.deepcopy(student).requires_grad_(False)
  optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6)
  prompts, seen = (
    torch.tensor(case[name]).repeat_interleave(case['per_question'], dim=0)
    for name in ('prompts', 'teacher_prompts')
  )

  def step() -> float:
    drawn = peer_transformers.generate(student, prompts, case['budget'], [])
    loss = backward(student, teacher, prompts, seen, drawn)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss

  step()
  found = [clock.timed(step) for _ in range(STEPS)]
  result = {'loss': [loss for loss, _ in found], 'steps': [seconds for _, seconds in found]}
  clock.report(out, result | {'versions': peer_transformers.versions()})


def backward(student: Any, teacher: Any, prompts: Any, seen: Any, drawn: Any) -> float:
  """The mean over all tokens of KL(teacher || student), added to the student's gradients.

  Args:
    student: model that is trained.
    teacher: model that is not.
    prompts: ids [B, P], the student's.
    seen: ids [B, P'], the teacher's.
    drawn: ids [B, T].
  """
  import torch

  total = 0.0
  for rows in torch.arange(len(drawn)).split(ROWS):
    with torch.no_grad():
      target = _log_probs(teacher, seen[rows], drawn[rows])
    logp = _log_probs(student, prompts[rows], drawn[rows])
    loss = torch.nn.functional.kl_div(logp, target, reduction='sum', log_target=True) / drawn.numel()
    loss.backward()
    total += loss.item()
  return total


def _log_probs(model: Any, prompts: Any, drawn: Any) -> Any:
  """[B, T, V], from the states that predict the completion."""
  import torch

  ids = torch.cat([prompts, drawn], dim=1)
  logits = model(ids, logits_to_keep=drawn.shape[1] + 1, use_cache=False).logits[:, :-1]
  return torch.log_softmax(logits, dim=-1)


if __name__ == '__main__':
  main(*sys.argv[1:])
