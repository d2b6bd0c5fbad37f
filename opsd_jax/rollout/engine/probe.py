"""Whether the server is there and has the model, before anything expensive."""

import time
from typing import Any

import jax
import requests

from opsd_jax.config import ConfigError, nearest, require
from opsd_jax.rollout.config import RolloutConfig
from opsd_jax.rollout.engine import config as engines
from opsd_jax.rollout.engine import http
from opsd_jax.rollout.engine.config import EngineConfig
from opsd_jax.rollout.engine.http import EngineError

_PATIENCE_S = 30.0


def check(config: RolloutConfig, prompt_tokens: int) -> str:
  """What will draw the rollouts, in words; asks the server once whether it is there.

  Args:
    config: of the rollouts.
    prompt_tokens: of the longest prompt there may be.

  Raises:
    ConfigError: it is not there, has no such model, or its model's context is too short.
  """
  engine = config.engine
  if engine.url is None:
    return 'our own sampler'
  require(
    jax.process_count() == 1,
    f'rollout.engine.url is {engine.url!r}, but the run has {jax.process_count()} processes; rollouts of a '
    'server are not handed to other processes yet. Run one process, or use our own sampler.',
  )
  try:
    found = served(engine, http.connect(1), retries=0, deadline=time.monotonic() + _PATIENCE_S)
  except EngineError as error:
    raise ConfigError(
      f'rollout.engine.url is {engine.url!r}, where no server answers: {error} Start it, or set '
      'rollout.engine.url=none for our own sampler.'
    ) from error
  width, context = prompt_tokens + config.sampling.max_tokens, found.get('max_model_len')
  require(
    context is None or width <= context,
    f'the server at {engine.url} takes {context} tokens, but views.student_tokens + '
    f'rollout.sampling.max_tokens is {width}; lower them, or start it with a longer context.',
  )
  pushed = f'{engine.push} by {engine.push_folder} every {engine.push_every} updates'
  pushed = 'no weights: all rollouts are those of its own' if engine.push == 'none' else pushed
  return (
    f'{engine.flavour} at {engine.url}, model {found["id"]}; gets {pushed}; tells {engines.measure(engine)} '
    f'log-probs; {engine.concurrency} questions at a time'
  )


def served(
  config: EngineConfig, session: requests.Session, *, retries: int, deadline: float
) -> dict[str, Any]:
  """The entry in /v1/models of the model that the server will be asked for.

  Args:
    config: of the server.
    session: of `http.connect`.
    retries: times to ask again.
    deadline: `time.monotonic()` after which it is not asked again.

  Raises:
    EngineError: nobody answers.
    ConfigError: the server has no such model.
  """
  url, timeout = config.url.rstrip('/') + '/v1/models', min(config.timeout_s, _PATIENCE_S)
  listed = http.call(session, url, method='GET', timeout_s=timeout, retries=retries, deadline=deadline)
  models = {m['id']: m for m in (listed or {}).get('data', []) if not m.get('parent')}  # no adapters
  require(bool(models), f'rollout.engine.url is {config.url!r}, but {url} lists no model.')
  name = config.model or next(iter(models))
  require(
    config.model is not None or len(models) == 1,
    f'{url} lists {", ".join(models)}; name one of them in rollout.engine.model.',
  )
  require(
    name in models, f'rollout.engine.model is {name!r}, which {url} does not list.{nearest(name, models)}'
  )
  return models[name]
