"""STUB, old layout"""

import jax
import jax.numpy as jnp

from opsd_jax.mesh import constrain
from opsd_jax.models.transformer import KV
from opsd_jax.rollout import rows

AXES = ('layers', 'batch', 'kv_heads', 'length', 'head_dim')
CHUNK = None


def dtype_of(spec, name):
  return spec.dtype


def pin(x):
  return constrain(x, *AXES)


def empty(spec, rows, width, dtype):
  shape = (spec.num_layers, rows, spec.num_kv_heads, width, spec.head_dim)
  return KV(*(pin(jnp.zeros(shape, dtype)) for _ in range(2)))


def write(cache, kv, column):
  return rows.write(cache, kv, column)


def place(cache, prompts, question, slot):
  return rows.place(cache, prompts, question, slot)


def gather(cache, order):
  g, s = order.shape

  def one(c):
    L = c.shape[0]
    cg = c.reshape(L, g, -1, *c.shape[2:])
    return jax.vmap(lambda c, o: c[:, o], (1, 0), 1)(cg, order).reshape(L, g * s, *c.shape[2:])

  return jax.tree.map(one, cache)
