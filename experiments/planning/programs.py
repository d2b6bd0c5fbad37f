"""The programs of an update, from an experiment's shapes alone: no weights, problems or tokenizer are read.

Each is the one that a run compiles, given what a run gives it: every prompt as long as its view is wide and
every completion as long as its budget, which is the most that an update can take. The ids at which rows end
and the end of the vocabulary, which a tokenizer would tell, do not change what is computed; stand-ins are
taken.

Axis letters: Q questions, B = Q·n rollouts, T completion tokens.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from opsd_jax import mesh as meshes
from opsd_jax.config import require
from opsd_jax.distill import packing, privilege, scoring, teachers
from opsd_jax.experiment import Experiment
from opsd_jax.models import chunked, lora, model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Plan, Prompts, Rollout, TeacherScores
from opsd_jax.rollout import decode, drawing, layout, slots
from opsd_jax.train import controller, state, step

_EOS = (0,)


class Program(NamedTuple):
  """One of the programs of an update.

  Attributes:
    name: of the phase; several programs may be one.
    lower: traces it; with the mesh set.
    others: bytes of a chip that a run holds meanwhile and that are not among the arguments.
    steps: turns of its loop over tokens, 0 where it has none.
    pieces: of the cached tokens that attention reads one after the other in such a turn, on average.
  """

  name: str
  lower: Callable[[], jax.stages.Lowered]
  others: int
  steps: int = 0
  pieces: int = 1


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What a run holds and what an update is given: shapes, types and places.

  Attributes:
    state: of training.
    initial: the first weights, which a run keeps; under LoRA the base.
    student: a whole model, of these and the state.
    teacher: a whole model: one of those, or an external one.
    external: that one, or None.
    head: its LM head with as many rows as the student's, where that is an array of its own; else None.
    prompts: the student's [Q, P].
    seen: the teacher's.
    rollout: [B, T].
    plan: how an update's tokens are read.
  """

  state: state.TrainState
  initial: model.Params
  student: model.Params
  teacher: model.Params
  external: model.Params | None
  head: jax.ShapeDtypeStruct | None
  prompts: Prompts
  seen: Prompts
  rollout: Rollout
  plan: Plan

  @property
  def held(self) -> int:
    """Bytes of a chip that stay there from update to update."""
    return bytes_of((self.state, self.initial, self.external, self.head))


def bytes_of(tree: Any) -> int:
  """Bytes on one chip of arrays that are described with their places."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def supported(experiment: Experiment) -> None:
  """Raises `ConfigError` for an experiment whose updates are not planned here."""
  require(
    experiment.method == 'distill',
    f'method is {experiment.method!r}, whose updates are not planned; plan method=distill.',
  )


def left_out(experiment: Experiment) -> list[str]:
  """What a run of the experiment computes that its plan does not have, in words."""
  e = experiment
  also = {
    'grading, evaluation, checkpoints, cold and warm starts, and whatever the host does': True,
    'the weights of samples (weigh.kind)': e.weigh.kind != 'none',
    "the teacher's analysis (views.analysis)": bool(e.views.analysis),
    'completions that the student does not draw (source.kind)': e.source.kind != 'student',
    "the controller's questions (controller.kind)": controller.anchored(e.controller),
    'the rollouts, which a server draws (rollout.engine.url)': e.rollout.engine.url is not None,
    'narrower batches of rows that are left (rollout.decode.compact)': e.rollout.decode.compact,
  }
  return [words for words, there in also.items() if there]


def shapes(experiment: Experiment, mesh: jax.sharding.Mesh) -> Shapes:
  """The shapes of an experiment's updates on a mesh."""
  e, spec = experiment, experiment.model
  masters = model.abstract_params(spec, mesh)
  initial = _narrow(spec, masters) if e.lora.rank else masters
  trained = lora.abstract(e.lora, spec, mesh) if e.lora.rank else masters
  anchored = controller.anchored(e.controller)
  held = state.describe(trained, state.make_optimizer(e.optimizer), e.teacher, anchored)
  complete = functools.partial(lora.complete, e.lora, initial)
  student, taught_by = complete(held.params), teachers.spec_for(e.teacher, spec)
  external, head = None, None
  if e.teacher.kind == 'external':
    external = _narrow(taught_by, model.abstract_params(taught_by, mesh))
    head = _external_head(e, mesh, external)
  teacher = teachers.params_for(e.teacher, initial, complete(held.teacher), student, external)

  questions, each = e.rollout.questions, e.rollout.per_question
  rows = questions * each
  by_row = bool(privilege.used(e.views.teacher))
  # Where the teacher's prompts differ from row to row, the student's are repeated for them.
  asked = rows if by_row else questions
  scored, seen = _prompts(asked, e.views.student_tokens), _prompts(asked, e.views.teacher_tokens)
  rollout = _rollout(rows, e.rollout.sampling.max_tokens)
  plan = packing.plan(
    scored,
    (seen,) if e.objective.estimator != 'nll' else (),
    rollout,
    packing=e.loop.packing,
    micro_tokens=e.loop.micro_tokens,
    shards=meshes.row_shards(mesh),
  )
  placed = functools.partial(_placed, mesh)
  return Shapes(
    held,
    initial,
    student,
    teacher,
    external,
    head,
    placed(scored),
    placed(seen),
    placed(rollout),
    placed(plan, 1),
  )


