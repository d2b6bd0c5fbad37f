"""STUB, old layout"""

import jax
import jax.numpy as jnp

from opsd_jax.mesh import constrain
from opsd_jax.models.transformer import KV

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
  return jax.tree.map(
    lambda c, n: jax.vmap(
      lambda c, n, t: jax.lax.dynamic_update_slice(c, n.astype(c.dtype), (0, 0, t, 0)), (1, 1, 0), 1
    )(c, n, column),
    cache,
    kv,
  )


def place(cache, prompts, question, slot):
  g = question.shape[0]

  def one(c, p):
    L, S = c.shape[:2]
    cg = c.reshape(L, g, S // g, *c.shape[2:])
    pg = p.reshape(L, g, -1, *p.shape[2:])
    f = lambda c, p, q, s: c.at[:, s, :, : p.shape[3]].set(p[:, q].astype(c.dtype), mode='drop')
    return jax.vmap(f, (1, 1, 0, 0), 1)(cg, pg, question, slot).reshape(c.shape)

  return jax.tree.map(one, cache, prompts)


def gather(cache, order):
  g, s = order.shape

  def one(c):
    L = c.shape[0]
    cg = c.reshape(L, g, -1, *c.shape[2:])
    return jax.vmap(lambda c, o: c[:, o], (1, 0), 1)(cg, order).reshape(L, g * s, *c.shape[2:])

  return jax.tree.map(one, cache)
