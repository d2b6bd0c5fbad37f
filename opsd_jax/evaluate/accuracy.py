"""Accuracy of one parameter tree under one view: rollouts, graded and averaged."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from opsd_jax import hosts
from opsd_jax import mesh as meshes
from opsd_jax.distill import views
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.evaluate.statistics import Estimate, mean_accuracy, pass_at_k
from opsd_jax.grade import grading
from opsd_jax.grade.config import GradeConfig
from opsd_jax.models.model import Params
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Graded, Problem, Prompts, Role, Rollout, Verdict
from opsd_jax.rollout import decode as decoding
from opsd_jax.rollout import layout
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig
from opsd_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Exam:
  """What asking a model takes, whatever its weights: its shape, the texts, and how answers are read.

  `mark` gives verdicts on completions of problems; None: by the rules of `grade`.
  """

  spec: ModelSpec
  mesh: jax.sharding.Mesh
  views: ViewsConfig
  tokenizer: Tokenizer
  grade: GradeConfig = GradeConfig()
  mark: Callable[[Sequence[Problem], Sequence[str]], Graded] | None = None

  @property
  def valid_vocab(self) -> int:
    """Ids that can be drawn: the tokenizer's, as far as the model has rows for them."""
    return min(self.spec.vocab_size, self.tokenizer.vocab_size)


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """Graded completions of X problems, n of each.

  Attributes:
    correct: bool [X, n].
    answered: bool [X, n].
    stopped: bool [X, n].
    length: int [X, n], tokens.
    prompt_length: int [X], tokens.
  """

  correct: np.ndarray
  answered: np.ndarray
  stopped: np.ndarray
  length: np.ndarray
  prompt_length: np.ndarray


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """What a row of the final table holds."""

  sampled: Estimate
  greedy: Estimate
  pass_at: dict[int, float]
  answered: float
  stopped: float
  mean_length: float


def decode_rollout(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
  """Text of every row, for grading and for people; ids on the host."""
  return [tokenizer.decode(row[:n].tolist()) for row, n in zip(rollout.ids, rollout.length, strict=True)]


def judge(rollout: Rollout, tokenizer: Tokenizer, mark: Callable[[slice, Sequence[str]], Graded]) -> Graded:
  """Verdicts on all rows, of which each process decodes and judges its own part.

  So no host waits for what others do as well, and all believe the same verdicts: a grader that runs into a
  time-out on one host may not on another.

  Args:
    rollout: [B, T] on the host, the same on every process.
    tokenizer: of the run.
    mark: gives verdicts on some of the rows (a slice, perhaps of none), whose completions are the second
      argument.
  """
  rows = len(rollout.length)
  mine = hosts.share(rows)
  own = mark(mine, decode_rollout(jax.tree.map(lambda x: x[mine], rollout), tokenizer))
  if jax.process_count() == 1:
    return own
  kinds = list(Verdict)
  numbers = hosts.gather(np.array([kinds.index(v) for v in own.verdicts], np.int32), rows)
  verdicts = tuple(kinds[number] for number in numbers)
  if own.shares is None:
    return Graded(verdicts)
  return Graded(verdicts, tuple(hosts.gather(np.float64(own.shares), rows).tolist()))


def answer_problems(
  exam: Exam,
  params: Params,
  problems: Sequence[Problem],
  role: Role,
  sampling: SamplingConfig,
  *,
  samples: int,
  batch: int,
  seed: int,
  decode: DecodeConfig = DecodeConfig(),
) -> Verdicts:
  """Draws and grades `samples` completions of every problem, `batch` problems at a time.

  The last batch is filled up with repeats, which are dropped: one compiled shape serves all. A batch
  that the mesh cannot split evenly is made larger, or every device would decode all of it.
  """
  batch = -(-batch // meshes.row_shards(exam.mesh)) * meshes.row_shards(exam.mesh)
  prompts, params = _prompts(exam, problems, role), layout.for_decoding(exam.spec, params)
  columns = []
  for start in range(0, len(problems), batch):
    rows = np.arange(start, start + batch) % len(problems)
    part = Prompts(*(np.asarray(x)[rows] for x in (prompts.ids, prompts.length, prompts.problem_id)))
    rollout = meshes.host(
      decoding.generate(
        exam.spec,
        params,
        meshes.shard_rows(exam.mesh, part),
        sampling,
        eos_ids=exam.tokenizer.eos_ids,
        per_question=samples,
        seed=seed,
        valid_vocab=exam.valid_vocab,
        decode=decode,
      )
    )
    graded = _grade(exam, [problems[r] for r in np.repeat(rows, samples)], rollout)
    columns.append(
      [x.reshape(batch, samples) for x in (graded.correct, graded.answered, rollout.stopped, rollout.length)]
    )
  stacked = [np.concatenate(parts)[: len(problems)] for parts in zip(*columns, strict=True)]
  return Verdicts(*stacked, prompt_length=np.asarray(prompts.length))


def _grade(exam: Exam, asked: Sequence[Problem], rollout: Rollout) -> Graded:
  def mark(mine: slice, completions: Sequence[str]) -> Graded:
    if exam.mark is not None:
      return exam.mark(asked[mine], completions)
    return grading.grade(completions, [p.answer for p in asked[mine]], exam.grade)

  return judge(rollout, exam.tokenizer, mark)


def _prompts(exam: Exam, problems: Sequence[Problem], role: Role) -> Prompts:
  if role == 'student':
    return views.student_batch(exam.views, problems, exam.tokenizer)
  return views.teacher_batch(exam.views, problems, exam.tokenizer)[0]


def by_level(levels: Sequence[str | None], correct: np.ndarray) -> dict[str, float]:
  """Share of `correct` bool [X, n] by how hard each problem is said to be, the shortest names first.

  Problems of which nothing is said are left out.
  """
  found: dict[str, list[float]] = {}
  for level, share in zip(levels, np.asarray(correct).mean(1), strict=True):
    if level is not None:
      found.setdefault(level, []).append(float(share))
  hardness = sorted(found, key=lambda level: (len(level), level))
  return {level: float(np.mean(found[level])) for level in hardness}


def measure(
  exam: Exam, params: Params, problems: Sequence[Problem], role: Role, config: EvaluateConfig
) -> tuple[Accuracy, list[Verdicts]]:
  """Sampled (avg@n, pass@k) and greedy accuracy, and the verdicts they come from."""
  asked = dict(batch=config.batch, seed=config.seed, decode=config.decode)
  greedy_sampling = dataclasses.replace(config.sampling, temperature=0.0)
  sampled, greedy = (
    answer_problems(exam, params, problems, role, how, samples=n, **asked)
    for how, n in ((config.sampling, config.samples), (greedy_sampling, 1))
  )
  powers = sorted({2**i for i in range(config.samples.bit_length())} | {config.samples})
  accuracy = Accuracy(
    sampled=mean_accuracy(sampled.correct),
    greedy=mean_accuracy(greedy.correct),
    pass_at={k: pass_at_k(sampled.correct, k) for k in powers},
    answered=float(sampled.answered.mean()),
    stopped=float(sampled.stopped.mean()),
    mean_length=float(sampled.length.mean()),
  )
  return accuracy, [sampled, greedy]
