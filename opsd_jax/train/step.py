"""One update as one compiled program: micro-batches, global denominators, one optimiser step.

Axis letters: Q questions, B = Q·n rollouts, T completion tokens, M teacher views, D hidden width, N
micro-batches of G parts of C tokens (`records.Plan`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from kernels.linear_logprob.api import linear_logprob
from opsd_jax.distill import correction, extrapolated, objective, reading, scoring, teachers
from opsd_jax.distill.config import ObjectiveConfig, Softcaps, TeacherConfig
from opsd_jax.mesh import constrain
from opsd_jax.models import lora, model
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Plan, Prompts, Rollout, TeacherScores, length_mask
from opsd_jax.train import state as states
from opsd_jax.train.state import TrainState


@flax.struct.dataclass
class StepReport:
  """What an update tells the host.

  Attributes:
    loss: scalar, of the global batch.
    norms: scalars `grad_norm`, global and before clipping, and `update_norm`, of the change of the weights.
    stepped: bool scalar, False where the loss, the gradient or the step was not finite.
    sums: statistics summed over the batch's tokens.
    tokens: number of tokens in those sums.
    token_loss: float32 [B, T], 0 on padding; None where it was not asked for.
    logp_gap: float32 [B, T], the sampler's minus the scorer's log-prob of every sampled token, anything on
      padding; None where the objective has no statistics.
  """

  loss: jax.Array
  norms: dict[str, jax.Array]
  stepped: jax.Array
  sums: dict[str, jax.Array]
  tokens: jax.Array
  token_loss: jax.Array | None
  logp_gap: jax.Array | None = None


def accumulate(loss_fn: Callable[..., Any], params: model.Params, parts: Any):
  """Sums of loss, statistics and gradients over micro-batches, and their stacked per-row outputs.

  `loss_fn(params, part)` returns (loss, (sums, rows)); its weights are already those of the global
  batch, so plain sums are exact whatever the split.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def body(total, part):
    (loss, (sums, rows)), grads = grad_fn(params, part)
    return jax.tree.map(jnp.add, total, (loss, sums, grads)), rows

  shape = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts))
  (loss, (sums, _)), grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
  return jax.lax.scan(body, (loss, sums, grads), parts)


def make_distill_step(
  spec: ModelSpec,
  config: ObjectiveConfig,
  teacher: TeacherConfig,
  optimizer: optax.GradientTransformation,
  *,
  valid_vocab: int,
  layout: TrainState | None = None,
  adapters: LoraConfig = LoraConfig(),
) -> Callable[..., tuple[TrainState, StepReport]]:
  """Compiles the update `(state, prompts, rollout, scores, frozen_head, ...) -> (state, report)`.

  After these come `base=None`, `plan=None`, `sample_weights=None` and `initial=None`.

  The state is donated, so the head of an EMA or live teacher is taken from it inside the program;
  `frozen_head` is [V, D] for a frozen teacher, [V, Dt] for an external one, else None. `layout` holds the
  state's shardings, which the new state keeps; None leaves them to the compiler. There must be one teacher
  view. `plan` is the one that the scores were made by; None for all positions in one micro-batch.
  `sample_weights` [B], of the global batch, multiply the weights of each sample's tokens; None for 1.
  `initial` [B, T] are log-probs of the sampled tokens by the initial weights, where `config.extrapolation` is
  not 1. `scores` are None where the estimator needs no teacher (`nll`).

  With `adapters` the state's parameters are those alone and `base` is what they stand beside: an
  argument that is neither donated nor differentiated. Student and teacher then share its head, and
  `frozen_head` is None, but for an external teacher.
  """
  softcaps = Softcaps(spec.final_softcap, teachers.spec_for(teacher, spec).final_softcap)

  def loss_fn(base, teacher_head, trained, part):
    inputs, token, scores = part
    params = lora.complete(adapters, base, trained)
    with jax.named_scope('student'):
      hidden = reading.states(spec, params, inputs)
    with jax.named_scope('loss'):
      return token_losses(hidden, teacher_head, params, token, scores)

  def token_losses(hidden, teacher_head, params, token, scores):
    head = constrain(model.head(spec, params), 'vocab', None)  # gathered over fsdp once, not once a chunk
    if config.estimator == 'nll':
      loss, known = objective.imitate(hidden, head, token.ids, config, valid_vocab, spec.final_softcap)
      loss = jnp.where(token.real, loss, 0.0)
      sums = {k: jnp.sum(jnp.where(token.real, v, 0.0)) for k, v in ({'token_loss': loss} | known).items()}
      return jnp.sum(token.weights * loss), jax.lax.stop_gradient((sums, (loss, None)))
    corrected = config.correction != 'none'  # by factors that the comparison itself brings
    known = None if corrected else token.weights
    compared = hidden, head, scores, teacher_head, token.ids
    if token.initial is None:
      loss, out = objective.compare(*compared, config, valid_vocab, softcaps, known)
    else:
      loss, out = extrapolated.compare(*compared, token.initial, config, valid_vocab, softcaps)
    loss = jnp.where(token.real, loss, 0.0)
    sums = objective.statistics(loss, out, token.real, token.raw_logp, config.token_clip)
    weights = token.weights
    if corrected:
      factors = correction.factors(config, out.student_logp, token.raw_logp)
      weights, sums = weights * factors, sums | correction.statistics(config, factors, token.real)
    gap = None if out.student_logp is None else token.raw_logp - out.student_logp
    return jnp.sum(weights * loss), jax.lax.stop_gradient((sums, (loss, gap)))

  def update(
    state: TrainState,
    prompts: Prompts,
    rollout: Rollout,
    scores: TeacherScores | None,
    frozen_head,
    base=None,
    plan: Plan | None = None,
    sample_weights: jax.Array | None = None,
    initial: jax.Array | None = None,
  ):
    if scores is not None and scores.hidden.shape[0] != 1:
      raise ValueError(
        f'the objective compares with 1 teacher view, but {scores.hidden.shape[0]} were scored.'
      )
    plan = scoring.everything(prompts, rollout) if plan is None else plan
    inputs = reading.prepare(plan.student, plan.origin.shape[0], prompts, rollout)
    tokens = _planned(rollout, plan.origin, config.reduction, sample_weights, initial)
    averaged = teacher.kind == 'ema' and not adapters.rank
    teacher_head = model.head(spec, state.teacher) if averaged else frozen_head
    if teacher_head is not None:
      teacher_head = constrain(teacher_head, 'vocab', None)
    loss_of = functools.partial(loss_fn, base, teacher_head)
    taught = None if scores is None else scores.hidden[0]
    (loss, sums, grads), rows = accumulate(loss_of, state.params, (inputs, tokens, taught))
    state, norms, stepped = states.step(state, grads, loss, optimizer, teacher)
    # The loss, and the sampler's gap.
    per_token = jax.tree.map(lambda x: reading.scatter(x, plan.origin, rollout.ids.shape), rows)
    return state, StepReport(loss, norms, stepped, sums, jnp.sum(rollout.length), *per_token)

  return _compile(update, layout)


