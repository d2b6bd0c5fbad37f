"""What the student and the teacher see of a problem.

The student's prompt is known before the rollout; the teacher's may use the group of rollouts and
their verdicts, because privilege may come from siblings and feedback as well as from the solution.

A template says what is control and what is data: the problem's own texts are put in protected, so
that a control token written in a question is read as text and not as the end of a turn.
"""

import string
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from opsd_jax.config import ConfigError, nearest
from opsd_jax.distill import privilege
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.records import Problem, Prompts, Role, Rollout
from opsd_jax.text.tokenizer import Message, Tokenizer


def student_prompt(config: ViewsConfig, problem: Problem, tokenizer: Tokenizer) -> str:
  """The question alone, as `Tokenizer.encode_template` reads it."""
  text = fill(config.student, problem, 'views.student', tokenizer.protect)
  return _turn(config, text, config.student_thinking, tokenizer) + config.student_opening


def teacher_prompts(
  config: ViewsConfig, problem: Problem, tokenizer: Tokenizer, row: Mapping[str, str] | None = None
) -> tuple[str, ...]:
  """The teacher's views of a problem, M texts.

  `row` has the texts of one of its rollouts (`privilege.of_rows`), which are empty without. With
  `views.analysis` the text is the prompt of the analysis and what follows on it, with nothing between.
  """
  texts = privilege.of_problem(config, problem) | dict(row or {})
  text = fill(config.teacher, problem, 'views.teacher', tokenizer.protect, texts)
  if config.analysis:
    return (analysis_prompt(config, problem, tokenizer) + text + config.teacher_opening,)
  return (_turn(config, text, config.teacher_thinking, tokenizer) + config.teacher_opening,)


def analysis_prompt(config: ViewsConfig, problem: Problem, tokenizer: Tokenizer) -> str:
  """What the teacher is asked before it teaches (`views.analysis`)."""
  texts = privilege.of_problem(config, problem)
  text = fill(config.analysis, problem, 'views.analysis', tokenizer.protect, texts)
  return _turn(config, text, config.teacher_thinking, tokenizer)


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


def fill(
  template: str,
  problem: Problem,
  setting: str,
  protect: Callable[[str], str] = str,
  more: Mapping[str, str] | None = None,
) -> str:
  """Puts the problem's texts, each through `protect`, into a template; their braces are left alone.

  `more` are texts beside the problem's own.

  Raises:
    ConfigError: the template names a field that the problem lacks, or is malformed.
  """
  fields = dict(problem.meta) | {
    'problem': problem.problem,
    'solution': problem.solution,
    'answer': problem.answer,
    **(more or {}),
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
  asked = len(prompt_ids(config, student_prompt(config, problem, tokenizer), tokenizer))
  if asked > config.student_tokens:
    return f"its student's prompt is longer than views.student_tokens ({config.student_tokens})"
  if config.analysis:
    told = len(prompt_ids(config, analysis_prompt(config, problem, tokenizer), tokenizer))
    told += config.analysis_tokens + len(_after_analysis(config, problem, tokenizer))
    if told > config.teacher_tokens:
      return (
        f"its teacher's prompt, with views.analysis_tokens ({config.analysis_tokens}) between, is longer "
        f'than views.teacher_tokens ({config.teacher_tokens})'
      )
    return None
  told = teacher_prompts(config, problem, tokenizer)
  if any(len(prompt_ids(config, text, tokenizer)) > config.teacher_tokens for text in told):
    return f"its teacher's prompt is longer than views.teacher_tokens ({config.teacher_tokens})"
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


def row_batch(
  config: ViewsConfig,
  problems: Sequence[Problem],
  tokenizer: Tokenizer,
  completions: Sequence[str],
  correct: Sequence[bool],
) -> tuple[Prompts, np.ndarray]:
  """Teacher prompts of B = Q·n rollouts, one a row, and bool [B]: whether the row has its view.

  A row without one, or whose prompt is longer than `views.teacher_tokens`, has the prompt without the texts
  of rows in its place.
  """
  per_question = len(completions) // len(problems)
  texts, kept = [], []
  for question, problem in enumerate(problems):
    own = slice(question * per_question, (question + 1) * per_question)
    for row in privilege.of_rows(config, completions[own], correct[own]):
      (text,) = teacher_prompts(config, problem, tokenizer, row)
      fits = row is not None and len(prompt_ids(config, text, tokenizer)) <= config.teacher_tokens
      texts.append(text if fits else teacher_prompts(config, problem, tokenizer)[0])
      kept.append(fits)
  repeated = [problem for problem in problems for _ in range(per_question)]
  setting = 'views.teacher_tokens'
  prompts = tokenize_prompts(config, texts, repeated, tokenizer, config.teacher_tokens, setting)
  return prompts, np.array(kept, bool)


def analysis_batch(config: ViewsConfig, problems: Sequence[Problem], tokenizer: Tokenizer) -> Prompts:
  """Prompts of the analysis of Q problems, as wide as the teacher's."""
  texts = [analysis_prompt(config, p, tokenizer) for p in problems]
  return tokenize_prompts(config, texts, problems, tokenizer, config.teacher_tokens, 'views.teacher_tokens')


def with_analysis(
  config: ViewsConfig, problems: Sequence[Problem], tokenizer: Tokenizer, asked: Prompts, written: Rollout
) -> Prompts:
  """The teacher's prompts of Q problems: what was asked, what the teacher wrote, what follows on it.

  The written ids stay as they were drawn, but for the EOS.
  """
  ids, length = np.zeros_like(asked.ids), np.zeros_like(asked.length)
  for row, problem in enumerate(problems):
    after = _after_analysis(config, problem, tokenizer)
    drawn = written.ids[row, : written.length[row] - int(written.stopped[row])]
    tokens = np.concatenate([asked.ids[row, : asked.length[row]], drawn, np.int32(after)])
    ids[row, : len(tokens)], length[row] = tokens, len(tokens)
  return Prompts(ids=ids, length=length, problem_id=asked.problem_id)


def _after_analysis(config: ViewsConfig, problem: Problem, tokenizer: Tokenizer) -> list[int]:
  """Ids of what follows on the analysis: the teacher's template as it is."""
  texts = privilege.of_problem(config, problem)
  own = fill(config.teacher, problem, 'views.teacher', tokenizer.protect, texts)
  return tokenizer.encode_template(own + config.teacher_opening)
