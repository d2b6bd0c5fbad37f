"""A plan: the phases of an update on a slice, what they take together, and what the recipe then costs."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.planning import phases, programs, topology
from experiments.planning.phases import Phase
from opsd_jax import mesh as meshes
from opsd_jax.analyze import preflight
from opsd_jax.analyze.chips import Roofline, Slice
from opsd_jax.distill import teachers
from opsd_jax.experiment import Experiment
from opsd_jax.models import lora
from opsd_jax.records import Plan as Reading
from opsd_jax.rollout import layout
from opsd_jax.train import ledger
from opsd_jax.train.config import parse_budget

ROOM = 0.1  # of a chip's memory, that a plan should leave


@dataclasses.dataclass(frozen=True)
class Plan:
  """An experiment on a slice.

  Attributes:
    experiment: what was planned.
    where: the slice.
    mesh: its sizes by axis.
    phases: of an update, in their order.
    held: bytes of a chip that stay there from update to update.
    copy: of the student as it is laid out for decoding.
    micro_batches: of the student's and the teacher's passes.
    needed: FLOPs of real tokens in an update, over all chips, by the model's formulas.
    tokens: sampled in an update at most.
    warnings: of what the mesh cannot split evenly.
    left_out: what a run computes beside, in words.
  """

  experiment: Experiment
  where: Slice
  mesh: dict[str, int]
  phases: tuple[Phase, ...]
  held: int
  copy: layout.Cost
  micro_batches: int
  needed: int
  tokens: int
  warnings: tuple[str, ...]
  left_out: tuple[str, ...]

  @property
  def worst(self) -> Phase:
    """The phase that takes most of a chip's memory."""
    return max(self.phases, key=lambda phase: (phase.refused is not None, phase.together))

  @property
  def room(self) -> float:
    """Share of a chip's memory that is left in the worst phase; below 0 where it does not fit."""
    left = 1 - self.worst.together / self.where.chip.memory
    return min(left, 0.0) if self.worst.refused else left

  @property
  def complete(self) -> bool:
    """Whether every phase was compiled, so that there are times."""
    return all(phase.refused is None for phase in self.phases)

  @property
  def fits(self) -> bool:
    """Whether every phase has room."""
    return self.complete and self.room >= 0

  @property
  def seconds(self) -> Roofline:
    """Of an update."""
    return sum((phase.seconds for phase in self.phases), Roofline(0.0, 0.0, 0.0, 0.0))

  @property
  def least(self) -> float:
    """Seconds of an update whose exchanges hide behind the rest of their phase."""
    return sum(phase.seconds.least for phase in self.phases)

  @property
  def most(self) -> float:
    """Seconds of an update whose exchanges hide behind nothing."""
    return sum(phase.seconds.most for phase in self.phases)

  @property
  def updates(self) -> int:
    """That the recipe takes, with the times of this plan."""
    budget = parse_budget(self.experiment.loop)
    each = {'updates': 1, 'tokens': self.tokens, 'minutes': self.most / 60}[budget.unit]
    wanted = math.ceil(budget.limit / each)
    return wanted if budget.max_updates is None else min(wanted, budget.max_updates)

  @property
  def chip_hours(self) -> float:
    """Of all updates."""
    return self.updates * self.most * self.where.chips / 3600

  @property
  def utilisation(self) -> float:
    """Needed FLOPs over those that the chips could do in the time of an update."""
    return self.needed / (self.most * self.where.chips * self.where.chip.flops)

  def to_dict(self) -> dict[str, Any]:
    """As plain values; bytes and seconds."""
    result = {
      'experiment': self.experiment.name,
      'topology': self.where.name,
      'chip': dataclasses.asdict(self.where.chip),
      'mesh': self.mesh,
      'micro_tokens': self.experiment.loop.micro_tokens,
      'micro_batches': self.micro_batches,
      'fits': self.fits,
      'room': self.room,
      'held': self.held,
      'decode_copy': self.copy._asdict(),
      'phases': [phase.to_dict() for phase in self.phases],
      'warnings': self.warnings,
      'left_out': self.left_out,
    }
    if not self.complete:
      return result
    times = self.seconds._asdict() | {'least': self.least, 'most': self.most}
    hours = self.chip_hours / self.where.chips
    recipe = {'updates': self.updates, 'chip_hours': self.chip_hours, 'hours': hours}
    return result | {
      'seconds': times,
      'tokens': self.tokens,
      'tokens_per_second': self.tokens / self.most,
      'flops_needed': self.needed,
      'utilisation': self.utilisation,
      'recipe': recipe,
    }


def make(experiment: Experiment, where: Slice, chips: Sequence[jax.Device], quiet: bool = False) -> Plan:
  """Compiles every program of an update for a slice, and adds up what they take.

  Args:
    experiment: any; of its settings those that shapes depend on are read.
    where: the slice.
    chips: its chips, or as many devices of another kind.
    quiet: do not say which program is being compiled.

  Raises:
    ConfigError: the updates of such an experiment are not planned, or its mesh is of another number of chips.
  """
  programs.supported(experiment)
  mesh = meshes.make_mesh(experiment.mesh, chips)
  found, done = programs.shapes(experiment, mesh), []
  with topology.compiling(mesh):
    for program in programs.of_update(experiment, mesh, found):
      if not quiet and (not done or done[-1].name != program.name):
        print(f'compiling {program.name} for {where.name} ...', file=sys.stderr, flush=True)
      done += phases.compile_program(program, where)
    rollout = experiment.rollout
    return Plan(
      experiment,
      where,
      {axis: mesh.shape[axis] for axis in meshes.AXES},
      tuple(phases.merged(done)),
      found.held,
      layout.cost(experiment.model, found.student, mesh),
      found.plan.origin.shape[0],
      _needed(experiment, found.plan),
      rollout.questions * rollout.per_question * rollout.sampling.max_tokens,
      tuple(preflight.layout_warnings(mesh, rollout)),
      tuple(programs.left_out(experiment)),
    )


def _needed(e: Experiment, plan: Reading) -> int:
  """FLOPs of an update's real tokens, by `train.ledger`, where every text has its full width."""
  spec, rows = e.model, e.rollout.questions * e.rollout.per_question
  asked = np.full(e.rollout.questions, e.views.student_tokens)
  seen = np.full(e.rollout.questions, e.views.teacher_tokens)
  lengths, adapters = np.full(rows, e.rollout.sampling.max_tokens), lora.size(e.lora, spec)
  worn = adapters if e.teacher.kind in ('ema', 'live') else 0
  spent = ledger.student_entry(spec, asked, lengths, adapters)
  if e.rollout.engine.url is None:
    spent += ledger.rollout_entry(spec, asked, lengths, adapters)
  if plan.teacher:
    spent += ledger.teacher_entry(teachers.spec_for(e.teacher, spec), seen, lengths, worn)
  return spent.flops
