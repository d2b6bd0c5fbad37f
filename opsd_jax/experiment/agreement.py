"""What the rooms' configs must agree on, before anything expensive."""

import dataclasses
import math
import re

from opsd_jax import config as configs
from opsd_jax.checkpoint import config as checkpoint_room
from opsd_jax.config import ConfigError, require, require_choice
from opsd_jax.data import source
from opsd_jax.distill import config as distill_room
from opsd_jax.distill import privilege, weigh_config
from opsd_jax.distill.packing import run_width
from opsd_jax.evaluate import config as evaluate_room
from opsd_jax.experiment.config import CONTROLLABLE, RESERVED, Experiment, named, with_control
from opsd_jax.grade import config as grade_room
from opsd_jax.models import lora as lora_room
from opsd_jax.models import spec as models_room
from opsd_jax.models import weights as weights_room
from opsd_jax.rollout import config as rollout_room
from opsd_jax.rollout.engine import config as engine_room
from opsd_jax.text import tokenizer as text_room
from opsd_jax.text.tokenizer import TokenizerConfig
from opsd_jax.train import config as train_room
from opsd_jax.train import extrapolation, recorder, surrogate
from opsd_jax.train.config import SourceConfig


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


def validate_shapes(experiment: Experiment) -> None:
  """Checks what the shapes of a run depend on, without the folders of its weights and its tokenizer.

  Raises:
    ConfigError: as `validate`.
  """
  e, vocab = experiment, experiment.model.vocab_size
  _validate_numbers(e)
  models_room.validate(e.model)
  distill_room.validate_views(e.views)
  lora_room.validate(e.lora)
  rollout_room.validate(e.rollout, vocab)
  unread = weights_room.WeightsConfig() if e.teacher.kind == 'external' else e.teacher.weights
  distill_room.validate_teacher(dataclasses.replace(e.teacher, weights=unread))
  distill_room.validate_objective(e.objective, vocab)
  train_room.validate_optimizer('optimizer', e.optimizer)
  train_room.validate_loop(e.loop, _widest(e))
  train_room.parse_budget(e.loop)
  _validate_controller(e)


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
  for name, own in sources_of(e).items():
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


def sources_of(experiment: Experiment) -> dict[str, SourceConfig]:
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
      and control.name not in RESERVED
      and not control.name.startswith('teacher_of_')
      and names.count(control.name) == 1,
      f'control {control.name!r}: a name is of lower-case letters, digits and _, stands once, and is none of '
      f'{", ".join(RESERVED)}.',
    )
    for setting in control.overrides:
      require(
        setting.startswith(CONTROLLABLE),
        f'control {control.name!r} changes {setting.split("=")[0]!r}, which it shares with the main run; it '
        f'may change {", ".join(CONTROLLABLE)}.',
      )
    changed = with_control(experiment, control)
    with named(control):
      validate(changed)


def _validate_tokenizer(experiment: Experiment) -> int:
  """How many ids can be drawn: the model has a row for each that a text may have."""
  text_room.validate(experiment.tokenizer)
  models_room.validate(experiment.model)
  tokenizer = text_room.make_tokenizer(experiment.tokenizer)
  return rollout_room.drawable(tokenizer.vocab_size, experiment.model.vocab_size, tokenizer.control_ids)
