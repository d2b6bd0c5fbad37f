"""Prefill once a question, then one jitted decode loop for all its rollouts.

Axis letters: Q questions, n rollouts of each, B = Q·n rows, P prompt tokens, T token budget.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.mesh import constrain
from opsd_jax.models import chunked, model
from opsd_jax.models.attention import soft_cap
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.transformer import KV, Context
from opsd_jax.records import Prompts, Rollout
from opsd_jax.rollout import cache as caches
from opsd_jax.rollout import sampling
from opsd_jax.rollout.config import SamplingConfig


class Rows(NamedTuple):
  """What stays the same for every row from its first token to its last."""

  prompt: Context  # of Q questions, read-only and shared by each one's rollouts
  start: jax.Array  # int32 [B], tokens of the prompt before the first input
  keys: jax.Array  # [B], one random key a row
  budget: jax.Array  # int32 [B]


class Decoding(NamedTuple):
  """What the loop carries from token to token."""

  step: jax.Array
  token: jax.Array  # int32 [B], the next input
  cache: KV  # [L, B, K, T, H] of the completion so far; the prompt's is shared and read-only
  ids: jax.Array  # int32 [B, T]
  raw_logp: jax.Array  # float32 [B, T]
  behaviour_logp: jax.Array  # float32 [B, T]
  length: jax.Array  # int32 [B]
  stopped: jax.Array  # bool [B], ended by an EOS
  active: jax.Array  # bool [B]


def generate(
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
  loss_temperature: float = 1.0,
  valid_vocab: int | None = None,
  max_tokens: np.ndarray | jax.Array | None = None,
) -> Rollout:
  """Samples `per_question` continuations of every prompt.

  A row's tokens depend on (seed, step, problem id, rollout index) and its prompt alone: neither its
  slot nor its batch-mates matter.

  Args:
    spec: the model's shape.
    params: parameter tree, already sharded.
    prompts: Q right-padded prompts.
    config: temperature, truncation and token budget.
    eos_ids: ids that end a row; each is kept as the row's last token.
    per_question: rollouts n of each prompt.
    first: rollout index of each prompt's first row: what is drawn in parts is what is drawn at once.
    seed: of the run.
    step: counts draws within a run (the update, or the evaluation round).
    loss_temperature: temperature of `raw_logp`.
    valid_vocab: ids at and beyond it are never drawn.
    max_tokens: int32 [B] budgets of single rows, at most `config.max_tokens`; None for that maximum.

  Returns:
    A Rollout of B = Q·per_question rows, row b from prompt b // per_question, T = config.max_tokens.
  """
  return _generate(
    spec,
    params,
    prompts,
    budgets(prompts, per_question, config, max_tokens),
    np.uint32(seed),
    np.uint32(step),
    np.int32(first),
    np.float32(loss_temperature),
    config,
    eos_ids,
    per_question,
    valid_vocab,
  )


def budgets(
  prompts: Prompts, per_question: int, config: SamplingConfig, max_tokens: np.ndarray | jax.Array | None
) -> np.ndarray:
  """int32 [B], tokens that every row may have: `max_tokens` [B] where given, `config.max_tokens` at most."""
  rows = prompts.ids.shape[0] * per_question
  asked = np.full(rows, config.max_tokens) if max_tokens is None else np.asarray(max_tokens)
  return np.minimum(asked, config.max_tokens).astype(np.int32)


@functools.partial(jax.jit, static_argnums=(0, 8, 9, 10, 11))
def _generate(
  spec,
  params,
  prompts,
  budget,
  seed,
  step,
  first,
  loss_temperature,
  config,
  eos_ids,
  per_question,
  valid_vocab,
) -> Rollout:
  params = model.for_decoding(spec, params)
  rows, state = begin(spec, params, prompts, budget, seed, step, first, config, per_question)
  state = go_on(spec, params, rows, state, config.max_tokens, loss_temperature, config, eos_ids, valid_vocab)
  return Rollout(
    ids=state.ids,
    length=state.length,
    stopped=state.stopped,
    raw_logp=state.raw_logp,
    behaviour_logp=state.behaviour_logp,
    rollout_index=_rollout_index(prompts, per_question, first),
  )


def begin(
  spec: ModelSpec,
  params: model.Params,
  prompts: Prompts,
  budget: jax.Array,
  seed: jax.Array,
  step: jax.Array,
  first: jax.Array,
  config: SamplingConfig,
  per_question: int,
) -> tuple[Rows, Decoding]:
  """Reads the prompts: what stays for every row, and the state before the first token."""
  prompt = model.read_prompts(spec, params, prompts.ids, prompts.length)
  repeat = functools.partial(jnp.repeat, repeats=per_question)
  index = _rollout_index(prompts, per_question, first)
  keys = sampling.row_keys(seed, step, repeat(prompts.problem_id), index)
  token = repeat(model.last_token(prompts.ids, prompts.length))
  rows = Rows(prompt, repeat(prompts.length - 1), keys, budget)
  return rows, _start(spec, token, config.max_tokens, budget)


def _rollout_index(prompts: Prompts, per_question: int, first: jax.Array) -> jax.Array:
  return first + jnp.tile(jnp.arange(per_question, dtype=jnp.int32), prompts.ids.shape[0])


def go_on(
  spec: ModelSpec,
  params: model.Params,
  rows: Rows,
  state: Decoding,
  until: int | jax.Array,
  loss_temperature: float | jax.Array,
  config: SamplingConfig,
  eos_ids: tuple[int, ...],
  valid_vocab: int | None,
) -> Decoding:
  """Draws tokens until `until` of them are drawn or every row has ended; inside jit."""

  def draw(state: Decoding) -> Decoding:
    read = jnp.full_like(state.length, state.step)
    cache = Context(state.cache, read, rows.start, chunked.usual_chunk())
    hidden, kv = model.apply(
      spec, params, state.token[:, None], (rows.start + state.step)[:, None], (rows.prompt, cache)
    )
    logits = _logits(spec, model.head(spec, params), hidden[:, 0], valid_vocab)
    token, raw, behaviour = _draw(logits, rows.keys, state.step, config, loss_temperature)
    return _advance(state, token, kv, raw, behaviour, rows.budget, eos_ids)

  return jax.lax.while_loop(lambda s: jnp.any(s.active) & (s.step < until), draw, state)


def _logits(spec: ModelSpec, head: jax.Array, hidden: jax.Array, valid_vocab: int | None) -> jax.Array:
  """float32 [B, V], soft-capped, -inf beyond the valid vocabulary."""
  logits = jnp.einsum('bd,vd->bv', hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
  logits = soft_cap(logits, spec.final_softcap)
  if valid_vocab is not None and valid_vocab < head.shape[0]:
    logits = jnp.where(jnp.arange(head.shape[0])[None, :] < valid_vocab, logits, -jnp.inf)
  return constrain(logits, 'batch', 'vocab')


def _draw(logits, keys, position, config, loss_temperature):
  """The next token [B], its raw log-prob [B] and its log-prob under the truncated distribution [B]."""
  behaviour = sampling.truncate(logits, config)
  if config.temperature == 0:
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  else:
    token = sampling.inverse_cdf(behaviour, sampling.uniforms(keys, position))
  at = functools.partial(jnp.take_along_axis, indices=token[:, None], axis=1)
  raw = jax.nn.log_softmax(logits / loss_temperature, axis=-1)
  return token, at(raw)[:, 0], at(behaviour)[:, 0]


def _start(spec: ModelSpec, first: jax.Array, width: int, budget: jax.Array) -> Decoding:
  """The state before the first token."""
  rows = first.shape[0]
  zeros = jnp.zeros((rows, width), jnp.float32)
  return Decoding(
    step=jnp.int32(0),
    token=first,
    cache=caches.empty(spec, rows, width),
    ids=jnp.zeros((rows, width), jnp.int32),
    raw_logp=zeros,
    behaviour_logp=zeros,
    length=jnp.zeros(rows, jnp.int32),
    stopped=jnp.zeros(rows, bool),
    active=budget > 0,
  )


def _advance(state: Decoding, token, kv: KV, raw, behaviour, budget, eos_ids) -> Decoding:
  """Writes one token of every active row; finished rows write zeros at padding."""
  t = state.step

  def write(array, column):
    column = jnp.where(state.active, column, 0).astype(array.dtype)
    return jax.lax.dynamic_update_slice(array, column[:, None], (0, t))

  cache = jax.tree.map(
    lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, 0, 0, t, 0)),
    state.cache,
    kv,
  )
  length = state.length + state.active
  is_eos = jnp.isin(token, jnp.array(eos_ids, jnp.int32)) if eos_ids else jnp.zeros_like(state.active)
  stopped = state.stopped | (state.active & is_eos)
  return Decoding(
    step=t + 1,
    token=token,
    cache=cache,
    ids=write(state.ids, token),
    raw_logp=write(state.raw_logp, raw),
    behaviour_logp=write(state.behaviour_logp, behaviour),
    length=length,
    stopped=stopped,
    active=state.active & ~is_eos & (length < budget),
  )
