"""On-policy self-distillation: roll out, score under both views, compare, step.

Axis letters: Q questions, B = Q·n rollouts, T completion tokens, M teacher views.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

from opsd_jax import files
from opsd_jax import mesh as meshes
from opsd_jax.checkpoint.store import open_store
from opsd_jax.data.source import problems_of_update
from opsd_jax.distill import packing, privilege, scoring, teachers, views, weighing
from opsd_jax.evaluate import accuracy as accuracies
from opsd_jax.evaluate import retention
from opsd_jax.grade import grading
from opsd_jax.models import lora, model
from opsd_jax.records import Graded, Plan, Problem, Prompts, Role, Rollout, Sampled, Shown, Verdict
from opsd_jax.rollout.config import bucket
from opsd_jax.rollout.engine import client
from opsd_jax.rollout.source import Rollouts
from opsd_jax.train import controller, ledger, loop, parity, samples, sources, state, step
from opsd_jax.train.config import parse_budget
from opsd_jax.train.setup import Setup

_SHOWN = 4  # rollouts written out token by token at a time
_ADAPTERS = 1  # folded into the seed, whose own draws are the random weights


def run(
  setup: Setup,
  folder: str,
  initial: model.Params,
  label: str = 'opsd',
  external: model.Params | None = None,
  optimizer_settings: str = 'optimizer',
  make_update: Callable[..., controller.Update] | None = None,
) -> loop.Finished:
  """Distils from `initial` until the budget is spent; continues an earlier attempt in `folder`.

  `initial` is the student's first weights, the frozen teacher and, with `lora`, what the adapters stand
  beside: only they are trained, and `params` of what is returned are theirs alone. `external` is the
  external teacher (`external.prepare`), None where the teacher is another; `optimizer_settings` is where the
  optimiser was set. `make_update` makes what another method does in an update, from what distillation would
  make its own from.
  """
  optimizer = state.make_optimizer(setup.optimizer)
  anchored = controller.anchored(setup.controller)
  shape = state.describe(_trained(setup, initial, abstract=True), optimizer, setup.teacher, anchored)
  make = functools.partial(_make_update, external=external) if make_update is None else make_update
  update = make(setup, initial, optimizer, shape, folder, label)
  work = loop.Work(
    label,
    folder,
    parse_budget(setup.loop),
    start=lambda: state.create(_trained(setup, initial), optimizer, setup.teacher, anchored),
    layout=shape,
    update=controller.around(setup, initial, optimizer, shape, update),
    validate=functools.partial(check, setup, initial),
    validate_every=setup.loop.evaluate_every,
    optimizer_settings=optimizer_settings,
  )
  return loop.run(work, setup)


def _trained(setup: Setup, initial: model.Params, *, abstract: bool = False) -> model.Params:
  """What the optimiser is to change, before its first step; `abstract`: shapes will do."""
  if not setup.lora.rank:
    return initial
  if abstract:
    return lora.abstract(setup.lora, setup.spec, setup.mesh)
  key = jax.random.fold_in(jax.random.key(setup.seed), _ADAPTERS)
  return lora.init(setup.lora, setup.spec, key, setup.mesh)


def _make_update(
  setup: Setup,
  initial: model.Params,
  optimizer: optax.GradientTransformation,
  shape: state.TrainState,
  folder: str,
  label: str,
  external: model.Params | None = None,
):
  spec, vocab = setup.spec, setup.exam.valid_vocab
  score = jax.jit(scoring.score_teacher, static_argnums=0)
  compiled = step.make_distill_step(
    spec,
    setup.objective,
    setup.teacher,
    optimizer,
    valid_vocab=vocab,
    layout=state.shardings(shape),
    adapters=setup.lora,
  )
  complete = functools.partial(lora.complete, setup.lora, initial)
  base = initial if setup.lora.rank else None  # whose head is then the student's and its own teachers'
  with_head = setup.teacher.kind == 'frozen' and base is None
  frozen_head = model.head(spec, initial) if with_head else None
  if external is not None:
    frozen_head = teachers.external_head(setup.teacher, external, spec.vocab_size)
  taught_by = teachers.spec_for(setup.teacher, spec)
  extrapolated = setup.objective.extrapolation != 1
  score_initial = jax.jit(functools.partial(scoring.score_tokens, spec, setup.objective, vocab))
  rollouts = source(setup)
  compares, weigh = setup.objective.estimator != 'nll', samples.make_weigher(setup, score)
  shows = compares or setup.source.kind == 'teacher'  # whether a teacher is asked at all

  def update(weights: state.TrainState, number: int):
    began = time.monotonic()
    problems = problems_of_update(setup.splits.train, setup.rollout.questions, setup.seed, number)
    prompts = views.student_batch(setup.views, problems, setup.tokenizer)
    seen = views.teacher_batch(setup.views, problems, setup.tokenizer) if shows else ()
    student, average = complete(weights.params), complete(weights.teacher)
    teacher = teachers.params_for(setup.teacher, initial, average, student, external)
    judge, written = functools.partial(grade, setup, problems), ledger.Ledger()
    if setup.views.analysis and shows:
      seen, written = sources.analysed(setup, taught_by, teacher, problems, number, worn(setup))
      seen = (seen,)
    drawn = draw(setup, rollouts, student, teacher, prompts, seen, problems, judge, number)
    rolled = time.monotonic()

    graded, sampled = judge(drawn.rollout), drawn.rollout
    if compares and privilege.used(setup.views.teacher):
      prompts, told, sampled = sources.by_row(setup, problems, prompts, sampled, graded)
      seen = (told,)
    # What is left out has no tokens from here on; as a sibling it was still shown.
    sampled = weighing.without(sampled, weighing.kept(setup.weigh, graded))
    placed, rollout = meshes.shard_rows(setup.mesh, (prompts, sampled))
    seen = seen if compares else ()
    plan = packing.plan(
      prompts,
      seen,
      sampled,
      packing=setup.loop.packing,
      micro_tokens=setup.loop.micro_tokens,
      shards=meshes.row_shards(setup.mesh),
    )
    laid_out = meshes.shard_rows(setup.mesh, plan, axis=1)
    scores = None
    if compares:
      scores = score(taught_by, teacher, meshes.shard_rows(setup.mesh, seen), rollout, laid_out)
    weighed = weigh(student, teacher, placed, rollout, scores, laid_out)
    factors = None if weighed is None else weighed.values
    before = {'initial': score_initial(initial, placed, rollout, laid_out)} if extrapolated else {}
    weights, report = compiled(
      weights, placed, rollout, scores, frozen_head, base, laid_out, factors, **before
    )
    weighed, report = meshes.host((weighed, report))

    every = setup.loop.show_every
    if every and (number == 0 or (number + 1) % every == 0):
      show_rollouts(setup, folder, number + 1, problems, drawn.rollout, graded, report.token_loss)
    spent = written + drawn.spent + entries(setup, prompts, seen, sampled, plan)
    seconds = {'rollout': rolled - began, 'update': time.monotonic() - rolled}
    metrics = describe(report, drawn.rollout, graded) | samples.describe(
      setup.weigh, weighed, sampled, graded
    )
    if drawn.own:
      metrics |= compare_programs(setup, label, report, sampled, number)
    else:
      metrics.pop('logp_gap', None)  # of a student's sampler, which drew nothing
    if setup.source.kind != 'student':
      metrics['own_rollouts'] = int(drawn.own)
    metrics |= {f'rejected_{name}': count for name, count in drawn.rejected.items()}
    if setup.source.rejects or privilege.used(setup.views.teacher):
      metrics['rows_scored'] = float((sampled.length > 0).mean())
    return weights, loop.Outcome(metrics, spent, bool(report.stepped), seconds)

  return update


def draw(
  setup: Setup,
  rollouts: Rollouts,
  student: model.Params,
  teacher: model.Params,
  prompts: Prompts,
  seen: Sequence[Prompts],
  problems: Sequence[Problem],
  judge: Callable[[Rollout], Graded],
  number: int,
) -> sources.Drawn:
  """The completions of update `number`, from whoever's turn it is, cropped to the narrowest bucket."""
  spec = setup.spec
  if sources.takes_own(setup.source, setup.seed, number):
    drawing = roll_out(setup, rollouts, student, prompts, number)
    length, computed = drawing.rollout.length, ledger.sampled_positions(prompts, drawing)
    spent = ledger.rollout_entry(spec, prompts.length, length, lora.size(setup.lora, spec), computed)
    return sources.Drawn(drawing.rollout, spent, own=True)
  if setup.source.kind == 'solutions':
    drawn = sources.of_data(setup, problems)
  else:
    taught_by = teachers.spec_for(setup.teacher, spec)
    drawn = sources.of_teacher(setup, taught_by, teacher, seen[0], number, judge, worn(setup))
  return drawn._replace(rollout=_cropped(setup, drawn.rollout))


