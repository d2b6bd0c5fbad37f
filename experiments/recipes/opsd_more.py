r"""Around OPSD (arXiv 2601.18734v3): a teacher that reasons first, and the baselines of its main table.

  python -m experiments.train --experiment=opsd_grpo_qwen3_1p7b --workdir=runs/opsd_grpo_qwen3_1p7b \
    --model=FOLDER_OF_QWEN3_1P7B --set=data.path=FOLDER_OF_THE_PROBLEMS

Model, problems and measure are those of `opsd.py`. Of the baselines two versions were published; these have
the constants of the later one (learning rate 5e-6 and LoRA for both).
"""

import dataclasses

from experiments.recipes import opsd
from opsd_jax.data.config import FieldsConfig
from opsd_jax.distill.config import ObjectiveConfig
from opsd_jax.experiment import Experiment
from opsd_jax.train.config import SourceConfig
from opsd_jax.train.surrogate import GrpoConfig

_ANALYSIS = """
Problem: {problem}

Here is a correct reference solution of this problem:
{solution}

The reference is right; do not derive a solution of your own. Explain which key steps and strategies it \
uses and why each of them holds. Do not write <think> tags."""
_AFTER = """

With that understood, here is a solution in my own words, step by step, with the final answer within \
\\boxed{{}}.

"""


def opsd_qwen3_1p7b_reason_first() -> Experiment:
  """OPSD of March 2026 on Qwen3-1.7B whose teacher first writes an analysis of the reference solution.

  An experiment that the authors say they used for no result. Here the frozen teacher writes the analysis
  (at most 4096 tokens, as the student samples); in the published code it was the student of the moment.

  Source: siyan-zhao/OPSD, reason_first, and issues 18 and 22; constants of v3
  Command: as at the top of this file, with --experiment=opsd_qwen3_1p7b_reason_first
  Cost: as opsd_qwen3_1p7b, and at most 13 million tokens of analyses.
  Published: nothing. Not measured here.
  """
  main = opsd.release('opsd_qwen3_1p7b_reason_first', 'qwen3_1p7b', 'Qwen/Qwen3-1.7B')
  return dataclasses.replace(
    main,
    views=dataclasses.replace(
      main.views,
      teacher=_AFTER,
      teacher_thinking=False,
      analysis=_ANALYSIS,
      analysis_tokens=4096,
      teacher_tokens=4096 + 4096,
    ),
  )


def opsd_sft_qwen3_1p7b() -> Experiment:
  """The SFT baseline of OPSD on Qwen3-1.7B: the data's chains of thought, 4 epochs, LoRA.

  Source: arXiv 2601.18734v3, table 2; run_sft as of the ReNIO repository
  Command: as at the top of this file, with --experiment=opsd_sft_qwen3_1p7b
  Cost: 3,725 updates of 32 texts of at most 16,000 tokens; time not published.
  Published: Avg@12 on AIME 24, AIME 25, HMMT 25: 48.4, 36.3, 22.7. One run. Not measured here.
  """
  main = opsd.release('opsd_sft_qwen3_1p7b', 'qwen3_1p7b', 'Qwen/Qwen3-1.7B', max_tokens=16_000)
  return dataclasses.replace(
    main,
    data=dataclasses.replace(main.data, fields=FieldsConfig(answer='Answer', meta=('COT_Reason',))),
    source=SourceConfig(kind='solutions', completion='{COT_Reason}'),
    objective=ObjectiveConfig(estimator='nll'),
    views=dataclasses.replace(main.views, student_thinking=True),
    loop=dataclasses.replace(main.loop, updates=3725, evaluate_every=500, show_every=500),
    checkpoint=dataclasses.replace(main.checkpoint, every=500),
  )


def opsd_grpo_qwen3_1p7b() -> Experiment:
  """The GRPO baseline of OPSD on Qwen3-1.7B: 4 problems of 8 completions an update, at most 16,000 tokens.

  The reward is a verdict by math-verify; the code compared the first box with the answer, as texts.

  Source: arXiv 2601.18734v3, table 2; siyan-zhao/OPSD, run_grpo
  Command: as at the top of this file, with --experiment=opsd_grpo_qwen3_1p7b
  Cost: 500 updates, at most 256 million sampled tokens; time not published.
  Published: Avg@12 on AIME 24, AIME 25, HMMT 25: 51.1, 38.3, 23.7, the best of 500 updates. One run. Not
    measured here.
  """
  main = opsd.release('opsd_grpo_qwen3_1p7b', 'qwen3_1p7b', 'Qwen/Qwen3-1.7B', max_tokens=16_000)
  sampling = dataclasses.replace(main.rollout.sampling, temperature=1.2, top_k=None, top_p=1.0)
  return dataclasses.replace(
    main,
    method='grpo',
    grpo=GrpoConfig(steps=1, clip_low=0.2, clip_high=0.2, scale='group', reduction='sample_mean', kl=0.0),
    views=dataclasses.replace(main.views, student_thinking=True),
    rollout=dataclasses.replace(main.rollout, questions=4, per_question=8, sampling=sampling),
    objective=ObjectiveConfig(student_temperature=1.2),
    loop=dataclasses.replace(main.loop, updates=500, evaluate_every=100, show_every=100),
    checkpoint=dataclasses.replace(main.checkpoint, every=100, keep_last=5),
  )


RECIPES = (opsd_qwen3_1p7b_reason_first, opsd_sft_qwen3_1p7b, opsd_grpo_qwen3_1p7b)
