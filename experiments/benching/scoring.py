"""Teacher's scoring and student's update: what they compute, against reading every sequence whole.

  python -c "from experiments.benching import scoring; print(scoring.table(scoring.measure('DATA')))"

`counted` is in FLOPs of Qwen3-1.7B, from shapes alone. `padding` is what packed rows save on the lengths
of a real data set. `timed` is by the clock, at small shapes. Every table names its baseline in its first
row.
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benching import flops
from opsd_jax.data import source
from opsd_jax.data.config import DataConfig, FieldsConfig
from opsd_jax.distill import objective, packing, scoring, views
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig, ViewsConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.attention import own_pairs
from opsd_jax.models.sizes import SIZES
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Plan, Prompts, Rollout, length_mask
from opsd_jax.rollout.config import bucket
from opsd_jax.text.config import TokenizerConfig
from opsd_jax.text.tokenizer import make_tokenizer
from opsd_jax.train import ledger
from opsd_jax.train import state as states
from opsd_jax.train import step as steps

BIG = SIZES['qwen3_1p7b']
SMALL = ModelSpec(
  vocab_size=4096, num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=384
)
OBJECTIVE = ObjectiveConfig(implementation='chunked')
WHOLE = 'every sequence whole, head on completions alone (baseline)'


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a table.

  Attributes:
    what: the table.
    variant: the line.
    value: in `unit`.
    unit: of the value.
    saved: share of the baseline's value that this variant does without.
  """

  what: str
  variant: str
  value: float
  unit: str
  saved: float


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Questions, rollouts of each, tokens of both prompts and of completions; nothing is padding."""

  questions: int
  per_question: int
  student: int
  teacher: int
  tokens: int

  def batch(self) -> tuple[Prompts, Prompts, Rollout]:
    """Random ids, on the host."""
    lengths = [np.full(self.questions, n, np.int32) for n in (self.student, self.teacher)]
    return batch(
      *lengths, np.full(self.questions * self.per_question, self.tokens, np.int32), SMALL.vocab_size
    )


def batch(
  student: np.ndarray,
  teacher: np.ndarray,
  completions: np.ndarray,
  vocab: int,
  widths: tuple[int, int, int] | None = None,
) -> tuple[Prompts, Prompts, Rollout]:
  """Random ids of the given lengths, padded to `widths` or to the longest of each."""
  rng = np.random.default_rng(0)
  lengths = student, teacher, completions
  ids = [
    rng.integers(vocab, size=(len(n), width), dtype=np.int32)
    for n, width in zip(lengths, widths or [int(n.max()) for n in lengths], strict=True)
  ]
  counters = np.arange(len(student), dtype=np.uint32)
  zeros = np.zeros(ids[2].shape, np.float32)
  rows = len(completions)
  rollout = Rollout(ids[2], completions, np.ones(rows, bool), zeros, zeros, *np.zeros((2, rows), np.int32))
  return Prompts(ids[0], student, counters), Prompts(ids[1], teacher, counters), rollout


def measure(data: str | None = None, repeats: int = 5) -> list[Row]:
  """Every table. `data` is a folder with `gsm8k/` and `tokenizers/qwen3_built/`; without one that table is
  left out and a line says so."""
  rows = counted(4) + counted(1)
  if data and os.path.isdir(os.path.join(data, 'gsm8k')):
    rows += padding(*gsm8k(data))
  else:
    print(f'padding saved on GSM8K: left out, for there is no gsm8k/ in {data}')
  return rows + timed(repeats)


# FLOPs at a real size.


def counted(per_question: int, spec: ModelSpec = BIG) -> list[Row]:
  """Forward of the teacher, forward and backward of the student, full fine-tuning, a question at a time."""
  shapes = Shapes(1, per_question, 200, 2000, 256)
  arguments = *shapes.batch(), model.abstract_params(spec, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
  variants = {WHOLE: whole(spec, *arguments)}
  for name in packing.PACKINGS:
    variants[f'{name}: {_SAYS[name]}'] = ours(spec, *arguments, name)
  found = {name: sum(flops.count(f, *a) for f, a in calls) for name, calls in variants.items()}
  what = f'scoring and update, n = {per_question}, P = 200 and 2000, T = 256'
  return _rows(what, {name: n / 1e12 for name, n in found.items()}, 'TFLOPs a question')


_SAYS = {'rows': 'prompt once a question', 'packed': 'questions packed into rows'}

Calls = list[tuple[Callable[..., Any], tuple[Any, ...]]]


def ours(
  spec: ModelSpec, student: Prompts, teacher: Prompts, rollout: Rollout, params: model.Params, name: str
) -> Calls:
  """The trainer's own two programs and what they are called with."""
  plan = packing.plan(student, [teacher], rollout, packing=name)
  state, optimizer = _state(params)
  score = jax.jit(functools.partial(scoring.score_teacher, spec))
  asked = params, (teacher,), rollout, plan
  step = steps.make_distill_step(spec, OBJECTIVE, _FROZEN, optimizer, valid_vocab=spec.vocab_size)
  head = jax.eval_shape(functools.partial(model.head, spec), params)
  return [(score, asked), (step, (state, student, rollout, jax.eval_shape(score, *asked), head, None, plan))]


