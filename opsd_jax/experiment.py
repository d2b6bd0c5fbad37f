"""An experiment: the rooms' configs composed, cross-checked, and turned into a run's workbench."""

import contextlib
import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import jax

from opsd_jax import config as configs
from opsd_jax.checkpoint import config as checkpoint_room
from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.config import ConfigError, require, require_choice
from opsd_jax.data import cleaning, index, source
from opsd_jax.data.config import DataConfig
from opsd_jax.data.source import Splits
from opsd_jax.distill import config as distill_room
from opsd_jax.distill import privilege, views, weigh_config
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig, ViewsConfig
from opsd_jax.distill.packing import run_width
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.evaluate import against, retention
from opsd_jax.evaluate import config as evaluate_room
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.evaluate.retention import RetentionSet
from opsd_jax.grade import config as grade_room
from opsd_jax.grade import grading
from opsd_jax.grade.config import GradeConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import lora as lora_room
from opsd_jax.models import spec as models_room
from opsd_jax.models import weights as weights_room
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.weights import WeightsConfig
from opsd_jax.records import Problem
from opsd_jax.rollout import config as rollout_room
from opsd_jax.rollout.config import RolloutConfig
from opsd_jax.rollout.engine import config as engine_room
from opsd_jax.text import tokenizer as text_room
from opsd_jax.text.tokenizer import TokenizerConfig
from opsd_jax.train import cold_start, extrapolation, recorder, sources, surrogate
from opsd_jax.train import config as train_room
from opsd_jax.train.config import ColdStartConfig, LoopConfig, OptimizerConfig, SourceConfig, WarmStartConfig
from opsd_jax.train.extrapolation import ControllerConfig
from opsd_jax.train.recorder import MetricsConfig
from opsd_jax.train.setup import Setup
from opsd_jax.train.surrogate import GrpoConfig


