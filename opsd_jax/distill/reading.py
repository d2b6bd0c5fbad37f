"""Hidden states of the planned tokens: what a `Plan` says, done on the devices.

Axis letters: Q questions, B rollouts, P prompt and T completion tokens, N micro-batches of R rows of S
tokens, G parts along the mesh's rows, C projected tokens of a part, D width.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from opsd_jax.mesh import constrain
from opsd_jax.models import model
from opsd_jax.models.attention import Segments
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Reading, Rollout


@flax.struct.dataclass
class Inputs:
  """What one model reads, each array [N, ...]; a micro-batch is one entry of all of them.

  Attributes:
    tokens: rows: prompt ids [N, Q / N, P], their lengths [N, Q / N] and completion ids [N, B / N, T];
      packed: ids [N, R, S], their positions and segments.
    at: `Reading.at`.
  """

  tokens: tuple[Any, ...]
  at: jax.Array | None


def prepare(reading: Reading, parts: int, prompts: Prompts, rollout: Rollout) -> Inputs:
  """The ids of every micro-batch, from the prompts of one role and the rollouts as they were sampled."""
  packed = reading.rows
  if packed is None:
    whole = prompts.ids, prompts.length, rollout.ids
    return Inputs(split(whole, parts, prompts.ids.shape[0]), reading.at)
  ids = jnp.concatenate([prompts.ids.ravel(), rollout.ids.ravel()])
  tokens = constrain(ids[packed.source], None, 'batch', 'length')
  return Inputs((tokens, packed.position, Segments(packed.group, packed.branch)), reading.at)


def states(spec: ModelSpec, params: model.Params, inputs: Inputs) -> jax.Array:
  """[G, C, D] of one micro-batch: the states that predict its tokens, in the plan's order."""
  if len(inputs.tokens) == 3 and isinstance(inputs.tokens[2], Segments):
    tokens, positions, segments = inputs.tokens
    hidden, _ = model.apply(spec, params, tokens, positions, keep_kv=False, segments=segments)
  else:
    hidden = model.continuation_hidden(spec, params, *inputs.tokens)
  if inputs.at is None:
    return hidden
  # Each part of the mesh's rows takes its own, so that nothing is sent.
  own = hidden.reshape(inputs.at.shape[0], -1, hidden.shape[-1])
  own = constrain(own, 'batch', 'length', 'activation')
  taken = jnp.take_along_axis(own, inputs.at[:, :, None], axis=1)
  return constrain(taken, 'batch', 'length', 'activation')


def split(tree: Any, parts: int, groups: int) -> Any:
  """[groups·n, ...] -> [parts, groups·n / parts, ...], question by question.

  Strided, so that each part takes questions from every shard of the rows.
  """

  def one(x):
    grouped = x.reshape(groups // parts, parts, -1, *x.shape[1:])
    return jnp.swapaxes(grouped, 0, 1).reshape(parts, -1, *x.shape[1:])

  return jax.tree.map(one, tree)


def gather(values: jax.Array, origin: jax.Array) -> jax.Array:
  """[B, T] -> [N, G, C], 0 on padding."""
  taken = jnp.take(values.ravel(), origin, mode='fill', fill_value=0)
  return constrain(taken, None, 'batch', 'length')


def scatter(values: jax.Array, origin: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """The inverse of `gather`, 0 where nothing was planned: [N, G, C, ...] -> [B, T, ...]."""
  rest = values.shape[origin.ndim :]
  flat = jnp.zeros((shape[0] * shape[1], *rest), values.dtype)
  filled = flat.at[origin.ravel()].set(values.reshape(-1, *rest), mode='drop')
  return filled.reshape(*shape, *rest)
