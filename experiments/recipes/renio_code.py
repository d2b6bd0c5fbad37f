r"""ReNIO's coding task (arXiv 2606.23104): programs in place of mathematics, weighed rollouts, and its GRPO.

  mkdir -p code
  python -m experiments.data --path=METADATA_OF_OPENTHOUGHTS --fields=openthoughts_114k_code --splits=train \
    --skip --output=code/train.jsonl
  python -m experiments.train --experiment=renio_code_qwen3_1p7b --workdir=runs/renio_code_qwen3_1p7b \
    --model=FOLDER_OF_QWEN3_1P7B --set=data.path=code --set=data.fields=default
  python -m experiments.evaluate --checkpoint=runs/renio_code_qwen3_1p7b --step=126 --protocol=renio \
    --prompt=protocol --benchmarks=humaneval_plus,mbpp_plus --data=DATA --output=runs/renio_code_eval

The authors drew 30,000 of the programming problems of OpenThoughts-114k and did not release which. The first
command keeps the rows of its subset `metadata` that can be trained on, and counts the others: those without
tests, without a program for the teacher, or with tests of a function that neither the question nor
`starter_code` names. The second trains on what it kept; `--set=data.fields=default` because these rows have
this project's names.

A completion's program is run against its problem's first 5 tests (`grade.rules=programs`). Distillation reads
no verdict: they are a metric there, and what `--set=weigh.keep=correct` or `=incorrect` filters by (all tests
passed, or not). GRPO's reward is the share of the tests that is passed. A program that hangs may take half a
minute or more; `--set=grade.programs.workers=N` runs more of them side by side.

Where the sources leave a choice: as `renio.py`, and
  - the sentences of the prompts are this project's, in the published order (views=renio_code); they say when
    a function is wanted and when a whole program, and `starter_code` stands under the questions that want a
    function, as in the data set's own prompts;
  - the teacher's reference program is all of `deepseek_solution`, where the program stands in a fence among
    words: `ground_truth_solution` is null for programs, by the code that made the data set, which drops the
    sources' solutions (open-thoughts/open-thoughts, code/combine.py); we did not see the rows;
  - of one problem that stands there with several sets of tests the first is kept;
  - what is printed is compared exactly, but for blanks around the whole of it;
  - of more than 5 tests the first 5 count; after 3 failures in a row the rest counts as failed, as published.
"""

import dataclasses

from experiments.recipes import renio
from opsd_jax.data.schemas import FieldsConfig
from opsd_jax.distill.config import ObjectiveConfig
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.experiment import Experiment
from opsd_jax.grade.config import GradeConfig
from opsd_jax.train.surrogate import GrpoConfig


def renio_code_qwen3_1p7b() -> Experiment:
  """ReNIO around OPSD on Qwen3-1.7B, on programs: the teacher reads a reference program.

  Source: arXiv 2606.23104; BDML-lab/ReNIO at 3bb2474, run_opsd_1b and the README's example for code
  Command: as at the top of this file, with a folder of Qwen/Qwen3-1.7B
  Cost: 126 updates, at most 4.1 million sampled tokens and, in training, 20,160 runs of a program; time not
    published.
  Published: no number is known to us. Not measured here.
  """
  return coding(renio.renio_qwen3_1p7b(), 'renio_code_qwen3_1p7b')


def renio_code_opd_qwen3_1p7b() -> Experiment:
  """ReNIO around a larger teacher, on programs: Qwen3-8B teaches Qwen3-1.7B.

  As renio_opd_qwen3_1p7b both models read the problem alone; --set=views=renio_code shows the teacher the
  reference program as well, as the published code does. Name the teacher's folder by
  --set=teacher.weights.path=FOLDER.

  Source: arXiv 2606.23104; BDML-lab/ReNIO at 3bb2474, run_opd_1b
  Command: as at the top of this file, with --experiment=renio_code_opd_qwen3_1p7b and the teacher's folder
  Cost: 126 updates, at most 4.1 million sampled tokens and, in training, 20,160 runs of a program; time not
    published.
  Published: no number is known to us. Not measured here.
  """
  main = coding(renio.renio_opd_qwen3_1p7b(), 'renio_code_opd_qwen3_1p7b')
  views = dataclasses.replace(main.views, teacher=main.views.student, teacher_thinking=False)
  return dataclasses.replace(main, views=views)


def renio_code_grpo_qwen3_1p7b() -> Experiment:
  """The GRPO baseline of ReNIO's coding task on Qwen3-1.7B: rewarded by the share of tests passed.

  32 completions an update of at most 16,000 tokens, 8 of each problem, and two steps on them: 150 updates are
  300 of the published 301 steps, over which the learning rate falls to 0, the trainer's default. The student
  thinks, and is sampled without top-p and top-k, as in the baseline of OPSD.

  Source: arXiv 2606.23104; BDML-lab/ReNIO at 3bb2474, run_grpo and its reward of code
  Command: as at the top of this file, with --experiment=renio_code_grpo_qwen3_1p7b
  Cost: 150 updates, at most 77 million sampled tokens and, in training, 24,000 runs of a program; time not
    published.
  Published: no number is known to us. Not measured here.
  """
  main = coding(renio.renio_qwen3_1p7b(), 'renio_code_grpo_qwen3_1p7b')
  sampling = dataclasses.replace(
    main.rollout.sampling, temperature=1.2, top_k=None, top_p=1.0, max_tokens=16_000
  )
  return dataclasses.replace(
    main,
    method='grpo',
    grpo=GrpoConfig(steps=2, clip_low=0.2, clip_high=0.2, scale='group', reduction='sample_mean', kl=0.0),
    views=dataclasses.replace(main.views, student_thinking=True, student_tokens=2048),
    rollout=dataclasses.replace(main.rollout, questions=4, per_question=8, sampling=sampling),
    weigh=WeighConfig(),
    objective=ObjectiveConfig(student_temperature=1.2),
    optimizer=dataclasses.replace(main.optimizer, decay_updates=301),
    loop=dataclasses.replace(main.loop, updates=150, evaluate_every=50, show_every=50),
    checkpoint=dataclasses.replace(main.checkpoint, every=50, keep_last=3),
  )


RECIPES = (renio_code_qwen3_1p7b, renio_code_opd_qwen3_1p7b, renio_code_grpo_qwen3_1p7b)


def coding(main: Experiment, name: str) -> Experiment:
  """A recipe of mathematics on programming problems: their fields, their wording, their tests."""
  return dataclasses.replace(
    main,
    name=name,
    data=dataclasses.replace(
      main.data,
      fields=FieldsConfig.named('openthoughts_114k_code'),
      filters=dataclasses.replace(main.data.filters, conflicts='keep'),  # other tests are no other answer
    ),
    views=main.views.named('renio_code'),
    grade=GradeConfig(rules='programs', tests=5, failures=3),
  )
