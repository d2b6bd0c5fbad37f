"""Every method on one task: digit chains of graded difficulty with a misconception, and an ability to keep.

The base is the quickstart's, on chains of 5 to 9 operations, with one ability more: in a dialect, marked by a
comma, `*` does mean 2v + 1. What corrects the misconception must leave that alone. A larger teacher is a
wider model, trained on right solutions under a template of its own (`{problem}=:`); it has never seen the
dialect. Every arm starts from the same base, spends as many completion tokens as OPSD (questions of a
controller among them) and has the same optimiser; the imitation before `cold_start_opd` has ten times its
learning rate, as in "Rethinking OPD" (1e-5 and 1e-6 there).

  opsd                      the teacher's view of the base, forward KL (arXiv 2601.18734)
  no_privilege              the same without the running values: nothing to learn
  sharpened_no_privilege    the same at temperature 0.3: what sharpening alone does
  renio                     OPSD, samples weighed by what the student is surer of (arXiv 2606.23104)
  effopd                    OPSD, weights extrapolated after updates 1, 2, 4, ... (arXiv 2605.11739)
  opd_sampled               the larger teacher, reverse KL of the sampled token alone
  opd_topk                  the larger teacher, rewards on the student's top 4 (arXiv 2604.13016)
  opd_unaligned             the same, the teacher asked in the student's template
  cold_start_opd            opd_topk after imitating the teacher's right rollouts, a third of the tokens more
  sft                       cross-entropy on the data's solutions
  off_policy                forward KL on the rollouts of OPSD's teacher
  gkd                       half of the updates on solutions, half on rollouts, JSD to the larger teacher
  grpo                      verdicts alone, groups of 8
"""

import dataclasses

from opsd_jax.checkpoint.config import CheckpointConfig
from opsd_jax.data.chains import ChainsConfig
from opsd_jax.data.config import DataConfig
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.evaluate.config import EvaluateConfig, RetentionConfig
from opsd_jax.experiment import Control, Experiment
from opsd_jax.models.spec import ModelSpec
from opsd_jax.rollout.config import RolloutConfig, SamplingConfig
from opsd_jax.train.config import ColdStartConfig, LoopConfig, OptimizerConfig

_PLAIN = 'views.teacher={problem}:'
_TEACHER = (
  'teacher.kind=external',
  'teacher.model.vocab_size=32',
  'teacher.model.num_layers=2',
  'teacher.model.embed_dim=160',
  'teacher.model.num_heads=4',
  'teacher.model.num_kv_heads=2',
  'teacher.model.head_dim=40',
  'teacher.model.mlp_dim=480',
)
_LARGER = (*_TEACHER, 'views.teacher={problem}=:')
_TOPK = (
  'objective.estimator=reward_topk',
  'objective.divergence=reverse_kl',
  'objective.support=student_topk',
  'objective.k=4',
)
_ARMS = {
  'no_privilege': (_PLAIN,),
  'sharpened_no_privilege': (_PLAIN, 'objective.teacher_temperature=0.3'),
  'renio': ('weigh.kind=renio',),
  'effopd': ('controller.kind=effopd',),
  'opd_sampled': (*_LARGER, 'objective.divergence=reverse_kl', 'objective.support=sampled'),
  'opd_topk': (*_LARGER, *_TOPK),
  'opd_unaligned': (*_TEACHER, _PLAIN, *_TOPK),
  'cold_start_opd': (*_LARGER, *_TOPK, 'warm_start.updates=27'),
  'sft': ('source.kind=solutions', 'objective.estimator=nll'),
  'off_policy': ('source.kind=teacher',),
  'gkd': (*_LARGER, 'source.kind=solutions', 'source.student_share=0.5', 'objective.divergence=jsd'),
  'grpo': ('method=grpo', 'rollout.questions=8', 'rollout.per_question=8', 'grpo.steps=2'),
}
_GRADED = ('no_privilege', 'sft', 'grpo')


def misconceptions() -> Experiment:
  """Every method on one task: OPSD, its controls, ReNIO, EffOPD, larger teachers, SFT, GKD, GRPO.

  Source: this project's task; the methods are those of the papers above, GKD (arXiv 2306.13649) and GRPO
    (arXiv 2402.03300)
  Command: make recipes
  Cost: 51 minutes on 2 CPU cores for five seeds; 162,000 completion tokens an arm.
  Expected, and measured over seeds 0 to 4: docs/comparison.md. OPSD 95.7 ± 2.0 % sampled from 17.3 ± 2.2 %,
    without privilege 17.2 ± 2.0 %, ReNIO 93.9, EffOPD 95.3, the larger teacher's top-k 96.8, SFT 97.3, GRPO
    91.8 ± 7.3; no arm that learns keeps the dialect.
  """
  optimizer = OptimizerConfig(
    learning_rate=3e-3, schedule='cosine', warmup_updates=20, decay_updates=400, beta2=0.99
  )
  start = ColdStartConfig(updates=400, batch=96, teacher_fraction=0.5, optimizer=optimizer)
  return Experiment(
    name='misconceptions',
    data=DataConfig(
      chains=ChainsConfig(shortest=5, steps=9, train=5_000, validation=128, test=400, dialect=0.4)
    ),
    model=ModelSpec(
      vocab_size=32, num_layers=2, embed_dim=96, num_heads=4, num_kv_heads=2, head_dim=24, mlp_dim=288
    ),
    views=ViewsConfig(
      student='{problem}:', teacher='{problem}|{reference}:', student_tokens=14, teacher_tokens=24
    ),
    rollout=RolloutConfig(questions=64, per_question=1, sampling=SamplingConfig(max_tokens=40)),
    cold_start=start,
    teacher_start=dataclasses.replace(
      start,
      updates=150,
      clean=True,
      teacher_fraction=0.0,
      student_texts=('{problem}=:',),
      optimizer=dataclasses.replace(optimizer, decay_updates=150),
    ),
    optimizer=dataclasses.replace(
      optimizer, learning_rate=1e-4, schedule='constant', warmup_updates=5, decay_updates=0
    ),
    loop=LoopConfig(updates=80, evaluate_every=10),
    evaluate=EvaluateConfig(
      samples=4,
      sampling=SamplingConfig(max_tokens=40),
      batch=128,
      retention=RetentionConfig(problems=128, samples=1),
    ),
    checkpoint=CheckpointConfig(every=50),
    controls=tuple(Control(name, overrides) for name, overrides in _ARMS.items()),
  )


def misconceptions_graded() -> Experiment:
  """Four methods where the misconception is rarer or more common: OPSD, no privilege, SFT, GRPO.

  Source: this project's task
  Command: make recipes-grades
  Cost: a third of `misconceptions`, twice. Not measured here.
  """
  whole = misconceptions()
  kept = tuple(one for one in whole.controls if one.name in _GRADED)
  return dataclasses.replace(whole, name='misconceptions_graded', controls=kept)


RECIPES = (misconceptions, misconceptions_graded)
