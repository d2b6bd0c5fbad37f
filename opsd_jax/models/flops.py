"""Floating-point operations of the model, counted for real tokens only (padding is free of credit)."""

import numpy as np

from opsd_jax.models.spec import ModelSpec


def matmul_params(spec: ModelSpec) -> int:
  """Weights that every token meets in a matrix product, the LM head not among them."""
  attention = spec.embed_dim * spec.head_dim * (2 * spec.num_heads + 2 * spec.num_kv_heads)
  return spec.num_layers * (attention + 3 * spec.embed_dim * spec.mlp_dim)


def forward_flops(spec: ModelSpec, before: np.ndarray, new: np.ndarray, *, with_head: bool) -> int:
  """FLOPs to read `new` tokens after `before` others, summed over rows.

  A multiply-add counts as two. Attention counts the causal half: token i of a row meets
  `before + i + 1` keys, in the scores and again in the weighted sum of values.

  Args:
    spec: the model's shape.
    before: int [rows], tokens already in the context.
    new: int [rows], tokens read now.
    with_head: whether each new token also meets the LM head.
  """
  before, new = np.asarray(before, np.int64), np.asarray(new, np.int64)
  weights = matmul_params(spec) + (spec.vocab_size * spec.embed_dim if with_head else 0)
  keys_met = before * new + new * (new + 1) // 2
  attention = 4 * spec.num_layers * spec.num_heads * spec.head_dim
  return int(2 * weights * new.sum() + attention * keys_met.sum())
