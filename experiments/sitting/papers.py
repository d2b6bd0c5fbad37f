"""What is asked: the problems of a benchmark as prompts, refused before a model is loaded."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.sitting.subject import Subject
from opsd_jax.config import ConfigError, require
from opsd_jax.distill import views
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.evaluate import benchmarks
from opsd_jax.evaluate.benchmarks import Loaded
from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Problem
from opsd_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Paper:
  """A benchmark as it is asked.

  Attributes:
    loaded: the benchmark, with those of its problems that are asked.
    ids: tokens of their prompts.
    view: how they are asked.
  """

  loaded: Loaded
  ids: Sequence[Sequence[int]]
  view: ViewsConfig

  @property
  def name(self) -> str:
    """Of the benchmark, and of its folder."""
    return self.loaded.benchmark.name

  @property
  def problems(self) -> Sequence[Problem]:
    """Those that are asked."""
    return self.loaded.problems

  def introduction(self) -> str:
    """What somebody should know before the numbers are there, in a line."""
    benchmark = self.loaded.benchmark
    words = [f'{self.name}: {len(self.problems):,} problems', f'licence: {benchmark.licence}']
    return '; '.join([*words, *self.loaded.notes, *benchmark.remarks])

  def told(self) -> dict[str, Any]:
    """What settings say of it. `prompts` is a digest of all prompts as ids."""
    asked = [[problem.id, list(ids)] for problem, ids in zip(self.problems, self.ids, strict=True)]
    return {
      'kind': self.loaded.benchmark.kind,
      'problems': len(self.problems),
      'digest': self.loaded.digest,
      'prompts': hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16],
      'licence': self.loaded.benchmark.licence,
      'notes': list(self.loaded.notes),
    }


def limited(loaded: Loaded, limit: int | None) -> Loaded:
  """The first problems of a benchmark alone, with a note that says so."""
  whole = len(loaded.problems)
  if limit is None or limit >= whole:
    return loaded
  notes = (*loaded.notes, f'the first {limit} of {whole} problems alone')
  return dataclasses.replace(loaded, problems=tuple(loaded.problems[:limit]), notes=notes)


def with_unscorable(loaded: Loaded, config: GradeConfig) -> Loaded:
  """The benchmark with a note where the grader would refuse its own known answers."""
  refused = benchmarks.check(loaded, config)
  if not refused:
    return loaded
  some = ', '.join(f'{id} ({verdict})' for id, verdict in list(refused.items())[:5])
  note = f'{len(refused)} known answers cannot be scored by the rules {config.rules}: {some}'
  return dataclasses.replace(loaded, notes=(*loaded.notes, note))


def write(loaded: Loaded, view: ViewsConfig, tokenizer: Tokenizer, rows: int, longest: int) -> Paper:
  """The paper of a benchmark.

  Args:
    loaded: the benchmark.
    view: how a student is asked.
    tokenizer: of the model.
    rows: of the model's embedding: ids at and beyond it cannot be read.
    longest: tokens of a prompt, at most.

  Raises:
    ConfigError: a problem cannot be asked; names it.
  """
  ids = [_ids(problem, view, tokenizer) for problem in loaded.problems]
  for problem, row in zip(loaded.problems, ids, strict=True):
    beyond = [i for i in row if i >= rows]
    require(
      not beyond,
      f'the prompt of problem {problem.id!r} has token {beyond[:1]}, but the model reads ids below {rows:,} '
      'only; leave the problem out.',
    )
  _require_short({p.id: len(row) for p, row in zip(loaded.problems, ids, strict=True)}, longest)
  return Paper(loaded, ids, view)


def _ids(problem: Problem, view: ViewsConfig, tokenizer: Tokenizer) -> list[int]:
  try:
    ids = views.prompt_ids(view, views.student_prompt(view, problem, tokenizer), tokenizer)
  except ConfigError as error:
    raise ConfigError(f'problem {problem.id!r} cannot be asked: {error}') from error
  require(bool(ids), f'the prompt of problem {problem.id!r} is empty.')
  return ids


def _require_short(lengths: Mapping[str, int], longest: int) -> None:
  over = {id: length for id, length in lengths.items() if length > longest}
  if over:
    id = max(over, key=over.get)
    others = f' ({len(over) - 1} others are too long as well)' if len(over) > 1 else ''
    raise ConfigError(
      f'the prompt of problem {id!r} has {over[id]:,} tokens, but --max_prompt_tokens is {longest:,}{others}'
      f'; set it to {over[id]}, or ask fewer problems with --limit.'
    )


def require_different(found: Sequence[Paper]) -> None:
  """Raises `ConfigError` where a benchmark is named twice: it has one folder."""
  names = [paper.name for paper in found]
  twice = sorted({name for name in names if names.count(name) > 1})
  require(
    not twice, f'--benchmarks names {", ".join(twice)} more than once; give each file a name of its own.'
  )


def require_positions(found: Sequence[Paper], budget: int, subject: Subject) -> None:
  """Raises `ConfigError` where a prompt and its completion may need more positions than the model has."""
  wide = max((len(row), problem.id) for paper in found for row, problem in zip(paper.ids, paper.problems))
  limit = subject.positions
  require(
    limit is None or wide[0] + budget <= limit,
    f'{subject.where} is made for {limit} positions (max_position_embeddings), but the prompt of problem '
    f'{wide[1]!r} has {wide[0]:,} tokens and a completion may have {budget:,}; lower --max_tokens to '
    f'{(limit or 0) - wide[0]}.',
  )
