"""What a model is asked: prompts of the command line or of a file, as ids and in batches of few shapes."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from opsd_jax.config import ConfigError, require
from opsd_jax.records import Prompts
from opsd_jax.text.chat import Message
from opsd_jax.text.tokenizer import Tokenizer

BUDGET = 8 * 2048**2  # attention scores of a head while prompts are read: rows of a batch times width²
NARROWEST = 32  # tokens; wider prompts are padded to the next power of two


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt.

  Attributes:
    line: its number, from 1: the line of a file, or the place among the flags.
    where: what messages call it.
    given: the row as it came, `prompt` or `messages` and whatever else it holds.
  """

  line: int
  where: str
  given: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Asking:
  """How a prompt becomes ids.

  Attributes:
    raw: the text as it is, without a chat template.
    system: the system's turn, where a conversation has none; None for none.
    thinking: whether the model is to think first; None leaves that to its template.
  """

  raw: bool = False
  system: str | None = None
  thinking: bool | None = None


def of_texts(texts: Sequence[str]) -> list[Request]:
  """Requests of the command line."""
  return [Request(i, f'--prompt number {i}', {'prompt': text}) for i, text in enumerate(texts, 1)]


def of_file(path: str) -> list[Request]:
  """One request a line of a JSONL file; empty lines are passed over.

  Raises:
    ConfigError: the file cannot be read, or a line has no prompt.
  """
  try:
    with open(path, encoding='utf-8') as file:
      lines = file.read().split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f'--prompts={path} cannot be read: {error}.') from error
  found = [_request(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
  require(bool(found), f'--prompts={path} holds no line.')
  return found


def _request(line: str, number: int, path: str) -> Request:
  where = f'{path}, line {number}'
  try:
    row = json.loads(line)
  except ValueError as error:
    raise ConfigError(f'{where} is not JSON: {error}.') from error
  require(isinstance(row, dict), f'{where} is {line[:60]}, not an object such as {{"prompt": "..."}}.')
  fields = ', '.join(row) or 'nothing'
  require(
    ('prompt' in row) != ('messages' in row),
    f'{where} must hold either prompt or messages; it holds {fields}.',
  )
  if 'prompt' in row:
    require(isinstance(row['prompt'], str), f'{where}: prompt is {row["prompt"]!r}, not a text.')
  else:
    require(
      _are_messages(row['messages']),
      f'{where}: messages must be a list of {{"role": "user", "content": "..."}}, with texts for both.',
    )
  return Request(number, where, row)


def _are_messages(value: Any) -> bool:
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(m, dict) and isinstance(m.get('role'), str) for m in value)
    and all(isinstance(m.get('content'), str) for m in value)
  )


def encode(request: Request, asking: Asking, tokenizer: Tokenizer, limit: int) -> list[int]:
  """Ids of a request, whose own texts are data.

  Raises:
    ConfigError: it has no ids or more than `limit`, or the template refuses it.
  """
  try:
    ids = _raw(request, tokenizer) if asking.raw else _turns(request, asking, tokenizer)
  except ConfigError as error:
    raise ConfigError(f'{request.where}: {error}') from error
  require(bool(ids), f'{request.where} has no tokens; write something.')
  require(
    len(ids) <= limit,
    f'{request.where} has {len(ids):,} tokens, but --max_prompt_tokens is {limit:,}; shorten it, or raise '
    'that.',
  )
  return ids


def require_rows(request: Request, ids: Sequence[int], rows: int) -> None:
  """Raises `ConfigError` for a token that the model, with this many rows, cannot read."""
  beyond = [i for i in ids if i >= rows]
  require(
    not beyond,
    f'{request.where} has token {beyond[:1]}, but the model reads ids below {rows:,} only; leave it out (it '
    'may stand for an image).',
  )


def _raw(request: Request, tokenizer: Tokenizer) -> list[int]:
  require('prompt' in request.given, '--raw continues a text; give prompt in place of messages.')
  ids, first = tokenizer.encode(request.given['prompt']), list(tokenizer.bos_ids)
  return ids if first and ids[: len(first)] == first else [*first, *ids]


def _turns(request: Request, asking: Asking, tokenizer: Tokenizer) -> list[int]:
  given = request.given.get('messages') or [{'role': 'user', 'content': request.given['prompt']}]
  turns = [Message(m['role'], tokenizer.protect(m['content'])) for m in given]
  if asking.system is not None:
    require(turns[0].role != 'system', 'it has a system message of its own; leave out --system.')
    turns = [Message('system', tokenizer.protect(asking.system)), *turns]
  return tokenizer.encode_template(tokenizer.chat(turns, thinking=asking.thinking))


def width(length: int) -> int:
  """The width that a prompt of `length` tokens is padded to: a power of two, so that few are compiled."""
  return max(NARROWEST, 1 << (length - 1).bit_length())


def batches(lengths: Sequence[int], size: int, shards: int = 1) -> Iterator[tuple[list[int], int]]:
  """Which prompts go together, and in how many rows: those of one width, as memory allows.

  Args:
    lengths: tokens of the prompts.
    size: prompts that go together at most.
    shards: that the rows are split into; their number is a multiple of it.
  """
  by_width: dict[int, list[int]] = {}
  for i, length in enumerate(lengths):
    by_width.setdefault(width(length), []).append(i)
  for wide, members in sorted(by_width.items()):
    rows = max(1, min(size, len(members), BUDGET // wide**2))
    rows = -(-rows // shards) * shards
    for start in range(0, len(members), rows):
      yield members[start : start + rows], rows


def pad(ids: Sequence[Sequence[int]], lines: Sequence[int], size: int) -> Prompts:
  """Prompts [size, P]: these ids, and the first of them again where there are too few.

  A prompt's line is the counter of its randomness, so it gets the same tokens in any batch.
  """
  chosen = [i if i < len(ids) else 0 for i in range(size)]
  length = np.array([len(ids[i]) for i in chosen], np.int32)
  table = np.zeros((size, width(int(length.max()))), np.int32)
  for row, i in enumerate(chosen):
    table[row, : length[row]] = ids[i]
  return Prompts(ids=table, length=length, problem_id=np.array([lines[i] for i in chosen], np.uint32))
