"""A model's folder that is to be asked: what it must hold, and its settings by the names of flags."""

import contextlib
import os
import re
from collections.abc import Iterator

import jax

from opsd_jax.config import ConfigError, require
from opsd_jax.models.folder import adapters, inventory
from opsd_jax.models.spec import ModelSpec
from opsd_jax.rollout.config import drawable
from opsd_jax.text.tokenizer import Tokenizer

# How messages of the library name what is a flag of these commands.
_NAMES = {'tokenizer.path': '--model'} | {
  f'{room}.{name}': f'--{name}'
  for room, names in (
    ('tokenizer', ('chat_template', 'eos_tokens', 'control_tokens_in_data')),
    ('sampling', ('temperature', 'top_k', 'top_p', 'min_p', 'max_tokens')),
  )
  for name in names
}


def find(folder: str | None) -> str:
  """The absolute path of --model.

  Raises:
    ConfigError: it is no folder with weights.
  """
  require(bool(folder), "--model is missing; name a model's folder.")
  require(os.path.isdir(folder), f'--model={folder} is no folder; name one with a config.json and weights.')
  found = sorted(os.listdir(folder))
  require(
    adapters.CONFIG not in found or inventory.has_weights(folder),
    f'--model={folder} holds adapters (LoRA) and not a model; merge them into their base first, with '
    'experiments.export --merge_lora or with PEFT, and name that folder.',
  )
  require(
    any(name.endswith('.safetensors') for name in found),
    f'--model={folder} has no weights (*.safetensors); it holds {", ".join(found[:12]) or "nothing"}.',
  )
  return os.path.abspath(folder)


@contextlib.contextmanager
def flags_named() -> Iterator[None]:
  """What messages call settings of an experiment are flags here."""
  try:
    yield
  except ConfigError as error:
    names = '|'.join(map(re.escape, _NAMES))
    raise ConfigError(re.sub(rf'\b(?:{names})\b', lambda match: _NAMES[match[0]], str(error))) from error


def vocab(where: str, tokenizer: Tokenizer, spec: ModelSpec) -> int:
  """How many ids can be drawn; `where` is the flag that named the model, for the message.

  Raises:
    ConfigError: tokenizer and weights are not of one model.
  """
  try:
    return drawable(tokenizer.vocab_size, spec.vocab_size, tokenizer.control_ids)
  except ConfigError as error:
    raise ConfigError(
      f'{where}: its tokenizer has {tokenizer.vocab_size:,} ids, but its weights are for '
      f'{spec.vocab_size:,}; the files are not of one model.'
    ) from error


def dtype(named: str | None) -> str:
  """What to compute in: float32 on a CPU and bfloat16 elsewhere, unless a dtype was named."""
  return named or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
