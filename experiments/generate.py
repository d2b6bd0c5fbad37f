"""Asks a model: prints what it answers as it comes, or answers a whole file of prompts.

  python -m experiments.generate --model=FOLDER --prompt='What is 6 times 7?'
  python -m experiments.generate --model=FOLDER --prompts=asked.jsonl --output=answers.jsonl --samples=4

FOLDER is a model in Hugging Face's format: config.json, safetensors and a tokenizer. A line of the file has
a field prompt, or messages (a list of role and content). A line of the output has the number of its prompt's
line, its sample, the row that was given, the completion as text and ids, and the settings. The same command
again goes on where an interrupted one stopped. A prompt is data: control tokens that it spells out do not
end its turn. What is drawn depends on the seed, the line and the sample, not on the other prompts.
--temperature=0 is greedy. Without --dtype it computes in float32 on a CPU, else in bfloat16.
"""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

from experiments import entry
from experiments.asking import answer, completions, prompts
from experiments.asking.prompts import Asking, Request
from experiments.asking.sampler import Meter, Sampler
from experiments.options import DTYPE, MODEL, OUTPUT
from opsd_jax import mesh as meshes
from opsd_jax.config import ConfigError, require
from opsd_jax.mesh import MeshConfig
from opsd_jax.models import families
from opsd_jax.models.folder import adapters, inventory
from opsd_jax.models.folder import read as folders
from opsd_jax.models.model import Params
from opsd_jax.models.spec import ModelSpec
from opsd_jax.rollout.config import SamplingConfig, drawable, validate_sampling
from opsd_jax.text import pretrained
from opsd_jax.text.config import TokenizerConfig
from opsd_jax.text.pretrained import PretrainedTokenizer

for shared in ('model', 'output', 'dtype'):
  flags.declare_key_flag(shared)
_PROMPT = flags.DEFINE_multi_string('prompt', [], 'A text to answer; may be repeated.')
_PROMPTS = flags.DEFINE_string('prompts', None, 'A JSONL file with a field prompt, or messages.')
_RAW = flags.DEFINE_bool('raw', False, 'Continue the text as it is, without the chat template.')
_THINKING = flags.DEFINE_bool('thinking', None, 'Whether to think first; left out: what the template does.')
_SYSTEM = flags.DEFINE_string('system', None, "The system's turn.")
_TEMPERATURE = flags.DEFINE_float('temperature', 1.0, '0 is greedy.')
_TOP_P = flags.DEFINE_float('top_p', 1.0, 'Draw from the likeliest tokens that hold this mass.')
_TOP_K = flags.DEFINE_integer('top_k', None, 'Draw from the k likeliest tokens.')
_MIN_P = flags.DEFINE_float('min_p', 0.0, 'Draw from tokens this fraction as likely as the likeliest.')
_MAX_TOKENS = flags.DEFINE_integer('max_tokens', 512, 'Tokens of a completion, at most.')
_MAX_PROMPT = flags.DEFINE_integer('max_prompt_tokens', 8192, 'A longer prompt is refused.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the random numbers.', lower_bound=0, upper_bound=2**32 - 1)
_SAMPLES = flags.DEFINE_integer('samples', 1, 'Completions of each prompt.', lower_bound=1)
_BATCH = flags.DEFINE_integer('batch', 8, 'Prompts that are read at a time.', lower_bound=1)
_TEMPLATE = flags.DEFINE_string('chat_template', None, "A .jinja file in place of the model's own template.")
_EOS = flags.DEFINE_list('eos_tokens', [], 'Tokens that end a completion, if not those of the folder.')
_CONTROL = flags.DEFINE_bool(
  'control_tokens_in_data', False, 'Take control tokens that a prompt spells out for what they say.'
)

# How messages of the library name what is a flag here.
_NAMES = {'tokenizer.path': '--model'} | {
  f'{room}.{name}': f'--{name}'
  for room, names in (
    ('tokenizer', ('chat_template', 'eos_tokens', 'control_tokens_in_data')),
    ('sampling', ('temperature', 'top_k', 'top_p', 'min_p', 'max_tokens')),
  )
  for name in names
}


