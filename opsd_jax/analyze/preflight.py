"""What to look at before anything expensive: prompts, masks, budgets, signal and memory.

Axis letters: X problems, T completion tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kernels import chunks, tiles
from kernels.linear_logprob.api import linear_logprob
from opsd_jax.distill import teachers, views
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig, ViewsConfig
from opsd_jax.mesh import AXES, row_shards
from opsd_jax.models import lora, model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Problem, Prompts, length_mask
from opsd_jax.rollout.config import DecodeConfig, RolloutConfig
from opsd_jax.rollout.slots import halves, slots_of
from opsd_jax.text.tokenizer import Message, Tokenizer

_LEAK = 4  # shorter texts, such as a one-digit answer, stand in a question by chance
_NO_SIGNAL = 1e-3  # nats a token
ROLES = ('student', 'teacher')


@dataclasses.dataclass(frozen=True)
class Reading:
  """How one problem's reference solution reads under both views.

  Attributes:
    problem: whose.
    student: prompt text.
    teacher: prompt text of the first view.
    student_ids: prompt ids.
    teacher_ids: prompt ids.
    tokens: ids of the solution and its EOS, before any cut.
    kept: how many of them the completion budget holds.
    student_logp: mean log-prob of the kept tokens, in nats.
    teacher_logp: the same under the teacher's view.
  """

  problem: Problem
  student: str
  teacher: str
  student_ids: list[int]
  teacher_ids: list[int]
  tokens: list[int]
  kept: int
  student_logp: float
  teacher_logp: float

  @property
  def gain(self) -> float:
    """What the privilege is worth on the reference solution, in nats a token."""
    return self.teacher_logp - self.student_logp


def read(
  spec: ModelSpec,
  params: model.Params,
  problems: Sequence[Problem],
  config: ViewsConfig,
  tokenizer: Tokenizer,
  max_tokens: int,
) -> list[Reading]:
  """Reads every problem's solution under both views, by one set of weights."""
  tokens = [[*tokenizer.encode(p.solution), tokenizer.eos_ids[0]] for p in problems]
  ids, length = np.zeros((len(problems), max_tokens), np.int32), np.zeros(len(problems), np.int32)
  for row, solution in enumerate(tokens):
    length[row] = min(len(solution), max_tokens)
    ids[row, : length[row]] = solution[:max_tokens]
  student = views.student_batch(config, problems, tokenizer)
  teacher = views.teacher_batch(config, problems, tokenizer)[0]
  vocab = min(spec.vocab_size, tokenizer.vocab_size)
  logp = [np.asarray(_mean_logp(spec, params, prompts, ids, length, vocab)) for prompts in (student, teacher)]
  return [
    Reading(
      p,
      tokenizer.plain(views.prompt(config, p, 'student', tokenizer)),
      tokenizer.plain(views.prompt(config, p, 'teacher', tokenizer)),
      _row(student, i),
      _row(teacher, i),
      tokens[i],
      int(length[i]),
      float(logp[0][i]),
      float(logp[1][i]),
    )
    for i, p in enumerate(problems)
  ]


def _row(prompts: Prompts, row: int) -> list[int]:
  return prompts.ids[row, : prompts.length[row]].tolist()


def _mean_logp(
  spec: ModelSpec, params: model.Params, prompts: Prompts, ids: np.ndarray, length: np.ndarray, vocab: int
) -> jax.Array:
  """float32 [X], mean log-prob of each row's first `length` tokens."""

  @jax.jit
  def compute(params, prompts, ids, length):
    hidden = model.continuation_hidden(spec, params, prompts.ids, prompts.length, ids)
    head, cap = model.head(spec, params), spec.final_softcap
    logp = linear_logprob(hidden, head, ids, softcap=cap, valid_vocab=vocab).logp
    return jnp.sum(jnp.where(length_mask(length, ids.shape[1]), logp, 0.0), axis=1) / jnp.maximum(length, 1)

  return compute(params, prompts, ids, length)


