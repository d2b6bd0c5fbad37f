"""Floating-point operations of the model: needed, for real tokens alone, and computed, padding and all."""

import numpy as np

from opsd_jax.models.spec import ModelSpec


def matmul_params(spec: ModelSpec) -> int:
  """Weights that every token meets in a matrix product, the LM head not among them."""
  attention = spec.embed_dim * spec.head_dim * (2 * spec.num_heads + 2 * spec.num_kv_heads)
  return spec.num_layers * (attention + 3 * spec.embed_dim * spec.mlp_dim)


def forward_flops(spec: ModelSpec, before: np.ndarray, new: np.ndarray, *, with_head: bool) -> int:
  """FLOPs to read `new` tokens after `before` others, summed over rows.

  A multiply-add counts as two. Attention counts the causal half: token i of a row meets
  `before + i + 1` keys, in the scores and again in the weighted sum of values; on a local layer no
  more than the sliding window. Norms, biases, gates and rotations are left out.

  Args:
    spec: the model's shape.
    before: int [rows], tokens already in the context.
    new: int [rows], tokens read now.
    with_head: whether each new token also meets the LM head.
  """
  before, new = np.asarray(before, np.int64), np.asarray(new, np.int64)
  weights = matmul_params(spec) + (spec.vocab_size * spec.embed_dim if with_head else 0)
  keys_met = spec.num_layers * _keys_met(before, new)
  if any(spec.local_layers):
    # What the window spares a row is what the same row would meet without its first tokens.
    spared = np.maximum(before - spec.sliding_window, 0)
    until = np.maximum(before + new - spec.sliding_window, 0)
    keys_met -= sum(spec.local_layers) * _keys_met(spared, until - spared)
  return int(2 * weights * new.sum() + 4 * spec.num_heads * spec.head_dim * keys_met.sum())


def computed_flops(spec: ModelSpec, positions: int, pairs: int, projected: int) -> int:
  """FLOPs that a program does, for padding and masked scores as well.

  Args:
    spec: the model's shape.
    positions: tokens and padding that meet the weights.
    pairs: of a position and a key that it is compared with, visible or not.
    projected: positions that meet the LM head.
  """
  weights = matmul_params(spec) * positions + spec.vocab_size * spec.embed_dim * projected
  return 2 * weights + attention_flops(spec, pairs)


def attention_flops(spec: ModelSpec, pairs: int) -> int:
  """FLOPs of scores and weighted sums of `pairs` of a position and a key, in all layers."""
  return 4 * spec.num_layers * spec.num_heads * spec.head_dim * pairs


def _keys_met(before: np.ndarray, new: np.ndarray) -> np.ndarray:
  """Keys that `new` tokens after `before` others meet in all, themselves among them."""
  return before * new + new * (new + 1) // 2
