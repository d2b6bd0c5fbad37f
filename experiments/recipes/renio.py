r"""ReNIO (arXiv 2606.23104): OPSD with rollouts weighed by what the student is surer of than its teacher.

A fork of OPSD's release of March 2026: the same model is its own frozen teacher, LoRA, forward KL; entries
are clipped below, too, and the learning rate falls to 0. Every recipe here is run so:

  python -m experiments.train --experiment=renio_qwen3_1p7b --workdir=runs/renio_qwen3_1p7b \
    --model=FOLDER_OF_QWEN3_1P7B --set=data.path=FOLDER_OF_THE_PROBLEMS

Models are Hugging Face folders, the problems are OPSD's (siyanzhao/Openthoughts_math_30k_opsd). The published
measure is `experiments.evaluate --protocol=renio`. Control arms: --set=weigh.kind=none, =length, =entropy;
--set=weigh.keep=correct, =incorrect.

Where the sources leave a choice (the paper's text was not available; formulas are those of its code):
  - the mean that weights are divided by is over the whole batch, as the figure has it; the code takes what a
    device holds (8, 4 or 2 samples): --set=weigh.scope=micro --set=weigh.micro=8;
  - the student's log-probs are those that the sampler told; --set=weigh.source=pass computes them again;
  - with an external teacher, both models read the problem alone. The published code shows that teacher the
    solution as well (--set=views=opsd); whether the paper's runs did is not known.
"""

import dataclasses

from experiments.recipes import opsd
from opsd_jax.distill.config import TeacherConfig
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.experiment import Experiment
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.weights import WeightsConfig


def renio_qwen3_1p7b() -> Experiment:
  """ReNIO around OPSD on Qwen3-1.7B: log-ratios from 0.8 to 2.5 nats weigh a rollout.

  Source: arXiv 2606.23104; BDML-lab/ReNIO at 3bb2474, run_opsd_1b
  Command: as at the top of this file, with a folder of Qwen/Qwen3-1.7B
  Cost: 126 updates, at most 4.1 million sampled tokens; time not published.
  Published: up to 8.9 % better than the base on average in mathematics, relatively (abstract). Not measured
    here.
  """
  return release('renio_qwen3_1p7b', 'qwen3_1p7b', 'Qwen/Qwen3-1.7B', cap=2.5, threshold=0.8, clip_norm=1.0)


def renio_qwen3_4b() -> Experiment:
  """ReNIO around OPSD on Qwen3-4B: log-ratios from 0.01 to 2 nats weigh a rollout.

  Source: arXiv 2606.23104; BDML-lab/ReNIO at 3bb2474, run_opsd_4b
  Command: as at the top of this file, with --experiment=renio_qwen3_4b and a folder of Qwen/Qwen3-4B
  Cost: 126 updates, at most 4.1 million sampled tokens; time not published.
  Published: no number is known to us. Not measured here.
  """
  return release('renio_qwen3_4b', 'qwen3_4b', 'Qwen/Qwen3-4B')


def renio_qwen3_8b() -> Experiment:
  """ReNIO around OPSD on Qwen3-8B: as on 4B, entries clipped at 0.06.

  Source: arXiv 2606.23104; BDML-lab/ReNIO at 3bb2474, run_opsd_8b
  Command: as at the top of this file, with --experiment=renio_qwen3_8b and a folder of Qwen/Qwen3-8B
  Cost: 126 updates, at most 4.1 million sampled tokens; time not published.
  Published: no number is known to us. Not measured here.
  """
  return release('renio_qwen3_8b', 'qwen3_8b', 'Qwen/Qwen3-8B', entry_clip_max=0.06)


def renio_r1_distill_qwen_7b() -> Experiment:
  """ReNIO around OPSD on DeepSeek-R1-Distill-Qwen-7B: with the constants of Qwen3-4B.

  The paper reports this model, of which there is no script: its constants are not known, those of
  renio_qwen3_4b stand in. Its chat template has no switch for thinking and ignores that of the views.

  Source: arXiv 2606.23104, abstract; BDML-lab/ReNIO at 3bb2474, run_opsd_4b in place of its own script
  Command: as at the top of this file, with --experiment=renio_r1_distill_qwen_7b and a folder of
    deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
  Cost: 126 updates, at most 4.1 million sampled tokens; time not published.
  Published: up to 10.0 % better than the base on average in mathematics, relatively. Not measured here.
  """
  return release('renio_r1_distill_qwen_7b', 'r1_distill_qwen_7b', 'deepseek-ai/DeepSeek-R1-Distill-Qwen-7B')


def renio_opd_qwen3_1p7b() -> Experiment:
  """ReNIO around a larger teacher: Qwen3-8B teaches Qwen3-1.7B, log-ratios from 1 to 2 nats.

  Which teacher was used is not known for certain; a comment in the code mentions one of 8B. Name its folder
  by --set=teacher.weights.path=FOLDER.

  Source: arXiv 2606.23104; BDML-lab/ReNIO at 3bb2474, run_opd_1b
  Command: as at the top of this file, with --experiment=renio_opd_qwen3_1p7b and the teacher's folder
  Cost: 126 updates, at most 4.1 million sampled tokens; time not published.
  Published: mean Avg@12 of 40.3 from correct and 42.9 from incorrect rollouts alone (read off a figure), none
    of the weights. Not measured here.
  """
  main = release(
    'renio_opd_qwen3_1p7b', 'qwen3_1p7b', 'Qwen/Qwen3-1.7B', cap=2.0, threshold=1.0, clip_norm=1.0
  )
  views = dataclasses.replace(main.views, teacher=main.views.student, teacher_thinking=False)
  teacher = TeacherConfig(
    kind='external',
    model=ModelSpec(dtype='bfloat16').named('qwen3_8b'),
    weights=WeightsConfig(published='Qwen/Qwen3-8B'),
  )
  return dataclasses.replace(main, views=views, teacher=teacher)


RECIPES = (renio_qwen3_1p7b, renio_qwen3_4b, renio_qwen3_8b, renio_r1_distill_qwen_7b, renio_opd_qwen3_1p7b)


def release(
  name: str,
  size: str,
  published: str,
  *,
  cap: float = 2.0,
  threshold: float = 0.01,
  entry_clip_max: float = 0.05,
  clip_norm: float = 0.1,
) -> Experiment:
  """ReNIO around OPSD on one of its models; `published` is the model's name at Hugging Face."""
  main = opsd.release(name, size, published, entry_clip_max=entry_clip_max, clip_norm=clip_norm)
  return dataclasses.replace(
    main,
    weigh=WeighConfig(
      kind='renio', cap=cap, threshold=threshold, temperature=1.0, normalise='batch_mean', largest=10.0
    ),
    objective=dataclasses.replace(main.objective, entry_clip_min=0.0, reduction='sample_mean'),
    optimizer=dataclasses.replace(main.optimizer, schedule='linear', decay_updates=126),
    loop=dataclasses.replace(main.loop, updates=126),
    checkpoint=dataclasses.replace(main.checkpoint, keep_last=6),
  )
