"""What one run works with: the configs of the rooms and the objects made of them, once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.data.config import DataConfig
from opsd_jax.data.source import Splits
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig, ViewsConfig
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.evaluate.accuracy import Exam
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.evaluate.retention import RetentionSet
from opsd_jax.grade.config import GradeConfig
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.weights import WeightsConfig
from opsd_jax.rollout.config import RolloutConfig
from opsd_jax.text.tokenizer import Tokenizer
from opsd_jax.train.config import ColdStartConfig, LoopConfig, OptimizerConfig, SourceConfig, WarmStartConfig
from opsd_jax.train.extrapolation import ControllerConfig
from opsd_jax.train.recorder import MetricsConfig
from opsd_jax.train.surrogate import GrpoConfig


@dataclasses.dataclass(frozen=True)
class Setup:
  """The workbench of a run.

  `resolved` is the whole config as plain values, kept in each checkpoint; `dropped` says how many
  problems of each split were left out for which reason; `origin` has digests of the problems and of
  how they become prompts, which a run that is continued must share; `retention` are the problems of
  other tasks that are tracked; `cleaning` is what was found in the training problems before any was left
  out for its length.
  """

  resolved: Mapping[str, Any]
  seed: int
  spec: ModelSpec
  mesh: jax.sharding.Mesh
  tokenizer: Tokenizer
  data: DataConfig
  splits: Splits
  dropped: Mapping[str, Mapping[str, int]]
  weights: WeightsConfig
  lora: LoraConfig
  views: ViewsConfig
  rollout: RolloutConfig
  teacher: TeacherConfig
  objective: ObjectiveConfig
  weigh: WeighConfig
  optimizer: OptimizerConfig
  loop: LoopConfig
  cold_start: ColdStartConfig
  teacher_start: ColdStartConfig
  source: SourceConfig
  warm_start: WarmStartConfig
  grade: GradeConfig
  evaluate: EvaluateConfig
  checkpoint: CheckpointConfig
  metrics: MetricsConfig
  controller: ControllerConfig = ControllerConfig()
  method: str = 'distill'
  grpo: GrpoConfig = GrpoConfig()
  retention: Sequence[RetentionSet] = ()
  cleaning: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  origin: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def exam(self) -> Exam:
    """How accuracies of this run are asked for."""
    return Exam(self.spec, self.mesh, self.views, self.tokenizer, self.grade)
