"""What the student and the teacher see of a problem.

The student's prompt is known before the rollout; the teacher's may use the group of rollouts and
their verdicts, because privilege may come from siblings and feedback as well as from the solution.
"""

import string
import zlib
from collections.abc import Sequence

import numpy as np

from opsd_jax.config import ConfigError, nearest
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.records import Graded, Problem, Prompts, Role
from opsd_jax.text.tokenizer import Tokenizer


def student_prompt(config: ViewsConfig, problem: Problem) -> str:
  """The question alone."""
  return fill(config.student, problem, 'views.student')


def teacher_prompts(
  config: ViewsConfig, problem: Problem, completions: Sequence[str] = (), graded: Graded | None = None
) -> tuple[str, ...]:
  """The teacher's views of a problem, M texts. Templates show the problem's own texts alone."""
  del completions, graded  # the signature that views of siblings and of feedback need
  return (fill(config.teacher, problem, 'views.teacher'),)


def prompt_text(config: ViewsConfig, problem: Problem, role: Role) -> str:
  """The prompt of a supervised or evaluated row."""
  return student_prompt(config, problem) if role == 'student' else teacher_prompts(config, problem)[0]


def fill(template: str, problem: Problem, setting: str) -> str:
  """Puts the problem's texts into a template; braces inside those texts are left alone.

  Raises:
    ConfigError: the template names a field that the problem lacks, or is malformed.
  """
  fields = dict(problem.meta) | {
    'problem': problem.problem,
    'solution': problem.solution,
    'answer': problem.answer,
  }
  try:
    parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
  except ValueError as error:
    raise ConfigError(f'{setting} is {template!r}: {error}.') from error
  for _, name, form, conversion in parts:
    if form or conversion:
      raise ConfigError(
        f'{setting} is {template!r}: texts are put in as they are; write {{{name}}} alone, without '
        '":" or "!" inside the braces.'
      )
    if name not in fields:
      raise ConfigError(
        f'{setting} is {template!r}, but problem {problem.id!r} has no text {name!r}.{nearest(name, fields)}'
      )
  return template.format_map(fields)


def stable_id(problem: Problem) -> int:
  """A 32-bit number of the problem's id, the same in every process and version."""
  return zlib.crc32(problem.id.encode())


def tokenize_prompts(
  texts: Sequence[str], problems: Sequence[Problem], tokenizer: Tokenizer, width: int, setting: str
) -> Prompts:
  """Prompts [Q, width] on the host, right-padded with zeros that no mask lets through.

  Raises:
    ConfigError: a prompt is longer than `width`, the value of `setting`.
  """
  ids = np.zeros((len(texts), width), np.int32)
  length = np.zeros(len(texts), np.int32)
  for row, (text, problem) in enumerate(zip(texts, problems, strict=True)):
    tokens = [*tokenizer.bos_ids, *tokenizer.encode(text)]
    if not 0 < len(tokens) <= width:
      raise ConfigError(
        f'the prompt of problem {problem.id!r} has {len(tokens)} tokens, but {setting} is '
        f'{width}; raise it or leave the problem out.'
      )
    ids[row, : len(tokens)], length[row] = tokens, len(tokens)
  return Prompts(ids=ids, length=length, problem_id=np.array([stable_id(p) for p in problems], np.uint32))


def student_batch(config: ViewsConfig, problems: Sequence[Problem], tokenizer: Tokenizer) -> Prompts:
  """Student prompts of Q problems."""
  texts = [student_prompt(config, p) for p in problems]
  return tokenize_prompts(texts, problems, tokenizer, config.student_tokens, 'views.student_tokens')


def teacher_batch(
  config: ViewsConfig, problems: Sequence[Problem], tokenizer: Tokenizer
) -> tuple[Prompts, ...]:
  """Teacher prompts of Q problems, one `Prompts` a view."""
  by_problem = [teacher_prompts(config, p) for p in problems]
  return tuple(
    tokenize_prompts(texts, problems, tokenizer, config.teacher_tokens, 'views.teacher_tokens')
    for texts in zip(*by_problem, strict=True)
  )
