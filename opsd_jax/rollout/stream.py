"""The sampler of `decode`, a few tokens a dispatch, for whoever wants to see them as they are drawn.

Axis letters: Q questions, n rollouts of each, B = Q·n rows, T token budget, k tokens of a dispatch.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts
from opsd_jax.rollout import cache as caches
from opsd_jax.rollout import decode as decoding
from opsd_jax.rollout import drawing, layout, slots
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig


class Drawn(NamedTuple):
  """Tokens drawn since the last time, on the host."""

  ids: np.ndarray  # int32 [B, k]
  count: np.ndarray  # int32 [B], how many ids of a row are tokens of it; the others are padding
  stopped: np.ndarray  # bool [B], ended by an EOS
  active: np.ndarray  # bool [B], more tokens will come


def stream(
  spec: ModelSpec,
  params: model.Params,
  prompts: Prompts,
  config: SamplingConfig,
  *,
  eos_ids: tuple[int, ...],
  per_question: int = 1,
  seed: int = 0,
  step: int = 0,
  valid_vocab: int | None = None,
  max_tokens: np.ndarray | None = None,
  decode: DecodeConfig = DecodeConfig(),
  every: int = 8,
) -> Iterator[Drawn]:
  """Samples the very ids that `decode.generate` does, and yields them every few tokens.

  The first `Drawn` holds no token (k = 0): it says that the prompts have been read. Prompts, caches and
  all else stay on the device between dispatches, and so does the copy of the parameters that is read.

  Args:
    spec: the model's shape.
    params: parameter tree, already sharded.
    prompts: Q right-padded prompts.
    config: temperature, truncation and token budget.
    eos_ids: ids that end a row; each is kept as the row's last token.
    per_question: rollouts n of each prompt.
    seed: of the run.
    step: counts draws within a run.
    valid_vocab: ids at and beyond it are never drawn.
    max_tokens: int32 [B] budgets of single rows, at most `config.max_tokens`; None for that maximum.
    decode: how many rows at a time; `compact` has no effect here.
    every: tokens of a dispatch.
  """
  setting = decoding.setting_of(spec, config, eos_ids, per_question, valid_vocab, decode)
  budget = decoding.budgets(prompts, per_question, config, max_tokens)
  counters = decoding.Counters(np.uint32(seed), np.uint32(step))
  law = drawing.law_of(config, 1.0)
  params = layout.for_decoding(spec, params)
  requests, state, drawn = _begin(setting, params, prompts, budget, counters)
  drawn = meshes.host(drawn)
  yield drawn
  while True:
    state, drawn = _go_on(setting, params, law, requests, state, every)
    drawn = meshes.host(drawn)
    yield drawn._replace(ids=drawn.ids[:, : drawn.count.max()])
    if not drawn.active.any():
      return


@functools.partial(jax.jit, static_argnums=0)
def _begin(setting, params, prompts, budget, counters):
  requests, state = decoding.begin(setting, params, prompts, budget, counters)
  w = state.written
  return requests, _pinned(state), Drawn(w.ids[:, :0], w.length, w.stopped, ~w.ended)


# The state is donated: its cache is the largest thing after the parameters, and is written in place.
@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=4)
def _go_on(setting, params, law, requests, state, every):
  before = state.written.length
  every = min(every, setting.max_tokens)
  sampler = decoding.sampler_of(setting, params, law)
  state = _pinned(slots.go_on(sampler, requests, state, state.steps + every))
  w = state.written
  column = before[:, None] + jnp.arange(every)[None, :]
  ids = jnp.take_along_axis(w.ids, jnp.minimum(column, w.ids.shape[1] - 1), axis=1)
  return state, Drawn(ids, w.length - before, w.stopped, ~w.ended)


def _pinned(state: slots.State) -> slots.State:
  """The state in one layout, with which it leaves every dispatch, or the next would be compiled anew."""

  def by_rows(x):
    return meshes.constrain(x, *['batch', *[None] * (x.ndim - 1)][: x.ndim])

  cache = caches.pinned(state.slots.cache)
  pinned = jax.tree.map(by_rows, state._replace(slots=state.slots._replace(cache=None)))
  return pinned._replace(slots=pinned.slots._replace(cache=cache))
