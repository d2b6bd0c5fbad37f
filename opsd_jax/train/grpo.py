"""Reinforcement learning on verdicts (GRPO, DAPO): roll out groups, grade, compare within, step.

It shares rollouts, grades, optimiser, ledger, checkpoints and controller with distillation, and has no
teacher.

Axis letters: Q questions, n rollouts of each, B = Q·n, T completion tokens.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
import optax

from opsd_jax import mesh as meshes
from opsd_jax.data.source import problems_of_update
from opsd_jax.distill import packing, scoring, views
from opsd_jax.models import lora, model
from opsd_jax.records import Graded, Plan, Problem, Prompts, Rollout
from opsd_jax.rollout.source import Rollouts
from opsd_jax.train import distill, grpo_step, ledger, loop, state, surrogate
from opsd_jax.train.grpo_step import Batch
from opsd_jax.train.ledger import Ledger
from opsd_jax.train.profiling import Around, measured
from opsd_jax.train.setup import Setup
from opsd_jax.train.step import StepReport
from opsd_jax.train.surrogate import GrpoConfig


class Drawn(NamedTuple):
  """What was drawn in one round, or in all of an update together: Q questions, B rollouts."""

  problems: list[Problem]
  prompts: Prompts
  rollout: Rollout
  graded: Graded

  def rewards(self) -> np.ndarray:
    """float64 [Q, n]."""
    return self.graded.reward.reshape(len(self.problems), -1)


def run(
  setup: Setup, folder: str, initial: model.Params, label: str = 'grpo', watch: Around = lambda update: update
) -> loop.Finished:
  """Trains from `initial` until the budget is spent; continues an earlier attempt in `folder`.

  An update is one batch of rollouts and all steps on it. `initial` is what the divergence is taken from;
  `watch` is put around an update.
  """
  return distill.run(setup, folder, initial, label, make_update=make_update, watch=watch)


def make_update(
  setup: Setup,
  initial: model.Params,
  optimizer: optax.GradientTransformation,
  shape: state.TrainState,
  folder: str,
  label: str,
):
  """`(state, number of updates done) -> (state, outcome)`."""
  config, vocab = setup.grpo, setup.exam.valid_vocab
  compiled = grpo_step.make_step(
    setup.spec,
    config,
    setup.objective,
    optimizer,
    valid_vocab=vocab,
    layout=state.shardings(shape),
    adapters=setup.lora,
  )
  score = jax.jit(functools.partial(scoring.score_tokens, setup.spec, setup.objective, vocab))
  complete = functools.partial(lora.complete, setup.lora, initial)
  base = initial if setup.lora.rank else None
  rollouts = distill.source(setup)

  def update(weights: state.TrainState, number: int):
    seconds = {}
    with measured(seconds, 'rollout'):
      everything, spent = draw(setup, rollouts, complete(weights.params), number)
      chosen = choose(everything, setup.rollout.questions, config.draws > 1)

    with measured(seconds, 'plan'):
      plan = plan_for(setup, chosen)
      laid_out = meshes.shard_rows(setup.mesh, plan, axis=1)
      advantage = surrogate.advantages(chosen.rewards(), config.scale).ravel()
      placed = meshes.shard_rows(setup.mesh, (chosen.prompts, chosen.rollout, advantage))
    with measured(seconds, 'update'):
      prompts, rollout, advantage = placed
      with jax.profiler.TraceAnnotation('score'):
        reference = score(initial, prompts, rollout, laid_out) if config.kl else None
      batch = Batch(rollout, advantage, rollout.raw_logp, np.bool_(False), reference)
      weights, reports = take_steps(config, compiled, weights, prompts, batch, base, laid_out)

    every = setup.loop.show_every
    if every and (number == 0 or (number + 1) % every == 0):
      shown = chosen.problems, chosen.rollout, chosen.graded, reports[0].token_loss
      distill.show_rollouts(setup, folder, number + 1, *shown, taught=False)
    spent += entries(setup, chosen.prompts, chosen.rollout, plan)
    metrics = distill.describe(_mean(reports), everything.rollout, everything.graded)
    metrics |= distill.compare_programs(setup, label, reports[0], chosen.rollout, number)
    metrics |= _describe(everything, setup.rollout.questions)
    stepped = all(bool(report.stepped) for report in reports)
    return weights, loop.Outcome(metrics, spent, stepped, seconds)

  return update


def plan_for(setup: Setup, drawn: Drawn) -> Plan:
  """How the student reads what it is trained on; there is no teacher."""
  return packing.plan(
    drawn.prompts,
    (),
    drawn.rollout,
    packing=setup.loop.packing,
    micro_tokens=setup.loop.micro_tokens,
    shards=meshes.row_shards(setup.mesh),
  )


def take_steps(
  config: GrpoConfig, compiled, weights: state.TrainState, prompts: Prompts, batch: Batch, *rest
) -> tuple[state.TrainState, list[StepReport]]:
  """All steps on one batch, and what each told the host.

  With `old=scorer` the first step is the one that tells what the others take their ratio to.
  """
  reports = []
  for turn in range(config.steps):
    fresh = config.old == 'scorer' and turn == 0
    weights, report, logp = compiled(weights, prompts, batch._replace(fresh=np.bool_(fresh)), *rest)
    if fresh:  # Laid out as what it replaces, so that the next step is the same program.
      batch = batch._replace(old=jax.device_put(logp, batch.old.sharding))
    reports.append(meshes.host(report))
  return weights, reports


def draw(setup: Setup, rollouts: Rollouts, params: model.Params, number: int) -> tuple[Drawn, Ledger]:
  """Graded rollouts of update `number`, in as many rounds as it takes; and what sampling them took.

  Round k of update u takes the problems of update u·draws + k, so that a run resumes anywhere.
  """
  wanted, rounds = setup.rollout.questions, []
  spent, found = Ledger(), 0
  for turn in range(setup.grpo.draws):
    problems = problems_of_update(setup.splits.train, wanted, setup.seed, number * setup.grpo.draws + turn)
    prompts = views.student_batch(setup.views, problems, setup.tokenizer)
    sampled = distill.roll_out(setup, rollouts, params, prompts, number)
    with jax.profiler.TraceAnnotation('grade'):
      graded = distill.grade(setup, problems, sampled.rollout)
    drawn = Drawn(problems, prompts, sampled.rollout, graded)
    rounds.append(drawn)
    spent += ledger.rollout_entry(
      setup.spec,
      prompts.length,
      sampled.rollout.length,
      lora.size(setup.lora, setup.spec),
      ledger.sampled_positions(prompts, sampled),
    )
    found += int(surrogate.differ(drawn.rewards()).sum())
    if found >= wanted:
      break
  return _together(rounds), spent


def _together(rounds: list[Drawn]) -> Drawn:
  """All rounds as one, padded to the widest."""
  width = max(one.rollout.ids.shape[1] for one in rounds)
  padded = [jax.tree.map(functools.partial(_padded, width=width), one.rollout) for one in rounds]
  join = functools.partial(jax.tree.map, lambda *parts: np.concatenate(parts))
  return Drawn(
    [problem for one in rounds for problem in one.problems],
    join(*(one.prompts for one in rounds)),
    join(*padded),
    _all([one.graded for one in rounds]),
  )


def _all(parts: list[Graded]) -> Graded:
  """One after the other; all by the same rules."""
  verdicts = tuple(verdict for part in parts for verdict in part.verdicts)
  if parts[0].shares is None:
    return Graded(verdicts)
  return Graded(verdicts, tuple(share for part in parts for share in part.shares))


def _padded(x: np.ndarray, width: int) -> np.ndarray:
  """[B, T] -> [B, width]; what has no T stays."""
  return x if x.ndim == 1 else np.pad(x, ((0, 0), (0, width - x.shape[1])))


def choose(drawn: Drawn, questions: int, mixed: bool) -> Drawn:
  """The `questions` that are trained on, in the order drawn.

  With `mixed` these are the first whose rewards differ. Where there are too few, others fill the shape:
  their rollouts have length 0, so that nothing is learned from them and no mean counts them.
  """
  differ = surrogate.differ(drawn.rewards())
  order = np.argsort(~differ, kind='stable')[:questions] if mixed else np.arange(questions)
  per_question = len(drawn.rollout.length) // len(drawn.problems)
  rows = (order[:, None] * per_question + np.arange(per_question)).ravel()
  rollout = jax.tree.map(lambda x: x[rows], drawn.rollout)
  if mixed:
    kept = np.repeat(differ[order], per_question)
    rollout = rollout.replace(length=np.where(kept, rollout.length, 0).astype(np.int32))
  return Drawn(
    [drawn.problems[i] for i in order],
    jax.tree.map(lambda x: np.asarray(x)[order], drawn.prompts),
    rollout,
    drawn.graded.take(rows),
  )


def entries(setup: Setup, prompts: Prompts, rollout: Rollout, plan: Plan) -> Ledger:
  """What the steps of an update took, and the pass that scores by the initial weights."""
  spec, adapters, config = setup.spec, lora.size(setup.lora, setup.spec), setup.grpo
  read = ledger.read_positions(plan, plan.student, prompts, rollout)
  step = ledger.student_entry(spec, prompts.length, rollout.length, adapters, read)
  spent = sum([step] * config.steps, Ledger())
  return spent + ledger.teacher_entry(spec, prompts.length, rollout.length, 0, read) if config.kl else spent


def _mean(reports: list[StepReport]) -> StepReport:
  """The first report with the scalars of all steps averaged."""
  scalars = [(r.loss, r.norms, r.sums) for r in reports]
  loss, norms, sums = jax.tree.map(lambda *values: np.mean(np.stack(values), axis=0), *scalars)
  return reports[0].replace(loss=loss, norms=norms, sums=sums)


def _describe(drawn: Drawn, questions: int) -> dict[str, float]:
  """Of all that was drawn: how many rounds, and the share of groups whose rewards are all alike."""
  alike = 1 - float(surrogate.differ(drawn.rewards()).mean())
  return {'draws': len(drawn.problems) // questions, 'alike_groups': alike}
