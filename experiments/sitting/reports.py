"""Results of a finished evaluation: samples in order, all numbers as JSON, and the table."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.sitting import book as books
from experiments.sitting import judging
from experiments.sitting.book import Book
from experiments.sitting.papers import Paper
from opsd_jax.evaluate import marking, summary
from opsd_jax.evaluate.summary import Summary
from opsd_jax.files import write_json, write_text
from opsd_jax.grade.config import GradeConfig

_RESULTS, _TABLE = 'results.json', 'table.md'
_LEFT_OUT = ('benchmarks',)  # of the table's settings: its rows and notes say that


def remove(output: str) -> None:
  """Removes results: while an evaluation goes on they would tell of another."""
  for name in (_RESULTS, _TABLE):
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(output, name))


def write(
  output: str,
  papers: Sequence[Paper],
  filled: Sequence[Book],
  config: GradeConfig,
  settings: Mapping[str, Any],
) -> str:
  """Writes what the folder is for, and returns the table.

  Nothing in it depends on time, or on where a command was interrupted.
  """
  rows = []
  for paper, book in zip(papers, filled, strict=True):
    books.close(book)
    rows.append(_summary(paper, book, config))
  write_json(os.path.join(output, _RESULTS), summary.results(rows, settings))
  table = summary.table(rows, {k: v for k, v in settings.items() if k not in _LEFT_OUT})
  write_text(os.path.join(output, _TABLE), table)
  return table


def _summary(paper: Paper, book: Book, config: GradeConfig) -> Summary:
  samples, count = book.ordered(), book.samples
  answers = [[s.answer for s in samples[i : i + count]] for i in range(0, len(samples), count)]
  rules = judging.headline(paper, config)
  if paper.loaded.benchmark.kind == 'programs':
    return summary.summarise(paper.loaded, samples, rules)
  labels = marking.clusters(paper.loaded, answers, dataclasses.replace(config, rules=rules))
  return summary.summarise(paper.loaded, samples, rules, labels)
