"""Draws the samples of a benchmark that are missing; each is kept as soon as it ends.

Batches are made of all problems of a benchmark, never of the missing ones alone, and what is there already
gets no tokens. So every batch has the shape that it would have had without an interruption, and in one
compiled shape a row's tokens do not depend on its batch-mates: the samples are the same, bit by bit.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from experiments.asking import prompts
from experiments.asking.sampler import Meter, Sampler, draw
from experiments.sitting import book as books
from experiments.sitting import judging
from experiments.sitting.book import Book
from experiments.sitting.papers import Paper
from opsd_jax import mesh as meshes
from opsd_jax.distill.views import stable_id
from opsd_jax.evaluate.samples import Sample
from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Prompts, Verdict
from opsd_jax.text.tokenizer import Tokenizer
from opsd_jax.train.progress import progress

Judge = Callable[[Sequence[Sample]], Sequence[Sample]]
Showing = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class Batch:
  """Prompts that are read together, and which of their samples are drawn.

  Attributes:
    table: Q prompts, of which the last may be there to fill it up.
    members: places of the others among the problems.
    budget: int32 [Q, n], tokens of every sample; 0 for what is not drawn.
  """

  table: Prompts
  members: Sequence[int]
  budget: np.ndarray


def sit_all(
  sampler: Sampler,
  tokenizer: Tokenizer,
  papers: Sequence[Paper],
  filled: Sequence[Book],
  config: GradeConfig,
  meter: Meter,
  *,
  batch: int,
  every: int,
) -> None:
  """Fills every book, showing how far it is and the share of a benchmark's judged samples that are right."""
  whole = sum(len(book.order) * book.samples for book in filled)
  with progress('evaluate', start=sum(len(book.held) for book in filled) / whole) as show:
    for paper, book in zip(papers, filled, strict=True):
      marked = [s for s in book.held.values() if s.verdicts]
      tally = collections.Counter(judging.counts(paper, s, config) for s in marked)

      def judge(found: Sequence[Sample], paper=paper, tally=tally) -> Sequence[Sample]:
        marked = judging.judge(paper, found, config)
        tally.update(judging.counts(paper, s, config) for s in marked)
        return marked

      def showing(share: float, paper=paper, book=book, tally=tally) -> None:
        done, judged = len(book.held), tally.total()
        values = {'accuracy': tally[Verdict.CORRECT] / judged} if judged else {}
        rate = meter.drawn_tokens / meter.draw if meter.draw else None
        total = sum(len(book.held) for book in filled) + share
        show(total / whole, values, rate, f'{paper.name} {done}/{len(book.order) * book.samples}')

      sit(sampler, tokenizer, paper, book, judge, meter, batch=batch, every=every, showing=showing)


def sit(
  sampler: Sampler,
  tokenizer: Tokenizer,
  paper: Paper,
  book: Book,
  judge: Judge,
  meter: Meter,
  *,
  batch: int,
  every: int,
  showing: Showing,
) -> None:
  """Fills the book.

  Args:
    sampler: the model.
    tokenizer: its tokenizer.
    paper: what is asked.
    book: what is there; every sample that ends is added.
    judge: gives samples their answers and verdicts.
    meter: is told what it took.
    batch: prompts that are read at a time, at most; fewer where they are long.
    every: tokens of a dispatch; samples are kept after each.
    showing: is told, after each dispatch, how many samples' worth of tokens of unfinished rows there are.
  """
  at_once = judging.at_once(paper)
  lengths, shards = list(map(len, paper.ids)), meshes.row_shards(sampler.mesh)
  for members, rows in prompts.batches(lengths, batch, shards):
    some = _missing(sampler, paper, book, members, rows)
    if not some.budget.any():
      continue
    for found, share in _ending(sampler, tokenizer, paper, some, every, meter):
      books.add(book, found)
      if at_once:
        books.mark(book, judge)
      showing(share)
    if not at_once:
      books.mark(book, judge)
      showing(0)


def _missing(sampler: Sampler, paper: Paper, book: Book, members: Sequence[int], rows: int) -> Batch:
  """Some prompts, and a budget for each of their samples that is not there."""
  counters = [stable_id(paper.problems[i]) for i in members]
  table = prompts.pad([paper.ids[i] for i in members], counters, rows)
  budget = np.zeros((rows, book.samples), np.int32)
  for row, i in zip(budget, members):
    row[book.lacking(paper.problems[i].id)] = sampler.sampling.max_tokens
  return Batch(table, members, budget)


def _ending(
  sampler: Sampler, tokenizer: Tokenizer, paper: Paper, batch: Batch, every: int, meter: Meter
) -> Iterator[tuple[list[Sample], float]]:
  """The samples that end in each dispatch, and how much of the others is drawn."""
  going, longest = batch.budget.reshape(-1) > 0, sampler.sampling.max_tokens
  ids: list[list[int]] = [[] for _ in going]
  for part in draw(sampler, batch.table, batch.budget.reshape(-1), every, meter):
    for row, new, count in zip(ids, part.ids, part.count, strict=True):
      row += new[:count].tolist()
    ended = np.flatnonzero(going & ~part.active)
    going &= part.active
    yield (
      [_sample(tokenizer, paper, batch, b, ids[b], bool(part.stopped[b])) for b in ended.tolist()],
      sum(len(ids[b]) for b in np.flatnonzero(going)) / longest,
    )


def _sample(
  tokenizer: Tokenizer, paper: Paper, batch: Batch, row: int, ids: list[int], stopped: bool
) -> Sample:
  """A completion without verdicts. What ended it is no part of its text."""
  place, number = divmod(row, batch.budget.shape[1])
  problem = batch.members[place]
  return Sample(
    problem=paper.problems[problem].id,
    sample=number,
    prompt_tokens=len(paper.ids[problem]),
    ids=tuple(ids),
    stopped=stopped,
    completion=tokenizer.decode(ids[: len(ids) - stopped]),
    answer=None,
    verdicts={},
  )
