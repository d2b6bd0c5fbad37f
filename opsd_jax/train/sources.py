"""Completions of an update: the student's, the data's own, or the teacher's.

GKD mixes them update by update (arXiv 2306.13649, algorithm 1). Whoever wrote a completion, it goes on as a
`Rollout`: its ids are what is scored.
"""

import dataclasses
from collections.abc import Callable, Sequence
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
from opsd_jax.train import cold_start, ledger
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
  """

  rollout: Rollout
  spent: ledger.Ledger
  own: bool


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
  """The teacher's rollouts under its view; with `source.keep=correct` wrong ones are drawn again.

  Those that stay wrong have length 0. What was rejected is paid for all the same.

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
  rollout, right, spent = None, np.zeros(len(seen.length) * setup.rollout.per_question, bool), ledger.Ledger()
  for attempt in range(config.attempts):
    budgets = np.where(right, 0, most) if attempt else None
    drawn = sample(setup, spec, params, seen, number, attempt=attempt, max_tokens=budgets)
    computed = ledger.sampled_positions(seen, drawn)
    spent += ledger.rollout_entry(spec, seen.length, drawn.rollout.length, adapters, computed)
    rollout = drawn.rollout if rollout is None else _where(right, rollout, drawn.rollout)
    if config.keep == 'correct':
      right = judge(rollout).correct
    if config.keep == 'all' or right.all():
      break
  kept = rollout.length if config.keep == 'all' else np.where(right, rollout.length, 0)
  version = np.full_like(rollout.policy_version, NOT_THE_STUDENT)
  return Drawn(rollout.replace(length=np.int32(kept), policy_version=version), spent, own=False)


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
