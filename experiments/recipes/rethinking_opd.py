r"""Rethinking On-Policy Distillation (arXiv 2604.13016): a larger teacher reads the same prompt.

Every next token of the student's 16 most probable gets a reward, the log-ratio of teacher to student, and the
policy gradient of all of them is taken; all weights are trained. Every recipe here is run so:

  python -m experiments.train --experiment=rethinking_opd_qwen3_1p7b --workdir=runs/rethinking_opd \
    --model=FOLDER_OF_THE_STUDENT --set=teacher.weights.path=FOLDER_OF_THE_TEACHER --set=data.path=FOLDER

Models are Hugging Face folders. The problems are DAPO-Math-17k in its usual form (for its processed
form: --set=data.fields=dapo_boxed).
The published measure is `experiments.evaluate --protocol=rethinking_opd` (avg@16); gap recovery is
(after - before) / (teacher - before), which the run's table shows for its own test problems.

The objective of the code; the paper's equation renormalises both distributions on the 16:
--set=objective.estimator=divergence. Other sets: --set=objective.support=teacher_topk, union, intersection,
symmetric_difference; the sampled token alone: --set=objective.estimator=divergence
--set=objective.support=sampled --set=objective.k=0.

Where the sources leave a choice:
  - problems come in an order drawn from the seed; the code takes that of its file;
  - tokens are averaged over the whole batch; the code weighs micro-batches by their number of sequences;
  - the prompt asks for a box (one pair of braces; the published file has two). DAPO's own wrapper, which asks
    for a last line Answer:, is taken off.

The published code reads the rollouts with the student without gradient first, for its ids, once more for the
teacher's ids where the support has them, and then with gradient, at the same weights each time. Here the one
pass with gradient brings ids and log-ratios, held constant (`tests/train/step_order_topk_test.py`).
"""

from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.data.config import DataConfig, FieldsConfig
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig, ViewsConfig
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.experiment import Experiment
from opsd_jax.grade.config import GradeConfig
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.weights import WeightsConfig
from opsd_jax.rollout.config import DecodeConfig, RolloutConfig, SamplingConfig
from opsd_jax.train.config import LoopConfig, OptimizerConfig

_PROMPT = '{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.'


def rethinking_opd_qwen3_1p7b() -> Experiment:
  """Rethinking OPD: Qwen3-4B teaches Qwen3-1.7B, both without thinking, on the student's top 16.

  Source: arXiv 2604.13016, section 3.2 and table 2; thunlp/OPD at 0a44395, on_policy_distillation.sh
  Command: as at the top of this file, with Qwen/Qwen3-1.7B and Qwen/Qwen3-4B
  Cost: 279 updates (an epoch), at most 512 million sampled tokens; the authors had 8 A800.
  Published: 15.6 % of the gap to the teacher recovered; with a teacher that was further trained by
    reinforcement learning 58.6 %. One run. Not measured here.
  """
  return pair('rethinking_opd_qwen3_1p7b', QWEN3_1P7B, QWEN3_4B)


def rethinking_opd_qwen3_1p7b_base() -> Experiment:
  """Rethinking OPD: Qwen3-4B without thinking teaches Qwen3-1.7B-Base: the weaker of two teachers.

  Source: arXiv 2604.13016, section 3.1 and table 2; thunlp/OPD at 0a44395, on_policy_distillation.sh
  Command: as at the top of this file, with --experiment=rethinking_opd_qwen3_1p7b_base, Qwen/Qwen3-1.7B-Base
    and Qwen/Qwen3-4B
  Cost: 279 updates (an epoch), at most 512 million sampled tokens; the authors had 8 A800.
  Published: curves alone: below those of rethinking_opd_qwen3_1p7b_base_grpo. Not measured here.
  """
  return pair('rethinking_opd_qwen3_1p7b_base', QWEN3_1P7B_BASE, QWEN3_4B)


def rethinking_opd_qwen3_1p7b_base_grpo() -> Experiment:
  """Rethinking OPD: Qwen3-4B-Base after GRPO teaches Qwen3-1.7B-Base: the better of two teachers.

  Source: arXiv 2604.13016, section 3.1 and table 2; thunlp/OPD at 0a44395, on_policy_distillation.sh
  Command: as at the top of this file, with --experiment=rethinking_opd_qwen3_1p7b_base_grpo,
    Qwen/Qwen3-1.7B-Base and lllyx/Qwen3-4B-Base-GRPO
  Cost: 279 updates (an epoch), at most 512 million sampled tokens; the authors had 8 A800.
  Published: curves alone: above those of rethinking_opd_qwen3_1p7b_base. Not measured here.
  """
  teacher = ('qwen3_4b', 'lllyx/Qwen3-4B-Base-GRPO')
  return pair('rethinking_opd_qwen3_1p7b_base_grpo', QWEN3_1P7B_BASE, teacher)


