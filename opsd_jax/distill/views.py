"""What the student and the teacher see of a problem.

The student's prompt is known before the rollout; the teacher's may use the group of rollouts and
their verdicts, because privilege may come from siblings and feedback as well as from the solution.

A template says what is control and what is data: the problem's own texts are put in protected, so
that a control token written in a question is read as text and not as the end of a turn.
"""

import string
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from opsd_jax.config import ConfigError, nearest
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.records import Graded, Problem, Prompts, Role
from opsd_jax.text.tokenizer import Message, Tokenizer


def student_prompt(config: ViewsConfig, problem: Problem, tokenizer: Tokenizer) -> str:
  """The question alone, as `Tokenizer.encode_template` reads it."""
  text = fill(config.student, problem, 'views.student', tokenizer.protect)
  return _turn(config, text, config.student_thinking, tokenizer) + config.student_opening


def teacher_prompts(
  config: ViewsConfig,
  problem: Problem,
  tokenizer: Tokenizer,
  completions: Sequence[str] = (),
  graded: Graded | None = None,
) -> tuple[str, ...]:
  """The teacher's views of a problem, M texts. Templates show the problem's own texts alone."""
  del completions, graded  # the signature that views of siblings and of feedback need
  text = fill(config.teacher, problem, 'views.teacher', tokenizer.protect)
  return (_turn(config, text, config.teacher_thinking, tokenizer) + config.teacher_opening,)


def _turn(config: ViewsConfig, text: str, thinking: bool | None, tokenizer: Tokenizer) -> str:
  """The text as the user's turn of a conversation, or as it is where `views.chat` is off."""
  if not config.chat:
    return text
  system = [Message('system', config.system)] if config.system else []
  return tokenizer.chat([*system, Message('user', text)], thinking=thinking)


def prompt(config: ViewsConfig, problem: Problem, role: Role, tokenizer: Tokenizer) -> str:
  """The prompt of a supervised or evaluated row."""
  if role == 'student':
    return student_prompt(config, problem, tokenizer)
  return teacher_prompts(config, problem, tokenizer)[0]


def fill(template: str, problem: Problem, setting: str, protect: Callable[[str], str] = str) -> str:
  """Puts the problem's texts, each through `protect`, into a template; their braces are left alone.

  Raises:
    ConfigError: the template names a field that the problem lacks, or is malformed.
  """
  fields = dict(problem.meta) | {
    'problem': problem.problem,
    'solution': problem.solution,
    'answer': problem.answer,
  }
  try:
    parts = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ConfigError(f'{setting} is {template!r}: {error}.') from error
  for _, name, form, conversion in parts:
    if name is None:
      continue  # what follows the last field
    if form or conversion:
      raise ConfigError(
        f'{setting} is {template!r}: texts are put in as they are; write {{{name}}} alone, without '
        '":" or "!" inside the braces.'
      )
    if name not in fields:
      raise ConfigError(
        f'{setting} is {template!r}, but problem {problem.id!r} has no text {name!r}.{nearest(name, fields)}'
      )
  return ''.join(before + ('' if name is None else protect(fields[name])) for before, name, _, _ in parts)


def stable_id(problem: Problem) -> int:
  """A 32-bit number of the problem's id, the same in every process and version."""
  return zlib.crc32(problem.id.encode())


def prompt_ids(config: ViewsConfig, text: str, tokenizer: Tokenizer) -> list[int]:
  """Ids of a prompt. A chat template writes its own beginning; any other text gets the tokenizer's."""
  return [*(() if config.chat else tokenizer.bos_ids), *tokenizer.encode_template(text)]


def tokenize_prompts(
  config: ViewsConfig,
  texts: Sequence[str],
  problems: Sequence[Problem],
  tokenizer: Tokenizer,
  width: int,
  setting: str,
) -> Prompts:
  """Prompts [Q, width] on the host, right-padded with zeros that no mask lets through.

  Raises:
    ConfigError: a prompt is empty or longer than `width`, the value of `setting`.
  """
  ids = np.zeros((len(texts), width), np.int32)
  length = np.zeros(len(texts), np.int32)
  for row, (text, problem) in enumerate(zip(texts, problems, strict=True)):
    tokens = prompt_ids(config, text, tokenizer)
    if not 0 < len(tokens) <= width:
      raise ConfigError(
        f'the prompt of problem {problem.id!r} has {len(tokens)} tokens, but {setting} is '
        f'{width}; raise it or leave the problem out.'
      )
    ids[row, : len(tokens)], length[row] = tokens, len(tokens)
  return Prompts(ids=ids, length=length, problem_id=np.array([stable_id(p) for p in problems], np.uint32))


def misfit(config: ViewsConfig, problem: Problem, tokenizer: Tokenizer) -> str | None:
  """Why the problem cannot be asked under these views, in words that many problems share; None if it can."""
  texts = {'student': (student_prompt(config, problem, tokenizer),)}
  texts['teacher'] = teacher_prompts(config, problem, tokenizer)
  for role, width in (('student', config.student_tokens), ('teacher', config.teacher_tokens)):
    if any(len(prompt_ids(config, text, tokenizer)) > width for text in texts[role]):
      return f"its {role}'s prompt is longer than views.{role}_tokens ({width})"
  return None


def student_batch(config: ViewsConfig, problems: Sequence[Problem], tokenizer: Tokenizer) -> Prompts:
  """Student prompts of Q problems."""
  texts = [student_prompt(config, p, tokenizer) for p in problems]
  return tokenize_prompts(config, texts, problems, tokenizer, config.student_tokens, 'views.student_tokens')


def teacher_batch(
  config: ViewsConfig, problems: Sequence[Problem], tokenizer: Tokenizer
) -> tuple[Prompts, ...]:
  """Teacher prompts of Q problems, one `Prompts` a view."""
  by_problem = [teacher_prompts(config, p, tokenizer) for p in problems]
  return tuple(
    tokenize_prompts(config, texts, problems, tokenizer, config.teacher_tokens, 'views.teacher_tokens')
    for texts in zip(*by_problem, strict=True)
  )
