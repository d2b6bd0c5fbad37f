"""How four published systems ask their benchmarks, as settings: an accuracy means little without them.

Each number comes from the paper or from the code that its authors published; where the two disagree, or
neither says, `remarks` tells what was chosen. The instruction to box the final answer is the published
sentence, because another would be another benchmark; those for multiple choice and for programs, which
the sources only describe, are this project's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from opsd_jax.config import ConfigError, nearest
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.evaluate.benchmark import Kind
from opsd_jax.rollout.config import SamplingConfig

BOXED = r'Please reason step by step, and put your final answer within \boxed{{}}.'
LETTER = r'Please reason step by step, and put the letter of your answer within \boxed{{}}.'
PROGRAM = (
  'Think about the task first. Then write Python code that solves it, and present the complete code in one '
  '```python block at the end of your answer.'
)
PROMPTS: Mapping[Kind, str] = {
  kind: f'{{problem}}\n\n{instruction}'
  for kind, instruction in (('maths', BOXED), ('choice', LETTER), ('programs', PROGRAM))
}


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How a model is asked and its answers are judged.

  Attributes:
    name: how it is asked for.
    source: whose it is.
    benchmarks: those that are asked where none are named.
    samples: completions n of each problem.
    sampling: how they are drawn.
    thinking: the chat template's switch for thinking; None leaves it to the template.
    rules: of the verdict that counts in mathematics; the other one is kept beside it.
    max_prompt_tokens: a longer prompt is refused.
    seed: of the draws.
    prompts: the user's turn, by the kind of benchmark, as a template with `{problem}`.
    remarks: where the sources disagree or are silent, and what was chosen.
  """

  name: str
  source: str
  benchmarks: tuple[str, ...]
  samples: int
  sampling: SamplingConfig
  thinking: bool | None
  rules: Literal['opsd', 'strict']
  max_prompt_tokens: int
  seed: int = 0
  prompts: Mapping[Kind, str] = dataclasses.field(default_factory=lambda: PROMPTS)
  remarks: tuple[str, ...] = ()

  def views(self, kind: Kind, system: str | None = None) -> ViewsConfig:
    """The student's view of a benchmark's problems."""
    return ViewsConfig(
      student=self.prompts[kind],
      chat=True,
      system=system or '',
      student_thinking=self.thinking,
      student_tokens=self.max_prompt_tokens,
    )


OPSD = Protocol(
  name='opsd',
  source='OPSD (arXiv 2601.18734v3, section 4.1) and its eval/evaluate_math.py',
  benchmarks=('aime24', 'aime25', 'hmmt25'),
  samples=12,  # Avg@12 of v3
  sampling=SamplingConfig(temperature=1.0, top_p=0.95, max_tokens=38_912),
  thinking=True,
  rules='opsd',
  max_prompt_tokens=40_960 - 38_912,  # the model's length, less what is kept for the completion
  remarks=(
    'top_p: the README says none; the code takes 0.95 where the flag is left out and thinking is on, and '
    'the scripts leave it out: 0.95',
    'temperature: 1.0, as the paper and the scripts have it; the code alone would take 0.6 and top_k 20',
    'samples: 12 (v3); the first release has 16',
    'seed: none is published',
    'no "Problem:" stands before the problem, as it does in training',
  ),
)

RETHINKING_OPD = Protocol(
  name='rethinking_opd',
  source='Rethinking On-Policy Distillation (arXiv 2604.13016, section 2) and its training scripts',
  benchmarks=('aime24', 'aime25', 'amc23'),
  samples=16,
  sampling=SamplingConfig(temperature=0.7, top_p=0.95, max_tokens=31_744),
  thinking=False,
  rules='strict',
  max_prompt_tokens=1024,
  remarks=(
    'rules: the last box, normalised texts or equality by sympy; strict is nearest to that, not the same',
    'thinking: off for models that can think, as the README has it; templates without the switch ignore it',
    "prompt: the sentence to box; DAPO's own wrapper asks for a last line Answer: instead, and its processed "
    'file writes the braces of the box twice, which is not imitated',
    'AMC23: 83 problems in the validation during training, 40 in the usual file: not comparable',
    'seed: none is published',
  ),
)

EFFOPD = Protocol(
  name='effopd',
  source='EffOPD (arXiv 2605.11739) and the evaluation of its repository',
  benchmarks=('aime24', 'aime25', 'hmmt25', 'hmmt25_nov'),
  samples=32,
  sampling=SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=16_384),
  thinking=False,
  rules='opsd',
  max_prompt_tokens=2048,
  seed=42,
  remarks=(
    'benchmarks: the contests of the repository, which has LiveCodeBench and EvalPlus as well; the paper has '
    'AIME26, Minerva, GPQA, Codeforces and TACO beside AIME24 and AIME25, and no HMMT',
    "rules: math-verify on the last box; OPSD's rules are nearest to that",
    'its analysis of MATH-500 is another: temperature 0.6, 4 samples, 30,000 tokens',
    'max_prompt_tokens, thinking: of training',
  ),
)

RENIO = dataclasses.replace(
  OPSD,
  name='renio',
  source='ReNIO (arXiv 2606.23104) and its evaluation scripts, which are those of OPSD and EvalPlus 0.3.1',
  benchmarks=(*OPSD.benchmarks, 'humaneval_plus', 'mbpp_plus'),
  remarks=(
    *OPSD.remarks[:2],
    'samples: 12 in the paper; the program takes 6 and its script 1 where the flag is left out',
    'programs: temperature and tokens are those of mathematics, and so are top_p and the number of samples '
    'here; a task counts where base and plus tests pass',
    'EvalPlus 0.3.1 cannot pass HumanEval/32, so that its best is 163 of 164; here it is 164',
    'seed: none is published',
  ),
)

PROTOCOLS: Mapping[str, Protocol] = {p.name: p for p in (OPSD, RETHINKING_OPD, EFFOPD, RENIO)}


def find(name: str) -> Protocol:
  """The protocol that goes by a name.

  Raises:
    ConfigError: there is none; names the nearest.
  """
  if name not in PROTOCOLS:
    raise ConfigError(f'--protocol={name} is unknown.{nearest(name, PROTOCOLS)}')
  return PROTOCOLS[name]
