"""Every pair of settings of the divergence, against float64 NumPy with finite differences.

`tpu` are the TPU kernels in simulation. The full product of kind, support, tail, clip, implementation and
type is slow; `make test-all` runs it.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_divergence.api import DivergenceSpec, linear_divergence
from tests.kernels import oracle, pairwise, simulated

# Two tiles of 128 entries and one of what is left; the simulation of `tpu_speed` wants whole tiles.
BATCH, TIME, VOCAB, WHOLE = 2, 3, 300, 384
FACTORS = dict(
  kind=('forward_kl', 'reverse_kl', 'both_kl', 'jsd'),
  support=('full', 'teacher_topk', 'student_topk', 'union', 'sampled'),
  tail=('renormalise', 'bucket'),
  clip=((None, None), (None, 0.02), (0.0, 0.02)),
  implementation=('reference', 'memory', 'speed', 'tpu', 'tpu_speed'),
  wanted=('both', 'hidden', 'head'),
  heads=('two', 'one'),
  shaping=('plain', 'capped'),
  dtype=('float32', 'bfloat16'),
)


def allowed(row):
  if row['support'] == 'sampled' and (row['kind'] == 'jsd' or row['clip'] != (None, None)):
    return False
  # A tail is of a top-k support, and asking for no gradient changes nothing in the reference.
  if row['support'] in ('full', 'sampled') and row['tail'] == 'bucket':
    return False
  # Stored logits in bfloat16 leave a loss fewer digits; they have tests of their own.
  if row['implementation'] == 'tpu_speed' and row['dtype'] == 'bfloat16':
    return False
  return row['implementation'] != 'reference' or row['wanted'] == 'both'


def named(row):
  return '-'.join(str(x).replace(' ', '') for x in row.values())


def spec_of(row):
  shaping = dict(
    plain=dict(),
    capped=dict(
      student_softcap=2.5,
      teacher_softcap=3.0,
      student_temperature=0.7,
      teacher_temperature=1.3,
      valid_vocab=280,
    ),
  )[row['shaping']]
  low, high = row['clip']
  return DivergenceSpec(
    kind=row['kind'],
    beta=0.3,
    support=row['support'],
    k=0 if row['support'] in ('full', 'sampled') else 5,
    tail=row['tail'],
    entry_clip_min=low,
    entry_clip_max=high,
    **shaping,
  )


def arrays_of(row):
  """Arrays in the type of the row, targets, and weights; logits are spread like a model's."""
  rng = np.random.default_rng(0)
  widths = (6, 6) if row['heads'] == 'one' else (6, 5)
  hidden = [rng.normal(size=(BATCH, TIME, width)) for width in widths]
  vocab = WHOLE if row['implementation'] == 'tpu_speed' else VOCAB
  heads = [1.2 * rng.normal(size=(vocab, width)) for width in widths]
  heads[1] = heads[0] if row['heads'] == 'one' else heads[1]
  hidden, heads = ([jnp.asarray(x, row['dtype']) for x in xs] for xs in (hidden, heads))
  targets = jnp.asarray(rng.integers(0, 280, (BATCH, TIME)), jnp.int32)
  return (hidden[0], heads[0], hidden[1], heads[1]), targets, rng.normal(size=(BATCH, TIME))


def outcome(row, arrays, targets, weights):
  """Results and the gradients that the row asks for."""
  name = row['implementation']
  implementation = name[:3] if name.startswith('tpu') else dict(reference='reference').get(name, 'chunked')
  mode = 'speed' if name.endswith('speed') else 'memory'
  places = dict(both=(0, 1), hidden=(0,), head=(1,))[row['wanted']]

  def loss(wanted, arrays, targets, weights):
    inside = list(arrays)
    for place, x in zip(places, wanted, strict=True):
      inside[place] = x
    inside[3] = None if row['heads'] == 'one' else inside[3]
    settings = dict(implementation=implementation, mode=mode, chunk_tokens=2, weights=weights)
    result = linear_divergence(*inside, targets, spec_of(row), **settings)
    return (result.loss * weights).sum(), result

  step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=oracle.QUICK)
  simulation = contextlib.ExitStack()
  if implementation == 'tpu':
    simulation.enter_context(simulated.chunks_of(BATCH * TIME))
    simulation.enter_context(simulated.simulated(races=False))
  with simulation:
    out = step([arrays[i] for i in places], arrays, targets, weights)
    (_, result), gradients = jax.block_until_ready(out)
  return result, dict(zip(places, gradients, strict=True))


def check(row):
  arrays, targets, weights = arrays_of(row)
  result, gradients = outcome(row, arrays, targets, jnp.asarray(weights, jnp.float32))
  expected, pulls = oracle.call(arrays, np.asarray(targets), spec_of(row), weights)
  for name, value in expected.items():
    np.testing.assert_allclose(getattr(result, name), value, atol=2e-5, rtol=2e-5, err_msg=name)
  # A narrow product rounds each of its factors to 8 bits.
  size = dict(float32=2e-5, bfloat16=1e-2)[row['dtype']]
  for place, gradient in gradients.items():
    assert gradient.dtype == arrays[place].dtype
    scale = np.abs(pulls[place]).max()
    actual = np.asarray(gradient, np.float64)
    np.testing.assert_allclose(actual, pulls[place], atol=size * scale, rtol=size)


@pytest.mark.parametrize('row', pairwise.cover(FACTORS, allowed), ids=named)
def test_every_pair_of_settings(row):
  check(row)


@pytest.mark.slow
@pytest.mark.parametrize('kind', FACTORS['kind'])
@pytest.mark.parametrize('support', FACTORS['support'])
def test_the_full_product(kind, support):
  fixed = dict(kind=(kind,), support=(support,), wanted=('both',), heads=('two',), shaping=('capped',))
  for row in pairwise.every(FACTORS | fixed, allowed):
    check(row)


def test_the_cover_is_one():
  rows = pairwise.cover(FACTORS, allowed)
  assert len(rows) < 80
  held = {(a, repr(row[a]), b, repr(row[b])) for row in rows for a in row for b in row}
  for row in pairwise.every(FACTORS, allowed):
    assert all((a, repr(row[a]), b, repr(row[b])) in held for a in row for b in row)


@pytest.mark.parametrize('kind', ['forward_kl', 'reverse_kl', 'both_kl'])
def test_the_sampled_token_is_unbiased(kind):
  # All tokens in turn, weighted by their probability, give the full divergence and its gradient.
  rng = np.random.default_rng(3)
  logits = jnp.asarray(2 * rng.normal(size=(1, 1, 9)), jnp.float32)
  teacher = jnp.asarray(2 * rng.normal(size=(1, 1, 9)), jnp.float32)
  spec, eye = DivergenceSpec(kind=kind, beta=0.3, support='sampled', student_temperature=1.3), jnp.eye(9)
  q = jax.nn.softmax(logits[0, 0] / 1.3)

  def expectation(hidden):
    rows = jnp.broadcast_to(hidden, (9, 1, 9))
    own = jnp.broadcast_to(teacher, (9, 1, 9))
    ids = jnp.arange(9, dtype=jnp.int32)[:, None]
    return (q * linear_divergence(rows, eye, own, eye, ids, spec).loss[:, 0]).sum()

  def full(hidden):
    ids = jnp.zeros((1, 1), jnp.int32)
    return linear_divergence(
      hidden, eye, teacher, eye, ids, dataclasses.replace(spec, support='full')
    ).loss.sum()

  actual, expected = (jax.value_and_grad(f)(logits) for f in (expectation, full))
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(actual[1], expected[1], atol=2e-6)
