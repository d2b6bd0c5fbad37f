"""One step of GRPO as a compiled program: as a step of distillation, with another loss and no teacher.

Axis letters: Q questions, B = Q·n rollouts, T completion tokens, N micro-batches of G parts of C tokens.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from opsd_jax.distill import objective, reading, scoring
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.models import lora
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Array, Plan, Prompts, Rollout
from opsd_jax.train import state as states
from opsd_jax.train import surrogate
from opsd_jax.train.state import TrainState
from opsd_jax.train.step import StepReport, accumulate
from opsd_jax.train.surrogate import GrpoConfig


class Batch(NamedTuple):
  """Rollouts and what is known of them before the step.

  Attributes:
    rollout: B rows; one of length 0 is not trained on.
    advantage: float32 [B].
    old: float32 [B, T], log-probs that the ratio is taken to.
    fresh: bool scalar, True to take it to those of this step instead, of which it is then 1.
    reference: float32 [B, T], log-probs by the initial weights, or None.
  """

  rollout: Rollout
  advantage: Array
  old: Array
  fresh: Array
  reference: Array | None


class _Tokens(NamedTuple):
  """The planned tokens, each array [N, G, C]."""

  ids: jax.Array
  weights: jax.Array  # of the global batch, so that the split cannot change the loss
  raw_logp: jax.Array
  real: jax.Array
  advantage: jax.Array
  old: jax.Array
  reference: jax.Array | None


def make_step(
  spec: ModelSpec,
  config: GrpoConfig,
  loss: ObjectiveConfig,
  optimizer: optax.GradientTransformation,
  *,
  valid_vocab: int,
  layout: TrainState | None = None,
  adapters: LoraConfig = LoraConfig(),
) -> Callable[..., tuple[TrainState, StepReport, jax.Array]]:
  """Compiles `(state, prompts, batch, base=None, plan=None) -> (state, report, log-probs [B, T])`.

  The state is donated. The log-probs are those of the weights that it held before, anything on padding. Of
  `loss` the student's temperature and the chunks are used. `layout`, `adapters`, `base` and `plan` are as
  for `step.make_distill_step`.
  """

  def loss_fn(base, fresh, trained, part):
    inputs, token = part
    params = lora.complete(adapters, base, trained)
    with jax.named_scope('student'):  # its LM head among it, which meets the sampled tokens alone
      out = scoring.token_logprobs(spec, loss, valid_vocab, params, inputs, token.ids)
    old = jnp.where(fresh, jax.lax.stop_gradient(out.logp), token.old)
    values, told = surrogate.token_loss(config, out.logp, old, token.advantage, token.reference)
    values = jnp.where(token.real, values, 0.0)
    gap = token.raw_logp - out.logp
    told |= {'token_loss': values, 'student_entropy': out.entropy, 'student_logp': out.logp}
    told |= {'logp_gap': jnp.abs(gap)}
    sums = {name: jnp.sum(jnp.where(token.real, value, 0.0)) for name, value in told.items()}
    return jnp.sum(token.weights * values), jax.lax.stop_gradient((sums, (values, gap, out.logp)))

  def update(state: TrainState, prompts: Prompts, batch: Batch, base=None, plan: Plan | None = None):
    rollout = batch.rollout
    plan = scoring.everything(prompts, rollout, views=0) if plan is None else plan
    inputs = reading.prepare(plan.student, plan.origin.shape[0], prompts, rollout)
    tokens = _planned(batch, plan.origin, config.reduction)
    loss_of = functools.partial(loss_fn, base, batch.fresh)
    (total, sums, grads), rows = accumulate(loss_of, state.params, (inputs, tokens))
    state, norms, stepped = states.step(state, grads, total, optimizer, TeacherConfig())
    per_token = jax.tree.map(lambda x: reading.scatter(x, plan.origin, rollout.ids.shape), rows)
    report = StepReport(total, norms, stepped, sums, jnp.sum(rollout.length), *per_token[:2])
    return state, report, per_token[2]

  if layout is None:
    return jax.jit(update, donate_argnums=0)
  return jax.jit(update, donate_argnums=0, out_shardings=(layout, None, None))


def _planned(batch: Batch, origin: jax.Array, reduction: str) -> _Tokens:
  """What is known of each planned token before the student reads it."""
  rollout = batch.rollout
  weights = objective.token_weights(rollout.length, rollout.ids.shape[1], reduction)
  advantage = jnp.broadcast_to(batch.advantage[:, None], rollout.ids.shape)
  known = _Tokens(rollout.ids, weights, rollout.raw_logp, rollout.mask, advantage, batch.old, batch.reference)
  return jax.tree.map(lambda x: reading.gather(x, origin), known)