class _Tokens(NamedTuple):
  """The planned tokens, each array [N, G, C]."""

  ids: jax.Array
  weights: jax.Array  # of the global batch, so that the split cannot change the loss
  raw_logp: jax.Array
  real: jax.Array
  initial: jax.Array | None  # log-probs by the initial weights, where the objective asks for them


def _planned(
  rollout: Rollout,
  origin: jax.Array,
  reduction: str,
  sample_weights: jax.Array | None,
  initial: jax.Array | None,
) -> _Tokens:
  """What is known of each planned token before the student reads it."""
  weights = objective.token_weights(rollout.length, rollout.ids.shape[1], reduction)
  if sample_weights is not None:
    weights = weights * sample_weights[:, None]
  known = _Tokens(rollout.ids, weights, rollout.raw_logp, rollout.mask, initial)
  return jax.tree.map(lambda x: reading.gather(x, origin), known)


def _compile(update: Callable[..., Any], layout: TrainState | None) -> Callable[..., Any]:
  """The update as one program that reuses the memory of the state it is given."""
  if layout is None:
    return jax.jit(update, donate_argnums=0)
  return jax.jit(update, donate_argnums=0, out_shardings=(layout, None))


def make_supervised_step(
  spec: ModelSpec,
  optimizer: optax.GradientTransformation,
  *,
  valid_vocab: int,
  chunk_tokens: int = 1024,
  layout: TrainState | None = None,
) -> Callable[..., tuple[TrainState, StepReport]]:
  """Compiles `(state, prompts, ids [B, T], length [B]) -> (state, report)`: cross-entropy of completions.

  `layout` is as for `make_distill_step`.
  """

  def loss_fn(params, prompts, ids, mask):
    with jax.named_scope('student'):
      hidden = model.continuation_hidden(spec, params, prompts.ids, prompts.length, ids)
    with jax.named_scope('loss'):
      out = linear_logprob(
        hidden,
        constrain(model.head(spec, params), 'vocab', None),
        ids,
        softcap=spec.final_softcap,
        valid_vocab=valid_vocab,
        chunk_tokens=chunk_tokens,
      )
    count = jnp.maximum(jnp.sum(mask), 1)
    sums = {'token_loss': -out.logp, 'student_entropy': out.entropy, 'greedy_hit': out.correct}
    sums = {k: jnp.sum(jnp.where(mask, v, 0.0)) for k, v in sums.items()}
    return sums['token_loss'] / count, jax.lax.stop_gradient(sums)

  def update(state: TrainState, prompts: Prompts, ids: jax.Array, length: jax.Array):
    mask = length_mask(length, ids.shape[1])
    (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, prompts, ids, mask)
    state, norms, stepped = states.step(state, grads, loss, optimizer, TeacherConfig())
    return state, StepReport(loss, norms, stepped, sums, jnp.sum(length), None)

  return _compile(update, layout)