@dataclasses.dataclass(frozen=True)
class Control:
  """The same experiment with some settings changed, run on as many sampled tokens as the main run.

  Attributes:
    name: its folder and its row in the table.
    overrides: settings as written for `--set`.
  """

  name: str
  overrides: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that defines a run. A recipe is a function that returns one.

  Attributes:
    name: of the recipe.
    seed: of the weights, the data order and the sampling.
    teacher_start: supervised training that makes an external teacher, on clean solutions by default.
    method: `distill`: draw the student towards the teacher; `grpo`: towards what was graded right.
  """

  name: str
  seed: int = 0
  data: DataConfig = DataConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  model: ModelSpec = ModelSpec()
  weights: WeightsConfig = WeightsConfig()
  lora: LoraConfig = LoraConfig()
  mesh: MeshConfig = MeshConfig()
  views: ViewsConfig = ViewsConfig()
  rollout: RolloutConfig = RolloutConfig()
  source: SourceConfig = SourceConfig()
  warm_start: WarmStartConfig = WarmStartConfig()
  teacher: TeacherConfig = TeacherConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  weigh: WeighConfig = WeighConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  cold_start: ColdStartConfig = ColdStartConfig()
  teacher_start: ColdStartConfig = ColdStartConfig(clean=True)
  grade: GradeConfig = GradeConfig()
  evaluate: EvaluateConfig = EvaluateConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  metrics: MetricsConfig = MetricsConfig()
  controller: ControllerConfig = ControllerConfig()
  method: Literal['distill', 'grpo'] = 'distill'
  grpo: GrpoConfig = GrpoConfig()
  controls: tuple[Control, ...] = ()


# What a control may change. The rest is shared with the main run: its cold start, its data, its test.
CONTROLLABLE = (
  'method',
  'views.teacher',
  'views.solution_fraction',
  'views.feedback',
  'views.analysis',
  'teacher.',
  'objective.',
  'weigh.',
  'optimizer.',
  'rollout.',
  'loop.',
  'source.',
  'warm_start.',
  'controller.',
  'grpo.',
)
_RESERVED = (
  'base',
  'teacher_view',
  'teacher',
  'cold_start',
  'opsd',
  'opsd_best',
  'experiment',
  'seed',
  'tokens',
  'problems',
  'cleaning',
  'arms',
  'evaluation',
  'validation',
  'seconds',
  'versions',
  'machine',
)

_DIGESTED = 16  # problems whose prompts stand for how all are rendered

# Settings that may differ when a run is continued: they change how long it goes on and what it shows.
CONTINUABLE = ('loop.budget', 'loop.updates', 'loop.parity_alarm', 'checkpoint.', 'metrics.', 'mesh.')
# Where a server is and how patient its client, which the rollouts do not depend on.
CONTINUABLE += tuple(
  f'rollout.engine.{name}'
  for name in ('url', 'push_folder', 'concurrency', 'timeout_s', 'retries', 'deadline_s')
)


def validate(experiment: Experiment) -> None:
  """Checks every room and what they must agree on, before anything expensive.

  Raises:
    ConfigError: names the setting, its value and the remedy.
  """
  _validate_numbers(experiment)
  tokenizer_size = _validate_tokenizer(experiment)
  weights_room.validate(experiment.weights, experiment.model)
  lora_room.validate(experiment.lora)
  source.validate(experiment.data)
  distill_room.validate_views(experiment.views)
  rollout_room.validate(experiment.rollout, tokenizer_size)
  distill_room.validate_teacher(experiment.teacher)
  _validate_external(experiment, tokenizer_size)
  distill_room.validate_objective(experiment.objective, tokenizer_size)
  rollouts = experiment.rollout.questions * experiment.rollout.per_question
  weigh_config.validate(experiment.weigh, rollouts)
  if experiment.source.kind == 'solutions':
    weigh_config.validate(experiment.weigh, experiment.rollout.questions)
  train_room.validate_optimizer('optimizer', experiment.optimizer)
  train_room.validate_loop(experiment.loop, _widest(experiment))
  train_room.validate_cold_start(experiment.cold_start)
  train_room.validate_cold_start(experiment.teacher_start, 'teacher_start')
  train_room.validate_source(experiment.source)
  train_room.validate_warm_start(experiment.warm_start, experiment.lora.rank)
  train_room.validate_agreement(experiment.source, experiment.objective, experiment.weigh)
  _validate_privilege(experiment)
  _validate_engine(experiment)
  _validate_controller(experiment)
  _validate_method(experiment)
  budget = train_room.parse_budget(experiment.loop)
  if budget.unit == 'updates':
    steps = experiment.grpo.steps if experiment.method == 'grpo' else 1
    train_room.validate_decay('optimizer', experiment.optimizer, math.ceil(budget.limit) * steps)
  grade_room.validate(experiment.grade)
  evaluate_room.validate(experiment.evaluate, tokenizer_size)
  checkpoint_room.validate(experiment.checkpoint)
  recorder.validate(experiment.metrics)
  _validate_controls(experiment)


def _widest(experiment: Experiment) -> int:
  """Positions that a question and its completions may take when they are scored."""
  prompt = max(experiment.views.student_tokens, experiment.views.teacher_tokens)
  return run_width(prompt, experiment.rollout.per_question, experiment.rollout.sampling.max_tokens)


def _validate_numbers(experiment: Experiment) -> None:
  """Every number is finite, and every seed fits the 32 bits that randomness is counted in."""
  for name, value in configs.flatten(experiment).items():
    finite = not isinstance(value, float) or math.isfinite(value)
    require(finite, f'{name} is {value}; it must be a finite number.')
    is_seed = name.split('.')[-1] == 'seed'
    require(not is_seed or 0 <= value < 2**32, f'{name} is {value}; a seed lies in 0..{2**32 - 1}.')


def _validate_external(experiment: Experiment, drawn: int) -> None:
  """An external teacher has weights, and means by every id what the student means."""
  teacher = experiment.teacher
  distill_room.validate_external(teacher, drawn, experiment.teacher_start.updates)
  folder = teacher.weights.path if teacher.kind == 'external' else None
  if folder is None or folder == experiment.tokenizer.path or not text_room.is_in(folder):
    return
  theirs = text_room.make_tokenizer(TokenizerConfig(path=folder, eos_tokens=experiment.tokenizer.eos_tokens))
  differs = text_room.difference(text_room.make_tokenizer(experiment.tokenizer), theirs)
  require(
    differs is None,
    f'teacher.weights.path={folder} has another vocabulary than the student: {differs}. Take a teacher of '
    'the same tokenizer.',
  )


def _row_fields(setting: str, template: str) -> list[str]:
  """The fields of a template that rollouts fill."""
  try:
    return sorted(privilege.used(template))
  except ValueError as error:
    raise ConfigError(f'{setting} is {template!r}: {error}.') from error


def _validate_privilege(experiment: Experiment) -> None:
  """What a teacher's template shows of rollouts is there when it is filled."""
  e = experiment
  shown = _row_fields('views.teacher', e.views.teacher)
  asked = _row_fields('views.analysis', e.views.analysis)
  require(
    not asked,
    f'views.analysis shows {{{"} and {".join(asked)}}}, but it is written before any rollout; show the texts '
    'of the problem alone.',
  )
  if not shown:
    return
  names = ' and '.join(f'{{{name}}}' for name in shown)
  for name, own in _sources(e).items():
    require(
      own.kind == 'student',
      f'views.teacher shows {names} of a rollout of the student, but {name}.kind is {own.kind!r}; show the '
      'texts of the problem alone.',
    )
  require(
    not e.views.analysis,
    f'views.teacher shows {names}, but views.analysis is written once a question; leave one of them out.',
  )
  require(
    'sibling' not in shown or e.rollout.per_question > 1,
    f'views.teacher shows {{sibling}}, but rollout.per_question is {e.rollout.per_question}; raise it to 2.',
  )
  require(
    'feedback' not in shown or bool(e.views.feedback_right or e.views.feedback_wrong),
    'views.teacher shows {feedback}, but views.feedback_right and views.feedback_wrong are empty; set them.',
  )
  require(
    shown == ['feedback'] or e.views.teacher_tokens > e.rollout.sampling.max_tokens,
    f'views.teacher shows {names}, but views.teacher_tokens is {e.views.teacher_tokens}, which does not hold '
    f'a completion of rollout.sampling.max_tokens ({e.rollout.sampling.max_tokens}) and more; raise it.',
  )