def of_update(experiment: Experiment, mesh: jax.sharding.Mesh, found: Shapes) -> list[Program]:
  """The programs of an update in their order."""
  e, programs = experiment, []
  if e.rollout.engine.url is None:
    programs += _rollout_programs(e, mesh, found)
  if e.objective.extrapolation != 1:
    programs.append(_initial_program(e, found))
  if e.objective.estimator != 'nll':
    programs.append(_score_program(e, found))
  return [*programs, _update_program(e, mesh, found)]


def _rollout_programs(e: Experiment, mesh: jax.sharding.Mesh, found: Shapes) -> list[Program]:
  """Laying the student out for decoding, and drawing the rollouts."""
  spec, config = e.model, e.rollout
  targets = layout.describe(spec, found.student, mesh)
  pairs = zip(jax.tree.leaves(found.student), jax.tree.leaves(targets), strict=True)
  programs, copied = [], 0
  for leaf, to in pairs:
    if not layout._there(leaf, to):
      lower = functools.partial(layout._move.lower, to.dtype, to.sharding, leaf)
      programs.append(Program('copy', lower, found.held - bytes_of(leaf) + copied))
      copied += bytes_of(to)
  shared = layout.cost(spec, found.student, mesh)

  way = dataclasses.replace(config.decode, compact=False)
  rows, most = config.questions * config.per_question, config.sampling.max_tokens
  setting = decode.setting_of(
    spec, config.sampling, _EOS, config.per_question, max(spec.vocab_size - 1, 1), way
  )
  prompts = _placed(mesh, _prompts(config.questions, e.views.student_tokens))
  counters = decode.Counters(np.uint32(0), np.uint32(0))
  law = drawing.law_of(config.sampling, e.objective.student_temperature)
  budgets = np.full(rows, most, np.int32)
  lower = functools.partial(decode._sample.lower, setting, targets, prompts, budgets, counters, law)
  turns = 1 if way.slots is None else -(-rows // slots.slots_of(way.slots, rows, meshes.row_shards(mesh)))
  others = found.held - (shared.held - shared.copied)
  return [*programs, Program('rollout', lower, others, turns * most, _pieces(e))]


def _pieces(e: Experiment) -> int:
  """Pieces of a cache that attention reads at a token: the mean over tokens, and over two caches."""
  chunk, most = chunked.usual_chunk(), e.rollout.sampling.max_tokens
  before = max(e.views.student_tokens - 1, 1)
  if e.rollout.decode.slots is not None:
    return max(round(np.mean(-(-(before + np.arange(most)) // chunk))), 1)
  prompt, own = -(-before // chunk), np.mean(-(-np.arange(most) // chunk))
  return max(round((prompt + own) / 2), 1)


def _score_program(e: Experiment, found: Shapes) -> Program:
  lower = functools.partial(
    jax.jit(scoring.score_teacher, static_argnums=0).lower,
    teachers.spec_for(e.teacher, e.model),
    found.teacher,
    (found.seen,),
    found.rollout,
    found.plan,
  )
  return Program('score', lower, found.held - bytes_of(found.teacher))


def _initial_program(e: Experiment, found: Shapes) -> Program:
  score = functools.partial(scoring.score_tokens, e.model, e.objective, max(e.model.vocab_size - 1, 1))
  arguments = found.initial, found.prompts, found.rollout, found.plan
  lower = functools.partial(jax.jit(score).lower, *arguments)
  return Program('initial', lower, found.held - bytes_of(found.initial))


def _update_program(e: Experiment, mesh: jax.sharding.Mesh, found: Shapes) -> Program:
  """The student's pass, the comparison, the gradients and the optimiser's step."""
  spec, adapted = e.model, bool(e.lora.rank)
  compiled = step.make_distill_step(
    spec,
    e.objective,
    e.teacher,
    state.make_optimizer(e.optimizer),
    valid_vocab=max(spec.vocab_size - 1, 1),
    layout=state.shardings(found.state),
    adapters=e.lora,
  )
  base = found.initial if adapted else None
  head = model.head(spec, found.initial) if e.teacher.kind == 'frozen' and not adapted else None
  if found.external is not None:
    head = model.head(e.teacher.model, found.external) if found.head is None else found.head
  scores = None if e.objective.estimator == 'nll' else _scores(e, mesh, found.plan)
  before = {} if e.objective.extrapolation == 1 else {'initial': found.rollout.raw_logp}
  given = (found.state, found.prompts, found.rollout, scores, head, base, found.plan, None)
  lower = functools.partial(compiled.lower, *given, **before)
  return Program('update', lower, found.held - bytes_of((found.state, base, head)))


def _external_head(
  e: Experiment, mesh: jax.sharding.Mesh, external: model.Params
) -> jax.ShapeDtypeStruct | None:
  """What `teachers.external_head` makes of one that has not as many rows as the student's."""
  head = model.head(e.teacher.model, external)
  if head.shape[0] == e.model.vocab_size:
    return None
  shape = (e.model.vocab_size, head.shape[1])
  return jax.ShapeDtypeStruct(shape, head.dtype, sharding=meshes.sharding(mesh, ('vocab', 'embed'), shape))


def _scores(e: Experiment, mesh: jax.sharding.Mesh, plan: Plan) -> TeacherScores:
  """Of one view; laid out as `reading.states` leaves them."""
  spec = teachers.spec_for(e.teacher, e.model)
  shape = (1, *plan.origin.shape, spec.embed_dim)
  where = meshes.sharding(mesh, (None, None, 'batch', 'length', 'activation'), shape)
  return TeacherScores(jax.ShapeDtypeStruct(shape, spec.dtype, sharding=where))


def _narrow(spec: ModelSpec, params: model.Params) -> model.Params:
  """The description of `in_compute_dtype`, in the same places."""
  types = jax.eval_shape(functools.partial(model.in_compute_dtype, spec), params)
  return jax.tree.map(
    lambda x, new: jax.ShapeDtypeStruct(x.shape, new.dtype, sharding=x.sharding), params, types
  )


def _prompts(rows: int, width: int) -> Prompts:
  lengths = np.full(rows, width, np.int32)
  return Prompts(np.zeros((rows, width), np.int32), lengths, np.arange(rows, dtype=np.uint32))


def _rollout(rows: int, width: int) -> Rollout:
  whole, row = np.zeros((rows, width), np.float32), np.zeros(rows, np.int32)
  return Rollout(np.int32(whole), np.full_like(row, width), row > 0, whole, whole, row, row)


def _placed(mesh: jax.sharding.Mesh, tree: Any, axis: int = 0) -> Any:
  """Descriptions of what `meshes.shard_rows` makes of host arrays."""

  def place(x: np.ndarray) -> jax.ShapeDtypeStruct:
    names = ['batch' if i == axis else None for i in range(x.ndim)]
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.sharding(mesh, names, x.shape))

  return jax.tree.map(place, tree)
