"""What is believed of a server's answers, and the rollouts made of them.

Axis letters: B rollouts, T token budget.
"""

import math
from typing import NamedTuple

import numpy as np

from opsd_jax.records import Rollout
from opsd_jax.rollout.config import RolloutConfig, SamplingConfig, truncates
from opsd_jax.rollout.engine import config as engines
from opsd_jax.rollout.engine.flavours import Answer, Question


class Row(NamedTuple):
  """One continuation that passed all checks."""

  ids: list[int]
  logps: list[float]
  version: int  # of the weights that drew it


def fault(question: Question, answers: list[Answer], valid_vocab: int) -> str | None:
  """Why the answers are no rollouts of the question, and what to do, or None.

  Args:
    question: as it was asked.
    answers: of the server, each of them ended.
    valid_vocab: ids at and beyond it are no tokens.
  """
  if len(answers) != question.rows:
    return f'{question.rows} continuations were asked for and {len(answers)} came.'
  faults = (_foreign(question, a, valid_vocab) or _untold(a) or _endless(question, a) for a in answers)
  return next(filter(None, faults), None)


def _foreign(question: Question, answer: Answer, valid_vocab: int) -> str | None:
  """Other tokens than ours: no ids at all, another prompt, ids that there are not."""
  if not answer.ids:
    return (
      'the answer has text, but no token ids. Text encoded again may be other tokens than were drawn: take a '
      'server that knows return_token_ids.'
    )
  if answer.prompt is not None and answer.prompt != question.prompt:
    both = zip(answer.prompt, question.prompt, strict=False)
    at = next((i for i, (a, b) in enumerate(both) if a != b), min(len(answer.prompt), len(question.prompt)))
    return (
      f'the server read another prompt than it was sent: {len(answer.prompt)} ids instead of '
      f'{len(question.prompt)}, different from position {at} on. It must take ids as they are, without '
      'adding or cutting any.'
    )
  strange = [i for i in answer.ids if not 0 <= i < valid_vocab]
  if strange:
    return (
      f'it drew the ids {strange[:3]}, but the tokenizer has {valid_vocab}: another tokenizer or another '
      'model. Serve the one that is trained.'
    )
  return None


def _untold(answer: Answer) -> str | None:
  """A token whose log-prob is missing."""
  known = [x for x in answer.logps or () if x is not None and math.isfinite(x)]
  if answer.logps is not None and len(known) == len(answer.logps) == len(answer.ids):
    return None
  return (
    f'the answer has {len(answer.ids)} tokens and {len(known)} log-probs; without all of them sampler and '
    'scorer cannot be compared. Start the server so that it returns log-probs.'
  )


def _endless(question: Question, answer: Answer) -> str | None:
  """A row that does not end where it was to."""
  ids, ends = answer.ids, question.eos_ids
  early = next((i for i, token in enumerate(ids[:-1]) if token in ends), None)
  if early is not None:
    return (
      f'a row goes on after the end of sequence at its position {early}; the server ignores stop_token_ids.'
    )
  if len(ids) > question.sampling.max_tokens:
    return f'a row has {len(ids)} tokens, more than the {question.sampling.max_tokens} that it may.'
  if answer.ended == 'stop' and ids[-1] not in ends:
    return (
      f"a row was ended by token {ids[-1]}, which is none of the tokenizer's ends of sequence {list(ends)}: "
      "the server's model has others, or the server leaves the last token out. Both must have the same."
    )
  return None


def rollout(rows: list[Row], config: RolloutConfig, eos_ids: tuple[int, ...]) -> Rollout:
  """The rows as padded arrays, on the host; row b of question b // n."""
  shape = len(rows), config.sampling.max_tokens
  ids, logps = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  for b, row in enumerate(rows):
    ids[b, : len(row.ids)], logps[b, : len(row.ids)] = row.ids, row.logps
  length = np.array([len(row.ids) for row in rows], np.int32)
  index = np.arange(config.per_question, dtype=np.int32)
  return Rollout(
    ids=ids,
    length=length,
    stopped=np.isin(ids[np.arange(len(rows)), length - 1], eos_ids),
    raw_logp=logps,
    behaviour_logp=_behaviour(logps, length, config.sampling, engines.measure(config.engine)),
    rollout_index=np.tile(index, len(rows) // config.per_question),
    policy_version=np.array([row.version for row in rows], np.int32),
  )


def _behaviour(logps: np.ndarray, length: np.ndarray, sampling: SamplingConfig, kind: str) -> np.ndarray:
  """float32 [B, T], log-probs under what the tokens were drawn from, NaN where the server does not tell.

  Greedy rows have 0. Log-probs of another temperature, or before a truncation, are not the draw's.
  """
  if sampling.temperature == 0:
    return np.zeros_like(logps)
  drawn_from = not truncates(sampling) and (kind == 'tempered' or sampling.temperature == 1)
  if kind == 'processed' or drawn_from:
    return logps
  padding = np.arange(logps.shape[1])[None, :] >= length[:, None]
  return np.where(padding, np.float32(0), np.float32(np.nan))
