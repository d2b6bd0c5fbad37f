"""How rollouts are asked of a server that speaks OpenAI's interface, and what cannot work."""

import dataclasses
import urllib.parse
from typing import Literal

from opsd_jax.config import require, require_choice

LOGPROBS = ('raw', 'tempered', 'processed')


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """A server that draws the rollouts of training instead of our own sampler.

  Attributes:
    url: of the server, such as http://localhost:8000; none for our own sampler.
    flavour: whose server it is: `vllm` (/v1/completions with token ids) or `sglang` (/generate).
    model: name that the server gives its model; none where it serves one alone.
    push: what the server gets of the weights: `adapter` (LoRA beside the model that it was started with),
      `weights` (all of them, adapters merged), or `none`: it draws with those that it was started with.
    push_folder: folder that this machine writes and the server reads under the same path.
    push_every: updates between two pushes; rollouts in between are drawn by older weights.
    logprobs: what the server's log-probs are of: `raw` logits, `tempered` (logits divided by the sampling
      temperature, over the whole vocabulary) or `processed` (truncated, too); none for what the server
      gives unless it is told otherwise.
    concurrency: questions asked at a time.
    timeout_s: seconds that one answer may take; a later one is asked for again.
    retries: times that one question is asked again.
    deadline_s: seconds that an update may wait for the server in all.
  """

  url: str | None = None
  flavour: Literal['vllm', 'sglang'] = 'vllm'
  model: str | None = None
  push: Literal['none', 'adapter', 'weights'] = 'none'
  push_folder: str | None = None
  push_every: int = 1
  logprobs: Literal['raw', 'tempered', 'processed'] | None = None
  concurrency: int = 32
  timeout_s: float = 600.0
  retries: int = 20
  deadline_s: float = 3600.0


def validate(config: EngineConfig) -> None:
  """Raises `ConfigError` for a server that could not be asked."""
  name = 'rollout.engine'
  require_choice(f'{name}.flavour', config.flavour, ('vllm', 'sglang'))
  require_choice(f'{name}.push', config.push, ('none', 'adapter', 'weights'))
  if config.logprobs is not None:
    require_choice(f'{name}.logprobs', config.logprobs, LOGPROBS)
  for field in ('push_every', 'concurrency', 'timeout_s', 'deadline_s'):
    require(getattr(config, field) > 0, f'{name}.{field} is {getattr(config, field)}; it must be positive.')
  require(config.retries >= 0, f'{name}.retries is {config.retries}; it must not be negative.')
  if config.url is None:
    require(config.push == 'none', f'{name}.push is {config.push}, but there is no server; set {name}.url.')
    return
  parts = urllib.parse.urlsplit(config.url)
  require(
    parts.scheme in ('http', 'https') and bool(parts.netloc),
    f'{name}.url is {config.url!r}; write http://HOST:PORT, without a path such as /v1.',
  )
  require(
    parts.path in ('', '/'), f'{name}.url is {config.url!r}; leave out {parts.path!r}: the flavour knows it.'
  )
  require(
    config.push == 'none' or bool(config.push_folder),
    f'{name}.push is {config.push!r}, but {name}.push_folder is not set; name a folder that this machine '
    'writes and the server reads under the same path.',
  )


def validate_agreement(
  config: EngineConfig,
  temperature: float,
  truncated: bool,
  *,
  loss_temperature: float,
  lora_rank: int,
  cold_start_updates: int,
) -> None:
  """What the server has to agree on with the rest of the experiment.

  Args:
    config: of the server.
    temperature: of the sampling.
    truncated: whether the sampling leaves tokens out (top-k, top-p, min-p).
    loss_temperature: that of the student in the loss, at which sampler and scorer are compared.
    lora_rank: 0 where all weights are trained.
    cold_start_updates: of the training before distillation.

  Raises:
    ConfigError: adapters are to be pushed that do not exist or belong to other weights than the server
      has, or its log-probs could not be compared with the scorer's.
  """
  if config.url is None:
    return
  require(
    config.push != 'adapter' or lora_rank > 0,
    "rollout.engine.push is 'adapter', but lora.rank is 0; set rollout.engine.push=weights.",
  )
  require(
    config.push != 'adapter' or cold_start_updates == 0,
    f"rollout.engine.push is 'adapter', but the {cold_start_updates} updates of the cold start change the "
    'weights that adapters stand beside; set rollout.engine.push=weights or cold_start.updates=0.',
  )
  kind = measure(config)
  given = temperature if kind != 'raw' and temperature > 0 else 1.0
  cut = kind == 'processed' and truncated and temperature > 0
  require(
    given == loss_temperature and not cut,
    f'rollout.engine.logprobs is {kind!r}: the server tells log-probs at temperature {given}'
    f'{" of what truncation leaves" if cut else ""}, but the loss is at objective.student_temperature = '
    f'{loss_temperature}, over the whole vocabulary, so that sampler and scorer could not be compared. Let '
    'both temperatures be equal (raw log-probs: the loss at 1.0), do not truncate with processed ones, or '
    'start the server with other log-probs and name them in rollout.engine.logprobs.',
  )


def measure(config: EngineConfig) -> str:
  """What the log-probs are of: as set, or as the flavour's servers tell them on their own."""
  return config.logprobs or {'vllm': 'raw', 'sglang': 'tempered'}[config.flavour]