def warnings(
  readings: Sequence[Reading],
  config: ViewsConfig,
  tokenizer: Tokenizer,
  objective: ObjectiveConfig,
  trained: bool,
  needless: bool = False,
) -> list[str]:
  """What is probably a mistake, each with its remedy.

  `trained` says whether the weights that read are worth judging by: random ones gain by chance. `needless`
  says that no privilege is needed: another model teaches, or no teacher is asked.
  """
  found = _thinking_warnings(config, tokenizer)
  cut = sum(r.kept < len(r.tokens) for r in readings)
  if cut:
    longest = max(len(r.tokens) for r in readings)
    found.append(
      f'budget cuts: {cut} of {len(readings)} reference solutions with their EOS are longer than '
      f'rollout.sampling.max_tokens; the longest has {longest} tokens.'
    )
  ends = sum(r.student_ids[-1] != r.teacher_ids[-1] for r in readings)
  student, teacher = ((getattr(config, f'{r}_thinking'), getattr(config, f'{r}_opening')) for r in ROLES)
  if ends and student == teacher:  # else the views were told to go on in different ways
    found.append(
      f'template mismatch: {ends} of {len(readings)} teacher prompts end in another token than the '
      "student's, so that the two views are not asked to go on in the same way; make "
      'views.student and views.teacher end alike.'
    )
  hidden = sum(r.problem.problem not in r.student or r.problem.problem not in r.teacher for r in readings)
  if hidden:
    found.append(
      f'template mismatch: {hidden} of {len(readings)} problems do not stand in both prompts; put '
      '{problem} into views.student and views.teacher.'
    )
  return found + _signal_warnings(readings, objective, trained, needless)


def _thinking_warnings(config: ViewsConfig, tokenizer: Tokenizer) -> list[str]:
  if not config.chat or config.student_thinking == config.teacher_thinking:
    return []
  student, teacher = (
    tokenizer.chat([Message('user', 'a')], thinking=thinking)
    for thinking in (config.student_thinking, config.teacher_thinking)
  )
  if student != teacher:
    return []
  return [
    'no switch: views.student_thinking and views.teacher_thinking differ, but the chat template does not '
    'read enable_thinking, so that both views begin alike; set views.student_opening and '
    'views.teacher_opening.'
  ]


def _signal_warnings(
  readings: Sequence[Reading], objective: ObjectiveConfig, trained: bool, needless: bool
) -> list[str]:
  found = []
  if objective.estimator == 'reward_topk' and objective.k == 1:
    found.append(
      'one reward: objective.k is 1, so that the only reward is that of the most probable token, whose '
      'gradient is biased; the published runs take 16.'
    )
  leaked = sum(_leaks(r) for r in readings)
  gain = float(np.mean([r.gain for r in readings]))
  same = all(r.student_ids == r.teacher_ids for r in readings)
  equal_temperatures = objective.student_temperature == objective.teacher_temperature
  if leaked:
    found.append(
      f'leak: {leaked} of {len(readings)} student prompts hold the solution or a text of data.fields.meta; '
      'the student must see the question alone.'
    )
  if needless:
    return found
  if same and equal_temperatures:
    found.append(
      'zero signal: both views and both temperatures are the same, so that the first divergence is '
      '0 everywhere; give views.teacher the privileged text.'
    )
  elif trained and not same and gain < _NO_SIGNAL:
    found.append(
      f"zero signal: the teacher's view makes the reference solution only {gain:+.4f} nats a token "
      'likelier: the model does not use its privilege.'
    )
  return found


def layout_warnings(mesh: jax.sharding.Mesh, rollout: RolloutConfig) -> list[str]:
  """What the mesh cannot split evenly, and slots that save nothing."""
  parts, questions, found = row_shards(mesh), rollout.questions, []
  if questions % parts:
    found.append(
      f'layout: {questions} questions do not divide over the {parts} row shards of the mesh, '
      'so that every device computes them all; change rollout.questions or mesh.'
    )
  if rollout.decode.slots is not None and rollout.engine.url is None:
    found += _slot_warnings(1 if found else parts, rollout)
  return found


def _slot_warnings(parts: int, rollout: RolloutConfig) -> list[str]:
  """Of slots that are split into `parts` groups."""
  slots, rows = rollout.decode.slots, rollout.questions * rollout.per_question
  each, found = slots_of(slots, rows, parts) // parts, []
  if slots >= rows:
    found.append(
      f'layout: rollout.decode.slots is {slots}, but an update has {rows} rollouts: no slot is ever filled '
      'again, and every row copies its prompt; use fewer, or none.'
    )
  elif slots % parts:
    found.append(
      f'layout: rollout.decode.slots is {slots}, which does not divide over the {parts} row shards of the '
      f'mesh and is rounded up to {each * parts}.'
    )
  if rollout.decode.compact and not halves(each):
    found.append(
      f'layout: rollout.decode.compact changes nothing with {each} slots on each of {parts} row shards: only '
      'an even number above 4 is halved.'
    )
  return found


def _leaks(reading: Reading) -> bool:
  private = [reading.problem.solution, *reading.problem.meta.values()]
  return any(len(text) >= _LEAK and text in reading.student for text in private)


