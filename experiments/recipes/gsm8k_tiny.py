"""Real questions, tokenizer, chat template and views through every room, on a tiny random model (CPU).

GSM8K's questions go to the student with thinking off; its worked solutions are the privilege of the
teacher, with thinking on, in the wording of OPSD's release of March 2026, whose sampling and loss are
used too. The model has Qwen3's shape and vocabulary, two narrow layers and random weights: this shows
the path that real runs take, and learns nothing. Accuracy stays at 0.

Source: this project's model; wording, sampling and loss are OPSD's (arXiv 2601.18734v3)
Command: python -m experiments.train --experiment=gsm8k_tiny --workdir=runs/gsm8k_tiny \\
           --set=data.path=FOLDER --set=tokenizer.path=FOLDER
  The first folder holds train.jsonl and test.jsonl of GSM8K (or its Parquet files, or a Hugging Face
  cache of it), the second the tokenizer files of a Qwen3 model.
Cost: 2 minutes on 2 CPU cores, beside other work; 5,120 sampled tokens.
Expected: 20 updates and an evaluation that end; no accuracy.
"""

from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.data.config import DataConfig, FieldsConfig
from opsd_jax.distill.config import ObjectiveConfig, ViewsConfig
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.experiment import Experiment
from opsd_jax.grade.config import GradeConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.rollout.config import RolloutConfig, SamplingConfig
from opsd_jax.train.config import LoopConfig, OptimizerConfig


def get_experiment() -> Experiment:
  """GSM8K on a tiny model."""
  sampling = SamplingConfig(temperature=1.1, top_k=20, top_p=0.95, max_tokens=32)
  return Experiment(
    name='gsm8k_tiny',
    data=DataConfig(
      source='files',
      fields=FieldsConfig().named('gsm8k'),
      validation_problems=8,
      test_problems=16,
      too_long='drop',
    ),
    model=ModelSpec(
      vocab_size=151_936,
      num_layers=2,
      embed_dim=64,
      num_heads=4,
      num_kv_heads=2,
      head_dim=16,
      mlp_dim=192,
      rope_theta=1e6,
    ),
    views=ViewsConfig(student_tokens=192, teacher_tokens=448).named('opsd'),
    rollout=RolloutConfig(questions=8, sampling=sampling),
    objective=ObjectiveConfig(
      divergence='forward_kl',
      entry_clip_max=0.05,
      student_temperature=1.1,
      teacher_temperature=1.1,
      chunk_tokens=64,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=1.0),
    loop=LoopConfig(updates=20, evaluate_every=10, show_every=5),
    grade=GradeConfig(answer='boxed'),
    evaluate=EvaluateConfig(samples=2, sampling=sampling, batch=8),
    checkpoint=CheckpointConfig(every=5),
  )
