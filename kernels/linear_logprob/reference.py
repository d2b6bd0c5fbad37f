"""Log-probabilities of given tokens by definition, on whole logits."""

import dataclasses

import jax
import jax.numpy as jnp

from kernels import logits as lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogProb:
  """Per-token results, each float32 [B, T].

  Attributes:
    logp: log-probability of the target, in nats; differentiable.
    entropy: entropy of the distribution, in nats; no gradient.
    correct: 1 where the target is the most probable token.
  """

  logp: jax.Array
  entropy: jax.Array
  correct: jax.Array


def linear_logprob(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  *,
  temperature: float,
  softcap: float | None,
  valid_vocab: int | None,
  chunk_tokens: int,
) -> LogProb:
  """`api.linear_logprob` with all logits held at once; `chunk_tokens` has no effect."""
  del chunk_tokens
  return logprob_from_logits(lib.project(hidden, head), targets, temperature, softcap, valid_vocab)


def logprob_from_logits(
  logits: jax.Array,
  targets: jax.Array,
  temperature: float = 1.0,
  softcap: float | None = None,
  valid_vocab: int | None = None,
) -> LogProb:
  """Log-probabilities of `targets` [...] under `logits` [..., V]; see `api.linear_logprob`."""
  logits = lib.shape(logits, temperature, softcap, valid_vocab)
  log_q = jax.nn.log_softmax(logits)
  finite = jax.lax.stop_gradient(lib.on_valid(log_q, valid_vocab))
  return LogProb(
    logp=lib.at_targets(log_q, targets),
    # Padding has log 0 here, so that it adds 0 rather than 0 · -inf.
    entropy=-(jnp.exp(finite) * finite).sum(-1),
    correct=(jnp.argmax(logits, axis=-1) == targets).astype(log_q.dtype),
  )