def worn(setup: Setup) -> int:
  """How many weights of adapters the teacher has."""
  return lora.size(setup.lora, setup.spec) if setup.teacher.kind in ('ema', 'live') else 0


def entries(
  setup: Setup, prompts: Prompts, seen: Sequence[Prompts], sampled: Rollout, plan: Plan
) -> ledger.Ledger:
  """What an update took after its rollouts: the student's loss, every view of the teacher, the weights of
  samples, and the initial weights where they are asked.
  """
  spec, adapters = setup.spec, lora.size(setup.lora, setup.spec)
  read = ledger.read_positions(plan, plan.student, prompts, sampled)
  spent = ledger.student_entry(spec, prompts.length, sampled.length, adapters, read)
  if setup.objective.extrapolation != 1:  # read as the student does, by the initial weights
    spent += ledger.teacher_entry(spec, prompts.length, sampled.length, 0, read)
  taught_by = teachers.spec_for(setup.teacher, spec)
  for view, how in zip(seen, plan.teacher, strict=True):
    read = ledger.read_positions(plan, how, view, sampled)
    spent += ledger.teacher_entry(taught_by, view.length, sampled.length, worn(setup), read)
  return spent + samples.entry(setup, prompts, sampled, plan)


def source(setup: Setup) -> Rollouts:
  """What draws the rollouts of a run: the server that `rollout.engine` names, or our own sampler."""
  if setup.rollout.engine.url is None:
    return own_sampler(setup)
  eos_ids, vocab = setup.tokenizer.eos_ids, setup.exam.valid_vocab
  run = client.Run(setup.spec, setup.lora, setup.weights.path, eos_ids, vocab, setup.seed)
  return client.Client(setup.rollout, run)


