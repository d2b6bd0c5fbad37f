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
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments import entry, options
from experiments.asking import answer, completions, lock, prompts
from experiments.asking import folder as folders_asked
from experiments.asking.prompts import Asking, Request
from experiments.asking.sampler import Meter, Sampler
from opsd_jax import mesh as meshes
from opsd_jax.config import require
from opsd_jax.mesh import MeshConfig
from opsd_jax.models import families
from opsd_jax.models.folder import read as folders
from opsd_jax.models.model import Params
from opsd_jax.models.spec import ModelSpec
from opsd_jax.rollout.config import SamplingConfig, validate_sampling
from opsd_jax.text import pretrained
from opsd_jax.text.config import TokenizerConfig
from opsd_jax.text.pretrained import PretrainedTokenizer

_SHARED = (
  *('model', 'output', 'dtype', 'prompt', 'thinking', 'system', 'temperature', 'top_p', 'top_k', 'min_p'),
  *('max_tokens', 'max_prompt_tokens', 'seed', 'samples', 'batch', 'chat_template', 'eos_tokens'),
  'control_tokens_in_data',
)
for shared in _SHARED:
  flags.declare_key_flag(shared)
_PROMPTS = flags.DEFINE_string('prompts', None, 'A JSONL file with a field prompt, or messages.')
_RAW = flags.DEFINE_bool('raw', False, 'Continue the text as it is, without the chat template.')

# What flags that other commands have as well are here if left out.
_DEFAULTS = {
  'temperature': 1.0,
  'top_p': 1.0,
  'min_p': 0.0,
  'max_tokens': 512,
  'max_prompt_tokens': 8192,
  'seed': 0,
  'samples': 1,
}


def main() -> int:
  """Answers what is asked; 130 where Ctrl-C ended it."""
  folder = folders_asked.find(options.MODEL.value)
  tokenizer, asked, how = _tokenizer(folder), _asked(), _how()
  spec = dataclasses.replace(families.find(folder), dtype=folders_asked.dtype(options.DTYPE.value))
  vocab = folders_asked.vocab(f'--model={folder}', tokenizer, spec)
  limit = _value(options.MAX_PROMPT)
  ids = [prompts.encode(request, how, tokenizer, limit) for request in asked]
  for request, row in zip(asked, ids, strict=True):
    prompts.require_rows(request, row, spec.vocab_size)
  sampling, output = _sampling(vocab), options.OUTPUT.value
  with lock.alone(output, f'--output={output}') if output else contextlib.nullcontext():
    return _answer(folder, spec, tokenizer, asked, ids, sampling, vocab)


def _answer(
  folder: str,
  spec: ModelSpec,
  tokenizer: PretrainedTokenizer,
  asked: Sequence[Request],
  ids: Sequence[list[int]],
  sampling: SamplingConfig,
  vocab: int,
) -> int:
  """Draws what is missing."""
  samples = _value(options.SAMPLES)
  have = completions.find(options.OUTPUT.value, asked, _settings()) if options.OUTPUT.value else set()
  missing = [i for i, request in enumerate(asked) if completions.lacking(request, samples, have)]
  if not missing:
    completions.sort(options.OUTPUT.value)
    print(f'{options.OUTPUT.value} has every completion already', file=sys.stderr)
    return 0
  meter, mesh, sampler = Meter(), meshes.make_mesh(MeshConfig()), None
  with jax.set_mesh(mesh):
    try:
      with meter.timed('load'):
        params = _load(folder, spec, mesh)
      sampler = Sampler(spec, mesh, params, sampling, tokenizer.eos_ids, vocab, samples, _value(options.SEED))
      if _PROMPTS.value is None and options.OUTPUT.value is None and len(asked) == samples == 1:
        answer.talk(sampler, tokenizer, ids[0], meter)
      else:
        left = [asked[i] for i in missing], [ids[i] for i in missing]
        how = dict(batch=options.BATCH.value, output=options.OUTPUT.value, settings=_settings())
        answer.answer(sampler, tokenizer, *left, have, meter, **how)
    except KeyboardInterrupt:
      remedy = '; the same command goes on from here' if options.OUTPUT.value else ''
      print(f'\nstopped{remedy}', file=sys.stderr)
      return 130
    except OSError as error:
      error.add_note('Remedy: free space, then run the same command: it goes on from here.')
      raise
    finally:
      if sampler is not None:
        print(meter.summary(), file=sys.stderr)
  return 0


def _tokenizer(folder: str) -> PretrainedTokenizer:
  with folders_asked.flags_named():
    config = TokenizerConfig(
      path=folder,
      chat_template=options.TEMPLATE.value,
      eos_tokens=tuple(options.EOS.value),
      control_tokens_in_data=options.CONTROL.value,
    )
    tokenizer = pretrained.load(config)
  require(
    _RAW.value or tokenizer.template is not None,
    f'--model={folder} has no chat template; add --raw, or name one with --chat_template=FILE.jinja.',
  )
  return tokenizer


def _asked() -> list[Request]:
  require(
    bool(options.PROMPT.value) != bool(_PROMPTS.value),
    'give either --prompt, as often as you like, or --prompts=FILE.jsonl.',
  )
  return prompts.of_file(_PROMPTS.value) if _PROMPTS.value else prompts.of_texts(options.PROMPT.value)


def _how() -> Asking:
  for flag in (options.SYSTEM, options.THINKING):
    require(
      not _RAW.value or flag.value is None,
      f'--raw continues a text as it is, without turns; leave out --{flag.name}, or --raw.',
    )
  return Asking(_RAW.value, options.SYSTEM.value, options.THINKING.value)


def _sampling(vocab: int) -> SamplingConfig:
  names = ('temperature', 'top_k', 'top_p', 'min_p', 'max_tokens')
  config = SamplingConfig(**{name: _value(flags.FLAGS[name]) for name in names})
  with folders_asked.flags_named():
    validate_sampling('sampling', config, vocab)
  return config


def _value(flag: flags.FlagHolder | flags.Flag) -> Any:
  """A flag's value, or what it is here if left out."""
  return _DEFAULTS.get(flag.name) if flag.value is None else flag.value


def _settings() -> dict[str, Any]:
  """What every completion depends on, beside its prompt."""
  names = ('raw', 'thinking', 'system', 'temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed')
  names = (*names, 'chat_template', 'eos_tokens', 'control_tokens_in_data')
  model, dtype = os.path.abspath(options.MODEL.value), folders_asked.dtype(options.DTYPE.value)
  return {'model': model, 'dtype': dtype} | {name: _value(flags.FLAGS[name]) for name in names}


def _load(folder: str, spec: ModelSpec, mesh: jax.sharding.Mesh) -> Params:
  return jax.block_until_ready(folders.load(folder, spec, mesh, spec.dtype))


if __name__ == '__main__':
  entry.run(main, __doc__, "quote the prompt: --prompt='...'")
