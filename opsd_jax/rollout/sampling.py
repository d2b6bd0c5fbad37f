"""Counted randomness: one uniform number a token, whatever slot and batch-mates a row has.

Axis letters: B rows.
"""

import jax
import jax.numpy as jnp


def row_keys(seed: int, step: jax.Array, problem_id: jax.Array, rollout_index: jax.Array) -> jax.Array:
  """One key a row from (seed, step, problem, rollout): no slot or batch-mate enters.

  Args:
    seed: of the run.
    step: uint32 scalar.
    problem_id: uint32 [B].
    rollout_index: int32 [B].
  """
  base = jax.random.fold_in(jax.random.key(seed), step)
  by_problem = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, problem_id)
  return jax.vmap(jax.random.fold_in)(by_problem, rollout_index)


def uniforms(keys: jax.Array, position: jax.Array) -> jax.Array:
  """float32 [B] in [0, 1): the one random number of each row at its `position`, int32 [B] or one for all."""
  at = jnp.broadcast_to(position, keys.shape)
  return jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)))(keys, at)
