"""TPU kernels on a CPU: simulated memory full of NaN, races detected, and float64 to compare with.

The simulation knows neither tiling nor the size of VMEM: `tpu_compile_test.py` is for that. Arrays
that a block sticks out of are padded with NaN here, as they may be on a device.
"""

import contextlib
import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu, tpu_backward, tpu_bins, tpu_blocks, tpu_speed
from kernels.linear_divergence.api import Divergence, linear_divergence
from tests.kernels import oracle


@contextlib.contextmanager
def blocks_of(rows, vocab):
  with pytest.MonkeyPatch.context() as patch:
    # Two blocks in a step of the backward pass's outer loop, of which small arrays have several.
    patch.setattr(tpu_backward, 'VOCAB_TILE', 2 * vocab)
    # Bins are filled half a block at a time.
    patch.setattr(tpu_bins, '_ROWS', rows // 2)
    patch.setattr(tpu_blocks, 'ROW_MAJOR', ((rows, vocab),))
    patch.setattr(tpu_blocks, 'VOCAB_MAJOR', ((rows, vocab),))
    yield


@contextlib.contextmanager
def chunks_of(rows, vocab=128):
  """Blocks of 16 rows by `vocab` entries, and stored chunks of `rows` positions whatever memory they take."""
  with blocks_of(16, vocab), pytest.MonkeyPatch.context() as patch:
    patch.setattr(tpu_speed, '_CHUNKS', (rows,))
    patch.setattr(tpu_speed, '_CHUNKS_FROZEN', (rows,))
    patch.setattr(tpu_speed, '_SHARE', 100.0)
    yield


@contextlib.contextmanager
def simulated(races=True):
  """Runs TPU kernels on the CPU; what the simulator prints of races is an error."""
  # Two cores take turns at the first grid axis: with one there is nobody to race with.
  parameters = pltpu.InterpretParams(
    detect_races=races, uninitialized_memory='nan', num_cores_or_threads=2 if races else 1
  )
  printed = io.StringIO()
  with pltpu.force_tpu_interpret_mode(parameters), contextlib.redirect_stdout(printed):
    yield
  assert 'RACE' not in printed.getvalue()


def make_inputs(seed, batch, time, vocab, width=6, teacher_width=5, scale=1.0, valid=None):
  """Hidden states, heads and targets in NumPy, float32."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return (
    normal(batch, time, width),
    scale * normal(vocab, width),
    normal(batch, time, teacher_width),
    scale * normal(vocab, teacher_width),
    rng.integers(0, valid or vocab, (batch, time)).astype(np.int32),
  )


def run(arguments, spec, weights=None, races=True, gradients=(0, 1, 2, 3), **keywords):
  """Results, and the gradients of their weighted loss in float arguments, by default in all four."""

  def loss(*floats):
    if floats[3] is None or keywords:
      result = linear_divergence(*floats, arguments[4], spec, implementation='tpu', **keywords)
    else:
      result = tpu.linear_divergence(*floats, arguments[4], spec)
    return (result.loss if weights is None else result.loss * weights).sum(), result

  step = jax.jit(jax.value_and_grad(loss, gradients, has_aux=True), compiler_options=oracle.QUICK)
  with simulated(races):
    (_, result), gradients = step(*(jnp.asarray(x) if x is not None else None for x in arguments[:4]))
    return jax.block_until_ready((result, gradients))


# --- The oracle: definitions and closed-form derivatives in float64 NumPy.


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def entries(log_p, log_q, spec):
  """Contributions to the divergence, and their derivatives in log q at fixed other entries."""
  p, q = np.exp(log_p), np.exp(log_q)
  if spec.kind == 'forward_kl':
    return p * (log_p - log_q), -p
  if spec.kind == 'reverse_kl':
    return q * (log_q - log_p), q * (log_q - log_p + 1)
  beta = spec.beta
  if spec.kind == 'both_kl':
    both = [beta * p * (log_p - log_q), (1 - beta) * q * (log_q - log_p)]
    return sum(both), both[1] + (1 - beta) * q - beta * p
  log_m = np.logaddexp(log_p + np.log(beta), log_q + np.log(1 - beta))
  values = beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)
  return values, (1 - beta) * q * (log_q - log_m)


def closed(top, bucket):
  """Log-probabilities of a support [n, k], renormalised or with a bucket for the rest."""
  if not bucket:
    return log_softmax(top)
  total = np.minimum(np.logaddexp.reduce(top, -1, keepdims=True), -1e-7)  # the reference's limit
  return np.append(top, np.log(-np.expm1(total)), -1)


def logits(hidden, head, temperature, softcap, valid):
  """Shaped logits [n, valid] and the derivative of the soft-cap."""
  raw = np.float64(hidden).reshape(-1, hidden.shape[-1]) @ np.float64(head)[:valid].T
  if softcap is None:
    return raw / temperature, np.ones_like(raw)
  return softcap * np.tanh(raw / softcap) / temperature, 1 - np.tanh(raw / softcap) ** 2


def compare(log_p, log_q, ranked, spec):
  """Loss, clipped share, masses and d loss / d log q of rows [n, V], with log q not normalised."""
  full, size = spec.support == 'full', log_q.shape[-1]
  ids = np.argsort(-ranked, -1, kind='stable')[:, : size if full else spec.k]
  top_p, top_q = (np.take_along_axis(x, ids, -1) for x in (log_p, log_q))
  bucket = spec.tail == 'bucket' and not full and spec.k < size
  set_p, set_q = (top_p, top_q) if full else (closed(top_p, bucket), closed(top_q, bucket))
  values, slopes = entries(set_p, set_q, spec)
  low, high = (
    sign * np.inf if bound is None else bound
    for sign, bound in ((-1, spec.entry_clip_min), (1, spec.entry_clip_max))
  )
  changed = (values < low) | (values > high)
  slopes = np.where(changed, 0, slopes)
  if bucket:  # The bucket falls as an entry rises: d log rest = -q / rest.
    free = set_q[:, -1:] > -16.1  # not at the limit
    slopes = slopes[:, :-1] - np.where(free, slopes[:, -1:] * np.exp(top_q - set_q[:, -1:]), 0)
  elif not full:
    slopes = slopes - np.exp(set_q) * slopes.sum(-1, keepdims=True)
  gradient = np.zeros_like(log_q)
  np.put_along_axis(gradient, ids, slopes, -1)
  results = dict(
    loss=np.clip(values, low, high).sum(-1),
    clip_fraction=changed.mean(-1),
    student_mass=np.exp(top_q).sum(-1),
    teacher_mass=np.exp(top_p).sum(-1),
  )
  return results, gradient


def exact(arguments, spec, weights=None):
  """What `run` should return."""
  student, head, teacher, teacher_head, targets = (np.asarray(x) for x in arguments)
  valid, shape = spec.valid_vocab or len(head), targets.shape
  z, slope = logits(student, head, spec.student_temperature, spec.student_softcap, valid)
  u, _ = logits(teacher, teacher_head, spec.teacher_temperature, spec.teacher_softcap, valid)
  log_q, log_p = log_softmax(z), log_softmax(u)
  p, q = np.exp(log_p), np.exp(log_q)
  results, gradient = compare(log_p, log_q, u if spec.support == 'teacher_topk' else z, spec)
  at_target = lambda x: np.take_along_axis(x, targets.reshape(-1, 1), -1)[:, 0]  # noqa: E731
  results |= dict(
    forward_kl=(p * (log_p - log_q)).sum(-1),
    reverse_kl=(q * (log_q - log_p)).sum(-1),
    student_entropy=-(q * log_q).sum(-1),
    teacher_entropy=-(p * log_p).sum(-1),
    student_logp=at_target(log_q),
    teacher_logp=at_target(log_p),
    agreement=(z.argmax(-1) == u.argmax(-1)).astype(float),
  )
  gradient = (gradient - q * gradient.sum(-1, keepdims=True)) * slope / spec.student_temperature
  gradient *= 1 if weights is None else weights.reshape(-1, 1)
  head_gradient = np.zeros(head.shape)
  head_gradient[:valid] = gradient.T @ np.float64(student).reshape(-1, student.shape[-1])
  hidden_gradient = (gradient @ np.float64(head)[:valid]).reshape(student.shape)
  zeros = np.zeros(teacher.shape), np.zeros(teacher_head.shape)
  results = {name: x.reshape(shape) for name, x in results.items()}
  return Divergence(**results), (hidden_gradient, head_gradient, *zeros)


def assert_close(actual, expected, size=1.0, gradient=2e-5):
  """Results to a few float32 digits of logits of `size`; gradients relative to their largest.

  Large divergences times large heads cancel in the gradients, which bounds their digits as well.
  """
  for field in dataclasses.fields(Divergence):
    left, right = (getattr(results, field.name) for results in (actual[0], expected[0]))
    if right is None:  # How a loss was found is not part of its definition.
      continue
    assert left.dtype == jnp.float32 and left.shape == right.shape
    np.testing.assert_allclose(left, right, atol=3e-6 * max(1, size), rtol=1e-5, err_msg=field.name)
  cancelled = 1e-7 * size * np.abs(expected[0].loss).max()
  for left, right in zip(actual[1], expected[1], strict=True):
    bound = gradient * np.abs(right).max() + cancelled
    np.testing.assert_allclose(left.astype(jnp.float32), right, atol=bound, rtol=0)


def check_against_float64(case, seed, frozen=False):
  spec, batch, time, vocab = case
  arguments = make_inputs(seed, batch, time, vocab, valid=spec.valid_vocab)
  weights = np.random.default_rng(seed).normal(size=(batch, time)).astype(np.float32)
  expected = exact(arguments, spec, weights)
  if frozen:
    actual = run(arguments, spec, weights, gradients=(0,))
    assert_close(actual, (expected[0], expected[1][:1]))
    return
  actual = run(arguments, spec, weights)
  assert_close(actual, expected)
  assert not np.any(actual[1][2]) and not np.any(actual[1][3])
