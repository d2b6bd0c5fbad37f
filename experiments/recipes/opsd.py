r"""OPSD as its authors released it in March 2026 (arXiv 2601.18734v3): a family of recipes.

A Qwen3 model answers mathematics without thinking, at most 1024 tokens; the same model without its adapters
reads the reference solution too, may think, and scores the same tokens. Every recipe here is run so:

  python -m experiments.train --experiment=opsd_qwen3_1p7b --workdir=runs/opsd_qwen3_1p7b \
    --model=FOLDER_OF_QWEN3_1P7B --set=data.path=FOLDER_OF_THE_PROBLEMS
  python -m experiments.evaluate --checkpoint=runs/opsd_qwen3_1p7b --step=100 --protocol=opsd \
    --prompt=protocol --data=DATA --output=runs/opsd_qwen3_1p7b_eval

The model is a Hugging Face folder (Qwen/Qwen3-1.7B, ...), the problems are the data set
siyanzhao/Openthoughts_math_30k_opsd; nothing is downloaded. The second command is the published measure
(Avg@12, thinking on, 38,912 tokens); the run's own table is not: it asks problems that were held out of
training, without thinking. Where memory is short: --set=loop.micro_tokens=16384 (the loss does not change).

Where the sources leave a choice:
  - the learning rate is constant. The code decays it over 30 epochs, of which about 100 of 28,000 updates are
    run: it has then lost less than half a percent;
  - tokens are averaged over the whole batch, where the code averages within a device's micro-batch first;
  - problems whose prompt is longer than 1024 tokens (student) or 4096 (teacher) are counted and left out. The
    code allows 20,000;
  - the sentences of the prompts are this project's, in the published structure (views=opsd);
  - masks come from lengths, so that an end of text which the model writes counts in the loss.
"""

import dataclasses

from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.data.config import DataConfig, FieldsConfig
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig, ViewsConfig
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.experiment import Experiment
from opsd_jax.grade.config import GradeConfig
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.weights import WeightsConfig
from opsd_jax.rollout.config import RolloutConfig, SamplingConfig
from opsd_jax.train.config import LoopConfig, OptimizerConfig


def opsd_qwen3_1p7b() -> Experiment:
  """OPSD of March 2026 on Qwen3-1.7B: forward KL, entries clipped at 0.05, frozen teacher, LoRA.

  Source: arXiv 2601.18734v3, table 6 and section 4.1; siyan-zhao/OPSD, release of 18 March 2026
  Command: as at the top of this file, with a folder of Qwen/Qwen3-1.7B
  Cost: 100 updates, at most 3.3 million sampled tokens; the authors say 15 minutes on 4 H100.
  Published: Avg@12 on AIME 24, AIME 25, HMMT 25 from 51.5, 36.7, 23.1 to 57.2, 43.9, 29.2, the best of the
    checkpoints up to update 100 on each; at update 100 itself 57.2, 41.1, 29.2. One run. Not measured here.
  """
  return release('opsd_qwen3_1p7b', 'qwen3_1p7b', 'Qwen/Qwen3-1.7B')


def opsd_qwen3_4b() -> Experiment:
  """OPSD of March 2026 on Qwen3-4B: as on 1.7B, gradients clipped at norm 0.1.

  Source: arXiv 2601.18734v3, table 6 and section 4.1; siyan-zhao/OPSD, release of 18 March 2026
  Command: as at the top of this file, with --experiment=opsd_qwen3_4b and a folder of Qwen/Qwen3-4B
  Cost: 100 updates, at most 3.3 million sampled tokens; time not published.
  Published: Avg@12 on AIME 24, AIME 25, HMMT 25 from 74.9, 66.4, 42.2 to 76.4, 68.3, 46.1, the best of the
    checkpoints up to update 100 on each; at update 100 itself 73.6, 66.7, 43.9. One run; others got 73.1 on
    AIME 24 (issue 17 of the repository). Not measured here.
  """
  return release('opsd_qwen3_4b', 'qwen3_4b', 'Qwen/Qwen3-4B', clip_norm=0.1)


def opsd_qwen3_8b() -> Experiment:
  """OPSD of March 2026 on Qwen3-8B: as on 4B, entries clipped at 0.06.

  Source: arXiv 2601.18734v3, table 6 and section 4.1; siyan-zhao/OPSD, release of 18 March 2026
  Command: as at the top of this file, with --experiment=opsd_qwen3_8b and a folder of Qwen/Qwen3-8B
  Cost: 100 updates, at most 3.3 million sampled tokens; time not published.
  Published: Avg@12 on AIME 24, AIME 25, HMMT 25 from 75.8, 65.6, 43.9 to 77.8, 70.8, 45.8, the best of the
    checkpoints up to update 100 on each. One run. Not measured here.
  """
  return release('opsd_qwen3_8b', 'qwen3_8b', 'Qwen/Qwen3-8B', entry_clip_max=0.06, clip_norm=0.1)