def own_sampler(setup: Setup) -> Rollouts:
  """Rollouts drawn here, on the devices that train."""

  def draw(params: model.Params, prompts: Prompts, number: int) -> Sampled:
    return sources.sample(setup, setup.spec, params, prompts, number)

  return draw


def roll_out(
  setup: Setup, rollouts: Rollouts, params: model.Params, prompts: Prompts, number: int
) -> Sampled:
  """Rollouts of update `number` on the host, cropped to the narrowest bucket."""
  drawn = rollouts(params, prompts, number)
  return drawn._replace(rollout=_cropped(setup, drawn.rollout))


def _cropped(setup: Setup, rollout: Rollout) -> Rollout:
  config = setup.rollout
  return rollout.cropped(bucket(int(rollout.length.max()), config.buckets, config.sampling.max_tokens))


def compare_programs(
  setup: Setup, label: str, report: step.StepReport, sampled: Rollout, number: int
) -> dict[str, float]:
  """The parity meter of an update; warns where it is out of bounds."""
  if report.logp_gap is None:
    return {}
  metrics = parity.measure(report.logp_gap, sampled, number)
  message = parity.alarm(metrics, setup.loop.parity_alarm, setup.spec.dtype)
  if message is not None:
    parity.warn(label, number + 1, message)
  return metrics | {'parity_alarm': int(message is not None)}


