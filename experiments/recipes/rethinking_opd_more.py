r"""Rethinking OPD (arXiv 2604.13016), the rest: teachers after reinforcement learning, prompts, a cold start.

  python -m experiments.train --experiment=rethinking_opd_r1_1p5b_justrl --workdir=runs/rethinking_opd \
    --model=FOLDER_OF_THE_STUDENT --set=teacher.weights.path=FOLDER_OF_THE_TEACHER --set=data.path=FOLDER

Settings, problems and measure are those of `rethinking_opd.py`, and so is what the sources leave open. The
prompt is there the question and a sentence that asks for a box; JustRL was trained with that one, so that it
is the teacher's own where JustRL teaches. Which prompt the experiments of other sections had is not
known.
"""

import dataclasses

from experiments.recipes.rethinking_opd import QWEN3_1P7B, QWEN3_1P7B_BASE, QWEN3_4B, R1_1P5B, pair
from opsd_jax.data.config import FieldsConfig
from opsd_jax.experiment import Experiment
from opsd_jax.train.config import OptimizerConfig, SourceConfig, WarmStartConfig
from opsd_jax.train.rejection import RejectConfig

JUSTRL_1P5B = ('r1_distill_qwen_1p5b', 'hbx/JustRL-DeepSeek-1.5B')  # trained from R1-Distill-Qwen-1.5B
R1_7B = ('r1_distill_qwen_7b', 'deepseek-ai/DeepSeek-R1-Distill-Qwen-7B')
_DAPO = FieldsConfig.named('dapo')


def rethinking_opd_qwen3_1p7b_rl() -> Experiment:
  """Rethinking OPD: Qwen3-4B after reinforcement learning on mathematics teaches Qwen3-1.7B.

  Beside rethinking_opd_qwen3_1p7b it says what a teacher's new knowledge is worth. The paper names its
  teacher Qwen3-4B (Non-Thinking)-RL-Math; this is the public model of that name, its step 500.

  Source: arXiv 2604.13016, section 3.2 and table 2; thunlp/OPD at 0a44395, on_policy_distillation.sh
  Command: as at the top of this file, with --experiment=rethinking_opd_qwen3_1p7b_rl, Qwen/Qwen3-1.7B and
    Keven16/Qwen3-4B-Non-Thinking-RL-Math-Step500
  Cost: 279 updates (an epoch), at most 512 million sampled tokens; the authors had 8 A800.
  Published: 58.6 % of the gap to the teacher recovered. One run. Not measured here.
  """
  teacher = ('qwen3_4b', 'Keven16/Qwen3-4B-Non-Thinking-RL-Math-Step500')
  return pair('rethinking_opd_qwen3_1p7b_rl', QWEN3_1P7B, teacher)


def rethinking_opd_r1_1p5b_justrl() -> Experiment:
  """Rethinking OPD: JustRL-1.5B teaches R1-Distill-Qwen-1.5B, which it was made from, with its own prompt.

  Source: arXiv 2604.13016, sections 4.1 and 5.2 and table 2; thunlp/OPD at 0a44395
  Command: as at the top of this file, with deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B and
    hbx/JustRL-DeepSeek-1.5B
  Cost: 279 updates (an epoch), at most 512 million sampled tokens; the authors had 8 A800.
  Published: about 85 % of the gap to the teacher recovered, read off a figure; the overlap of the top 16
    rises from 72 to 91 % (prompt not said). One run. Not measured here.
  """
  return pair('rethinking_opd_r1_1p5b_justrl', R1_1P5B, JUSTRL_1P5B)


def rethinking_opd_r1_1p5b_justrl_dapo() -> Experiment:
  """Rethinking OPD: JustRL-1.5B teaches R1-Distill-Qwen-1.5B with a prompt that is not its own.

  Beside rethinking_opd_r1_1p5b_justrl it says what a prompt is worth that the teacher was trained with. This
  is DAPO's, which asks for a last line Answer:; the accuracy in a run counts that, the published one a box.

  Source: arXiv 2604.13016, section 5.2 and table 2; thunlp/OPD at 0a44395; DAPO-Math-17k
  Command: as at the top of this file, with --experiment=rethinking_opd_r1_1p5b_justrl_dapo and the same
    models
  Cost: 279 updates (an epoch), at most 512 million sampled tokens; the authors had 8 A800.
  Published: about 80 % of the gap to the teacher recovered, read off a figure. One run. Not measured here.
  """
  main = pair('rethinking_opd_r1_1p5b_justrl_dapo', R1_1P5B, JUSTRL_1P5B)
  prompt = f'{_DAPO.prefix}\n\n{{problem}}\n\n{_DAPO.suffix}'
  return dataclasses.replace(main, views=dataclasses.replace(main.views, student=prompt, teacher=prompt))


def rethinking_opd_justrl_r1_1p5b() -> Experiment:
  """Rethinking OPD in reverse: R1-Distill-Qwen-1.5B, the weaker one, teaches JustRL-1.5B made from it.

  Source: arXiv 2604.13016, section 3.3 and table 2; thunlp/OPD at 0a44395
  Command: as at the top of this file, with --experiment=rethinking_opd_justrl_r1_1p5b,
    hbx/JustRL-DeepSeek-1.5B and deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
  Cost: 600 updates, at most 1.1 billion sampled tokens; the authors had 8 A800.
  Published: AIME24 falls from about .54 to .32 - .34 (the teacher: .28), read off a figure. Not measured
    here.
  """
  return _reverse('rethinking_opd_justrl_r1_1p5b', R1_1P5B)