def opsd_qwen3_1p7b_live() -> Experiment:
  """OPSD of March 2026 on Qwen3-1.7B with a live teacher: the student's current weights score.

  The sources have the option and advise against it: the frozen teacher is steadier.

  Source: siyan-zhao/OPSD, opsd_trainer.py with neither fixed_teacher nor use_ema_teacher; constants of v3
  Command: as at the top of this file, with --experiment=opsd_qwen3_1p7b_live
  Cost: as opsd_qwen3_1p7b.
  Published: nothing. Not measured here.
  """
  main = release('opsd_qwen3_1p7b_live', 'qwen3_1p7b', 'Qwen/Qwen3-1.7B')
  return dataclasses.replace(main, teacher=TeacherConfig(kind='live'))


def opsd_qwen3_4b_sampled() -> Experiment:
  """OPSD on Qwen3-4B by the sampled token alone: a policy gradient of reverse KL, 2048 tokens, no clip.

  The ablation of the full vocabulary. Its other constants are not published; those of the March release stand
  in. Its twin is opsd_qwen3_4b with --set=rollout.sampling.max_tokens=2048.

  Source: arXiv 2601.18734v3, equation 9 and table 4; siyan-zhao/OPSD, use_tinker_loss
  Command: as at the top of this file, with --experiment=opsd_qwen3_4b_sampled and a folder of Qwen/Qwen3-4B
  Cost: 100 updates, at most 6.6 million sampled tokens.
  Published: pass@8 on AIME 25, HMMT 25: 82.1, 57.3; by the full vocabulary 84.1, 60.0. Not measured here.
  """
  main = release('opsd_qwen3_4b_sampled', 'qwen3_4b', 'Qwen/Qwen3-4B', clip_norm=0.1, max_tokens=2048)
  objective = dataclasses.replace(
    main.objective, divergence='reverse_kl', support='sampled', entry_clip_max=None
  )
  return dataclasses.replace(main, objective=objective)


RECIPES = (opsd_qwen3_1p7b, opsd_qwen3_4b, opsd_qwen3_8b, opsd_qwen3_1p7b_live, opsd_qwen3_4b_sampled)


def release(
  name: str,
  size: str,
  published: str,
  *,
  entry_clip_max: float = 0.05,
  clip_norm: float = 1.0,
  max_tokens: int = 1024,
) -> Experiment:
  """The release of March 2026 on one of its models; `published` is the model's name at Hugging Face."""
  main = shared(name, size, published, max_tokens)
  return dataclasses.replace(
    main,
    views=main.views.named('opsd'),
    objective=dataclasses.replace(
      main.objective, divergence='forward_kl', entry_clip_max=entry_clip_max, reduction='token_mean'
    ),
    optimizer=dataclasses.replace(main.optimizer, learning_rate=5e-6, clip_norm=clip_norm),
    loop=dataclasses.replace(main.loop, updates=100, evaluate_every=25, show_every=25),
    checkpoint=CheckpointConfig(every=25, keep_last=4),
  )


def shared(name: str, size: str, published: str, max_tokens: int) -> Experiment:
  """What both releases of OPSD have in common: problems, adapters, sampling, temperatures, AdamW."""
  return Experiment(
    name=name,
    data=DataConfig(
      source='files',
      fields=FieldsConfig(problem='problem', solution='solution', answer='Answer'),
      test=None,
      test_problems=128,
      validation_problems=64,
      too_long='drop',
    ),
    model=ModelSpec(dtype='bfloat16', remat='full').named(size),
    weights=WeightsConfig(published=published),
    lora=LoraConfig(rank=64, alpha=128.0),
    views=ViewsConfig(student_tokens=1024, teacher_tokens=4096),
    rollout=RolloutConfig(
      questions=32,
      per_question=1,
      sampling=SamplingConfig(temperature=1.1, top_k=20, top_p=0.95, max_tokens=max_tokens),
    ),
    teacher=TeacherConfig(kind='frozen'),
    objective=ObjectiveConfig(student_temperature=1.1, teacher_temperature=1.1),
    optimizer=OptimizerConfig(schedule='constant', beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0),
    loop=LoopConfig(packing='packed'),
    grade=GradeConfig(rules='opsd'),
    evaluate=EvaluateConfig(
      samples=4, sampling=SamplingConfig(temperature=1.0, top_p=0.95, max_tokens=2048), batch=16
    ),
  )
