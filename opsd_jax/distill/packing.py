"""Which position of which row every token of an update is read at: NumPy on the host, from lengths alone.

Two ways. `rows`: a prompt once a question, completions padded to the longest after it. `packed`: a
question's prompt and all its completions are one run of tokens, and rows as wide as the longest run
possible hold as many runs as fit. Either way the LM head meets real tokens alone where that saves a
quarter of its positions, and rows are split into micro-batches by a budget of tokens.

Sizes are rounded up to a few, so that few programs are compiled. Everything is a function of the
lengths and the settings: the same in every process, and again when a run is continued.

Axis letters: Q questions, n rollouts of each, B = Q·n, T completion tokens, P prompt tokens, N
micro-batches, G parts along the mesh's rows, R rows, S tokens of a row, C projected tokens of a part.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from opsd_jax.records import PackedRows, Plan, Prompts, Reading, Rollout

Packing = Literal['rows', 'packed']
PACKINGS = ('rows', 'packed')


def plan(
  student: Prompts,
  teacher: Sequence[Prompts],
  rollout: Rollout,
  *,
  packing: Packing = 'rows',
  micro_tokens: int | None = None,
  shards: int = 1,
) -> Plan:
  """How the student and each teacher view read an update.

  Args:
    student: prompts [Q, P].
    teacher: prompts of the same questions, one `Prompts` a view.
    rollout: [B, T].
    packing: `rows` or `packed`.
    micro_tokens: positions, padding included, that one model reads in a micro-batch at most; but a part
      of it reads no less than one question. None for a single micro-batch.
    shards: parts that the mesh splits rows into.
  """
  prompts = [np.asarray(p.length) for p in (student, *teacher)]
  widths = [p.ids.shape[1] for p in (student, *teacher)]
  sizes = Sizes(
    prompts, widths, np.asarray(rollout.length).reshape(len(prompts[0]), -1), rollout.ids.shape[1]
  )
  if packing == 'rows':
    return _rows_plan(sizes, micro_tokens, shards)
  return _packed_plan(sizes, micro_tokens, shards)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Lengths and widths of an update, a role an entry: the student, then each teacher view.

  Attributes:
    prompts: int [Q] each.
    widths: P of each.
    completions: int [Q, n].
    width: T.
  """

  prompts: Sequence[np.ndarray]
  widths: Sequence[int]
  completions: np.ndarray
  width: int

  @property
  def questions(self) -> int:
    """Q."""
    return len(self.completions)

  @property
  def widest(self) -> list[int]:
    """Tokens of the longest run possible in each role."""
    return [run_width(width, self.completions.shape[1], self.width) for width in self.widths]


def run_width(prompt: int, per_question: int, tokens: int) -> int:
  """Positions that a question takes: its prompt but the last token, and its completions' inputs."""
  return prompt - 1 + per_question * tokens


