r"""OPSD as first released (arXiv 2601.18734v1 and v2, January 2026): a family of recipes.

An older generation, not to be mixed with `opsd.py`: JSD with beta 0.5 instead of forward KL, no clip of
entries, a learning rate forty times as large, longer rollouts, and another wording whose switches for
thinking are left to the chat template. Every recipe here is run so:

  python -m experiments.train --experiment=opsd_2026_01_qwen3_1p7b --workdir=runs/opsd_2026_01_qwen3_1p7b \
    --model=FOLDER_OF_QWEN3_1P7B --set=data.path=FOLDER_OF_THE_PROBLEMS

Model, problems and measure are as `opsd.py` says, and so are the choices that the sources leave, but for
those of its wording. Further:
  - the published code of this time lost the control tokens of the student's prompt between sampler and
    scorer. That is not imitated, so that its numbers need not come out;
  - how many updates to run is published for 1.7B alone (500); the others take as many;
  - the norm that gradients are clipped at is the default of the trainer that the scripts used, 1.
"""

import dataclasses

from experiments.recipes.opsd import shared
from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.distill.config import TeacherConfig
from opsd_jax.experiment import Experiment


def opsd_2026_01_qwen3_1p7b() -> Experiment:
  """OPSD of January 2026 on Qwen3-1.7B: JSD with beta 0.5, no clip, frozen teacher, 2048 tokens.

  Source: arXiv 2601.18734v1 and v2; siyan-zhao/OPSD at 590ec26, run_opsd_1b
  Command: as at the top of this file, with a folder of Qwen/Qwen3-1.7B
  Cost: 500 updates, at most 32.8 million sampled tokens; time not published.
  Published: Avg@16 on AIME 24 from 47.7 to 47.5, 51.7, 50.2, 49.2, 51.0 at updates 100, 200, 300, 400, 500.
    One run. Not measured here.
  """
  return release('opsd_2026_01_qwen3_1p7b', 'qwen3_1p7b', 'Qwen/Qwen3-1.7B', max_tokens=2048)


def opsd_2026_01_qwen3_4b() -> Experiment:
  """OPSD of January 2026 on Qwen3-4B: as on 1.7B, with 1024 tokens.

  Source: arXiv 2601.18734v1 and v2; siyan-zhao/OPSD at 590ec26, run_opsd
  Command: as at the top of this file, with --experiment=opsd_2026_01_qwen3_4b and a folder of Qwen/Qwen3-4B
  Cost: 500 updates, at most 16.4 million sampled tokens; time not published.
  Published: no number of this script is known to us. Not measured here.
  """
  return release('opsd_2026_01_qwen3_4b', 'qwen3_4b', 'Qwen/Qwen3-4B')


def opsd_2026_01_qwen3_4b_ema() -> Experiment:
  """OPSD of January 2026 on Qwen3-4B with an EMA teacher (0.999 of the adapters), 8 rollouts an update.

  The published code begins the average after the first step, as a copy of the student; here it begins with
  the initial weights. The first update is the same, and later averages differ by less than that one step.

  Source: siyan-zhao/OPSD at 590ec26, run_opsd_ema, an example script
  Command: as at the top of this file, with --experiment=opsd_2026_01_qwen3_4b_ema and Qwen/Qwen3-4B
  Cost: 500 updates, at most 4.1 million sampled tokens; time not published.
  Published: nothing. Not measured here.
  """
  main = release('opsd_2026_01_qwen3_4b_ema', 'qwen3_4b', 'Qwen/Qwen3-4B')
  return dataclasses.replace(
    main,
    rollout=dataclasses.replace(main.rollout, questions=8),
    teacher=TeacherConfig(kind='ema', ema_decay=0.999),
  )


def opsd_2026_01_qwen3_1p7b_topk() -> Experiment:
  """OPSD of January 2026 on Qwen3-1.7B over the teacher's 50 most probable tokens, renormalised.

  Of the script we know the divergence, the 50 and the learning rate, not the model, the batch or the tokens;
  those are as in opsd_2026_01_qwen3_1p7b.

  Source: siyan-zhao/OPSD at 590ec26, run_opsd_topkloss, an example script
  Command: as at the top of this file, with --experiment=opsd_2026_01_qwen3_1p7b_topk
  Cost: 500 updates, at most 32.8 million sampled tokens; time not published.
  Published: nothing. Not measured here.
  """
  main = release('opsd_2026_01_qwen3_1p7b_topk', 'qwen3_1p7b', 'Qwen/Qwen3-1.7B', max_tokens=2048)
  objective = dataclasses.replace(main.objective, support='teacher_topk', k=50, tail='renormalise')
  return dataclasses.replace(main, objective=objective)


RECIPES = (
  opsd_2026_01_qwen3_1p7b,
  opsd_2026_01_qwen3_4b,
  opsd_2026_01_qwen3_4b_ema,
  opsd_2026_01_qwen3_1p7b_topk,
)


def release(name: str, size: str, published: str, *, max_tokens: int = 1024) -> Experiment:
  """The release of January 2026 on one of its models; `published` is the model's name at Hugging Face."""
  main = shared(name, size, published, max_tokens)
  return dataclasses.replace(
    main,
    views=main.views.named('opsd_2026_01'),
    objective=dataclasses.replace(main.objective, divergence='jsd', beta=0.5, reduction='token_mean'),
    optimizer=dataclasses.replace(main.optimizer, learning_rate=2e-4, clip_norm=1.0),
    loop=dataclasses.replace(main.loop, updates=500, evaluate_every=50, show_every=50),
    checkpoint=CheckpointConfig(every=50, keep_last=10),
  )
