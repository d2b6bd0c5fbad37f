"""Entry point of token log-probabilities from an output layer; picks an implementation by name."""

import jax

from kernels import checks
from kernels.linear_logprob import chunked, reference
from kernels.linear_logprob.reference import LogProb

__all__ = ['IMPLEMENTATIONS', 'LogProb', 'linear_logprob']

IMPLEMENTATIONS = {'reference': reference.linear_logprob, 'chunked': chunked.linear_logprob}
_DEFAULT = 'chunked'


def linear_logprob(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  *,
  temperature: float = 1.0,
  softcap: float | None = None,
  valid_vocab: int | None = None,
  chunk_tokens: int = 1024,
  implementation: str | None = None,
) -> LogProb:
  """Log-probability, entropy and hit of given tokens under softmax(head · hidden).

  Args:
    hidden: [B, T, D].
    head: [V, D]; rows are vocabulary entries. It may be wider than `hidden` (float32 against
      bfloat16): it is used in the type of `hidden`, its gradient is summed in its own.
    targets: [B, T] integer ids in 0..valid_vocab - 1, also where the caller masks the position.
    temperature: divides the logits.
    softcap: c in c·tanh(logits / c), applied before the temperature, or None.
    valid_vocab: ids at and beyond it are padding of the head and have probability 0, or None.
    chunk_tokens: positions, over the whole batch, whose logits are held at once.
    implementation: a key of `IMPLEMENTATIONS`, or None for the default.

  Returns:
    Results [B, T], float32 (float64 for float64 inputs).

  Raises:
    ValueError: a setting or a shape that cannot work; the message has the remedy.
  """
  name = _DEFAULT if implementation is None else implementation
  checks.choice('implementation', name, IMPLEMENTATIONS)
  checks.chunk_tokens(chunk_tokens)
  checks.hidden_and_head('', hidden, head)
  checks.targets_like(targets, hidden, 'hidden')
  checks.temperature('temperature', temperature)
  checks.softcap('softcap', softcap)
  checks.valid_vocab(valid_vocab, head.shape[0])
  return IMPLEMENTATIONS[name](
    hidden,
    head,
    targets,
    temperature=temperature,
    softcap=softcap,
    valid_vocab=valid_vocab,
    chunk_tokens=chunk_tokens,
  )