def rounded(count: int, most: int, steps: int) -> int:
  """The smallest of `steps` even shares of `most` that holds `count`, at least 1."""
  shares = (-(-most * k // steps) for k in range(1, steps + 1))
  return max(next((s for s in shares if s >= count), count), 1)


# A prompt once a question, completions padded.


def micro_batches(questions: int, widest: int, micro_tokens: int | None, shards: int) -> int:
  """Equal parts of the questions that keep the budget; a part of the mesh gets at least one question.

  `widest` is the number of positions that a question takes in any role.
  """
  equal = [n for n in range(1, questions + 1) if questions % n == 0]
  even = [n for n in equal if questions // n % shards == 0] or equal
  fitting = [n for n in even if micro_tokens is None or questions // n * widest <= micro_tokens]
  return (fitting or even[-1:])[0]


def _rows_plan(sizes: Sizes, micro_tokens: int | None, shards: int) -> Plan:
  questions, per_question = sizes.completions.shape
  parts = micro_batches(questions, max(sizes.widest), micro_tokens, shards)
  shards = shards if questions // parts % shards == 0 else 1
  # Strided, so that each micro-batch takes questions from every part of the rows.
  order = np.arange(questions).reshape(-1, parts).T  # [N, Q / N]
  rows = (order[:, :, None] * per_question + np.arange(per_question)).reshape(parts, -1)  # [N, B / N]
  origin = rows[:, :, None] * sizes.width + np.arange(sizes.width)
  real = np.arange(sizes.width) < sizes.completions.ravel()[rows][:, :, None]
  cells = (parts, shards, -1)
  at = _chosen(real.reshape(cells))
  if at is None:
    return _alike(origin, None, sizes)
  places = np.take_along_axis(origin.reshape(cells), np.maximum(at, 0), 2)
  return _alike(np.where(at < 0, origin.size, places), np.maximum(at, 0), sizes)


def _alike(origin: np.ndarray, at: np.ndarray | None, sizes: Sizes) -> Plan:
  """Completions lie alike in all roles, only the prompts before them differ."""
  reading = Reading(None, None if at is None else np.int32(at))
  return Plan(np.int32(origin), reading, (reading,) * (len(sizes.widths) - 1))


def _chosen(real: np.ndarray) -> np.ndarray | None:
  """Indices [N, G, C] of the real positions of [N, G, X], -1 after the last; None where nearly all are."""
  count = rounded(int(real.sum(-1).max()), real.shape[-1], 4)
  if count == real.shape[-1]:
    return None
  order = np.argsort(~real, axis=-1, kind='stable')[..., :count]
  return np.where(np.take_along_axis(real, order, -1), order, -1)


def everything(questions: int, per_question: int, width: int, views: int = 1, parts: int = 1) -> Plan:
  """The plan that needs no lengths: `rows`, with every position of the completions projected."""
  whole = np.full((questions, per_question), width)
  sizes = Sizes([np.ones(questions, int)] * (1 + views), [1] * (1 + views), whole, width)
  budget = questions // parts * max(sizes.widest)
  return _rows_plan(sizes, budget, 1)


# Runs of tokens packed into rows.


@dataclasses.dataclass
class _Cell:
  """One micro-batch of one part of the mesh: tokens in each row so far, by role, and what stands where."""

  fill: list[list[int]]
  questions: list[int] = dataclasses.field(default_factory=list)
  places: list[list[tuple[int, int]]] = dataclasses.field(default_factory=list)  # (row, first token) a role


def _packed_plan(sizes: Sizes, micro_tokens: int | None, shards: int) -> Plan:
  sums = sizes.completions.sum(1)
  runs = np.stack([p - 1 + sums for p in sizes.prompts], 1)  # [Q, roles]
  most = -(-sizes.questions // shards)  # rows that always hold a part's questions
  limits = [most] * len(sizes.widest)
  if micro_tokens is not None:
    limits = [max(1, min(most, micro_tokens // (width * shards))) for width in sizes.widest]
  cells = _fill(runs, sizes.widest, limits, shards)
  # A cell that has no room for a question has one in every row of some role at least.
  parts = rounded(max(map(len, cells)), -(-most // min(limits)), 8)
  cells = [own + [_Cell([[] for _ in limits])] * (parts - len(own)) for own in cells]
  count = max(int(sums[cell.questions].sum()) for own in cells for cell in own)
  tokens = min(most * sizes.completions.shape[1] * sizes.width, *(np.multiply(limits, sizes.widest)))
  origin = np.full((parts, shards, rounded(count, tokens, 4)), sizes.completions.size * sizes.width, np.int32)
  readings = []
  for role, limit in enumerate(limits):
    rows = rounded(max(len(cell.fill[role]) for own in cells for cell in own), limit, 8)
    readings.append(_laid_out(sizes, role, cells, origin, rows))
  return Plan(origin, readings[0], tuple(readings[1:]))


def _fill(runs: np.ndarray, widths: Sequence[int], limits: Sequence[int], shards: int) -> list[list[_Cell]]:
  """First fit, the longest runs first, into rows of the parts' micro-batches.

  Each run goes to the part with the least to read so far, of those with room for its share of questions.
  """
  share = (runs / np.array(widths)).sum(1)
  cells: list[list[_Cell]] = [[] for _ in range(shards)]
  load, held = np.zeros(shards), np.zeros(shards, int)
  for question in np.argsort(-share, kind='stable'):
    part = int(np.argmin(np.where(held < -(-len(runs) // shards), load, np.inf)))
    load[part] += share[question]
    held[part] += 1
    if not any(_put(cell, question, runs[question], widths, limits) for cell in cells[part]):
      cells[part].append(_Cell([[] for _ in limits]))
      _put(cells[part][-1], question, runs[question], widths, limits)
  return cells


def _put(cell: _Cell, question: int, run: np.ndarray, widths: Sequence[int], limits: Sequence[int]) -> bool:
  """Puts a question into a cell if every role has room for it."""
  found = []
  for fill, size, width, limit in zip(cell.fill, run.tolist(), widths, limits, strict=True):
    row = next((r for r, used in enumerate(fill) if used + size <= width), len(fill))
    if row == limit:
      return False
    found.append(row)
  places = []
  for fill, row, size in zip(cell.fill, found, run.tolist(), strict=True):
    fill.extend([0] * (row == len(fill)))
    places.append((row, fill[row]))
    fill[row] += size
  cell.questions.append(int(question))
  cell.places.append(places)
  return True


def _laid_out(
  sizes: Sizes, role: int, cells: Sequence[Sequence[_Cell]], origin: np.ndarray, rows: int
) -> Reading:
  """One role's rows, `rows` of them in every cell; fills `origin`, which all roles share."""
  width, parts, shards = sizes.widest[role], len(cells[0]), len(cells)
  source, position, group, branch = np.zeros((4, parts, shards, rows, width), np.int32)
  at = np.zeros_like(origin)
  for shard, own in enumerate(cells):
    for part, cell in enumerate(own):
      here, done = (part, shard), 0
      for index, (question, places) in enumerate(zip(cell.questions, cell.places, strict=True)):
        row, first = places[role]
        run = _run(sizes, role, question)
        span = (*here, row, slice(first, first + len(run.source)))
        source[span], position[span], branch[span] = run.source, run.position, run.branch
        group[span] = index + 1
        projected = slice(done, done + len(run.origin))
        origin[(*here, projected)] = run.origin
        at[(*here, projected)] = row * width + first + np.flatnonzero(run.branch)
        done = projected.stop
  flat = (parts, shards * rows, width)
  return Reading(PackedRows(*(x.reshape(flat) for x in (source, position, group, branch))), at)


@dataclasses.dataclass(frozen=True)
class _Run:
  """A question's run: `PackedRows` of its tokens, and the `Plan.origin` of those of its completions."""

  source: np.ndarray
  position: np.ndarray
  branch: np.ndarray
  origin: np.ndarray


def _run(sizes: Sizes, role: int, question: int) -> _Run:
  """Prompt but its last token; then, for every rollout, that token and the completion but its last."""
  prompt, lengths = int(sizes.prompts[role][question]), sizes.completions[question]
  start, after = question * sizes.widths[role], sizes.questions * sizes.widths[role]
  branch = np.repeat(np.arange(1, len(lengths) + 1), lengths)
  step = np.concatenate([np.arange(n) for n in lengths])
  origin = (question * len(lengths) + branch - 1) * sizes.width + step
  inputs = np.where(step == 0, start + prompt - 1, after + origin - 1)
  trunk = np.arange(prompt - 1)
  return _Run(
    np.concatenate([start + trunk, inputs]),
    np.concatenate([trunk, prompt - 1 + step]),
    np.concatenate([np.zeros_like(trunk), branch]),
    origin,
  )
