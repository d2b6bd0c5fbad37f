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
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig


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
  first: int = 0,
  seed: int = 0,
  step: int = 0,
  valid_vocab: int | None = None,
  max_tokens: np.ndarray | None = None,
  every: int = 8,
) -> Iterator[Drawn]:
  """Samples the very ids that `decode.generate` does, and yields them every few tokens.

  The first `Drawn` holds no token (k = 0): it says that the prompts have been read. Prompts, caches and
  all else stay on the device between dispatches; masters in another dtype than the model's are cast in
  each, so give parameters in the compute dtype.

  Args:
    spec: the model's shape.
    params: parameter tree, already sharded.
    prompts: Q right-padded prompts.
    config: temperature, truncation and token budget.
    eos_ids: ids that end a row; each is kept as the row's last token.
    per_question: rollouts n of each prompt.
    first: rollout index of each prompt's first row.
    seed: of the run.
    step: counts draws within a run.
    valid_vocab: ids at and beyond it are never drawn.
    max_tokens: int32 [B] budgets of single rows, at most `config.max_tokens`; None for that maximum.
    every: tokens of a dispatch.
  """
  budget = decode.budgets(prompts, per_question, config, max_tokens)
  counters = np.uint32(seed), np.uint32(step), np.int32(first)
  rows, state, drawn = _begin(spec, params, prompts, budget, *counters, config, per_question)
  drawn = meshes.host(drawn)
  yield drawn
  done = 0
  while True:
    state, drawn, now = _go_on(spec, params, rows, state, config, eos_ids, valid_vocab, every)
    drawn, now = meshes.host((drawn, now))
    new = int(now) - done  # the columns before these were there the last time
    yield drawn._replace(ids=drawn.ids[:, drawn.ids.shape[1] - new :])
    done = int(now)
    if not drawn.active.any():
      return


@functools.partial(jax.jit, static_argnums=(0, 7, 8))
def _begin(spec, params, prompts, budget, seed, step, first, config, per_question):
  params = model.for_decoding(spec, params)
  rows, state = decode.begin(spec, params, prompts, budget, seed, step, first, config, per_question)
  state = _pinned(state)
  return rows, state, Drawn(state.ids[:, :0], state.length, state.stopped, state.active)


# The state is donated: its cache is the largest thing after the parameters, and is written in place.
@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7), donate_argnums=(3,))
def _go_on(spec, params, rows, state, config, eos_ids, valid_vocab, every):
  params = model.for_decoding(spec, params)
  until = jnp.minimum(state.step + every, config.max_tokens)
  after = _pinned(decode.go_on(spec, params, rows, state, until, 1.0, config, eos_ids, valid_vocab))
  width = min(every, config.max_tokens)
  first = jnp.maximum(after.step - width, 0)
  ids = jax.lax.dynamic_slice_in_dim(after.ids, first, width, axis=1)
  # Where fewer than `width` tokens exist, `first` is 0 and the new ones do not end the slice.
  ids = jnp.roll(ids, width - (after.step - first), axis=1)
  drawn = Drawn(ids, after.length - state.length, after.stopped, after.active)
  return after, drawn, after.step


def _pinned(state: decode.Decoding) -> decode.Decoding:
  """The state in one layout, with which it leaves every dispatch, or the next would be compiled anew."""
  pinned = jax.tree.map(lambda x: meshes.constrain(x, *['batch', *[None] * (x.ndim - 1)][: x.ndim]), state)
  return pinned._replace(cache=caches.pinned(state.cache))
