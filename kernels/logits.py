"""From hidden states to shaped logits: head, soft-cap, temperature, mask of vocabulary padding."""

import jax
import jax.numpy as jnp


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
  """float32 for narrower types; float64 stays."""
  return jnp.promote_types(dtype, jnp.float32)


@jax.custom_vjp
def project(hidden: jax.Array, head: jax.Array) -> jax.Array:
  """Logits [B, T, V], at least float32, of hidden [B, T, D] and head [V, D].

  The product is taken in the type of `hidden` and accumulated in at least float32: a float32 master
  head can meet bfloat16 activations. The derivative does the same, where plain differentiation
  would multiply float32 by bfloat16 (off the fast path) and round each head gradient to bfloat16
  before it is summed.
  """
  return _contract('btd,vd->btv', hidden, head.astype(hidden.dtype))


def _project_forward(hidden, head):
  return project(hidden, head), (hidden, head)


def _project_backward(residuals, cotangent):
  hidden, head = residuals
  cotangent = cotangent.astype(hidden.dtype)
  hidden_grad = _contract('btv,vd->btd', cotangent, head.astype(hidden.dtype))
  head_grad = _contract('btv,btd->vd', cotangent, hidden)
  return hidden_grad.astype(hidden.dtype), head_grad.astype(head.dtype)


project.defvjp(_project_forward, _project_backward)


def _contract(formula: str, left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.einsum(formula, left, right, preferred_element_type=at_least_float32(left.dtype))


def shape(logits: jax.Array, temperature: float, softcap: float | None, valid_vocab: int | None) -> jax.Array:
  """Soft-caps, divides by the temperature, then gives padding of the vocabulary -inf.

  Args:
    logits: [..., V], any floating type.
    temperature: divisor, > 0.
    softcap: c in c·tanh(logits / c), or None.
    valid_vocab: ids at and beyond it are padding, or None.

  Returns:
    [..., V], at least float32.
  """
  logits = logits.astype(at_least_float32(logits.dtype))
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  return on_valid(logits / temperature, valid_vocab, -jnp.inf)


def on_valid(values: jax.Array, valid_vocab: int | None, fill: float = 0.0) -> jax.Array:
  """`values` [..., V] with `fill`, which has no gradient, at ids from `valid_vocab` on."""
  vocab = values.shape[-1]
  if valid_vocab is None or valid_vocab == vocab:
    return values
  # A mask, not a slice: heads are padded to divide over devices, and a slice would undo that.
  return jnp.where(jnp.arange(vocab) < valid_vocab, values, fill)


def at_targets(values: jax.Array, targets: jax.Array) -> jax.Array:
  """values [..., V] at targets [...]."""
  return jnp.take_along_axis(values, targets[..., None], axis=-1)[..., 0]