def rethinking_opd_justrl_r1_7b() -> Experiment:
  """Rethinking OPD in reverse: R1-Distill-Qwen-7B teaches JustRL-1.5B, which scores as high.

  Beside rethinking_opd_justrl_r1_1p5b it asks whether a larger model of the same pipeline teaches anything
  else.

  Source: arXiv 2604.13016, section 3.3 and table 2; thunlp/OPD at 0a44395
  Command: as at the top of this file, with --experiment=rethinking_opd_justrl_r1_7b, hbx/JustRL-DeepSeek-1.5B
    and deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
  Cost: 600 updates, at most 1.1 billion sampled tokens; the authors had 8 A800.
  Published: AIME24 falls from about .54 to .32 - .34 (the teacher: .55), read off a figure. Not measured
    here.
  """
  return _reverse('rethinking_opd_justrl_r1_7b', R1_7B)


def rethinking_opd_qwen3_1p7b_base_deepmath() -> Experiment:
  """Rethinking OPD: Qwen3-4B-Base after GRPO on DAPO teaches Qwen3-1.7B-Base on DeepMath.

  Beside rethinking_opd_qwen3_1p7b_base_grpo, which has the problems that the teacher was trained on. Those
  are 17,917, these 14,116, each once: the published arms differ in size as well.

  Source: arXiv 2604.13016, section 5.2 and table 2; thunlp/OPD at 0a44395, DeepMath_deduped
  Command: as at the top of this file, with --experiment=rethinking_opd_qwen3_1p7b_base_deepmath,
    Qwen/Qwen3-1.7B-Base and lllyx/Qwen3-4B-Base-GRPO; the problems are DeepMath without DAPO's
  Cost: 220 updates (an epoch), at most 404 million sampled tokens; the authors had 8 A800.
  Published: curves alone: with the teacher's own problems accuracy is higher and entropy much lower. Not
    measured here.
  """
  teacher = ('qwen3_4b', 'lllyx/Qwen3-4B-Base-GRPO')
  main = pair('rethinking_opd_qwen3_1p7b_base_deepmath', QWEN3_1P7B_BASE, teacher)
  data = dataclasses.replace(main.data, fields=FieldsConfig.named('deepmath_verl'))
  return dataclasses.replace(main, data=data, loop=dataclasses.replace(main.loop, updates=14_116 // 64))


def rethinking_opd_qwen3_1p7b_base_cold_start() -> Experiment:
  """Rethinking OPD: Qwen3-1.7B-Base imitates Qwen3-4B's answers, then distils.

  As rethinking_opd_qwen3_1p7b_sft, with the cold start in the run: 200,000 answers of the teacher. One that
  does not end, has no box or repeats itself is drawn again, twice at most, and then left out.

  Where it differs: both stages see the problems of data.path in the same order, the paper's saw others
  (200,000 and 30,000 of OpenThoughts3, not released). Answers are drawn as the rollouts are, at temperature 1
  and up to 7168 tokens as in the shipped script (the paper: 0.7, top-p 0.95, 12,288), but four a question and
  not one, so that an update takes 256 and not 64.

  Source: arXiv 2604.13016, section 5.1, appendix C.1 and table 3; thunlp/OPD at 0a44395, vllm_rollout.py
  Command: as at the top of this file, with --experiment=rethinking_opd_qwen3_1p7b_base_cold_start,
    Qwen/Qwen3-1.7B-Base and Qwen/Qwen3-4B
  Cost: 782 updates of imitation, at most 1.4 billion sampled tokens a time that they are drawn; then 279
    updates, at most 512 million.
  Published: curves alone: higher overlap at the start and higher accuracy at the end than without. Not
    measured here.
  """
  main = pair('rethinking_opd_qwen3_1p7b_base_cold_start', QWEN3_1P7B_BASE, QWEN3_4B)
  updates = -(-200_000 // (64 * 4))
  start = WarmStartConfig(
    updates=updates,
    source=SourceConfig(
      kind='teacher',
      keep='all',
      attempts=3,
      reject=RejectConfig(
        truncated=True,
        lacking='\\boxed',
        line_times=5,
        line_chars=20,
        window_times=3,
        window_chars=100,
        window_stride=10,
        block_times=3,
        block_chars=50,
        block_above=5000,
      ),
    ),
    optimizer=OptimizerConfig(
      learning_rate=1e-5, schedule='cosine', warmup_updates=40, decay_updates=updates, weight_decay=0.0
    ),
  )
  return dataclasses.replace(main, warm_start=start)


RECIPES = (
  rethinking_opd_qwen3_1p7b_rl,
  rethinking_opd_r1_1p5b_justrl,
  rethinking_opd_r1_1p5b_justrl_dapo,
  rethinking_opd_justrl_r1_1p5b,
  rethinking_opd_justrl_r1_7b,
  rethinking_opd_qwen3_1p7b_base_deepmath,
  rethinking_opd_qwen3_1p7b_base_cold_start,
)


def _reverse(name: str, teacher: tuple[str, str]) -> Experiment:
  """JustRL as the student, for as long as the figure of section 3.3 shows."""
  main = pair(name, JUSTRL_1P5B, teacher)
  return dataclasses.replace(main, loop=dataclasses.replace(main.loop, updates=600))
