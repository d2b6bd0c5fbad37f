"""A checked experiment turned into a run's workbench: every text tried, every problem that fits."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import jax

from opsd_jax import config as configs
from opsd_jax.config import require
from opsd_jax.data import cleaning, index, source
from opsd_jax.data.source import Splits
from opsd_jax.distill import views
from opsd_jax.evaluate import against, retention
from opsd_jax.evaluate.retention import RetentionSet
from opsd_jax.experiment.agreement import sources_of, validate
from opsd_jax.experiment.config import Experiment, named, with_control
from opsd_jax.grade import grading
from opsd_jax.mesh import make_mesh
from opsd_jax.records import Problem
from opsd_jax.text import tokenizer as text_room
from opsd_jax.train import cold_start, sources
from opsd_jax.train.setup import Setup

_DIGESTED = 16  # problems whose prompts stand for how all are rendered


def build(experiment: Experiment) -> Setup:
  """The workbench: mesh, tokenizer and problems, made once, and every text tried.

  Raises:
    ConfigError: as `validate`; also where the devices do not fit the mesh, or where a prompt or a
      worked solution, under the experiment or one of its controls, does not fit its width and
      `data.too_long` does not say to leave such problems out, or none is left; or where training problems
      repeat each other or a benchmark's and the settings say that this is an error; or where programs are to
      be judged and a problem has no tests, or none can be run on this machine.
  """
  validate(experiment)
  grading.require_machine(experiment.grade)
  e, tokenizer = experiment, text_room.make_tokenizer(experiment.tokenizer)
  others = retention.open_sets(e.evaluate, e.views, e.grade, tokenizer)
  benchmarks = retention.with_benchmarks(against.load_benchmarks(e.data.contamination), others)
  loaded = source.load(e.data)
  own = source.other_task(e.data, loaded.test)
  others += retention.own_sets(own, e.evaluate, e.views, e.grade, tokenizer)
  cleaned = cleaning.clean(loaded, e.data, benchmarks)
  splits, dropped, origin = _fitting(experiment, cleaned.splits)
  dropped['train'] = {**cleaned.report.left_out, **dropped['train']}
  for setting, rows in _needed(experiment).items():
    require(
      len(splits.train) >= rows, f'{setting} is {rows}, but only {len(splits.train)} training problems.'
    )
  setup = assemble(e, make_mesh(e.mesh), splits, dropped, others)
  digests = {'problems': origin, 'prompts': _prompts_digest(setup)}
  asked = {'retention': ' '.join(one.digest for one in others)} if others else {}
  return dataclasses.replace(setup, origin=digests | asked, cleaning=cleaned.report.to_dict())


def _prompts_digest(setup: Setup) -> str:
  """A digest of how texts become ids: of the tokenizer, its chat template and the wording."""
  shown = setup.splits.train[:_DIGESTED]
  batches = (
    views.student_batch(setup.views, shown, setup.tokenizer),
    *views.teacher_batch(setup.views, shown, setup.tokenizer),
  )
  ids = [batch.ids.tolist() for batch in batches]
  return hashlib.blake2b(repr((setup.tokenizer.eos_ids, ids)).encode(), digest_size=16).hexdigest()


def assemble(
  experiment: Experiment,
  mesh: jax.sharding.Mesh,
  splits: Splits,
  dropped: Mapping[str, Mapping[str, int]],
  others: Sequence[RetentionSet] = (),
) -> Setup:
  """The workbench of a checked experiment, or of a control, on problems that fit it."""
  e = experiment
  return Setup(
    resolved=configs.to_dict(e),
    seed=e.seed,
    spec=e.model,
    mesh=mesh,
    tokenizer=text_room.make_tokenizer(e.tokenizer),
    data=e.data,
    splits=splits,
    dropped=dropped,
    weights=e.weights,
    lora=e.lora,
    views=e.views,
    rollout=e.rollout,
    teacher=e.teacher,
    objective=e.objective,
    weigh=e.weigh,
    optimizer=e.optimizer,
    loop=e.loop,
    cold_start=e.cold_start,
    teacher_start=e.teacher_start,
    source=e.source,
    warm_start=e.warm_start,
    grade=e.grade,
    evaluate=e.evaluate,
    checkpoint=e.checkpoint,
    metrics=e.metrics,
    controller=e.controller,
    method=e.method,
    grpo=e.grpo,
    retention=others,
  )


def _needed(experiment: Experiment) -> dict[str, int]:
  """Training problems that an update takes, of the main run or of a control, by the setting that says so."""
  needed: dict[str, int] = {}
  for arm in (experiment, *(with_control(experiment, control) for control in experiment.controls)):
    rows = {'rollout.questions': arm.rollout.questions}
    stages = {'cold_start': arm.cold_start, 'teacher_start': arm.teacher_start}
    rows |= {f'{name}.batch': stage.batch for name, stage in stages.items() if stage.updates}
    if arm.controller.kind == 'effopd':
      rows['controller.problems'] = arm.controller.problems
    needed = {name: max(needed.get(name, 0), rows.get(name, 0)) for name in needed | rows}
  return needed


def _fitting(experiment: Experiment, splits: Splits) -> tuple[Splits, dict[str, dict[str, int]], str]:
  """The problems whose every text fits, how many of each split were left out why, and a digest of all.

  Renders every problem under every view, so that nothing is found out after hours of training.
  """
  tokenizer = text_room.make_tokenizer(experiment.tokenizer)
  wanted = [(None, experiment.views)]
  for stage in (experiment.cold_start, experiment.teacher_start):
    others = cold_start.student_views(stage, experiment.views) if stage.updates else []
    wanted += [(None, own) for own in others if own != experiment.views]
  for control in experiment.controls:
    wanted.append((control, with_control(experiment, control).views))

  arms = [experiment, *(with_control(experiment, control) for control in experiment.controls)]
  told = {
    (own, arm.rollout.sampling.max_tokens)
    for arm in arms
    for own in sources_of(arm).values()
    if own.kind == 'solutions'
  }
  supervised = experiment.cold_start.updates or experiment.teacher_start.updates
  digest = hashlib.blake2b(digest_size=16)

  def misfit(problem: Problem) -> str | None:
    digest.update(repr(problem).encode('utf-8', 'backslashreplace'))
    grading.require_known(problem, experiment.grade)
    for control, config in wanted:
      with contextlib.nullcontext() if control is None else named(control):
        if reason := views.misfit(config, problem, tokenizer):
          return reason
    return None

  def solution_misfit(problem: Problem) -> str | None:
    width = experiment.rollout.sampling.max_tokens
    found = misfit(problem) or (cold_start.misfit(problem, tokenizer, width) if supervised else None)
    others = (sources.misfit(config, problem, tokenizer, most) for config, most in told)
    return found or next(filter(None, others), None)

  chosen = {}
  for field in dataclasses.fields(splits):
    trained = field.name == 'train' and (supervised or told)
    chosen[field.name] = index.select(
      getattr(splits, field.name),
      solution_misfit if trained else misfit,
      experiment.data.too_long,
      f'{field.name} problems',
    )
  kept = Splits(**{name: selection.problems for name, selection in chosen.items()})
  dropped = {name: dict(selection.dropped) for name, selection in chosen.items()}
  return kept, dropped, digest.hexdigest()
