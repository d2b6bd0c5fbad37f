"""Passes over the vocabulary once the normalisers are known: sums of entries, and gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels import logits as lib
from kernels import tiles
from kernels.linear_divergence import columns, reference
from kernels.linear_divergence.parts import Inputs, Norm, Outcome, Plan, make_tile
from kernels.linear_divergence.spec import DivergenceSpec


class Entries(NamedTuple):
  """Sums over the entries of the full vocabulary, [B, T].

  Attributes:
    loss: sum of the clipped entries.
    changed: number of those that clipping changed.
    gamma: sum of their derivatives to log q.
    pull: gradient [B, T, D] of the loss to the student's hidden state, this device's share; None if not
      asked for.
  """

  loss: jax.Array
  changed: jax.Array
  gamma: jax.Array
  pull: jax.Array | None


def sum_entries(plan: Plan, inputs: Inputs, norms: tuple[Norm, Norm], pulled: bool) -> Entries:
  """Sums that need both normalisers for every entry, such as clipped ones and the JSD's."""
  dtype = lib.at_least_float32(inputs.student.dtype)
  zeros = jnp.zeros(inputs.targets.shape, dtype)
  wide = jnp.zeros((*zeros.shape, inputs.student.shape[-1]), dtype) if pulled else None

  def body(carry, start, size):
    loss, changed, gamma, own, mean = carry
    tile = make_tile(plan, inputs, start, size, True, True)
    log_q = norms[0].log(tile.student)
    values, clipped, slopes = _entries(plan, norms[1].log(tile.teacher), log_q)
    loss += tile.masked(clipped).sum(-1)
    changed += tile.masked((clipped != values).astype(dtype)).sum(-1)
    slopes = tile.masked(slopes)
    gamma += slopes.sum(-1)
    if pulled:
      pull = lambda x: tiles.contract('btv,vd->btd', x * tile.slope, tile.head)  # noqa: E731
      own, mean = own + pull(slopes), mean + pull(jnp.exp(log_q))
    return loss, changed, gamma, own, mean

  sums = tiles.sweep(body, (zeros, zeros, zeros, wide, wide), plan.size, plan.tile)
  loss, changed, gamma = (tiles.total(x, plan.axes) for x in sums[:3])
  own, mean = sums[3:]
  if pulled:
    own = (own - gamma[..., None] * mean) / plan.spec.student_temperature
  return Entries(loss, changed, gamma, own)


def _entries(plan: Plan, log_p: jax.Array, log_q: jax.Array):
  """Entries, the same clipped, and the derivatives of these to log q."""
  values, slopes = _values_and_slopes(plan.spec, log_p, log_q)
  clipped, back = jax.vjp(lambda values: reference.clip(values, plan.spec), values)
  return values, clipped, back(slopes)[0]


def _values_and_slopes(
  spec: DivergenceSpec, log_p: jax.Array, log_q: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`reference.entries` and their derivatives to log q, in as few operations as their kind allows."""
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  if spec.kind == 'jsd':
    # Both probabilities may be 0 in this type; their entry is, too.
    mixed = jnp.maximum(spec.beta * p + (1 - spec.beta) * q, jnp.finfo(p.dtype).tiny)
    log_m = jnp.log(mixed)
    slopes = (1 - spec.beta) * q * (log_q - log_m)
    return spec.beta * p * (log_p - log_m) + slopes, slopes
  gap = log_q - log_p
  forward, reverse = (-p * gap, -p), (q * gap, q * (gap + 1))
  if spec.kind == 'both_kl':
    mix = lambda a, b: spec.beta * a + (1 - spec.beta) * b  # noqa: E731
    return mix(forward[0], reverse[0]), mix(forward[1], reverse[1])
  return forward if spec.kind == 'forward_kl' else reverse


def gradients(
  plan: Plan, inputs: Inputs, outcome: Outcome, weight: jax.Array, hidden: bool
) -> tuple[jax.Array | None, jax.Array]:
  """Gradients [B, T, D] of the student's hidden states and [V, D] of its head.

  An entry of the loss is differentiated to its log-probability; the normaliser takes from every logit
  its probability times the sum of these derivatives.

  Args:
    plan: how the vocabulary is cut.
    inputs: arrays of the call.
    outcome: of the forward pass; without a teacher's normaliser the derivatives are those at the support.
    weight: [B, T], the loss's own derivative.
    hidden: whether the hidden states' gradient is asked for.
  """
  norms, gamma, sparse, _ = outcome
  dtype = lib.at_least_float32(inputs.student.dtype)
  weight = weight / plan.spec.student_temperature
  head_gradient = jnp.zeros(inputs.student_head.shape, inputs.student_head.dtype)
  own = jnp.zeros(inputs.student.shape, dtype) if hidden else None

  def body(carry, start, size):
    own, head_gradient = carry
    tile = make_tile(plan, inputs, start, size, True, norms[1] is not None)
    log_q = norms[0].log(tile.student)
    level = -jnp.exp(log_q) * gamma[..., None]
    if norms[1] is not None:
      level += _entries(plan, norms[1].log(tile.teacher), log_q)[2]
    if sparse is not None:
      level += columns.dense(sparse.values, sparse.ids, tile.ids)
    # In the type of the hidden states, as `kernels.logits.project` has it.
    level = tile.masked(level * tile.slope * weight[..., None]).astype(inputs.student.dtype)
    if hidden:
      own += tiles.contract('btv,vd->btd', level, tile.head)
    part = tiles.contract('btv,btd->vd', level, inputs.student).astype(head_gradient.dtype)
    return own, jax.lax.dynamic_update_slice_in_dim(head_gradient, part, start, 0)

  own, head_gradient = tiles.sweep(body, (own, head_gradient), plan.size, plan.tile)
  if hidden:
    own = tiles.total(own, plan.axes).astype(inputs.student.dtype)
  return own, head_gradient
