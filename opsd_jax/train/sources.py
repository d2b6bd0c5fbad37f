"""Completions of an update: the student's, the data's own, or the teacher's.

GKD mixes them update by update (arXiv 2306.13649, algorithm 1). Whoever wrote a completion, it goes on as a
`Rollout`: its ids are what is scored.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from opsd_jax import mesh as meshes
from opsd_jax.distill import views
from opsd_jax.evaluate.accuracy import decode_rollout
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Example, Graded, Problem, Prompts, Rollout, Sampled
from opsd_jax.rollout import decode
from opsd_jax.text.tokenizer import Tokenizer
from opsd_jax.train import cold_start, ledger, rejection
from opsd_jax.train.config import SourceConfig
from opsd_jax.train.setup import Setup

_COIN = 2  # beside the counters of data order and of cold-start rows
_STRIDE = 0x9E3779B9  # between the seeds of two attempts at a rollout
_ANALYSIS = 1 << 16  # an attempt that no rollout has
NOT_THE_STUDENT = -1  # `policy_version` of what no student drew


class Drawn(NamedTuple):
  """Completions, and what they took.

  Attributes:
    rollout: [B, T] on the host; a completion that is left out has length 0.
    spent: by whoever sampled.
    own: whether the student did.
    rejected: how many were drawn and rejected, for each reason that was asked about.
  """

  rollout: Rollout
  spent: ledger.Ledger
  own: bool
  rejected: Mapping[str, int] = MappingProxyType({})


def takes_own(config: SourceConfig, seed: int, number: int) -> bool:
  """Whether update `number` learns from the student's own rollouts: a function of (seed, number)."""
  if config.kind == 'student':
    return True
  return bool(np.random.default_rng([seed, number, _COIN]).random() < config.student_share)


def sample(
  setup: Setup,
  spec: ModelSpec,
  params: model.Params,
  prompts: Prompts,
  number: int,
  *,
  attempt: int = 0,
  max_tokens: np.ndarray | None = None,
) -> Sampled:
  """Rollouts drawn here, on the devices that train, and brought to the host.

  Args:
    setup: of the run.
    spec: shape of the model that draws.
    params: its parameters.
    prompts: Q questions, on the host.
    number: of the update.
    attempt: counts draws of the same rollout in one update.
    max_tokens: int [B] budgets, 0 for rows that are not to be drawn; None for `rollout.sampling`'s.
  """
  sampled = decode.sample(
    spec,
    params,
    meshes.shard_rows(setup.mesh, prompts),
    setup.rollout.sampling,
    eos_ids=setup.tokenizer.eos_ids,
    per_question=setup.rollout.per_question,
    seed=(setup.seed + attempt * _STRIDE) % 2**32,
    step=number,
    loss_temperature=setup.objective.student_temperature,
    valid_vocab=setup.exam.valid_vocab,
    max_tokens=max_tokens,
    decode=setup.rollout.decode,
  )
  return sampled._replace(
    rollout=meshes.host(sampled.rollout), token_positions=meshes.host(sampled.token_positions)
  )


def of_data(setup: Setup, problems: Sequence[Problem]) -> Drawn:
  """The solutions of the data as completions, one a question."""
  texts = [_solution(setup.source, p) for p in problems]
  examples = [Example(p, 'student', text) for p, text in zip(problems, texts, strict=True)]
  width = setup.rollout.sampling.max_tokens
  ids, length = cold_start.tokenize_completions(examples, setup.tokenizer, width)
  rows = len(problems)
  rollout = Rollout(
    ids=ids,
    length=length,
    stopped=np.ones(rows, bool),
    raw_logp=np.zeros(ids.shape, np.float32),  # nobody drew them; no loss of such an update reads it
    behaviour_logp=np.full(ids.shape, np.nan, np.float32),
    rollout_index=np.zeros(rows, np.int32),
    policy_version=np.full(rows, NOT_THE_STUDENT, np.int32),
  )
  return Drawn(rollout, ledger.Ledger(given=int(length.sum())), own=False)


def misfit(config: SourceConfig, problem: Problem, tokenizer: Tokenizer, width: int) -> str | None:
  """Why the problem's solution cannot be a completion, in words that many share; None if it can."""
  text = _solution(config, problem)
  if not text.strip():
    return 'its text of source.completion is empty'
  if len(tokenizer.encode(text)) < width:
    return None
  return f'its text of source.completion and EOS are longer than rollout.sampling.max_tokens ({width})'


def _solution(config: SourceConfig, problem: Problem) -> str:
  return views.fill(config.completion, problem, 'source.completion')