def main() -> int:
  """Answers what is asked; 130 where Ctrl-C ended it."""
  folder = _folder()
  tokenizer, asked, how = _tokenizer(folder), _asked(), _how()
  spec = dataclasses.replace(families.find(folder), dtype=_dtype())
  vocab = _vocab(folder, tokenizer, spec)
  ids = [prompts.encode(request, how, tokenizer, _MAX_PROMPT.value) for request in asked]
  for request, row in zip(asked, ids, strict=True):
    prompts.require_rows(request, row, spec.vocab_size)
  sampling = _sampling(vocab)
  have = completions.find(OUTPUT.value, asked, _settings()) if OUTPUT.value else set()
  missing = [i for i, request in enumerate(asked) if completions.lacking(request, _SAMPLES.value, have)]
  if not missing:
    completions.sort(OUTPUT.value)
    print(f'{OUTPUT.value} has every completion already', file=sys.stderr)
    return 0
  meter, mesh, sampler = Meter(), meshes.make_mesh(MeshConfig()), None
  with jax.set_mesh(mesh):
    try:
      with meter.timed('load'):
        params = _load(folder, spec, mesh)
      eos, samples = tokenizer.eos_ids, _SAMPLES.value
      sampler = Sampler(spec, mesh, params, sampling, eos, vocab, samples, _SEED.value)
      if _PROMPTS.value is None and OUTPUT.value is None and len(asked) == _SAMPLES.value == 1:
        answer.talk(sampler, tokenizer, ids[0], meter)
      else:
        left = [asked[i] for i in missing], [ids[i] for i in missing]
        how = dict(batch=_BATCH.value, output=OUTPUT.value, settings=_settings())
        answer.answer(sampler, tokenizer, *left, have, meter, **how)
    except KeyboardInterrupt:
      remedy = '; the same command goes on from here' if OUTPUT.value else ''
      print(f'\nstopped{remedy}', file=sys.stderr)
      return 130
    finally:
      if sampler is not None:
        print(meter.summary(), file=sys.stderr)
  return 0


def _folder() -> str:
  folder = MODEL.value
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
def _with_flags_named() -> Iterator[None]:
  """What messages call settings of an experiment are flags here."""
  try:
    yield
  except ConfigError as error:
    names = '|'.join(map(re.escape, _NAMES))
    raise ConfigError(re.sub(rf'\b(?:{names})\b', lambda match: _NAMES[match[0]], str(error))) from error


def _tokenizer(folder: str) -> PretrainedTokenizer:
  with _with_flags_named():
    config = TokenizerConfig(
      path=folder,
      chat_template=_TEMPLATE.value,
      eos_tokens=tuple(_EOS.value),
      control_tokens_in_data=_CONTROL.value,
    )
    tokenizer = pretrained.load(config)
  require(
    _RAW.value or tokenizer.template is not None,
    f'--model={MODEL.value} has no chat template; add --raw, or name one with --chat_template=FILE.jinja.',
  )
  return tokenizer


def _asked() -> list[Request]:
  require(
    bool(_PROMPT.value) != bool(_PROMPTS.value),
    'give either --prompt, as often as you like, or --prompts=FILE.jsonl.',
  )
  return prompts.of_file(_PROMPTS.value) if _PROMPTS.value else prompts.of_texts(_PROMPT.value)


def _how() -> Asking:
  for flag in (_SYSTEM, _THINKING):
    require(
      not _RAW.value or flag.value is None,
      f'--raw continues a text as it is, without turns; leave out --{flag.name}, or --raw.',
    )
  return Asking(_RAW.value, _SYSTEM.value, _THINKING.value)


def _vocab(folder: str, tokenizer: PretrainedTokenizer, spec: ModelSpec) -> int:
  """How many ids can be drawn."""
  try:
    return drawable(tokenizer.vocab_size, spec.vocab_size, tokenizer.control_ids)
  except ConfigError as error:
    raise ConfigError(
      f'--model={folder}: its tokenizer has {tokenizer.vocab_size:,} ids, but its weights are for '
      f'{spec.vocab_size:,}; the files are not of one model.'
    ) from error


def _sampling(vocab: int) -> SamplingConfig:
  config = SamplingConfig(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MIN_P.value, _MAX_TOKENS.value)
  with _with_flags_named():
    validate_sampling('sampling', config, vocab)
  return config


def _settings() -> dict[str, Any]:
  """What every completion depends on, beside its prompt."""
  chosen = (_RAW, _THINKING, _SYSTEM, _TEMPERATURE, _TOP_P, _TOP_K, _MIN_P, _MAX_TOKENS, _SEED, _TEMPLATE)
  chosen = (*chosen, _EOS, _CONTROL)
  values = {flag.name: flag.value for flag in chosen}
  return {'model': os.path.abspath(MODEL.value), 'dtype': _dtype()} | values


def _dtype() -> str:
  return DTYPE.value or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')


def _load(folder: str, spec: ModelSpec, mesh: jax.sharding.Mesh) -> Params:
  return jax.block_until_ready(folders.load(folder, spec, mesh, spec.dtype))


if __name__ == '__main__':
  entry.run(main, __doc__, "quote the prompt: --prompt='...'")