def _sources(experiment: Experiment) -> dict[str, SourceConfig]:
  """Whose completions a run learns from, by the setting that says so."""
  warm = {'warm_start.source': experiment.warm_start.source} if experiment.warm_start.updates else {}
  return {'source': experiment.source} | warm


def _validate_engine(experiment: Experiment) -> None:
  e = experiment
  engine_room.validate_agreement(
    e.rollout.engine,
    e.rollout.sampling.temperature,
    rollout_room.truncates(e.rollout.sampling),
    loss_temperature=e.objective.student_temperature,
    lora_rank=e.lora.rank,
    cold_start_updates=e.cold_start.updates,
  )


def _validate_controller(experiment: Experiment) -> None:
  e = experiment
  extrapolation.validate(e.controller)
  require(
    e.controller.kind == 'none' or not e.lora.rank or e.teacher.kind != 'ema',
    f'controller.kind is {e.controller.kind!r}, which replaces the factors of the adapters, and teacher.kind '
    "is 'ema', an average of such factors, which would mix unlike ones; set teacher.kind=frozen or live, or "
    'lora.rank=0.',
  )


def _validate_method(experiment: Experiment) -> None:
  e = experiment
  require_choice('method', e.method, ('distill', 'grpo'))
  surrogate.validate(e.grpo)
  if e.method != 'grpo':
    return
  require(
    e.rollout.per_question > 1,
    f"method is 'grpo', which compares the rollouts of a question, but rollout.per_question is "
    f'{e.rollout.per_question}; set at least 2 (published: 8).',
  )
  require(
    e.rollout.sampling.temperature > 0,
    "method is 'grpo', but rollout.sampling.temperature is 0, at which all rollouts of a question are the "
    'same; set 1.',
  )
  require(
    e.teacher.kind == 'frozen',
    f"method is 'grpo', which has no teacher, but teacher.kind is {e.teacher.kind!r}; set "
    'teacher.kind=frozen, which keeps nothing.',
  )
  for setting, value, needed in (
    ('source.kind', e.source.kind, 'student'),
    ('weigh.kind', e.weigh.kind, 'none'),
    ('weigh.keep', e.weigh.keep, 'all'),
    ('objective.correction', e.objective.correction, 'none'),
    ('objective.extrapolation', e.objective.extrapolation, 1.0),
    ('views.analysis', e.views.analysis, ''),
  ):
    require(
      value == needed,
      f"{setting} is {value!r}, but method is 'grpo', which learns from all of the student's own rollouts by "
      f'their advantages alone; set it to {needed!r}.',
    )


