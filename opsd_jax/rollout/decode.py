"""Prefill once a question, then one compiled loop for all its rollouts.

Axis letters: Q questions, n rollouts of each, B = Q·n rows, P prompt tokens, T token budget.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Rollout, Sampled
from opsd_jax.rollout import cache as caches
from opsd_jax.rollout import drawing, layout, sampling, slots
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig


class Counters(NamedTuple):
  """What randomness is counted by, beside problem and position."""

  seed: np.uint32
  step: np.uint32


class Setting(NamedTuple):
  """What a sampler is compiled for; hashable."""

  spec: ModelSpec
  truncation: drawing.Truncation
  max_tokens: int
  eos_ids: tuple[int, ...]
  per_question: int
  valid_vocab: int | None
  config: DecodeConfig


def generate(
  spec: ModelSpec, params: model.Params, prompts: Prompts, config: SamplingConfig, **more
) -> Rollout:
  """The rollouts of `sample`, which says what the arguments are."""
  return sample(spec, params, prompts, config, **more).rollout


def sample(
  spec: ModelSpec,
  params: model.Params,
  prompts: Prompts,
  config: SamplingConfig,
  *,
  eos_ids: tuple[int, ...],
  per_question: int = 1,
  seed: int = 0,
  step: int = 0,
  loss_temperature: float = 1.0,
  valid_vocab: int | None = None,
  max_tokens: np.ndarray | jax.Array | None = None,
  decode: DecodeConfig = DecodeConfig(),
) -> Sampled:
  """Samples `per_question` continuations of every prompt.

  A row's tokens depend on (seed, step, problem id, rollout index) and its prompt alone: neither its
  slot nor its batch-mates matter. In one compiled shape the row is the same bit by bit, except where
  `decode.compact` makes shapes depend on how many rows are left.

  Args:
    spec: the model's shape.
    params: parameter tree, already sharded.
    prompts: Q right-padded prompts.
    config: temperature, truncation and token budget. A new temperature, top-p or min-p compiles nothing.
    eos_ids: ids that end a row; each is kept as the row's last token.
    per_question: rollouts n of each prompt.
    seed: of the run.
    step: counts draws within a run (the update, or the evaluation round), and is the rows' `policy_version`.
    loss_temperature: temperature of `raw_logp`.
    valid_vocab: ids at and beyond it are never drawn.
    max_tokens: int32 [B] budgets of single rows, at most `config.max_tokens`; None for that maximum.
    decode: how many rows are decoded at a time, and in what memory.

  Returns:
    A Rollout of B = Q·per_question rows, row b from prompt b // per_question, T = config.max_tokens, and
    what it took.
  """
  setting = setting_of(spec, config, eos_ids, per_question, valid_vocab, decode)
  rollout, computed = _sample(
    setting,
    layout.for_decoding(spec, params),
    prompts,
    budgets(prompts, per_question, config, max_tokens),
    Counters(np.uint32(seed), np.uint32(step)),
    drawing.law_of(config, loss_temperature),
  )
  return Sampled(rollout, prompts.ids.shape[0] * max(prompts.ids.shape[1] - 1, 1), computed)


def setting_of(
  spec: ModelSpec,
  config: SamplingConfig,
  eos_ids: tuple[int, ...],
  per_question: int,
  valid_vocab: int | None,
  decode: DecodeConfig,
) -> Setting:
  """What of the arguments of `sample` a program is compiled for."""
  truncation = drawing.truncation_of(config)
  return Setting(spec, truncation, config.max_tokens, eos_ids, per_question, valid_vocab, decode)


def budgets(
  prompts: Prompts, per_question: int, config: SamplingConfig, max_tokens: np.ndarray | jax.Array | None
) -> np.ndarray:
  """int32 [B], tokens that every row may have: `max_tokens` [B] where given, `config.max_tokens` at most.

  Raises:
    ValueError: there is not one for each row.
  """
  rows = prompts.ids.shape[0] * per_question
  asked = np.full(rows, config.max_tokens) if max_tokens is None else np.asarray(max_tokens)
  if asked.shape != (rows,):
    raise ValueError(f'max_tokens has shape {asked.shape}; it must have one number for each of {rows} rows.')
  return np.minimum(asked, config.max_tokens).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _sample(setting, params, prompts, budget, counters, law) -> tuple[Rollout, jax.Array]:
  requests, state = begin(setting, params, prompts, budget, counters)
  state = slots.run(sampler_of(setting, params, law), requests, state, setting.config.compact)
  w = state.written
  rollout = Rollout(
    ids=w.ids,
    length=w.length,
    stopped=w.stopped,
    raw_logp=w.raw_logp,
    behaviour_logp=w.behaviour_logp,
    rollout_index=rollout_index(prompts, setting.per_question),
    policy_version=jnp.full_like(w.length, counters.step.astype(jnp.int32)),
  )
  return rollout, state.computed


def sampler_of(setting: Setting, params: model.Params, law: drawing.Law) -> slots.Sampler:
  """What the loop takes; inside jit."""
  s = setting
  return slots.Sampler(s.spec, params, law, s.truncation, s.eos_ids, s.valid_vocab, s.config.slots is None)


@jax.named_scope('prefill')
def begin(
  setting: Setting, params: model.Params, prompts: Prompts, budget: jax.Array, counters: Counters
) -> tuple[slots.Requests, slots.State]:
  """Reads the prompts: what stays for every request, and the state before the first token; inside jit."""
  spec, questions = setting.spec, prompts.ids.shape[0]
  prompt = model.read_prompts(spec, params, prompts.ids, prompts.length)
  repeat = functools.partial(jnp.repeat, repeats=setting.per_question)
  index = rollout_index(prompts, setting.per_question)
  keys = sampling.row_keys(counters.seed, counters.step, repeat(prompts.problem_id), index)
  # As the cache keeps them: once, and not whenever a slot takes one.
  prompt = prompt.replace(kv=caches.kept(prompt.kv, setting.config.cache))
  requests = slots.Requests(prompt, model.last_token(prompts.ids, prompts.length), keys, budget)
  shards = _shards()
  groups = shards if questions % shards == 0 else 1
  return requests, slots.start(spec, requests, setting.config, setting.max_tokens, groups)


def _shards() -> int:
  """Parts that rows are split into, by the mesh that is set."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else meshes.row_shards(mesh)


def rollout_index(prompts: Prompts, per_question: int) -> jax.Array:
  """int32 [B], which of its question's rollouts each row is."""
  return jnp.tile(jnp.arange(per_question, dtype=jnp.int32), prompts.ids.shape[0])
