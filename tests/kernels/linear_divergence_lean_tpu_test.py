"""The TPU kernels without statistics, simulated on a CPU: losses and gradients against float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_divergence import tpu, tpu_sides
from kernels.linear_divergence.api import Divergence, DivergenceSpec, linear_divergence
from tests.kernels import linear_divergence_sharded_test as sharded
from tests.kernels import oracle
from tests.kernels.linear_divergence_speed_tpu_test import chunks_of
from tests.kernels.linear_divergence_tpu_test import blocks_of, make_inputs, run, simulated

SPECS = {
  'forward': dict(student_softcap=2.0, student_temperature=0.7, valid_vocab=297),
  'reverse': dict(kind='reverse_kl', valid_vocab=297),
  'both': dict(kind='both_kl', beta=0.3),
  'jsd': dict(kind='jsd', beta=0.3, teacher_softcap=15.0, valid_vocab=297),
  'upper': dict(entry_clip_max=0.05, student_temperature=0.7),
  'two-sided': dict(entry_clip_min=0.0, entry_clip_max=0.05, valid_vocab=297),
  'bucket': dict(kind='reverse_kl', support='teacher_topk', k=9, tail='bucket', valid_vocab=297),
  'union': dict(kind='jsd', support='union', k=4),
  'sampled': dict(support='sampled', kind='both_kl', beta=0.3),
}
FAST = [('forward', (0, 1)), ('reverse', (0,)), ('jsd', (0,)), ('upper', (0,))]
SLOW = [(name, places) for name in SPECS for places in ((0, 1), (0,)) if (name, places) not in FAST]
MADE = ('loss', 'clip_fraction', 'clip_fallback')


def check(actual, arguments, spec, weights):
  """Loss, clipped share and gradients are the definition's, and nothing else is there."""
  result, gradients = actual
  expected, pulls = oracle.call(arguments[:4], arguments[4], spec, weights)
  for name in MADE[:2]:
    np.testing.assert_allclose(getattr(result, name), expected[name], atol=1e-5, rtol=1e-5, err_msg=name)
  for left, right in zip(gradients, pulls, strict=False):
    np.testing.assert_allclose(left, right, atol=2e-5 * np.abs(right).max(), rtol=0)
  assert there(result) <= set(MADE)


def there(result):
  """Names of results that are not None."""
  return {x.name for x in dataclasses.fields(Divergence) if getattr(result, x.name) is not None}


@pytest.mark.parametrize(
  'name, gradients', FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW], ids=str
)
def test_equals_the_definition_in_float64(name, gradients):
  spec = DivergenceSpec(**SPECS[name])
  arguments = make_inputs(5, 2, 9, 300, scale=0.6, valid=spec.valid_vocab)
  weights = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
  with blocks_of(16, 128):
    check(run(arguments, spec, weights, gradients=gradients, statistics=False), arguments, spec, weights)


@pytest.mark.parametrize(
  'name', [pytest.param(x, marks=pytest.mark.slow) for x in ('reverse', 'forward', 'both', 'jsd')]
)
def test_stored_logits(name):
  spec = DivergenceSpec(**SPECS[name] | dict(valid_vocab=297))
  arguments = make_inputs(3, 2, 9, 384, valid=297)
  weights = np.random.default_rng(0).uniform(0.1, 1, (2, 9)).astype(np.float32)

  def loss(*heads):
    arrays = *heads, *map(jnp.asarray, arguments[2:])
    settings = dict(mode='speed', weights=weights, statistics=False, implementation='tpu')
    result = linear_divergence(*arrays, spec, **settings)
    return (result.loss * weights).sum(), result

  with chunks_of(16), simulated():
    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, result), gradients = jax.block_until_ready(step(*map(jnp.asarray, arguments[:2])))
  check((result, gradients), arguments, spec, weights)


@pytest.mark.parametrize(
  'name, gradients',
  [
    ('reverse', (0,)),
    pytest.param('forward', (0,), marks=pytest.mark.slow),
    pytest.param('both', (0, 1), marks=pytest.mark.slow),
    pytest.param('jsd', (0, 1), marks=pytest.mark.slow),
    pytest.param('upper', (0,), marks=pytest.mark.slow),
    pytest.param('bucket', (0, 1), marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_heads_split_over_devices(name, gradients):
  spec = DivergenceSpec(**SPECS[name])
  arguments = make_inputs(5, 2, 6, 300, scale=0.6, valid=spec.valid_vocab)
  # The weights that this draws.
  weights = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
  actual, _ = sharded.simulated(sharded.mesh_of(1, 1, 4), arguments, spec, gradients, statistics=False)
  check(actual, arguments, spec, weights)


BARE = ('maximum', 'total')
CROSS, TARGET = (*BARE, 'cross'), (*BARE, 'target')
WANTED = {
  'forward': (BARE, CROSS),
  'reverse': (CROSS, BARE),
  'both': (CROSS, CROSS),
  'jsd': (BARE, BARE),
  'upper': (BARE, CROSS),
  'two-sided': (BARE, BARE),
  'bucket': (BARE, BARE),
  'union': (BARE, BARE),
  'sampled': (TARGET, TARGET),
}


@pytest.mark.parametrize('name', SPECS)
def test_a_pass_makes_what_the_loss_needs(name, monkeypatch):
  asked = []
  empty = tpu_sides.empty
  monkeypatch.setattr(tpu_sides, 'empty', lambda wanted: asked.append(wanted) or empty(wanted))
  spec = DivergenceSpec(**SPECS[name])
  arguments = [*map(jnp.asarray, make_inputs(0, 1, 16, 300))]
  for statistics, wanted in ((False, WANTED[name]), (True, tpu_sides.EVERYTHING)):
    asked.clear()
    call = lambda *arrays: tpu.linear_divergence(*arrays, spec, statistics=statistics)  # noqa: B023, E731
    result = jax.eval_shape(call, *arguments)
    assert set(asked) == {wanted}
    # Results of sums that nobody makes are missing here already.
    assert ('agreement' in there(result), 'student_entropy' in there(result)) == (statistics, statistics)
    crosses = dict(reverse_kl=wanted[0], forward_kl=wanted[1])
    assert all((key in there(result)) == ('cross' in names) for key, names in crosses.items())
