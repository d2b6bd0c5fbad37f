"""The divergence from a teacher's top-k: against float64 NumPy that knows the whole teacher."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kernels.linear_divergence import tpu_cached
from kernels.linear_divergence.api import (
  Divergence,
  DivergenceSpec,
  TeacherTopK,
  linear_divergence,
  linear_divergence_from_top_k,
)
from tests.kernels import oracle, pairwise
from tests.kernels.linear_divergence_tpu_test import blocks_of, simulated

PROPERTY = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
# What a top-k does not say.
UNKNOWN = ('forward_kl', 'reverse_kl', 'teacher_entropy', 'teacher_logp', 'clip_fallback')


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Blocks of 16 rows by 128 entries, so that small arrays have several."""
  with blocks_of(16, 128):
    yield


def make(seed, batch=2, time=4, vocab=300, width=6, scale=1.0, valid=None):
  """Hidden states and heads of both models, and targets."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  rows, heads = (batch, time, width), (vocab, width)
  arrays = (normal(*rows), scale * normal(*heads), normal(*rows), scale * normal(*heads))
  return arrays, rng.integers(0, valid or vocab, (batch, time)).astype(np.int32)


def top_k(arrays, spec, seed=0):
  """What is known of the teacher of `arrays`, its entries in any order."""
  logits = np.float64(arrays[2]) @ np.float64(arrays[3]).T
  shaped = oracle.shaped(logits, spec.teacher_temperature, spec.teacher_softcap, spec.valid_vocab)
  log_p = oracle.log_softmax(shaped)
  ids = np.argsort(-shaped, axis=-1, kind='stable')[..., : spec.k]
  ids = np.random.default_rng(seed).permuted(ids, axis=-1)
  return TeacherTopK(ids.astype(np.int32), np.take_along_axis(log_p, ids, -1).astype(np.float32))


def without_shaping(spec):
  """The spec with what shapes the teacher's logits left to those who made the top-k."""
  return dataclasses.replace(spec, teacher_temperature=1.0, teacher_softcap=None)


def run(arrays, teacher, targets, spec, weights, places=(0, 1), races=True, **keywords):
  """Results, and gradients of the losses times weights to the student's arrays at `places`."""

  def loss(wanted, arrays, teacher, targets, weights):
    inside = list(arrays)
    for place, x in zip(places, wanted, strict=True):
      inside[place] = x
    result = linear_divergence_from_top_k(*inside, teacher, targets, spec, **keywords)
    return (result.loss * weights).sum(), result

  tpu = keywords['implementation'] == 'tpu'
  step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=None if tpu else oracle.QUICK)
  inputs = jax.tree.map(jnp.asarray, (arrays[:2], teacher, targets, weights))
  with simulated(races) if tpu else contextlib.nullcontext():
    (_, result), gradients = step([inputs[0][i] for i in places], *inputs)
    return jax.block_until_ready((result, gradients))


def check(arrays, targets, spec, implementation, places=(0, 1), statistics=True, weights=None, **keywords):
  """Everything that comes out against the whole teacher in float64."""
  if weights is None:
    weights = np.random.default_rng(1).normal(size=targets.shape).astype(np.float32)
  teacher, keywords = (
    top_k(arrays, spec),
    keywords | dict(implementation=implementation, statistics=statistics),
  )
  if implementation == 'chunked':
    keywords = dict(chunk_tokens=2) | keywords
  result, gradients = run(arrays, teacher, targets, without_shaping(spec), weights, places, **keywords)
  expected, pulls = oracle.call(arrays, targets, spec, weights)
  for field in dataclasses.fields(Divergence):
    value, name = getattr(result, field.name), field.name
    if name in UNKNOWN or not (statistics or name in ('loss', 'clip_fraction')):
      assert value is None, name
      continue
    assert value.dtype == jnp.float32, name
    np.testing.assert_allclose(value, expected[name], atol=1e-5, rtol=1e-5, err_msg=name)
  for place, gradient in zip(places, gradients, strict=True):
    bound = 2e-5 * max(np.abs(pulls[place]).max(), 0.1)
    np.testing.assert_allclose(gradient, pulls[place], atol=bound, rtol=0)


# --- Every kind, tail, bound and implementation.


FACTORS = dict(
  kind=('forward_kl', 'reverse_kl', 'both_kl', 'jsd'),
  tail=('renormalise', 'bucket'),
  clip=((None, None), (None, 0.02), (0.0, 0.02)),
  implementation=('reference', 'chunked', 'tpu'),
  places=((0, 1), (0,), (1,)),
  shaping=('plain', 'capped'),
  statistics=(True, False),
)
SHAPINGS = dict(
  plain=dict(),
  capped=dict(
    student_softcap=2.5,
    teacher_softcap=3.0,
    student_temperature=0.7,
    teacher_temperature=1.3,
    valid_vocab=280,
  ),
)


def named(row):
  return '-'.join(str(x).replace(' ', '') for x in row.values())


@pytest.mark.parametrize('row', pairwise.cover(FACTORS, lambda _: True), ids=named)
def test_every_pair_of_settings(row):
  low, high = row['clip']
  shaping = SHAPINGS[row['shaping']]
  spec = DivergenceSpec(
    kind=row['kind'],
    beta=0.3,
    support='teacher_topk',
    k=5,
    tail=row['tail'],
    entry_clip_min=low,
    entry_clip_max=high,
    **shaping,
  )
  arrays, targets = make(5, valid=spec.valid_vocab)
  check(arrays, targets, spec, row['implementation'], row['places'], row['statistics'])
