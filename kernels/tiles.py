"""Sweeps over tiles of the vocabulary, so that nothing as large as [B, T, V] exists."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from kernels import logits as lib

Carry = TypeVar('Carry')

WIDTH = 2048  # At least a matrix unit's worth of work for each byte of the sums that a tile rewrites.
_LANES = 128


def width(rows: int, vocab: int, chunk_tokens: int) -> int:
  """Vocabulary entries of a tile: as many as `rows` may hold in the room of `chunk_tokens` whole rows.

  Never above `WIDTH`, nor below 128; a vocabulary of twice `WIDTH` still is one tile if it may be.
  """
  room = chunk_tokens * vocab // max(1, rows)
  if vocab <= max(_LANES, min(room, 2 * WIDTH)):
    return vocab
  return max(_LANES, min(room, WIDTH) // _LANES * _LANES)


def sweep(body: Callable[[Carry, jax.Array | int, int], Carry], carry: Carry, size: int, tile: int) -> Carry:
  """Folds `body(carry, start, width)` over the entries 0..size - 1, `tile` at a time.

  What is left over is a tile of its own: the vocabularies of well-known models have no divisor of a
  useful size, and padding a head would copy it.
  """
  full = size // tile
  if full:
    step = lambda i, carry: body(carry, i * tile, tile)  # noqa: E731
    carry = step(0, carry) if full == 1 else jax.lax.fori_loop(0, full, step, carry)
  return body(carry, full * tile, size - full * tile) if size % tile else carry


def cut(head: jax.Array, start: jax.Array | int, size: int, dtype: jnp.dtype) -> jax.Array:
  """Rows start..start + size - 1 of a head [V, D], in the type in which it is used."""
  return jax.lax.dynamic_slice_in_dim(head, start, size).astype(dtype)


def logits(
  hidden: jax.Array, head: jax.Array, temperature: float, softcap: float | None
) -> tuple[jax.Array, jax.Array | float]:
  """Shaped logits [B, T, n] of a tile of a head [n, D], and the derivative of the soft-cap at them."""
  raw = contract('btd,vd->btv', hidden, head)
  if softcap is None:
    return raw if temperature == 1 else raw / temperature, 1.0
  level = jnp.tanh(raw / softcap)
  return level * (softcap / temperature), 1 - level * level


def contract(formula: str, left: jax.Array, right: jax.Array) -> jax.Array:
  """Product in the type of `right`, summed in at least float32."""
  dtype = lib.at_least_float32(right.dtype)
  return jnp.einsum(formula, left.astype(right.dtype), right, preferred_element_type=dtype)


def total(x: jax.Array, axes: Sequence[str]) -> jax.Array:
  """Sum over the devices that share the vocabulary; `x` itself where nobody does."""
  return jax.lax.psum(x, tuple(axes)) if axes else x


def greatest(x: jax.Array, axes: Sequence[str]) -> jax.Array:
  """Maximum over the devices that share the vocabulary."""
  return jax.lax.pmax(x, tuple(axes)) if axes else x


def least(x: jax.Array, axes: Sequence[str]) -> jax.Array:
  """Minimum over the devices that share the vocabulary."""
  return jax.lax.pmin(x, tuple(axes)) if axes else x
