"""Meshes and micro-batches tried one after the other."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import jax

from experiments.planning import programs, whole
from experiments.planning.text import fewest_tokens
from experiments.planning.whole import ROOM, Plan
from opsd_jax.analyze.chips import GIB, Slice
from opsd_jax.distill.packing import run_width
from opsd_jax.experiment import Experiment
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.rollout import layout


@dataclasses.dataclass(frozen=True)
class Tried:
  """A choice, and its plan or why it was not compiled."""

  mesh: MeshConfig
  micro_tokens: int | None
  plan: Plan | None
  why: str = ''


def meshes(experiment: Experiment, chips: int) -> list[MeshConfig]:
  """Those that heads divide over, the narrowest tensor axis first; parameters are split over all chips."""
  heads = experiment.model.num_kv_heads
  widths = [n for n in range(1, min(chips, heads) + 1) if heads % n == 0 and chips % n == 0]
  return [MeshConfig(1, chips // width, width) for width in widths]


def budgets(experiment: Experiment, config: MeshConfig) -> list[int | None]:
  """Of a micro-batch in tokens: the experiment's own, then quarters of it, down to the least."""
  e, parts = experiment, config.data * config.fsdp
  least, own = fewest_tokens(e), e.loop.micro_tokens
  shortest = min(e.views.student_tokens, e.views.teacher_tokens)
  one_each = parts * run_width(shortest, e.rollout.per_question, e.rollout.sampling.max_tokens)
  most = parts * least * -(-e.rollout.questions // parts) if own is None else own
  found, size = [own], most // 4
  while size > max(one_each, least):
    found.append(size)
    size //= 4
  return [*found, least] if least < most else found


def search(experiment: Experiment, where: Slice, chips: Sequence[jax.Device]) -> Iterator[Tried]:
  """Plans every mesh with the largest micro-batch that leaves room, unless weights alone do not fit."""
  for config in meshes(experiment, where.chips):
    own = dataclasses.replace(experiment, mesh=config)
    if why := _hopeless(own, where, chips):
      yield Tried(config, own.loop.micro_tokens, None, why)
      continue
    for micro in budgets(own, config):
      tried = dataclasses.replace(own, loop=dataclasses.replace(own.loop, micro_tokens=micro))
      print(f'mesh {_short(config)}, micro_tokens {micro or "none"}', file=sys.stderr, flush=True)
      plan = whole.make(tried, where, chips, quiet=True)
      yield Tried(config, micro, plan)
      # A smaller micro-batch helps where a model is read with many tokens at a time, not where one decodes.
      if (plan.fits and plan.room >= ROOM) or plan.worst.name not in ('score', 'initial', 'update'):
        break


def _hopeless(experiment: Experiment, where: Slice, chips: Sequence[jax.Device]) -> str:
  """Why the weights alone do not fit, '' if they do."""
  mesh = make_mesh(experiment.mesh, chips)
  found = programs.shapes(experiment, mesh)
  copied = layout.cost(experiment.model, found.student, mesh).copied
  needed = found.held + (copied if experiment.rollout.engine.url is None else 0)
  if needed <= where.chip.memory:
    return ''
  return f'held {found.held / GIB:.1f} and the copy that decodes {copied / GIB:.1f} GiB'


def best(tried: Sequence[Tried]) -> Tried | None:
  """The fastest that leaves room, or else the fastest that fits; None if none does."""
  fitting = [t for t in tried if t.plan is not None and t.plan.fits]
  roomy = [t for t in fitting if t.plan.room >= ROOM]
  return min(roomy or fitting, key=lambda t: t.plan.most, default=None)


def table(tried: Sequence[Tried]) -> str:
  """Markdown, in the order in which they were tried."""
  lines = ['| data x fsdp x tensor | micro_tokens | GiB at worst | in | left | s an update |']
  lines.append('|---|---:|---:|---|---:|---:|')
  for t in tried:
    start = f'| {_short(t.mesh)} | {t.micro_tokens or "none"} |'
    if t.plan is None:
      lines.append(f'{start} | not compiled: {t.why} | none | |')
      continue
    worst = t.plan.worst
    left = f'{t.plan.room:.0%}' if t.plan.fits else 'none'
    seconds = f'{t.plan.most:.2f}' if t.plan.complete else ''
    lines.append(f'{start} {worst.together / GIB:.2f} | {worst.name} | {left} | {seconds} |')
  return '\n'.join(lines)


def _short(config: MeshConfig) -> str:
  return f'{config.data}x{config.fsdp}x{config.tensor}'
