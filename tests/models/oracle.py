"""A decoder in float64 NumPy, written from the papers and the families' published code.

One row and one head at a time, rotations as complex numbers, frequencies one by one: it shares nothing
with the model but the names of its parameters.
"""

import math

import jax
import numpy as np


def float64(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def rms_norm(x, scale, eps):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def norm(spec, x, layer):
  return rms_norm(x, layer['scale'] + float(spec.norm_plus_one), spec.norm_eps)


def stretched(spec, index):
  """The frequency of one pair of entries on a global layer."""
  scaling, plain = spec.rope_scaling, spec.rope_theta ** (-2 * index / spec.head_dim)
  if scaling.kind == 'none':
    return plain
  slow = plain / scaling.factor
  if scaling.kind == 'linear':
    return slow
  if scaling.kind == 'llama3':
    wavelength = 2 * math.pi / plain
    longest = scaling.original_length / scaling.low_frequency_factor
    shortest = scaling.original_length / scaling.high_frequency_factor
    if wavelength < shortest:
      return plain
    if wavelength > longest:
      return slow
    smooth = (scaling.original_length / wavelength - scaling.low_frequency_factor) / (
      scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    return (1 - smooth) * slow + smooth * plain

  def where(rotations):
    # Solves original_length · theta^(-2 i / H) = 2 π rotations for i.
    return math.log(scaling.original_length / (2 * math.pi * rotations), spec.rope_theta) * spec.head_dim / 2

  low = max(math.floor(where(scaling.beta_fast)), 0)
  high = min(math.ceil(where(scaling.beta_slow)), spec.head_dim - 1)
  ramp = min(max((index - low) / (high - low), 0), 1)
  return ramp * slow + (1 - ramp) * plain


def lengthening(scaling):
  """What YaRN multiplies queries and keys by."""
  if scaling.kind != 'yarn':
    return 1.0
  return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1


def turn(spec, x, local):
  """[S, H] at positions 0..S-1: entries i and i + H/2 are one complex number, turned."""
  half = x.shape[1] // 2
  frequency = np.array([stretched(spec, i) for i in range(half)])
  length = lengthening(spec.rope_scaling)
  if local and spec.rope_local_theta is not None:
    frequency, length = spec.rope_local_theta ** (-2.0 * np.arange(half) / x.shape[1]), 1.0
  angle = np.arange(len(x))[:, None] * frequency
  z = (x[:, :half] + 1j * x[:, half:]) * length * np.exp(1j * angle)
  return np.concatenate([z.real, z.imag], axis=1)


def capped(x, cap):
  return x if cap is None else cap * np.tanh(x / cap)


def attend_head(spec, query, key, value, local):
  """[S, H] each: every position looks at itself and those before it, in its window."""
  out = np.zeros_like(value)
  scale = 1 / np.sqrt(spec.head_dim) if spec.query_scale is None else spec.query_scale
  for t in range(len(query)):
    first = max(t + 1 - spec.sliding_window, 0) if local else 0
    scores = capped(key[first : t + 1] @ query[t] * scale, spec.attention_softcap)
    weights = np.exp(scores - scores.max())
    out[t] = weights @ value[first : t + 1] / weights.sum()
  return out


def attention(spec, layer, x, local):
  out = np.zeros_like(x)
  for n in range(spec.num_heads):
    k = n // (spec.num_heads // spec.num_kv_heads)
    query, key, value = x @ layer['query'][:, n], x @ layer['key'][:, k], x @ layer['value'][:, k]
    if spec.attention_bias:
      query, key = query + layer['query_bias'][n], key + layer['key_bias'][k]
      value = value + layer['value_bias'][k]
    if spec.qk_norm:
      query, key = norm(spec, query, layer['query_norm']), norm(spec, key, layer['key_norm'])
    query, key = turn(spec, query, local), turn(spec, key, local)
    out += attend_head(spec, query, key, value, local) @ layer['out'][n]
  return out


def activation(spec, x):
  if spec.activation == 'silu':
    return x / (1 + np.exp(-x))
  return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def decode_row(spec, params, tokens):
  """Hidden states [S, D] of one row of tokens, in float64."""
  params = float64(params)
  x = params['embedding'][np.asarray(tokens)]
  if spec.scale_embedding:
    x = x * np.sqrt(spec.embed_dim)
  for i in range(spec.num_layers):
    layer = jax.tree.map(lambda p, i=i: p[i], params['layers'])
    local = spec.layer_pattern != '' and spec.layer_pattern[i % len(spec.layer_pattern)] == 'L'
    mixed = attention(spec, layer['attention'], norm(spec, x, layer['attention_norm']), local)
    x = x + (norm(spec, mixed, layer['attention_post_norm']) if spec.post_norms else mixed)
    normed, mlp = norm(spec, x, layer['mlp_norm']), layer['mlp']
    inner = (activation(spec, normed @ mlp['gate']) * (normed @ mlp['up'])) @ mlp['down']
    x = x + (norm(spec, inner, layer['mlp_post_norm']) if spec.post_norms else inner)
  return norm(spec, x, params['final_norm'])


def row_logits(spec, params, tokens):
  """Logits [S, V] of one row of tokens, in float64."""
  head = params['embedding' if spec.tie_embeddings else 'head']
  return capped(decode_row(spec, params, tokens) @ float64(head).T, spec.final_softcap)


def continuation_rows(spec, params, prompt_ids, prompt_length, completion_ids):
  """Hidden states [B, T, D] that predict each completion token, row by row."""
  repeats, rows = len(completion_ids) // len(prompt_ids), []
  for b, completion in enumerate(completion_ids):
    prompt = prompt_ids[b // repeats][: prompt_length[b // repeats]]
    whole = np.concatenate([prompt, completion])
    rows.append(decode_row(spec, params, whole[:-1])[len(prompt) - 1 :])
  return np.stack(rows)