def _validate_controls(experiment: Experiment) -> None:
  names = [control.name for control in experiment.controls]
  for control in experiment.controls:
    require(
      re.fullmatch('[a-z0-9_]+', control.name) is not None
      and control.name not in _RESERVED
      and not control.name.startswith('teacher_of_')
      and names.count(control.name) == 1,
      f'control {control.name!r}: a name is of lower-case letters, digits and _, stands once, and is none of '
      f'{", ".join(_RESERVED)}.',
    )
    for setting in control.overrides:
      require(
        setting.startswith(CONTROLLABLE),
        f'control {control.name!r} changes {setting.split("=")[0]!r}, which it shares with the main run; it '
        f'may change {", ".join(CONTROLLABLE)}.',
      )
    changed = with_control(experiment, control)
    with _named(control):
      validate(changed)


def _validate_tokenizer(experiment: Experiment) -> int:
  """How many ids can be drawn: the model has a row for each that a text may have."""
  text_room.validate(experiment.tokenizer)
  models_room.validate(experiment.model)
  tokenizer = text_room.make_tokenizer(experiment.tokenizer)
  return rollout_room.drawable(tokenizer.vocab_size, experiment.model.vocab_size, tokenizer.control_ids)


def with_control(
  experiment: Experiment, control: Control, tokens: int | None = None, updates: int | None = None
) -> Experiment:
  """The experiment of a control; with `tokens`, its budget is that many sampled tokens.

  Rollouts may shrink under a control; it stops in any case after three times `updates`, the main run's.
  """
  with _named(control):
    changed = configs.override(experiment, control.overrides)
  changed = dataclasses.replace(changed, controls=())
  if tokens is None:
    return changed
  cap = 'none' if updates is None else 3 * updates
  return configs.override(changed, [f'loop.budget=tokens:{tokens}', f'loop.max_updates={cap}'])


@contextlib.contextmanager
def _named(control: Control) -> Iterator[None]:
  """Errors inside name the control."""
  try:
    yield
  except ConfigError as error:
    raise ConfigError(f'control {control.name!r}: {error}') from error


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
    for own in _sources(arm).values()
    if own.kind == 'solutions'
  }
  supervised = experiment.cold_start.updates or experiment.teacher_start.updates
  digest = hashlib.blake2b(digest_size=16)

  def misfit(problem: Problem) -> str | None:
    digest.update(repr(problem).encode('utf-8', 'backslashreplace'))
    grading.require_known(problem, experiment.grade)
    for control, config in wanted:
      with contextlib.nullcontext() if control is None else _named(control):
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
