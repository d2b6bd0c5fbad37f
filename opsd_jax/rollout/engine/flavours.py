"""What differs between servers: the body of a question, what is read of its answer, and how weights get in.

Pure functions over plain JSON values. Fields were read in the sources of vLLM 0.33.0 (entrypoints/openai/
completion, entrypoints/serve/lora, entrypoints/rl) and SGLang 0.5.23 (srt/managers/io_struct.py,
srt/entrypoints/http_server.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from opsd_jax.rollout.config import SamplingConfig

Json = Any


class Question(NamedTuple):
  """One prompt and how it is to be continued."""

  prompt: list[int]
  rows: int  # continuations of it
  seed: int  # of the first; the next one's is larger by 1
  sampling: SamplingConfig
  eos_ids: tuple[int, ...]
  model: str  # that answers
  adapter: str | None  # beside it


class Answer(NamedTuple):
  """One continuation as the server tells it; None is what it does not tell."""

  ids: list[int] | None
  logps: list[float | None] | None
  prompt: list[int] | None
  ended: str | None  # 'stop' or 'length'
  label: str | None  # of the weights that drew it


class Post(NamedTuple):
  """One step of a push. Where `optional`, a server that does not know the path may refuse it."""

  path: str
  body: Json
  optional: bool = False


class Flavour(NamedTuple):
  """A kind of server.

  Attributes:
    path: that questions are posted to.
    ask: the body of a question.
    read: the continuations in an answer, in order.
    adapter: steps that put in an adapter, (label, folder, the label before or None).
    weights: steps that put in all weights, (label, folder).
    permits: what the server must have been started with to take each.
  """

  path: str
  ask: Callable[[Question], Json]
  read: Callable[[Json], list[Answer]]
  adapter: Callable[[str, str, str | None], list[Post]]
  weights: Callable[[str, str], list[Post]]
  permits: dict[str, str]


def _drawing(sampling: SamplingConfig) -> Json:
  """The draw, in the words that both servers share; all are said, or a model's own defaults would count."""
  return {
    'temperature': sampling.temperature,
    'top_k': -1 if sampling.top_k is None else sampling.top_k,
    'top_p': sampling.top_p,
    'min_p': sampling.min_p,
    'repetition_penalty': 1.0,
    'presence_penalty': 0.0,
    'frequency_penalty': 0.0,
    'skip_special_tokens': False,
  }


def _ask_vllm(question: Question) -> Json:
  """Its n rows share the prefill; row i has seed + i. With ignore_eos our ids alone end a row."""
  return {
    'model': question.adapter or question.model,
    'prompt': question.prompt,
    'n': question.rows,
    'seed': question.seed,
    'max_tokens': question.sampling.max_tokens,
    'stop_token_ids': list(question.eos_ids),
    'ignore_eos': True,
    'logprobs': 0,
    'return_token_ids': True,
    'return_weight_versions': True,
    **_drawing(question.sampling),
  }


def _read_vllm(data: Json) -> list[Answer]:
  found = []
  for choice in sorted(data['choices'], key=lambda c: c['index']):
    logprobs, spans = choice.get('logprobs') or {}, choice.get('weight_versions') or []
    # An answer that two versions had a part in is the older one's: its first token is.
    label = spans[0]['version'] if spans else None
    found.append(
      Answer(
        choice.get('token_ids'),
        logprobs.get('token_logprobs'),
        choice.get('prompt_token_ids'),
        choice.get('finish_reason'),
        label,
      )
    )
  return found


def _adapter_vllm(label: str, folder: str, before: str | None) -> list[Post]:
  steps = [Post('/v1/load_lora_adapter', {'lora_name': label, 'lora_path': folder})]
  return steps + ([Post('/v1/unload_lora_adapter', {'lora_name': before}, True)] if before else [])


def _weights_vllm(label: str, folder: str) -> list[Post]:
  """Cached prefixes are the old weights' and have to go."""
  return [
    Post('/collective_rpc', {'method': 'reload_weights', 'kwargs': {'weights_path': folder}}),
    Post('/reset_prefix_cache', None),
    Post('/update_weight_version', {'new_version': label}, True),
  ]


def _ask_sglang(question: Question) -> Json:
  """The prompt once a row: its `n` would give every row the same seed. The cache shares the prefill."""
  drawing = _drawing(question.sampling) | {
    'max_new_tokens': question.sampling.max_tokens,
    'stop_token_ids': list(question.eos_ids),
  }
  body = {
    'input_ids': [question.prompt] * question.rows,
    'sampling_params': [drawing | {'sampling_seed': question.seed + i} for i in range(question.rows)],
    'return_logprob': True,
    'return_prompt_token_ids': True,
  }
  return body | ({'lora_path': question.adapter} if question.adapter else {})


def _read_sglang(data: Json) -> list[Answer]:
  found = []
  for row in data:
    meta = row['meta_info']
    told = meta.get('output_token_logprobs')
    spans = meta.get('weight_versions') or []
    label = spans[0]['version'] if spans else meta.get('weight_version')
    found.append(
      Answer(
        row.get('output_ids'),
        None if told is None else [entry[0] for entry in told],
        row.get('prompt_token_ids'),
        (meta.get('finish_reason') or {}).get('type'),
        label,
      )
    )
  return found


def _adapter_sglang(label: str, folder: str, before: str | None) -> list[Post]:
  steps = [Post('/load_lora_adapter', {'lora_name': label, 'lora_path': folder})]
  return steps + ([Post('/unload_lora_adapter', {'lora_name': before}, True)] if before else [])


def _weights_sglang(label: str, folder: str) -> list[Post]:
  return [Post('/update_weights_from_disk', {'model_path': folder, 'weight_version': label})]


FLAVOURS = {
  'vllm': Flavour(
    '/v1/completions',
    _ask_vllm,
    _read_vllm,
    _adapter_vllm,
    _weights_vllm,
    {
      'adapter': 'VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora --max-lora-rank',
      'weights': 'VLLM_SERVER_DEV_MODE=1',
    },
  ),
  'sglang': Flavour(
    '/generate',
    _ask_sglang,
    _read_sglang,
    _adapter_sglang,
    _weights_sglang,
    {'adapter': '--enable-lora --max-lora-rank --lora-target-modules', 'weights': 'no --admin-api-key'},
  ),
}
