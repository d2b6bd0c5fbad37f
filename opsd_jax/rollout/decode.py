"""Prefill once a question, then one jitted decode loop for all its rollouts.

Axis letters: Q questions, n rollouts of each, B = Q·n rows, P prompt tokens, T token budget.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.mesh import constrain
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.transformer import KV, Context
from opsd_jax.records import Prompts, Rollout
from opsd_jax.rollout import drawing, sampling
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.rollout.drawing import Law, Token, Truncation

CACHE_AXES = ('layers', 'batch', 'length', 'kv_heads', 'head_dim')


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
  cache: KV  # [L, B, T, K, H] of the completion so far; the prompt's is shared and read-only
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
    drawing.law_of(config, loss_temperature),
    drawing.truncation_of(config),
    config.max_tokens,
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


@functools.partial(jax.jit, static_argnums=(0, 8, 9, 10, 11, 12))
def _generate(
  spec,
  params,
  prompts,
  budget,
  seed,
  step,
  first,
  law,
  truncation,
  max_tokens,
  eos_ids,
  per_question,
  valid_vocab,
) -> Rollout:
  params = model.for_decoding(spec, params)
  rows, state = begin(spec, params, prompts, budget, seed, step, first, max_tokens, per_question)
  state = go_on(spec, params, rows, state, max_tokens, law, truncation, eos_ids, valid_vocab)
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
  max_tokens: int,
  per_question: int,
) -> tuple[Rows, Decoding]:
  """Reads the prompts: what stays for every row, and the state before the first token."""
  prompt = model.read_prompts(spec, params, prompts.ids, prompts.length)
  repeat = functools.partial(jnp.repeat, repeats=per_question)
  index = _rollout_index(prompts, per_question, first)
  keys = sampling.row_keys(seed, step, repeat(prompts.problem_id), index)
  token = repeat(model.last_token(prompts.ids, prompts.length))
  rows = Rows(prompt, repeat(prompts.length - 1), keys, budget)
  return rows, _start(spec, token, max_tokens, budget)


def _rollout_index(prompts: Prompts, per_question: int, first: jax.Array) -> jax.Array:
  return first + jnp.tile(jnp.arange(per_question, dtype=jnp.int32), prompts.ids.shape[0])


def go_on(
  spec: ModelSpec,
  params: model.Params,
  rows: Rows,
  state: Decoding,
  until: int | jax.Array,
  law: Law,
  truncation: Truncation,
  eos_ids: tuple[int, ...],
  valid_vocab: int | None,
) -> Decoding:
  """Draws tokens until `until` of them are drawn or every row has ended; inside jit."""

  def draw(state: Decoding) -> Decoding:
    cache = Context(state.cache, jnp.full_like(state.length, state.step), rows.start)
    hidden, kv = model.apply(
      spec, params, state.token[:, None], (rows.start + state.step)[:, None], (rows.prompt, cache)
    )
    token = drawing.draw(
      hidden[:, 0],
      model.head(spec, params),
      sampling.uniforms(rows.keys, state.step),
      law,
      truncation,
      softcap=spec.final_softcap,
      valid_vocab=valid_vocab,
    )
    return _advance(state, token, kv, rows.budget, eos_ids)

  return jax.lax.while_loop(lambda s: jnp.any(s.active) & (s.step < until), draw, state)


def _start(spec: ModelSpec, first: jax.Array, width: int, budget: jax.Array) -> Decoding:
  """The state before the first token. The cache is declared sharded, or it would be replicated."""
  rows = first.shape[0]
  shape = (spec.num_layers, rows, width, spec.num_kv_heads, spec.head_dim)
  cache = KV(*(constrain(jnp.zeros(shape, spec.dtype), *CACHE_AXES) for _ in range(2)))
  zeros = jnp.zeros((rows, width), jnp.float32)
  return Decoding(
    step=jnp.int32(0),
    token=first,
    cache=cache,
    ids=jnp.zeros((rows, width), jnp.int32),
    raw_logp=zeros,
    behaviour_logp=zeros,
    length=jnp.zeros(rows, jnp.int32),
    stopped=jnp.zeros(rows, bool),
    active=budget > 0,
  )


def _advance(state: Decoding, token: Token, kv: KV, budget, eos_ids) -> Decoding:
  """Writes one token of every active row; finished rows write zeros at padding."""
  t = state.step

  def write(array, column):
    column = jnp.where(state.active, column, 0).astype(array.dtype)
    return jax.lax.dynamic_update_slice(array, column[:, None], (0, t))

  cache = jax.tree.map(
    lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, 0, t, 0, 0)),
    state.cache,
    kv,
  )
  length = state.length + state.active
  is_eos = jnp.isin(token.id, jnp.array(eos_ids, jnp.int32)) if eos_ids else jnp.zeros_like(state.active)
  stopped = state.stopped | (state.active & is_eos)
  return Decoding(
    step=t + 1,
    token=token.id,
    cache=cache,
    ids=write(state.ids, token.id),
    raw_logp=write(state.raw_logp, token.raw_logp),
    behaviour_logp=write(state.behaviour_logp, token.behaviour_logp),
    length=length,
    stopped=stopped,
    active=state.active & ~is_eos & (length < budget),
  )
