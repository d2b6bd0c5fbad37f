"""Conversations rendered by a model's own chat template.

A template is a program that came with the model, so it runs in Jinja's sandbox, with the filters and
functions that transformers gives it. One that prints today's date makes prompts that differ by day.
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from opsd_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Message:
  """One turn of a conversation; `role` is system, user or assistant."""

  role: str
  content: str


@dataclasses.dataclass(frozen=True, eq=False)
class ChatTemplate:
  """A template and what it is called in messages; `variables` are bos_token, eos_token and the like."""

  source: str
  name: str
  variables: Mapping[str, str]


def render(template: ChatTemplate, messages: Sequence[Message], thinking: bool | None = None) -> str:
  """The conversation, with the beginning of the answer.

  Raises:
    ConfigError: the template fails, refuses the conversation or does what a sandbox forbids.
  """
  import jinja2

  program = compile_template(template)
  asked = {} if thinking is None else {'enable_thinking': thinking}
  try:
    return program.render(
      messages=[dataclasses.asdict(message) for message in messages],
      tools=None,
      documents=None,
      add_generation_prompt=True,
      **template.variables,
      **asked,
    )
  except jinja2.sandbox.SecurityError as error:
    raise ConfigError(
      f'{template.name} does what a chat template may not do: {error}; do not use it, or name another '
      'one in tokenizer.chat_template.'
    ) from error
  except Exception as error:  # a template is a program: anything may go wrong in it
    roles = ', '.join(message.role for message in messages)
    raise ConfigError(
      f'{template.name} fails on a conversation of ({roles}): {type(error).__name__}: {error}; change the '
      'conversation, or name another template in tokenizer.chat_template.'
    ) from error


@functools.lru_cache
def compile_template(template: ChatTemplate) -> Any:
  """The compiled template.

  Raises:
    ConfigError: it cannot be parsed.
  """
  import jinja2

  try:
    return _environment().from_string(template.source)
  except jinja2.TemplateSyntaxError as error:
    raise ConfigError(
      f'{template.name} cannot be parsed, line {error.lineno}: {error.message}; repair it, or name '
      'another one in tokenizer.chat_template.'
    ) from error


@functools.cache
def _environment() -> Any:
  from jinja2 import ext, sandbox

  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, _generation_block()]
  )
  environment.filters['tojson'] = _to_json
  environment.globals |= {'raise_exception': _refuse, 'strftime_now': _now}
  return environment


def _generation_block() -> type:
  """`{% generation %}`, which marks an answer for training; its contents are all that counts here."""
  from jinja2 import ext, nodes

  class Generation(ext.Extension):  # Jinja knows no other way to add a tag.
    tags = {'generation'}

    def parse(self, parser):
      line = next(parser.stream).lineno
      return nodes.Scope(parser.parse_statements(('name:endgeneration',), drop_needle=True), lineno=line)

  return Generation


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  """Jinja's own filter escapes <, > and & for HTML."""
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _refuse(message: str) -> None:
  import jinja2

  raise jinja2.TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)
