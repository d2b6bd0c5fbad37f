"""The TPU kernels that store a chunk's logits, simulated on a CPU, against float64.

The simulation gives an array that is updated in its place the size of its blocks, so that heads have
multiples of 128 rows here, the last of them padding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_divergence import tpu, tpu_speed, tpu_speed_gradient
from kernels.linear_divergence.api import DivergenceSpec
from tests.kernels.simulated import assert_close, chunks_of, exact, make_inputs, simulated


@pytest.fixture
def calls(monkeypatch):
  """Chunk sizes of every run of the module under test: a fall back to `memory` would not be seen."""
  made = []
  original = tpu_speed.run
  monkeypatch.setattr(
    tpu_speed, 'run', lambda spec, size, *rest: made.append(size) or original(spec, size, *rest)
  )
  return made


def fast(arguments, spec, weights, given=None, frozen=False):
  """Results and gradients of a weighted loss; `given` is what the kernels are told of the weights."""
  arguments = [*map(jnp.asarray, arguments)]

  def loss(*floats):
    arrays = *floats, *arguments[len(floats) :]
    result = tpu.linear_divergence(*arrays, spec, mode='speed', weights=given)
    return (result.loss * weights).sum(), result

  step = jax.jit(jax.value_and_grad(loss, (0,) if frozen else (0, 1), has_aux=True))
  with simulated():
    (_, result), gradients = step(*arguments[: 1 if frozen else 2])
    return jax.block_until_ready((result, gradients))


slow = pytest.mark.slow


@pytest.mark.parametrize(
  'settings',
  [
    dict(kind='jsd', beta=0.3, teacher_softcap=15.0, valid_vocab=297),
    pytest.param(dict(student_softcap=2.0, student_temperature=0.7, valid_vocab=297), marks=slow),
    pytest.param(dict(kind='reverse_kl', valid_vocab=297), marks=slow),
    pytest.param(dict(entry_clip_min=0.001, entry_clip_max=0.05, valid_vocab=297), marks=slow),
  ],
  ids=['jsd', 'forward KL', 'reverse KL', 'bounds'],
)
def test_equals_the_definition_in_float64(settings, calls):
  # Three tiles of the vocabulary over two cores, and a second chunk that reaches back into the first.
  spec = DivergenceSpec(**settings)
  arguments = make_inputs(3, 2, 9, 384, valid=spec.valid_vocab)
  weights = np.random.default_rng(0).uniform(0.1, 1, (2, 9)).astype(np.float32)
  with chunks_of(16):
    # Told up to a factor.
    actual = fast(arguments, spec, weights, 3 * weights)
  assert calls == [16]
  expected = exact(arguments, spec, weights)
  assert_close(actual, (expected[0], expected[1][:2]))


@slow
@pytest.mark.parametrize('told', [True, False])
def test_other_weights_than_told_and_none_are_right(told, calls):
  spec = DivergenceSpec(kind='jsd')
  arguments = make_inputs(4, 1, 16, 256)
  weights = np.linspace(0.1, 1, 16, dtype=np.float32)[None]
  with chunks_of(16):
    actual = fast(arguments, spec, weights, weights[:, ::-1].copy() if told else None)
  assert calls == [16] * told
  expected = exact(arguments, spec, weights)
  assert_close(actual, (expected[0], expected[1][:2]))


@slow
def test_a_frozen_head(calls):
  spec = DivergenceSpec(kind='jsd', beta=0.3, student_temperature=0.7)
  arguments = make_inputs(5, 1, 23, 256)
  weights = np.linspace(0, 1, 23, dtype=np.float32)[None]
  with chunks_of(16):
    actual = fast(arguments, spec, weights, frozen=True)
  assert calls == [16]
  expected = exact(arguments, spec, weights)
  assert_close(actual, (expected[0], expected[1][:1]))


@slow
def test_logits_of_hundreds(calls):
  # Most peaks vanish, gaps do not, and no exponential overflows.
  spec = DivergenceSpec(kind='reverse_kl')
  arguments = make_inputs(6, 1, 16, 256, scale=60.0)
  ones = np.ones((1, 16), np.float32)
  with chunks_of(16):
    actual = fast(arguments, spec, ones, ones)
  assert calls == [16]
  expected = exact(arguments, spec)
  assert_close(actual, (expected[0], expected[1][:2]), size=600)


@slow
@pytest.mark.parametrize('columns', [32, 1])
def test_bfloat16_errs_in_proportion_where_models_hardly_differ(columns, calls):
  spec = DivergenceSpec()
  hidden, head, _, _, targets = make_inputs(7, 1, 64, 256, width=32)
  hidden, head = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, 0.3 * head))
  # One step of the type in some columns of the head.
  nearby = jnp.asarray(head.astype(jnp.float32) * (1 + 2**-7 * (np.arange(32) < columns))[None], jnp.bfloat16)
  arguments = hidden, head, hidden, nearby, targets
  ones = np.ones((1, 64), np.float32)
  with chunks_of(16):
    _, gradients = fast(arguments, spec, ones, ones)
  assert calls == [16]
  _, expected = exact([np.asarray(x, np.float64) for x in arguments[:4]] + [np.asarray(targets)], spec)
  for actual, right in zip(gradients, expected[:2], strict=True):
    assert np.linalg.norm(np.float64(actual) - right) < 4e-3 * np.linalg.norm(right)


def test_a_narrow_sum_is_rounded_once():
  parts = np.random.default_rng(0).normal(size=(64, 32, 256)).astype(np.float32)
  arrays = jnp.zeros((32, 256), jnp.bfloat16), jnp.zeros((32, 256), jnp.int8)
  before, after = ([np.array(x) for x in arrays] for _ in range(2))
  for number, part in enumerate(parts):
    tpu_speed_gradient._accumulate(before, after, part, number == 0)
    before = [x.copy() for x in after]
  right = parts.sum(0, dtype=np.float64)
  # Half of a bfloat16's last place, and 64 times half of the further digits' in the largest sum.
  error = np.abs(np.float64(after[0]) - right)
  largest = np.abs(np.cumsum(parts, 0)).max(0)
  assert np.all(error <= 2**-8 * np.abs(right) + 64 * 2**-17 * largest)
  assert error.mean() < 1.1 * np.abs(np.float64(jnp.asarray(right, jnp.bfloat16)) - right).mean()


@pytest.mark.parametrize(
  ('count', 'depth', 'of_head', 'expected'),
  [
    (8192, 2048, True, 1024),
    (16_384, 2048, True, 2048),
    (16_384, 4096, True, 1024),
    (2048, 2048, True, None),
    (8192, 2048, False, 1024),
    (4096, 2048, False, 512),
    (1024, 2048, False, None),
  ],
)
def test_chunks_take_a_tenth_of_the_logits(count, depth, of_head, expected):
  hidden, head = (jax.ShapeDtypeStruct((n, depth), jnp.bfloat16) for n in (count, 151_936))
  assert tpu_speed.chunk(DivergenceSpec(), hidden, head, of_head) == expected
