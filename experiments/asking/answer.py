"""Answers: one to a terminal as it comes, or many into a file, batch by batch."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.asking import completions, prompts
from experiments.asking.completions import Row
from experiments.asking.prompts import Request
from experiments.asking.sampler import Meter, Sampler, draw
from opsd_jax import mesh as meshes
from opsd_jax.records import Prompts
from opsd_jax.text.tokenizer import Tokenizer
from opsd_jax.train.progress import progress

Completed = Mapping[tuple[int, int], tuple[list[int], bool]]  # ids, and whether an EOS ended them
TALK_EVERY, ANSWER_EVERY = 4, 32  # tokens of a dispatch: few enough to be read along, or to show progress


def talk(sampler: Sampler, tokenizer: Tokenizer, ids: list[int], meter: Meter) -> None:
  """Prints one completion as it comes."""
  budget, text = np.full(1, sampler.sampling.max_tokens), tokenizer.stream()
  for part in draw(sampler, prompts.pad([ids], [1], 1), budget, TALK_EVERY, meter):
    for token in part.ids[0, : part.count[0] - part.stopped[0]].tolist():  # what ends it is no text
      text, new = text.feed(token)
      sys.stdout.write(new)
    sys.stdout.flush()
  print(text.finish(), flush=True)


def answer(
  sampler: Sampler,
  tokenizer: Tokenizer,
  asked: Sequence[Request],
  ids: Sequence[list[int]],
  have: set[tuple[int, int]],
  meter: Meter,
  *,
  batch: int,
  output: str | None,
  settings: Mapping[str, Any],
) -> None:
  """Adds the completions that are missing to a file, or prints them as JSON lines.

  Args:
    sampler: the model.
    tokenizer: its tokenizer.
    asked: the prompts.
    ids: their tokens.
    have: (line, sample) of the completions that are there.
    meter: is told what it took.
    batch: prompts that are read at a time, at most; fewer where they are long.
    output: the file, or None for standard output.
    settings: stand in every row.
  """
  shards, done = meshes.row_shards(sampler.mesh), 0
  with progress('generate') as show:

    def showing(share: float) -> None:
      rate = meter.drawn_tokens / meter.draw
      show((done + share) / len(asked), {}, rate, f'{done}/{len(asked)} prompts')

    for members, size in prompts.batches(list(map(len, ids)), batch, shards):
      some = [asked[i] for i in members]
      table = prompts.pad([ids[i] for i in members], [request.line for request in some], size)
      left = [completions.lacking(request, sampler.samples, have) for request in some]
      drawn = _draw_rows(sampler, table, left, meter, lambda part, n=len(some): showing(part * n))
      completions.append(output, _rows(tokenizer, some, left, drawn, settings))
      done += len(some)
      showing(0)
  if output is not None:
    completions.sort(output)


def _draw_rows(
  sampler: Sampler,
  table: Prompts,
  left: Sequence[Sequence[int]],
  meter: Meter,
  showing: Callable[[float], None],
) -> Completed:
  """The missing samples of the prompts, by (place in the batch, sample)."""
  longest = sampler.sampling.max_tokens
  budget = np.zeros((len(table.length), sampler.samples), np.int32)  # none for what is there already
  for row, samples in zip(budget, left):
    row[list(samples)] = longest
  rows: list[list[int]] = [[] for _ in range(budget.size)]
  for part in draw(sampler, table, budget.reshape(-1), ANSWER_EVERY, meter):
    for row, ids, count in zip(rows, part.ids, part.count, strict=True):
      row += ids[:count].tolist()
    showing(max(map(len, rows)) / longest)
  return {divmod(b, sampler.samples): (ids, bool(part.stopped[b])) for b, ids in enumerate(rows)}


def _rows(
  tokenizer: Tokenizer,
  asked: Sequence[Request],
  left: Sequence[Sequence[int]],
  drawn: Completed,
  settings: Mapping[str, Any],
) -> Iterator[Row]:
  """Rows of the output. What ended a completion is no part of its text."""
  for place, (request, samples) in enumerate(zip(asked, left, strict=True)):
    for sample in samples:
      ids, stopped = drawn[place, sample]
      yield {
        'line': request.line,
        'sample': sample,
        'input': request.given,
        'completion': tokenizer.decode(ids[: len(ids) - stopped]),
        'ids': ids,
        'stopped': stopped,
        'settings': settings,
      }
