"""The numbers of one benchmark, from its samples."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from opsd_jax.evaluate.benchmarks import Loaded
from opsd_jax.evaluate.grid import Grid, grid
from opsd_jax.evaluate.samples import Sample
from opsd_jax.evaluate.statistics import Estimate, bootstrap, majority, mean_accuracy, pass_at_k


@dataclasses.dataclass(frozen=True)
class Score:
  """A benchmark under one set of rules.

  Attributes:
    average: avg@n, with Wilson's interval at the effective number of samples.
    bootstrap: avg@n, with the percentile interval of the bootstrap over problems.
    pass_at: k -> pass@k, unbiased.
    majority: maj@n; None where answers were not compared with each other.
    answered: share of samples with a final answer in the form that is asked for.
    length_right: mean tokens of the samples that are right; None where none is.
    length_wrong: of the others.
    verdicts: how many samples got each verdict.
  """

  average: Estimate
  bootstrap: Estimate
  pass_at: Mapping[int, float]
  majority: float | None
  answered: float
  length_right: float | None
  length_wrong: float | None
  verdicts: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Summary:
  """What an evaluation found on one benchmark.

  Attributes:
    name: of the benchmark; `title`, `kind` and `licence` as well.
    digest: of its problems.
    files: path -> sha256.
    notes: what a reader of the numbers should be told of the files that were read.
    remarks: what is known of the benchmark to whoever compares numbers.
    problems: how many.
    samples: of each problem.
    primary: the rules whose numbers the table shows first.
    scores: by rules.
    truncated: share of samples that the token budget cut off.
    mean_length: tokens of a sample.
    mean_prompt_tokens: tokens of a prompt, over problems.
    sampled_tokens: all together.
  """

  name: str
  title: str
  kind: str
  licence: str
  digest: str
  files: Mapping[str, str]
  notes: tuple[str, ...]
  remarks: tuple[str, ...]
  problems: int
  samples: int
  primary: str
  scores: Mapping[str, Score]
  truncated: float
  mean_length: float
  mean_prompt_tokens: float
  sampled_tokens: int


def summarise(
  loaded: Loaded,
  samples: Sequence[Sample],
  rules: str | None = None,
  labels: Sequence[Sequence[int]] | None = None,
  *,
  seed: int = 0,
) -> Summary:
  """The numbers of a benchmark.

  Args:
    loaded: the benchmark.
    samples: n of each of its problems, in any order.
    rules: those of the main number; where the benchmark's kind has no such rules, or for None, the last
      of its rules: `strict`, `choice`, `plus`.
    labels: int [X, n], `marking.clusters` of the answers, for maj@n; None leaves it out. Programs have no
      majority.
    seed: of the bootstrap.

  Raises:
    ConfigError: a sample is missing, or there twice.
  """
  known = loaded.benchmark
  labels = None if known.kind == 'programs' else labels
  cells = grid(samples, [p.id for p in loaded.problems], f'the evaluation of {known.title}')
  return Summary(
    name=known.name,
    title=known.title,
    kind=known.kind,
    licence=known.licence,
    digest=loaded.digest,
    files=dict(loaded.files),
    notes=tuple(loaded.notes),
    remarks=known.remarks,
    problems=len(cells.problems),
    samples=cells.samples,
    primary=rules if rules in cells.rules else cells.rules[-1],
    scores={name: score(cells, name, labels, seed=seed) for name in cells.rules},
    truncated=float(1 - cells.stopped.mean()),
    mean_length=float(cells.length.mean()),
    mean_prompt_tokens=float(cells.prompt_tokens.mean()),
    sampled_tokens=int(cells.length.sum()),
  )


def score(cells: Grid, rules: str, labels: Sequence[Sequence[int]] | None = None, *, seed: int = 0) -> Score:
  """The numbers under one set of rules; arguments as of `summarise`."""
  correct = cells.correct(rules)
  return Score(
    average=mean_accuracy(correct),
    bootstrap=bootstrap(correct.mean(axis=1), seed=seed),
    pass_at={k: pass_at_k(correct, k) for k in powers(cells.samples)},
    majority=None if labels is None else majority(np.asarray(labels), correct),
    answered=float(cells.answered(rules).mean()),
    length_right=_mean(cells.length[correct]),
    length_wrong=_mean(cells.length[~correct]),
    verdicts=dict(sorted(Counter(str(v) for row in cells.verdicts[rules] for v in row).items())),
  )


def powers(samples: int) -> list[int]:
  """The k of pass@k that are shown: powers of two below n, and n."""
  return sorted({2**i for i in range(samples.bit_length())} | {samples})


def _mean(values: np.ndarray) -> float | None:
  return float(values.mean()) if values.size else None
