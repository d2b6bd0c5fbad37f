"""The parity meter: how far the sampler's log-probs of its own tokens are from the scorer's.

Both are of the same tokens, over the full vocabulary at the loss temperature. Where one set of weights made
both, what is between them is rounding; more is a mistake somewhere: another prompt, other weights, another
temperature, another model.
"""

import sys

import jax
import numpy as np

from opsd_jax.records import Rollout

# Mean absolute difference in nats a token above which the alarm goes off, by compute dtype. What our own
# sampler and scorer are apart by rounding is 3.8e-6 and 0.040 on a CPU, with 6 random layers and logits of a
# standard deviation of 8 (pytest -s tests/train/parity_test.py -k rounding); smaller logits round less. The
# largest of 4,096 differences was 0.42 there in bfloat16, so that the mean is what is watched.
ALARM = {'float32': 1e-3, 'bfloat16': 0.1}


def measure(gap: np.ndarray, rollout: Rollout, number: int) -> dict[str, float]:
  """Scalars of an update.

  `logp_difference` is the mean of sampler - scorer over all sampled tokens, `logp_gap_max` the largest
  absolute one; `parity_gap` is the mean absolute one over rows that the current weights drew, 0 where there
  are none: older weights differ for another reason. `staleness` is how many updates the rows' weights lag
  behind, on average.

  Args:
    gap: float32 [B, T], sampler - scorer; read before each row's end alone.
    rollout: that was scored, on the host.
    number: updates that the current weights have taken.
  """
  sampled = np.arange(gap.shape[1])[None, :] < np.asarray(rollout.length)[:, None]
  version = np.asarray(rollout.policy_version)
  current = sampled & (version == number)[:, None]
  every, ours = (np.asarray(gap, np.float64)[chosen] for chosen in (sampled, current))
  return {
    'logp_difference': float(every.mean()) if every.size else 0.0,
    'logp_gap_max': float(np.abs(every).max(initial=0.0)),
    'parity_gap': float(np.abs(ours).mean()) if ours.size else 0.0,
    'staleness': float((number - version).mean()),
  }


def alarm(metrics: dict[str, float], threshold: float | None, dtype: str) -> str | None:
  """A warning where `parity_gap` is above the threshold (none: `ALARM` of the dtype) or not a number."""
  limit = ALARM[dtype] if threshold is None else threshold
  if metrics['parity_gap'] <= limit:
    return None
  return (
    f'sampler and scorer disagree by {metrics["parity_gap"]:.2g} nats a token on average (at most '
    f'{metrics["logp_gap_max"]:.2g}), more than loop.parity_alarm = {limit:g}, on rollouts of the current '
    'weights. They should be one model: look for other weights, another prompt or another temperature on '
    'either side. objective.correction=token weighs tokens by it, raising loop.parity_alarm accepts it.'
  )


def warn(label: str, number: int, message: str) -> None:
  """Says it on standard error, once for the whole run of several processes."""
  if jax.process_index() == 0:
    print(f'[{label}] warning: update {number}: {message}', file=sys.stderr, flush=True)