def rethinking_opd_qwen3_1p7b_sft() -> Experiment:
  """Rethinking OPD after a cold start: Qwen3-4B teaches a 1.7B model trained on its answers.

  Source: arXiv 2604.13016, section 5.1 and table 2; thunlp/OPD at 0a44395, on_policy_distillation.sh
  Command: as at the top of this file, with --experiment=rethinking_opd_qwen3_1p7b_sft, lllyx/Qwen3-1.7B-SFT
    and Qwen/Qwen3-4B; the problems were others, 30,000 of OpenThoughts3, which were not released.
  Cost: 279 updates, at most 512 million sampled tokens; the cold start not counted.
  Published: curves alone: higher overlap at the start and higher accuracy at the end than without the cold
    start. Not measured here.
  """
  student = ('qwen3_1p7b', 'lllyx/Qwen3-1.7B-SFT')
  return pair('rethinking_opd_qwen3_1p7b_sft', student, QWEN3_4B)


def rethinking_opd_r1_1p5b() -> Experiment:
  """Rethinking OPD: R1-Distill-Qwen-7B teaches R1-Distill-Qwen-1.5B; the pair that hardly gains.

  Source: arXiv 2604.13016, section 3.2 and table 2; thunlp/OPD at 0a44395, on_policy_distillation.sh
  Command: as at the top of this file, with --experiment=rethinking_opd_r1_1p5b and
    deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B and -7B
  Cost: 279 updates (an epoch), at most 512 million sampled tokens; the authors had 8 A800.
  Published: 5.3 % of the gap to the teacher recovered. One run. Not measured here.
  """
  teacher = ('r1_distill_qwen_7b', 'deepseek-ai/DeepSeek-R1-Distill-Qwen-7B')
  return pair('rethinking_opd_r1_1p5b', R1_1P5B, teacher)


def rethinking_opd_r1_1p5b_skywork() -> Experiment:
  """Rethinking OPD: Skywork-OR1-Math-7B, which adds new knowledge, teaches R1-Distill-Qwen-1.5B.

  Source: arXiv 2604.13016, section 3.2 and table 2; thunlp/OPD at 0a44395, on_policy_distillation.sh
  Command: as at the top of this file, with --experiment=rethinking_opd_r1_1p5b_skywork,
    deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B and Skywork/Skywork-OR1-Math-7B
  Cost: 279 updates (an epoch), at most 512 million sampled tokens; the authors had 8 A800.
  Published: 16.9 % of the gap to the teacher recovered. One run. Not measured here.
  """
  teacher = ('r1_distill_qwen_7b', 'Skywork/Skywork-OR1-Math-7B')
  return pair('rethinking_opd_r1_1p5b_skywork', R1_1P5B, teacher)


RECIPES = (
  rethinking_opd_qwen3_1p7b,
  rethinking_opd_qwen3_1p7b_base,
  rethinking_opd_qwen3_1p7b_base_grpo,
  rethinking_opd_qwen3_1p7b_sft,
  rethinking_opd_r1_1p5b,
  rethinking_opd_r1_1p5b_skywork,
)

# Shape, and name at Hugging Face.
QWEN3_1P7B = ('qwen3_1p7b', 'Qwen/Qwen3-1.7B')
QWEN3_1P7B_BASE = ('qwen3_1p7b', 'Qwen/Qwen3-1.7B-Base')
QWEN3_4B = ('qwen3_4b', 'Qwen/Qwen3-4B')
R1_1P5B = ('r1_distill_qwen_1p5b', 'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B')


def pair(name: str, student: tuple[str, str], teacher: tuple[str, str]) -> Experiment:
  """A teacher and its student, each a shape and a name at Hugging Face, as in table 2 of the paper."""
  return Experiment(
    name=name,
    data=DataConfig(
      source='files',
      fields=FieldsConfig.named('dapo'),
      test=None,
      test_problems=128,
      validation_problems=64,
      too_long='drop',
    ),
    model=ModelSpec(dtype='bfloat16', remat='full').named(student[0]),
    weights=WeightsConfig(published=student[1]),
    lora=LoraConfig(rank=0),
    views=ViewsConfig(
      student=_PROMPT,
      teacher=_PROMPT,
      chat=True,
      student_thinking=False,
      teacher_thinking=False,
      student_tokens=1024,
      teacher_tokens=1024,
    ),
    rollout=RolloutConfig(
      questions=64,
      per_question=4,
      sampling=SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=7168),
      decode=DecodeConfig(slots=128),
    ),
    teacher=TeacherConfig(
      kind='external',
      model=ModelSpec(dtype='bfloat16').named(teacher[0]),
      weights=WeightsConfig(published=teacher[1]),
    ),
    objective=ObjectiveConfig(
      estimator='reward_topk',
      divergence='reverse_kl',
      support='student_topk',
      k=16,
      reward_weights='student_p',
      reduction='token_mean',
    ),
    optimizer=OptimizerConfig(
      learning_rate=1e-6,
      schedule='constant',
      beta1=0.9,
      beta2=0.999,
      epsilon=1e-8,
      weight_decay=0.01,
      clip_norm=1.0,
    ),
    loop=LoopConfig(updates=279, packing='packed', micro_tokens=32_768, evaluate_every=20, show_every=20),
    grade=GradeConfig(rules='strict'),
    evaluate=EvaluateConfig(
      samples=4, sampling=SamplingConfig(temperature=0.7, top_p=0.95, max_tokens=7168), batch=16
    ),
    checkpoint=CheckpointConfig(every=20),
  )
