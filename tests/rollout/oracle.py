"""What a token is drawn from, by the definitions, in float64 NumPy."""

import dataclasses

import numpy as np


def kept(probs, config):
  """bool [V]: the ids that one row [V] of probabilities leaves."""
  keep = np.ones(len(probs), bool)
  larger = probs[None, :] > probs[:, None]  # larger[i, j]: j is more probable than i
  if config.top_k is not None:
    keep &= (larger & keep).sum(1) < config.top_k
  if config.top_p < 1:
    keep &= (larger & keep) @ probs < config.top_p * probs[keep].sum()
  if config.min_p > 0:
    keep &= probs >= config.min_p * probs.max()
  return keep


def truncated(logits, config):
  """Log-probabilities [V] of what one row [V] of logits is drawn from."""
  logits = np.asarray(logits, np.float64)
  if config.temperature == 0:
    scaled, keep = logits, np.arange(len(logits)) == logits.argmax()
  else:
    scaled = logits / config.temperature
    keep = kept(np.exp(scaled - scaled.max()), config)
  return np.where(keep, scaled - np.logaddexp.reduce(scaled[keep]), -np.inf)


def near_a_threshold(logits, config):
  """Whether a rounding could move a token over a threshold: such a row proves nothing."""
  masks = set()
  for shift in (1 - 1e-5, 1, 1 + 1e-5):
    top_p = config.top_p * shift if config.top_p < 1 else 1.0
    moved = dataclasses.replace(config, top_p=top_p, min_p=config.min_p * shift)
    masks.add(tuple(np.isfinite(truncated(logits, moved)).tolist()))
  return len(masks) > 1