def memory(
  spec: ModelSpec,
  abstract: model.Params,
  rollout: RolloutConfig,
  config: ViewsConfig,
  objective: ObjectiveConfig,
  teacher: TeacherConfig,
  adapters: lora.Adapters | None = None,
  anchored: bool = False,
) -> dict[str, int]:
  """Bytes over all devices of what an update holds, by formula; activations are left out.

  `abstract` are the float32 parameters, `adapters` those of LoRA, None where all weights are trained;
  `anchored` says whether a controller keeps weights to measure from, and makes candidates.
  """
  width = rollout.sampling.max_tokens
  rows = rollout.questions * rollout.per_question
  prompts, cached = _sampler_columns(rollout, config.student_tokens)
  taught_by = teachers.spec_for(teacher, spec)
  trained = _size(abstract if adapters is None else adapters)
  controller = {'anchor of the controller, and a candidate': 2 * trained} if anchored else {}
  told = rows * width * taught_by.embed_dim * (2 if taught_by.dtype == 'bfloat16' else 4)
  return (
    _weights(spec, abstract, teacher, adapters)
    | controller
    | {
      'sampler cache: prompts once a question, rows': (prompts + cached) * _token_kv(spec, rollout.decode),
      'teacher hidden states': told,
      'logits held at once, both models (float32)': 2 * _logits(objective, rows, width, spec.vocab_size) * 4,
      'for comparison: full logits, both models (float32)': 2 * rows * width * spec.vocab_size * 4,
    }
  )


def _sampler_columns(rollout: RolloutConfig, prompt: int) -> tuple[int, int]:
  """Tokens whose keys and values the sampler holds: prompts, and the rows' own; none where a server draws."""
  if rollout.engine.url is not None:
    return 0, 0
  rows, width, slots = (
    rollout.questions * rollout.per_question,
    rollout.sampling.max_tokens,
    rollout.decode.slots,
  )
  own = rows * width if slots is None else min(slots, rows) * (prompt + width)
  return rollout.questions * prompt, own


def _token_kv(spec: ModelSpec, decode: DecodeConfig) -> int:
  """Bytes of one token's keys and values in the sampler's cache."""
  heads = 2 * spec.num_layers * spec.num_kv_heads
  if decode.cache == 'int8':
    return heads * (spec.head_dim + 4)  # and a float32 scale
  half = decode.cache == 'bfloat16' or spec.dtype == 'bfloat16'
  return heads * spec.head_dim * (2 if half else 4)


def _logits(objective: ObjectiveConfig, rows: int, width: int, vocab: int) -> int:
  """Logits of one model that exist at a time, as `chunked` cuts them; the fused kernels hold fewer."""
  if objective.mode == 'speed' or objective.estimator == 'reward_topk':
    return rows * chunks.chunk_size(rows, width, objective.chunk_tokens) * vocab
  return rows * width * tiles.width(rows * width, vocab, objective.chunk_tokens)


def _weights(
  spec: ModelSpec, abstract: model.Params, teacher: TeacherConfig, adapters: lora.Adapters | None
) -> dict[str, int]:
  """The part that the weights take, with what is made of them."""
  taught_by = _external(teacher)
  if adapters is None:
    whole = _size(abstract)
    return taught_by | {
      'student weights, gradients and Adam moments (float32)': 4 * whole,
      'initial weights, kept for the frozen teacher and the evaluation': whole,
      'average of an EMA teacher': whole if teacher.kind == 'ema' else 0,
    }
  base = jax.eval_shape(functools.partial(model.in_compute_dtype, spec), abstract)
  return taught_by | {
    'adapters, gradients and Adam moments (float32)': 4 * _size(adapters),
    f'base of the adapters, which is the frozen teacher too ({spec.dtype})': _size(base),
    'average of an EMA teacher (adapters)': _size(adapters) if teacher.kind == 'ema' else 0,
  }


def _external(teacher: TeacherConfig) -> dict[str, int]:
  """The weights of an external teacher, {} where there is none."""
  if teacher.kind != 'external':
    return {}
  one = jax.sharding.AbstractMesh((1,) * len(AXES), AXES)
  held = functools.partial(model.in_compute_dtype, teacher.model)
  whole = jax.eval_shape(held, model.abstract_params(teacher.model, one))
  return {f'external teacher ({teacher.model.dtype})': _size(whole)}


def _size(tree: model.Params) -> int:
  """Bytes of a tree of arrays or shapes."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
