"""Argument checks that operations share: a message names the thing, its value and the remedy."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp


def require(condition: bool, message: str) -> None:
  """Raises `ValueError(message)` unless `condition` holds."""
  if not condition:
    raise ValueError(message)


def choice(name: str, value: str, choices: Iterable[str]) -> None:
  """Raises `ValueError` unless `value` is one of `choices`."""
  choices = sorted(choices)
  require(value in choices, f'{name} is {value!r}; choose one of: {", ".join(choices)}.')


def temperature(name: str, value: float) -> None:
  """Raises `ValueError` unless `value` is positive (NaN is refused too)."""
  require(value > 0, f'{name} is {value}; it divides the logits and must be > 0 (1.0 is neutral).')


def softcap(name: str, value: float | None) -> None:
  """Raises `ValueError` unless `value` is None or positive."""
  require(value is None or value > 0, f'{name} is {value}; it must be > 0, or None for no soft-cap.')


def valid_vocab(value: int | None, vocab: int) -> None:
  """Raises `ValueError` unless `value` is None or in 1..vocab."""
  require(
    value is None or 1 <= value <= vocab,
    f'valid_vocab is {value}, outside 1..{vocab} (the rows of the head); '
    f'pass the number of real vocabulary entries, or None for all {vocab}.',
  )


def chunk_tokens(value: int) -> None:
  """Raises `ValueError` unless at least one token is in a chunk."""
  require(value >= 1, f'chunk_tokens is {value}; it must be >= 1 (1024 is the default).')


def hidden_and_head(role: str, hidden: jax.Array, head: jax.Array) -> None:
  """Raises `ValueError` unless `hidden` is floating [B, T, D] and `head` is [V, D].

  Args:
    role: prefix of the argument names in messages, such as 'student_' or ''.
    hidden: hidden states.
    head: output matrix whose rows are vocabulary entries.
  """
  _floating(f'{role}hidden', hidden)
  _floating(f'{role}head', head)
  require(hidden.ndim == 3, f'{role}hidden has shape {hidden.shape}; pass [batch, time, width], rank 3.')
  require(head.ndim == 2, f'{role}head has shape {head.shape}; pass [vocab, width], rank 2.')
  require(
    head.shape[1] == hidden.shape[2],
    f'{role}head has shape {head.shape} and {role}hidden {hidden.shape}: widths {head.shape[1]} '
    f'and {hidden.shape[2]} differ; pass the head as [vocab, {hidden.shape[2]}] (transpose it if '
    'it is [width, vocab]).',
  )


def targets_like(targets: jax.Array, hidden: jax.Array, name: str) -> None:
  """Raises `ValueError` unless `targets` is integer with the [B, T] of `hidden`."""
  require(
    targets.shape == hidden.shape[:2],
    f'targets has shape {targets.shape}, {name} {hidden.shape}; pass targets of shape '
    f'{hidden.shape[:2]}, one token id per position.',
  )
  require(
    jnp.issubdtype(targets.dtype, jnp.integer), f'targets has dtype {targets.dtype}; pass integer token ids.'
  )


def _floating(name: str, array: jax.Array) -> None:
  require(
    jnp.issubdtype(array.dtype, jnp.floating),
    f'{name} has dtype {array.dtype}; pass a floating type such as bfloat16 or float32.',
  )


def like_targets(name: str, array: jax.Array, targets: jax.Array) -> None:
  """Raises `ValueError` unless `array` is floating with the [B, T] of `targets`."""
  _floating(name, array)
  require(
    array.shape == targets.shape,
    f'{name} has shape {array.shape}, targets {targets.shape}; pass one number per position.',
  )