_FROZEN = TeacherConfig('frozen')


def _state(params: model.Params) -> tuple[Any, optax.GradientTransformation]:
  optimizer = optax.sgd(1e-3)
  return states.describe(params, optimizer, _FROZEN), optimizer


def whole(
  spec: ModelSpec, student: Prompts, teacher: Prompts, rollout: Rollout, params: model.Params
) -> Calls:
  """The same with a copy of its prompt before every completion; the head meets completions alone."""

  def read(params, prompts, rollout):
    repeats = rollout.ids.shape[0] // prompts.ids.shape[0]
    ids, length = (jnp.repeat(x, repeats, axis=0) for x in (prompts.ids, prompts.length))
    tokens = _joined(ids, length, rollout.ids)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    hidden, _ = model.apply(spec, params, tokens, positions, keep_kv=False)
    at = length[:, None] - 1 + jnp.arange(rollout.ids.shape[1])[None]
    return jnp.take_along_axis(hidden, at[:, :, None], axis=1)

  def loss(params, scores, teacher_head, prompts, rollout):
    weights = objective.token_weights(rollout.length, rollout.ids.shape[1], OBJECTIVE.reduction)
    token, out = objective.compare(
      read(params, prompts, rollout),
      model.head(spec, params),
      scores,
      teacher_head,
      rollout.ids,
      OBJECTIVE,
      spec.vocab_size,
      weights=weights,
    )
    mask = length_mask(rollout.length, rollout.ids.shape[1])
    sums = objective.statistics(token, out, mask, rollout.raw_logp, OBJECTIVE.token_clip)
    return jnp.sum(jnp.where(mask, token, 0) * weights), sums

  score, step = jax.jit(read), jax.jit(jax.value_and_grad(loss, has_aux=True))
  head = jax.eval_shape(functools.partial(model.head, spec), params)
  scores = jax.eval_shape(score, params, teacher, rollout)
  return [(score, (params, teacher, rollout)), (step, (params, scores, head, student, rollout))]


def _joined(ids: jax.Array, length: jax.Array, completions: jax.Array) -> jax.Array:
  """[B, P + T - 1], every completion but its last token right after its prompt."""
  both = jnp.concatenate([ids, completions], axis=1)
  at = jnp.arange(both.shape[1] - 1)[None]
  after = jnp.minimum(at - length[:, None] + ids.shape[1], both.shape[1] - 1)
  return jnp.take_along_axis(both, jnp.where(at < length[:, None], at, after), axis=1)


# Padding on real lengths.


def gsm8k(data: str) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
  """Name and lengths of GSM8K's training problems: the student's prompts, the teacher's, the references."""
  config = DataConfig(source='files', path=os.path.join(data, 'gsm8k'), fields=FieldsConfig().named('gsm8k'))
  tokenizer = make_tokenizer(TokenizerConfig(os.path.join(data, 'tokenizers', 'qwen3_built')))
  config_views = ViewsConfig().named('opsd')
  found = []
  for problem in source.load(config).train:
    asked = views.prompt(config_views, problem, 'student', tokenizer)
    told = views.prompt(config_views, problem, 'teacher', tokenizer)
    texts = [views.prompt_ids(config_views, text, tokenizer) for text in (asked, told)]
    found.append([*map(len, texts), len(tokenizer.encode(problem.solution)) + 1])
  return 'GSM8K, Qwen3 tokenizer, reference solutions', *np.array(found, np.int32).T