def of_teacher(
  setup: Setup,
  spec: ModelSpec,
  params: model.Params,
  seen: Prompts,
  number: int,
  judge: Callable[[Rollout], Graded],
  adapters: int = 0,
) -> Drawn:
  """The teacher's rollouts under its view; what `source.keep` or `source.reject` rejects is drawn again.

  Those that stay rejected have length 0. What was rejected is paid for all the same.

  Args:
    setup: of the run.
    spec: the teacher's shape.
    params: its parameters.
    seen: its prompts [Q, P], on the host.
    number: of the update.
    judge: verdicts on rollouts.
    adapters: number of weights in the teacher's adapters.
  """
  config, most = setup.source, setup.rollout.sampling.max_tokens
  rollout, kept, spent = None, np.zeros(len(seen.length) * setup.rollout.per_question, bool), ledger.Ledger()
  rejected = collections.Counter()
  for attempt in range(config.attempts):
    budgets = np.where(kept, 0, most) if attempt else None
    drawn = sample(setup, spec, params, seen, number, attempt=attempt, max_tokens=budgets)
    computed = ledger.sampled_positions(seen, drawn)
    spent += ledger.rollout_entry(spec, seen.length, drawn.rollout.length, adapters, computed)
    rollout = drawn.rollout if rollout is None else _where(kept, rollout, drawn.rollout)
    reasons = _reasons(setup, rollout, judge)
    rejected.update(reasons)
    kept = np.array([reason is None for reason in reasons])
    if kept.all():
      break
  version = np.full_like(rollout.policy_version, NOT_THE_STUDENT)
  rollout = rollout.replace(length=np.int32(np.where(kept, rollout.length, 0)), policy_version=version)
  asked = [*rejection.asked(config.reject), *(['wrong'] if config.keep == 'correct' else [])]
  return Drawn(rollout, spent, own=False, rejected={name: rejected[name] for name in asked})


def _reasons(setup: Setup, rollout: Rollout, judge: Callable[[Rollout], Graded]) -> list[str | None]:
  """Why each row is rejected, or None: a rule of `source.reject`, or else that it is wrong."""
  config, rows = setup.source, len(rollout.length)
  found = [None] * rows
  if rejection.asked(config.reject):
    texts = decode_rollout(rollout, setup.tokenizer)
    found = [
      rejection.reason(config.reject, *row) for row in zip(texts, rollout.stopped.tolist(), strict=True)
    ]
  right = judge(rollout).correct if config.keep == 'correct' else [True] * rows
  return [reason or (None if ok else 'wrong') for reason, ok in zip(found, right, strict=True)]


def analysed(
  setup: Setup, spec: ModelSpec, params: model.Params, problems: Sequence[Problem], number: int, adapters: int
) -> tuple[Prompts, ledger.Ledger]:
  """Teacher prompts [Q, P] that hold the teacher's own analysis of each problem, and what writing it took."""
  asked = views.analysis_batch(setup.views, problems, setup.tokenizer)
  sampling = dataclasses.replace(setup.rollout.sampling, max_tokens=setup.views.analysis_tokens)
  own = dataclasses.replace(
    setup, rollout=dataclasses.replace(setup.rollout, per_question=1, sampling=sampling)
  )
  drawn = sample(own, spec, params, asked, number, attempt=_ANALYSIS)
  computed = ledger.sampled_positions(asked, drawn)
  spent = ledger.rollout_entry(spec, asked.length, drawn.rollout.length, adapters, computed)
  return views.with_analysis(setup.views, problems, setup.tokenizer, asked, drawn.rollout), spent


def by_row(
  setup: Setup, problems: Sequence[Problem], prompts: Prompts, rollout: Rollout, graded: Graded
) -> tuple[Prompts, Prompts, Rollout]:
  """The student's and the teacher's prompts, one a row, and the rows; those without a view have length 0."""
  texts = decode_rollout(rollout, setup.tokenizer)
  seen, kept = views.row_batch(setup.views, problems, setup.tokenizer, texts, graded.correct.tolist())
  repeated = jax.tree.map(lambda x: np.repeat(x, len(texts) // len(problems), axis=0), prompts)
  return repeated, seen, rollout.replace(length=np.int32(np.where(kept, rollout.length, 0)))


def _where(rows: np.ndarray, first: Rollout, second: Rollout) -> Rollout:
  """Row b of `first` where `rows[b]`, else of `second`."""
  return jax.tree.map(lambda a, b: np.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b), first, second)
