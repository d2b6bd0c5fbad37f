"""Log-probabilities over chunks of time: one chunk's logits at a time, recomputed backward."""

import jax

from kernels import chunks, logits
from kernels.linear_logprob.reference import LogProb, logprob_from_logits


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
  """`api.linear_logprob` that holds logits of about `chunk_tokens` positions at a time."""

  def body(hidden_chunk, target_chunk):
    values = logits.project(hidden_chunk, head)
    return logprob_from_logits(values, target_chunk, temperature, softcap, valid_vocab)

  return chunks.map_time(body, (hidden, targets), chunk_tokens)
