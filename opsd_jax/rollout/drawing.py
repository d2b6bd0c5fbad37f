"""STUB"""
from typing import NamedTuple
import dataclasses, functools
import jax, jax.numpy as jnp, numpy as np
from opsd_jax.models.attention import soft_cap
from opsd_jax.rollout import sampling
from opsd_jax.rollout.config import SamplingConfig
class Law(NamedTuple):
  temperature: jax.Array
  top_p: jax.Array
  min_p: jax.Array
  loss_temperature: jax.Array
@dataclasses.dataclass(frozen=True)
class Truncation:
  config: SamplingConfig
class Token(NamedTuple):
  id: jax.Array
  raw_logp: jax.Array
  behaviour_logp: jax.Array
def law_of(c, loss_temperature): return Law(*map(np.float32,(c.temperature,c.top_p,c.min_p,loss_temperature)))
def truncation_of(c): return Truncation(c)
def draw(hidden, head, uniform, law, truncation, *, softcap, valid_vocab):
  config = truncation.config
  logits = jnp.einsum('bd,vd->bv', hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
  logits = soft_cap(logits, softcap)
  if valid_vocab is not None and valid_vocab < head.shape[0]:
    logits = jnp.where(jnp.arange(head.shape[0])[None, :] < valid_vocab, logits, -jnp.inf)
  behaviour = sampling.truncate(logits, config)
  if config.temperature == 0:
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  else:
    token = sampling.inverse_cdf(behaviour, uniform)
  at = functools.partial(jnp.take_along_axis, indices=token[:, None], axis=1)
  raw = jax.nn.log_softmax(logits / law.loss_temperature, axis=-1)
  return Token(token, at(raw)[:, 0], at(behaviour)[:, 0])
