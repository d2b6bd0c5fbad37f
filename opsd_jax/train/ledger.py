"""The token ledger: every token that a model read or wrote, and the FLOPs it took."""

import dataclasses

import numpy as np

from opsd_jax.models.flops import forward_flops, matmul_params
from opsd_jax.models.spec import ModelSpec

_BACKWARD = 3  # forward and backward together, in forwards


@dataclasses.dataclass(frozen=True)
class Ledger:
  """Cumulative counts of real tokens (padding is never counted).

  Attributes:
    sampled: completion tokens drawn, EOS included.
    scored_student: completion tokens that the student was trained on.
    scored_teacher: completion tokens that the teacher scored, over all views.
    prompt_sampler: prompt tokens prefilled for sampling, once a question.
    prompt_student: prompt tokens read for the student's loss, once a question.
    prompt_teacher: prompt tokens read by the teacher, once a question and view.
    flops: model FLOPs of all that: forwards, and three forwards where gradients are taken, without what
      gradients of frozen weights would take.
  """

  sampled: int = 0
  scored_student: int = 0
  scored_teacher: int = 0
  prompt_sampler: int = 0
  prompt_student: int = 0
  prompt_teacher: int = 0
  flops: int = 0

  def __add__(self, other: 'Ledger') -> 'Ledger':
    names = [f.name for f in dataclasses.fields(self)]
    return Ledger(**{n: getattr(self, n) + getattr(other, n) for n in names})


def _read_flops(spec: ModelSpec, prompts: np.ndarray, completions: np.ndarray, adapters: int) -> int:
  """FLOPs to read each prompt once and its completions [Q, n] after it, projecting completions only.

  Every token meets the weights of the `adapters` as well, whose number that is.
  """
  prefill = forward_flops(spec, np.zeros_like(prompts), prompts - 1, with_head=False)
  before = np.repeat((prompts - 1)[:, None], completions.shape[1], axis=1)
  low_rank = 2 * adapters * int((prompts - 1).sum() + completions.sum())
  return prefill + forward_flops(spec, before.ravel(), completions.ravel(), with_head=True) + low_rank


def _frozen_flops(spec: ModelSpec, prompts: np.ndarray, completions: np.ndarray) -> int:
  """FLOPs that gradients of all weights but the adapters would take: a product a weight and token."""
  read, projected = int((prompts - 1).sum() + completions.sum()), int(completions.sum())
  return 2 * (matmul_params(spec) * read + spec.vocab_size * spec.embed_dim * projected)


def rollout_entry(
  spec: ModelSpec, prompt_length: np.ndarray, length: np.ndarray, adapters: int = 0
) -> Ledger:
  """Sampling completions of `length` [B] after prompts of `prompt_length` [Q].

  `adapters` is the number of their weights (`lora.size`), 0 where the model has none.
  """
  completions = np.asarray(length).reshape(len(prompt_length), -1)
  return Ledger(
    sampled=int(completions.sum()),
    prompt_sampler=int(prompt_length.sum()),
    flops=_read_flops(spec, np.asarray(prompt_length), completions, adapters),
  )


def student_entry(
  spec: ModelSpec, prompt_length: np.ndarray, length: np.ndarray, adapters: int = 0
) -> Ledger:
  """Training on the completions; where there are `adapters`, all other weights are frozen."""
  prompts, completions = np.asarray(prompt_length), np.asarray(length).reshape(len(prompt_length), -1)
  frozen = _frozen_flops(spec, prompts, completions) if adapters else 0
  return Ledger(
    scored_student=int(completions.sum()),
    prompt_student=int(prompt_length.sum()),
    flops=_BACKWARD * _read_flops(spec, prompts, completions, adapters) - frozen,
  )


def teacher_entry(
  spec: ModelSpec, prompt_length: np.ndarray, length: np.ndarray, adapters: int = 0
) -> Ledger:
  """Scoring the completions under one teacher view; a frozen teacher has no `adapters`."""
  completions = np.asarray(length).reshape(len(prompt_length), -1)
  return Ledger(
    scored_teacher=int(completions.sum()),
    prompt_teacher=int(prompt_length.sum()),
    flops=_read_flops(spec, np.asarray(prompt_length), completions, adapters),
  )
