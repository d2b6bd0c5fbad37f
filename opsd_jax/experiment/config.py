"""An experiment: the rooms' configs composed, and what a control may change of them."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Literal

from opsd_jax import config as configs
from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.config import ConfigError
from opsd_jax.data.config import DataConfig
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig, ViewsConfig
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.grade.config import GradeConfig
from opsd_jax.mesh import MeshConfig
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.weights import WeightsConfig
from opsd_jax.rollout.config import RolloutConfig
from opsd_jax.text.tokenizer import TokenizerConfig
from opsd_jax.train.config import ColdStartConfig, LoopConfig, OptimizerConfig, SourceConfig, WarmStartConfig
from opsd_jax.train.extrapolation import ControllerConfig
from opsd_jax.train.recorder import MetricsConfig
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

RESERVED = (
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

# Settings that may differ when a run is continued: they change how long it goes on and what it shows.
CONTINUABLE = ('loop.budget', 'loop.updates', 'loop.parity_alarm', 'checkpoint.', 'metrics.', 'mesh.')

# Where a server is and how patient its client, which the rollouts do not depend on.
CONTINUABLE += tuple(
  f'rollout.engine.{name}'
  for name in ('url', 'push_folder', 'concurrency', 'timeout_s', 'retries', 'deadline_s')
)


def with_control(
  experiment: Experiment, control: Control, tokens: int | None = None, updates: int | None = None
) -> Experiment:
  """The experiment of a control; with `tokens`, its budget is that many sampled tokens.

  Rollouts may shrink under a control; it stops in any case after three times `updates`, the main run's.
  """
  with named(control):
    changed = configs.override(experiment, control.overrides)
  changed = dataclasses.replace(changed, controls=())
  if tokens is None:
    return changed
  cap = 'none' if updates is None else 3 * updates
  return configs.override(changed, [f'loop.budget=tokens:{tokens}', f'loop.max_updates={cap}'])


@contextlib.contextmanager
def named(control: Control) -> Iterator[None]:
  """Errors inside name the control."""
  try:
    yield
  except ConfigError as error:
    raise ConfigError(f'control {control.name!r}: {error}') from error
