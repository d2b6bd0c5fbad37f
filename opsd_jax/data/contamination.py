"""Finds training problems that repeat a benchmark's: runs of words that both have (n-grams).

A run of 13 words is the measure of GPT-3's report (arXiv:2005.14165, appendix C). By itself it also finds
every pair that shares a phrase such as "where m and n are relatively prime positive integers, find m + n".
Two rules keep these apart: a run that several benchmark problems have is a phrase and says nothing, and the
shared runs must make up a share of what is the problem's own.

Measured on the 17,917 problems of DAPO-Math-17k: any run of 13 words finds 19 of AIME's 60 problems of 2024
and 2025, of which none is there; with both rules and a share of 0.4 it finds none of them, and 28 of the 40
of AMC 2023, all of them there. What it still finds wrongly are problems made after one pattern with other
numbers. Rewordings without a run of 13 words and translations are not found.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal

from opsd_jax.config import require, require_choice
from opsd_jax.data import texts
from opsd_jax.records import Problem

_FEW = 6  # words; a shorter problem says too little to be looked for inside others
_PHRASE = 3  # benchmark problems that may have a run before it is a phrase
ACTIONS = ('drop', 'report', 'error', 'off')


@dataclasses.dataclass(frozen=True)
class ContaminationConfig:
  """The check of training problems against benchmarks, and against the run's own held-out problems.

  Attributes:
    action: what happens to a training problem that repeats one of them: `drop` leaves it out and counts it,
      `report` counts it, `error` ends the run before it begins; `off`: nothing is checked.
    n: words of a run that counts as shared. A shorter problem of a benchmark is looked for with its signs
      (`texts.canonical`): inside others where it has at least six words, else as the whole problem, because
      2+3 inside 2+3*4 is another one.
    share: part of the words of the benchmark's problem, phrases apart, that must lie in shared runs, in
      0..1; 0 asks for a single run.
    path: folder of the benchmarks' files; none: only the run's own held-out problems are looked at.
    benchmarks: their names; none named: all that are found.
  """

  action: Literal['drop', 'report', 'error', 'off'] = 'drop'
  n: int = 13
  share: float = 0.4
  path: str | None = None
  benchmarks: tuple[str, ...] = ()


def validate(config: ContaminationConfig) -> None:
  """Raises `ConfigError` for settings that cannot work."""
  require_choice('data.contamination.action', config.action, ACTIONS)
  require(config.n > 0, f'data.contamination.n is {config.n}; it must be positive, usually 13.')
  require(
    0 <= config.share <= 1, f'data.contamination.share is {config.share}; a share of words lies in 0..1.'
  )
  require(
    config.path is not None or not config.benchmarks,
    f'data.contamination.benchmarks names {", ".join(config.benchmarks)}, but data.contamination.path, the '
    'folder of their files, is none.',
  )


@dataclasses.dataclass(frozen=True)
class Overlap:
  """A training problem that repeats a benchmark's.

  Attributes:
    problem: id of the training problem.
    benchmark: name.
    other: id of the benchmark's problem.
    share: part of its own words that lie in shared runs, in 0..1.
  """

  problem: str
  benchmark: str
  other: str
  share: float


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """The runs of words of all benchmarks. They are kept as texts: no hash, so nothing is found by chance.

  Attributes:
    n: words of a run.
    problems: (benchmark, id) of every problem.
    own: by number in `problems`, which words are its own: all but those inside phrases; empty for a problem
      of fewer than n words.
    places: by run, parted by spaces: (number in `problems`, first word) of each of its places.
    whole: by mark, the numbers of problems of fewer than n words.
    inside: by first token, canonical text and number of those that may be a part of others.
  """

  n: int
  problems: Sequence[tuple[str, str]]
  own: Sequence[frozenset[int]]
  places: Mapping[str, Sequence[tuple[int, int]]]
  whole: Mapping[bytes, Sequence[int]]
  inside: Mapping[str, Sequence[tuple[str, int]]]


def make_index(benchmarks: Mapping[str, Iterable[Problem]], n: int) -> Index:
  """The index of benchmarks' problems, in runs of `n` words; reads each problem once.

  A run that more than three problems of different text have is a phrase; a problem of nothing but phrases
  keeps them.
  """
  every = [(name, problem) for name, some in benchmarks.items() for problem in some]
  spoken = [texts.words(problem.problem) for _, problem in every]
  marks = [texts.mark(problem.problem) for _, problem in every]
  places: dict[str, list[tuple[int, int]]] = {}
  whole: dict[bytes, list[int]] = {}
  inside: dict[str, list[tuple[str, int]]] = {}
  for number, said in enumerate(spoken):
    if len(said) < n:
      whole.setdefault(marks[number], []).append(number)
      if len(said) >= _FEW:
        text = texts.canonical(every[number][1].problem)
        inside.setdefault(text.split(' ')[0], []).append((f' {text} ', number))
    for first, run in enumerate(runs(said, n)):
      places.setdefault(run, []).append((number, first))
  phrases = {run for run, found in places.items() if _is_phrase({marks[number] for number, _ in found})}
  own = [_own_words(said, n, phrases) if len(said) >= n else frozenset() for said in spoken]
  return Index(n, [(name, problem.id) for name, problem in every], own, places, whole, inside)


def _is_phrase(marks: Set[bytes]) -> bool:
  return len(marks) > _PHRASE


def _own_words(words: Sequence[str], size: int, phrases: Set[str]) -> frozenset[int]:
  """Positions of the words that lie in no phrase; all where there would be none."""
  inside = {
    position
    for first, run in enumerate(runs(words, size))
    if run in phrases
    for position in range(first, first + size)
  }
  return frozenset(range(len(words))) - (inside if len(inside) < len(words) else set())


def runs(words: Sequence[str], n: int) -> list[str]:
  """Every run of `n` words, parted by spaces."""
  return [' '.join(words[i : i + n]) for i in range(len(words) - n + 1)]


def overlaps(index: Index, problem: Problem, share: float) -> list[Overlap]:
  """What a problem repeats: every benchmark problem of whose own words `share` lie in runs that both have."""
  covered: dict[int, set[int]] = {}
  for run in runs(texts.words(problem.problem), index.n):
    for number, first in index.places.get(run, ()):
      covered.setdefault(number, set()).update(range(first, first + index.n))
  parts = dict.fromkeys([*index.whole.get(texts.mark(problem.problem), ()), *_inside(index, problem)], 1.0)
  for number, words in covered.items():
    parts[number] = len(words & index.own[number]) / len(index.own[number])
  return [
    Overlap(problem.id, *index.problems[number], round(part, 4))
    for number, part in sorted(parts.items())
    if part >= share and part > 0
  ]


def _inside(index: Index, problem: Problem) -> list[int]:
  """Numbers of the short problems that stand inside this one, whole, with their signs."""
  text = f' {texts.canonical(problem.problem)} '
  return [n for token in set(text.split()) for short, n in index.inside.get(token, ()) if short in text]