def grade(setup: Setup, problems: list[Problem], sampled: Rollout) -> Graded:
  """Verdicts on the completions of the problems, as many of each: a metric, and part of the loss where a
  setting keeps some of them alone.
  """
  answers = [p.answer for p in problems for _ in range(len(sampled.length) // len(problems))]
  return grading.grade(accuracies.decode_rollout(sampled, setup.tokenizer), answers, setup.grade)


def describe(report: step.StepReport, sampled: Rollout, graded: Graded) -> dict[str, float]:
  """Scalars of an update; means are over the tokens that it trained on, or over all its rollouts."""
  metrics = {'loss': float(report.loss)} | {k: float(v) for k, v in report.norms.items()}
  tokens = max(int(report.tokens), 1)
  metrics |= {name: float(total / tokens) for name, total in report.sums.items()}
  if graded.shares is not None:
    failed = np.mean([verdict == Verdict.ERROR for verdict in graded.verdicts])
    metrics |= {'reward': float(graded.reward.mean()), 'graded_errors': float(failed)}
  metrics |= {
    'accuracy': float(graded.correct.mean()),
    'answered': float(graded.answered.mean()),
    'length_mean': float(sampled.length.mean()),
    'length_min': int(sampled.length.min()),
    'length_max': int(sampled.length.max()),
    'eos_rate': float(sampled.stopped.mean()),
    'truncation_rate': float(1 - sampled.stopped.mean()),
    'tokens': int(report.tokens),
  }
  return metrics


def best(setup: Setup, folder: str, initial: model.Params) -> loop.Finished | None:
  """The checkpoint with the highest validation accuracy (the newest of equals), or None if none is kept.

  It is chosen by problems that are neither trained on nor in the final table.
  """
  if not (setup.loop.evaluate_every and setup.checkpoint.keep_best):
    return None
  optimizer = state.make_optimizer(setup.optimizer)
  anchored = controller.anchored(setup.controller)
  layout = state.describe(_trained(setup, initial, abstract=True), optimizer, setup.teacher, anchored)
  with open_store(os.path.join(folder, 'checkpoints'), setup.checkpoint, read_only=True) as store:
    found = store.restore(layout, 'best')
  return (
    None if found is None else loop.Finished(found[1].params, loop.Progress.from_json(found[2]['progress']))
  )


def check(setup: Setup, initial: model.Params, weights: state.TrainState) -> loop.Checked:
  """Share of sampled answers to the validation problems that are right, and the same of other tasks."""
  config, params = setup.evaluate, lora.complete(setup.lora, initial, weights.params)
  verdicts = accuracies.answer_problems(
    setup.exam,
    params,
    setup.splits.validation,
    'student',
    config.sampling,
    samples=config.validation_samples,
    batch=config.batch,
    decode=config.decode,
    seed=config.seed,
  )
  adapters = lora.size(setup.lora, setup.spec)
  others, asked = retention.track(setup.exam, params, setup.retention, config)
  spent = ledger.Ledger()
  for v in (verdicts, *asked):
    spent += ledger.rollout_entry(setup.spec, v.prompt_length, v.length.ravel(), adapters)
  return loop.Checked(float(verdicts.correct.mean()), retention.metrics(others), spent)


def show_rollouts(
  setup: Setup,
  folder: str,
  number: int,
  problems: list[Problem],
  sampled: Rollout,
  graded: Graded,
  token_loss: np.ndarray,
  taught: bool = True,
) -> None:
  """Writes the first rollouts of an update to `rollouts/<update>.json`; `taught` if a teacher saw them."""
  if jax.process_index() != 0:
    return
  shown = []
  for row in range(min(_SHOWN, len(sampled.length))):
    problem = problems[row // (len(sampled.length) // len(problems))]
    length = int(sampled.length[row])
    shown.append(
      Shown(
        problem=problem.problem,
        student_prompt=_readable(setup, problem, 'student'),
        teacher_prompt=_readable(setup, problem, 'teacher') if taught else '',
        tokens=[setup.tokenizer.token_text(i) for i in sampled.ids[row, :length].tolist()],
        loss=[round(float(x), 5) for x in token_loss[row, :length]],
        answer=problem.answer,
        correct=bool(graded.correct[row]),
      )
    )
  os.makedirs(os.path.join(folder, 'rollouts'), exist_ok=True)
  files.write_json(
    os.path.join(folder, 'rollouts', f'{number:06d}.json'),
    [dataclasses.asdict(s) for s in shown],
    indent=None,
  )


def _readable(setup: Setup, problem: Problem, role: Role) -> str:
  """A prompt without the marks that tell its data from its control tokens."""
  return setup.tokenizer.plain(views.prompt(setup.views, problem, role, setup.tokenizer))
