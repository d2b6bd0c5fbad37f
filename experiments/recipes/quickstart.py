"""OPSD corrects a misconception about digit chains, with the controls that prove it (CPU, minutes).

A tiny Qwen3-shaped model is first trained to work through chains such as `3+*-` (next, double,
previous, modulo 10). Under the teacher's view, which shows the running values, it learns the clean
solution; under the student's view it learns that `*` is 2v + 1 more often than not, and 5 % slips.
OPSD then distils the teacher's view into the student's, from the frozen initial weights, on the
student's own rollouts. The controls spend as many sampled tokens on a teacher without privilege,
plain and sharpened.

Source: this project's task; the method is OPSD's (arXiv 2601.18734)
Command: python -m experiments.train --experiment=quickstart --workdir=runs/quickstart
Cost: 3 to 4 minutes on 2 CPU cores; 224,000 sampled tokens an arm.
Expected, and measured over seeds 0 to 4: OPSD 94 to 98 % sampled and 99.8 to 100 % greedy, from 13 to 14 %
and 4.6 to 4.8 %; the teacher's view of the base 96 to 98 %; the controls at most 14 % and 5 %.
"""

import dataclasses

from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.experiment import Control, Experiment
from opsd_jax.models.spec import ModelSpec
from opsd_jax.rollout.config import RolloutConfig, SamplingConfig
from opsd_jax.train.config import ColdStartConfig, LoopConfig, OptimizerConfig


def get_experiment() -> Experiment:
  """The quickstart."""
  optimizer = OptimizerConfig(
    learning_rate=3e-3, schedule='cosine', warmup_updates=20, decay_updates=400, beta2=0.99
  )
  return Experiment(
    name='quickstart',
    model=ModelSpec(
      vocab_size=32, num_layers=2, embed_dim=96, num_heads=4, num_kv_heads=2, head_dim=24, mlp_dim=288
    ),
    views=ViewsConfig(
      student='{problem}:', teacher='{problem}|{reference}:', student_tokens=12, teacher_tokens=20
    ),
    rollout=RolloutConfig(questions=64, per_question=1, sampling=SamplingConfig(max_tokens=40)),
    cold_start=ColdStartConfig(updates=400, batch=96, teacher_fraction=0.5, optimizer=optimizer),
    optimizer=dataclasses.replace(
      optimizer, learning_rate=1e-3, schedule='constant', warmup_updates=5, decay_updates=0
    ),
    loop=LoopConfig(updates=100, evaluate_every=20, show_every=20),
    evaluate=EvaluateConfig(samples=8, sampling=SamplingConfig(max_tokens=40), batch=100),
    checkpoint=CheckpointConfig(every=20),
    controls=(
      Control('no_privilege', ('views.teacher={problem}:',)),
      Control('sharpened_no_privilege', ('views.teacher={problem}:', 'objective.teacher_temperature=0.3')),
    ),
  )
