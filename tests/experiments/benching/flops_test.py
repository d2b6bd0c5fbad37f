"""Matrix products counted by hand and by the compiler, loops included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benching import flops

A, B = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)


def compiled(function, *arguments):
  return jax.jit(function).lower(*arguments).compile().cost_analysis()['flops']


def test_products_by_hand_and_by_the_compiler():
  assert flops.count(jnp.matmul, A, B) == 2 * 3 * 4 * 5 == compiled(jnp.matmul, A, B)
  batched = jax.ShapeDtypeStruct((7, 3, 4), jnp.float32)
  assert flops.count(lambda a, b: jnp.einsum('nij,jk->nik', a, b), batched, B) == 7 * 120


def test_a_loop_counts_every_trip_and_a_branch_the_longer():
  def loop(a):
    return jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=6)[0]

  square = np.ones((3, 3), np.float32)
  assert flops.count(loop, square) == 6 * 2 * 27
  assert flops.count(jax.jit(lambda a: jax.lax.fori_loop(0, 5, lambda _, x: x @ a, a)), square) == 5 * 54
  assert flops.count(lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a), square) == 2 * 54


def test_gradients_and_what_is_computed_again_for_them():
  def loss(a, b):
    return jnp.sum(jnp.sin(jax.checkpoint(lambda x: jnp.sin(x @ b))(a)))

  # Forward, again, and a product for each of the two gradients.
  assert flops.count(jax.grad(loss, (0, 1)), A, B) == 4 * 120


def test_a_loop_of_unknown_length_is_refused():
  def loop(a):
    return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, a)

  with pytest.raises(ValueError, match='number of its trips'):
    flops.count(loop, np.ones((3, 3), np.float32))
