"""The samples of one benchmark in a file that grows a line at a time, and that a killed command finds again.

A line is a finished completion: at first without verdicts, so that it is safe while it is judged, then once
more with them. `close` leaves one line of each, in the order of the problems, so that a finished file tells
nothing of where a command was interrupted.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence

from opsd_jax import files
from opsd_jax.config import ConfigError, require
from opsd_jax.evaluate import samples
from opsd_jax.evaluate.samples import Sample

Place = tuple[str, int]  # problem, sample


@dataclasses.dataclass(frozen=True)
class Book:
  """The file and what it holds; `held` is filled as lines are added.

  Attributes:
    path: the file.
    order: problem id -> its place in the benchmark.
    samples: completions of each problem.
    held: the samples that are there.
  """

  path: str
  order: Mapping[str, int]
  samples: int
  held: dict[Place, Sample]

  def lacking(self, problem: str) -> list[int]:
    """Samples of a problem that are still to be drawn."""
    return [i for i in range(self.samples) if (problem, i) not in self.held]

  @property
  def unmarked(self) -> list[Sample]:
    """The samples without verdicts."""
    return [sample for sample in self.held.values() if not sample.verdicts]

  @property
  def complete(self) -> bool:
    """Whether every sample of every problem is there."""
    return len(self.held) == len(self.order) * self.samples

  def ordered(self) -> list[Sample]:
    """The samples in the order of the problems."""
    return [self.held[place] for place in sorted(self.held, key=lambda p: (self.order[p[0]], p[1]))]


def open_book(path: str, order: Sequence[str], count: int) -> Book:
  """Reads what is there; a line that a kill tore is cut off.

  Args:
    path: the file; made if absent, with its folder.
    order: ids of the problems.
    count: samples of each.

  Raises:
    ConfigError: the file holds something else, or cannot be written.
  """
  book = Book(path, {id: i for i, id in enumerate(order)}, count, {})
  try:
    lines, torn = _lines(path)
    for number, line in enumerate(lines, 1):
      where = f'{path}, line {number}'
      sample = samples.from_row(_parsed(line, where), where)
      place = sample.problem, sample.sample
      known = place[0] in book.order and 0 <= place[1] < count
      require(
        known and (place not in book.held or not book.held[place].verdicts),
        f'{where} has sample {sample.sample} of problem {sample.problem!r}, which is not asked or was there '
        'before; remove the file, or name another --output.',
      )
      book.held[place] = sample
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'ab') as file:
      file.truncate(file.tell() - torn)
  except OSError as error:
    raise ConfigError(f'{path} cannot be written: {error.strerror or error}.') from error
  return book


def _lines(path: str) -> tuple[list[bytes], int]:
  """The whole lines of a file, and how many bytes follow the last."""
  if not os.path.exists(path):
    return [], 0
  with open(path, 'rb') as file:
    *lines, torn = file.read().split(b'\n')
  return lines, len(torn)


def _parsed(line: bytes, where: str) -> object:
  try:
    return json.loads(line)
  except ValueError as error:
    raise ConfigError(f'{where} is not JSON: {error}; remove the file, or name another --output.') from error


def add(book: Book, found: Sequence[Sample]) -> None:
  """Adds samples; they are on the disk when this returns."""
  if not found:
    return
  with open(book.path, 'a', encoding='utf-8') as file:
    file.write(''.join(map(samples.to_line, found)))
    file.flush()
    os.fsync(file.fileno())
  book.held.update({(s.problem, s.sample): s for s in found})


def mark(book: Book, judge: Callable[[Sequence[Sample]], Sequence[Sample]]) -> None:
  """Adds the verdicts that are missing."""
  if waiting := book.unmarked:
    add(book, judge(waiting))


def close(book: Book) -> None:
  """Leaves one line of each sample, in order."""
  text = ''.join(map(samples.to_line, book.ordered()))
  with open(book.path, encoding='utf-8') as file:
    if file.read() == text:
      return
  files.write_text(book.path, text)


def mark_again(book: Book, judge: Callable[[Sequence[Sample]], Sequence[Sample]]) -> None:
  """Gives every sample the verdicts that `judge` gives it now; the file is the old or the new one."""
  held = judge(book.ordered())
  book.held.update({(s.problem, s.sample): s for s in held})
  samples.write(book.path, held)