def padding(
  name: str,
  student: np.ndarray,
  teacher: np.ndarray,
  completions: np.ndarray,
  updates: int = 20,
  questions: int = 64,
) -> list[Row]:
  """Mean FLOPs of an update of n = 1 at lengths of a data set, padded to its longest prompts.

  Completions are padded to the next multiple of 64 above the longest of the update.
  """
  rng, sums = np.random.default_rng(0), {}
  most = -(-int(completions.max()) // 64) * 64
  buckets = tuple(range(64, most, 64))
  for _ in range(updates):
    chosen = rng.choice(len(student), questions, replace=False)
    tokens = completions[chosen]
    widths = int(student.max()), int(teacher.max()), bucket(int(tokens.max()), buckets, most)
    seen = batch(student[chosen], teacher[chosen], tokens, 10, widths)
    for variant, number in _computed(*seen).items():
      sums[variant] = sums.get(variant, 0) + number / updates / 1e12
  return _rows(f'scoring and update, n = 1, {questions} problems of {name}', sums, 'TFLOPs an update')


def _computed(student: Prompts, teacher: Prompts, rollout: Rollout) -> dict[str, int]:
  """FLOPs of the student and the teacher, by layout, and those that real tokens need."""
  needed = ledger.student_entry(BIG, student.length, rollout.length).flops
  needed += ledger.teacher_entry(BIG, teacher.length, rollout.length).flops
  rows, steps_ = rollout.ids.shape
  alone = [
    ledger.Computed(rows * width, rows * own_pairs(width), rows * steps_)
    for width in (p.ids.shape[1] - 1 + steps_ for p in (student, teacher))
  ]
  found = {WHOLE: alone[0].backward(BIG, 0) + alone[1].forward(BIG, 0)}
  for name in packing.PACKINGS:
    plan = packing.plan(student, [teacher], rollout, packing=name)
    found[f'{name}: {_SAYS[name]}'] = _planned(plan, student, teacher, rollout)
  return found | {'what real tokens need': needed}


def _planned(plan: Plan, student: Prompts, teacher: Prompts, rollout: Rollout) -> int:
  trained = ledger.read_positions(plan, plan.student, student, rollout).backward(BIG, 0)
  return trained + ledger.read_positions(plan, plan.teacher[0], teacher, rollout).forward(BIG, 0)


# By the clock.


def timed(repeats: int = 5, spec: ModelSpec = SMALL) -> list[Row]:
  """Seconds of a scored update at small shapes: equal lengths at n = 4, uneven ones at n = 1."""
  rows = _timed('n = 4, P = 32 and 320, T = 40', spec, Shapes(4, 4, 32, 320, 40).batch(), repeats)
  rng = np.random.default_rng(1)
  # Half of the widths on average, as the lengths of a data set are that has some long problems.
  lengths = [rng.integers(w // 8, 7 * w // 8, 32).astype(np.int32) for w in (64, 192, 96)]
  uneven = batch(*lengths, spec.vocab_size, (64, 192, 96))
  return rows + _timed('n = 1, P <= 64 and 192, T <= 96, half of it padding', spec, uneven, repeats)


def _timed(what: str, spec: ModelSpec, seen: tuple[Prompts, Prompts, Rollout], repeats: int) -> list[Row]:
  params = model.init_params(spec, jax.random.key(0), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
  runs = {WHOLE: _whole_run(spec, seen, params)}
  for name in packing.PACKINGS:
    runs[f'{name}: {_SAYS[name]}'] = _our_run(spec, seen, params, name)
  walls: Mapping[str, list[float]] = {name: [] for name in runs}
  for turn in range(repeats + 1):  # interleaved, so that all meet the same load; the first one compiles
    for name, run in runs.items():
      began = time.perf_counter()
      jax.block_until_ready(run())
      if turn:
        walls[name].append(time.perf_counter() - began)
  medians = {name: statistics.median(wall) for name, wall in walls.items()}
  return _rows(f'scoring and update by the clock, {what}', medians, 's')


def _whole_run(spec: ModelSpec, seen: Sequence[Any], params: model.Params) -> Callable[[], Any]:
  (score, _), (step, _) = whole(spec, *seen, params)
  student, teacher, rollout = seen
  head = model.head(spec, params)
  return lambda: step(params, score(params, teacher, rollout), head, student, rollout)


def _our_run(spec: ModelSpec, seen: Sequence[Any], params: model.Params, name: str) -> Callable[[], Any]:
  (score, _), (step, arguments) = ours(spec, *seen, params, name)
  student, teacher, rollout = seen
  plan, head = arguments[-1], jnp.copy(model.head(spec, params))
  state = [states.create(params, optax.sgd(1e-3), _FROZEN)]

  def run():
    scores = score(params, (teacher,), rollout, plan)
    state[0], report = step(state[0], student, rollout, scores, head, None, plan)
    return state[0], report

  return run


def _rows(what: str, found: Mapping[str, float], unit: str) -> list[Row]:
  base = next(iter(found.values()))
  return [Row(what, name, value, unit, 1 - value / base) for name, value in found.items()]


def table(rows: Sequence[Row]) -> str:
  """Markdown."""
  lines = ['| what | variant | value | unit | saved |', '|---|---|---:|---|---:|']
  lines += [f'| {r.what} | {r.variant} | {r.value:.4g} | {r.unit} | {100 * r.saved:.1f} % |' for r in rows]
  return '\n'.join(lines)
