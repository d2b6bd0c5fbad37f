"""The GPU kernels on a CPU: simulated memory full of NaN, races detected, float64 for comparison.

The simulation knows neither layouts nor registers: `gpu_compile_test.py` is for that. It waits in threads
of XLA's pool, which holds enough of them because of the eight devices that conftest asks for.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_divergence import api, gpu
from kernels.linear_divergence.api import Divergence, DivergenceSpec, linear_divergence
from kernels.linear_divergence.gpu_config import Config
from tests.kernels import oracle

# The kernels compile under jax 0.11 too; its interpreter takes arrivals that nobody awaits for a mistake.
simulates = pytest.mark.skipif(
  jax.__version_info__ < (0, 12),
  reason=f'needs the interpreter of jax >= 0.12 (Python >= 3.12), here is {jax.__version__}: '
  'make test-gpu-kernels',
)
# Two blocks of rows and two stretches of the vocabulary; slots that are used again within a tile.
SMALL = Config(part=128, slots=2, segments=2, processors=2, step=256)
EPSILON = 2.0**-7  # Of bfloat16: from 1 to the next number.


def make_inputs(seed, batch, time, vocab, width=128, teacher_width=64):
  """Hidden states and heads, bfloat16, logits of a few units, and targets."""
  rng = np.random.default_rng(seed)
  shapes = ((batch, time, width), (vocab, width), (batch, time, teacher_width), (vocab, teacher_width))
  arrays = [rng.normal(size=shape) * (0.2 if len(shape) == 2 else 1.0) for shape in shapes]
  return [jnp.asarray(x, jnp.bfloat16) for x in arrays], rng.integers(0, vocab, (batch, time), np.int32)


def run(arrays, targets, spec, weights, config=SMALL, gradients=(0, 1)):
  """Results and gradients of the weighted sum of losses."""
  from jax.experimental.pallas import mosaic_gpu as plgpu

  def loss(*arrays):
    result = gpu.linear_divergence(*arrays, targets, spec, config=config)
    return (weights * result.loss).sum(), result

  with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
    step = jax.jit(jax.value_and_grad(loss, gradients, has_aux=True))
    (_, result), gradients = jax.block_until_ready(step(*arrays))
  return result, gradients


def exact(arrays, targets, spec, weights):
  """Results [B, T], both gradients, and how far roundings to bfloat16 may move these."""
  student, head, teacher, teacher_head = (np.asarray(x, np.float64) for x in arrays)
  logits, own = student @ head.T, teacher @ teacher_head.T
  fields, levels = {}, np.zeros_like(logits)
  for place in np.ndindex(*targets.shape):
    results, gradient = oracle.position(logits[place], own[place], targets[place], spec)
    levels[place] = weights[place] * gradient
    for name, value in results.items():
      fields.setdefault(name, np.zeros(targets.shape))[place] = value
  products = lambda levels, head, student: (levels @ head, np.einsum('btv,btd->vd', levels, student))  # noqa: E731
  gradients = products(levels, head, student)
  # d loss / d logits are rounded once, to within half of EPSILON, and each sum once more.
  moved = products(EPSILON / 2 * np.abs(levels), np.abs(head), np.abs(student))
  return fields, gradients, moved


def check(actual, expected, head_rounded=True):
  """Results to a few float32 digits, gradients within what roundings explain."""
  (result, gradients), (fields, right, moved) = actual, expected
  for field in dataclasses.fields(Divergence):
    if field.name != 'clip_fallback':
      left = getattr(result, field.name)
      assert left.dtype == jnp.float32
      np.testing.assert_allclose(left, fields[field.name], atol=1e-5, rtol=1e-5, err_msg=field.name)
  for index, (left, gradient) in enumerate(zip(gradients, right, strict=False)):
    rounded = EPSILON / 2 * np.abs(gradient) if index == 0 or head_rounded else 0
    # Central differences and float32 sums know few digits more than these.
    allowed = 1.02 * (moved[index] + rounded) + 1e-5
    assert (np.abs(np.asarray(left, np.float64) - gradient) <= allowed).all()


SPECS = {
  'forward KL': dict(student_temperature=1.3),
  'JSD, padded vocabulary, soft-cap': dict(kind='jsd', beta=0.3, valid_vocab=290, student_softcap=4.0),
}
SLOW_SPECS = {
  'reverse KL, soft-cap': dict(kind='reverse_kl', student_softcap=5.0, teacher_softcap=3.0),
  'both KLs': dict(kind='both_kl', beta=0.3, teacher_temperature=0.7),
  'JSD': dict(kind='jsd'),
  'forward KL, bounds': dict(entry_clip_min=0.0, entry_clip_max=0.02),
  'reverse KL, lower bound above zero': dict(kind='reverse_kl', entry_clip_min=1e-4, valid_vocab=290),
}


@simulates
@pytest.mark.parametrize(
  'settings',
  [*SPECS.values(), *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW_SPECS.values())],
  ids=[*SPECS, *SLOW_SPECS],
)
def test_equals_the_definition_in_float64(settings):
  spec = DivergenceSpec(**settings)
  arrays, targets = make_inputs(0, 2, 33, 300)
  valid = spec.valid_vocab or 300
  targets = targets % valid
  weights = np.random.default_rng(1).uniform(0.5, 2, targets.shape).astype(np.float32)
  expected = exact(arrays, targets, spec, weights)
  # What padding of the vocabulary holds does not matter, and it gets no gradient.
  dirty = [x.at[valid:].set(jnp.nan) if x.ndim == 2 else x for x in arrays]
  actual = run(dirty, targets, spec, weights)
  check(actual, expected)
  assert np.isfinite(np.asarray(actual[1][1], np.float32)).all()
  assert not np.asarray(actual[1][1])[valid:].any()


@simulates
def test_bounds_of_these_tests_are_tight():
  # A wrong digit in a result, and a fiftieth in the gradients, must fail.
  arrays, targets = make_inputs(0, 1, 3, 300)
  expected = exact(arrays, targets, DivergenceSpec(), np.ones(targets.shape))
  single = {name: jnp.asarray(x, jnp.float32) for name, x in expected[0].items()}
  right = Divergence(**single), expected[1]
  check(right, expected)
  entropy = single['student_entropy']
  for wrong in (
    (dataclasses.replace(right[0], student_entropy=entropy + 1e-3), right[1]),
    (right[0], (right[1][0] * 1.02, right[1][1])),
    (right[0], (right[1][0], right[1][1] * 1.02)),
  ):
    with pytest.raises(AssertionError):
      check(wrong, expected)


@simulates
@pytest.mark.slow
def test_a_master_head_that_both_models_share():
  arrays, targets = make_inputs(2, 1, 70, 300, teacher_width=128)
  head = arrays[1].astype(jnp.float32)
  spec, weights = DivergenceSpec(), np.ones(targets.shape, np.float32)
  expected = exact((arrays[0], head, arrays[2], head), targets, spec, weights)

  def shared(student, head):
    return (student, head, arrays[2], head)

  from jax.experimental.pallas import mosaic_gpu as plgpu

  def loss(student, head):
    result = gpu.linear_divergence(*shared(student, head), targets, spec, config=SMALL)
    return result.loss.sum(), result

  with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, result), gradients = jax.block_until_ready(step(arrays[0], head))
  assert gradients[1].dtype == jnp.float32
  check((result, gradients), expected, head_rounded=False)


@simulates
@pytest.mark.slow
def test_a_frozen_head_and_other_cuts_change_nothing():
  arrays, targets = make_inputs(3, 1, 70, 400)
  spec, weights = DivergenceSpec(kind='jsd'), np.ones(targets.shape, np.float32)
  result, gradients = run(arrays, targets, spec, weights)
  cut = Config(workers=1, part=32, slots=3, segments=1, processors=1, step=128)
  other, frozen = run(arrays, targets, spec, weights, config=cut, gradients=(0,))
  for field in ('loss', 'forward_kl', 'teacher_entropy', 'student_logp', 'agreement'):
    np.testing.assert_allclose(getattr(result, field), getattr(other, field), atol=3e-6, err_msg=field)
  np.testing.assert_allclose(
    *(np.asarray(x[0], np.float32) for x in (gradients, frozen)), atol=EPSILON * 0.05
  )


@simulates
@pytest.mark.slow
@pytest.mark.parametrize('kind', ['forward_kl', 'jsd'])
def test_equal_models_have_no_divergence(kind):
  arrays, targets = make_inputs(4, 1, 5, 300)
  same = [*arrays[:2], *arrays[:2]]
  result, gradients = run(same, targets, DivergenceSpec(kind=kind), np.ones(targets.shape, np.float32))
  np.testing.assert_allclose(result.loss, 0, atol=1e-6)
  np.testing.assert_array_equal(result.agreement, 1)
  for gradient in gradients:
    np.testing.assert_allclose(gradient.astype(jnp.float32), 0, atol=1e-6)


@simulates
@pytest.mark.slow
def test_a_missing_wait_would_be_seen(monkeypatch):
  from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
  from jax.experimental.pallas import mosaic_gpu as plgpu

  arrays, targets = make_inputs(5, 1, 5, 300)
  monkeypatch.setattr(plgpu, 'barrier_wait', lambda *_: None)
  with pytest.raises(Exception, match='RACE'):
    run(arrays, targets, DivergenceSpec(), np.ones(targets.shape, np.float32))
  gpu_callbacks.reset_gpu_interpret_mode_state()


def test_stretches_fill_the_processors():
  config = Config()
  assert config.stretches(64, 1187) == 8 and 64 * 8 / (4 * 132) > 0.96
  assert config.stretches(1, 1187) in range(132, 264) and config.stretches(1, 3) == 3
  assert config.rows == 128
  # Shared memory: the ring, a tile of the gradient, and barriers.
  ring = config.slots * (config.rows + config.vocab) * config.depth * 2
  assert ring + config.rows * config.vocab * 2 <= 227 * 1024 - 1024


@pytest.mark.parametrize(
  'settings, words',
  [
    (dict(support='teacher_topk', k=5), ['teacher_topk', '5', "'full'"]),
    (dict(support='sampled'), ['sampled', "'full'"]),
    (dict(valid_vocab=100), ['100', '128']),
    (dict(dtype=jnp.float16), ['float16', 'bfloat16']),
    (dict(dtype=jnp.float32), ['float32 hidden states', 'bfloat16']),
    (dict(width=96), ['96', 'multiple of 64']),
    (dict(vocab=2**24), ['16777216']),
  ],
)
def test_what_it_lacks_is_named(monkeypatch, settings, words):
  monkeypatch.setattr(jax, '__version_info__', (0, 11, 0))
  settings = dict(settings)
  dtype, width = settings.pop('dtype', jnp.bfloat16), settings.pop('width', 64)
  hidden = jax.ShapeDtypeStruct((1, 2, width), dtype)
  head = jax.ShapeDtypeStruct((settings.pop('vocab', 300), width), jnp.float32)
  lack = gpu.unsupported(DivergenceSpec(**settings), hidden, head)
  for word in words:
    assert word in lack


def test_it_serves_those_who_ask_for_it_by_name(monkeypatch):
  spec = DivergenceSpec()
  arrays = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((1, 2, 64), (300, 64), (1, 2, 64), (300, 64))]
  monkeypatch.setattr(jax, '__version_info__', (0, 10, 2))
  (alone,) = api.explain(spec, *arrays, implementation='gpu')
  assert 'jax >= 0.11' in alone.lacks
  with pytest.raises(ValueError, match='jax >= 0.11'):
    linear_divergence(*(jnp.zeros(x.shape, x.dtype) for x in arrays), jnp.zeros((1, 2), int), spec,
                      implementation='gpu')  # fmt: skip
  monkeypatch.setattr(jax, '__version_info__', (0, 11, 0))
  (alone,) = api.explain(spec, *arrays, implementation='gpu')
  assert alone.lacks is None
  first, second = api.explain(spec, *arrays, implementation=('gpu', 'chunked'))
  assert 'backend is cpu' in first.lacks and second.lacks is None
  # Where nobody asks, chunks serve a GPU until a measurement speaks for the kernels.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  name, why = api.choose(spec, *arrays)
  assert name == 'chunked' and 'gpu lacks a measurement' in why and "implementation='gpu'" in why
  monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(compute_capability='8.0')])
  (alone,) = api.explain(spec, *arrays, implementation='gpu')
  assert '8.0' in alone.lacks and 'Hopper' in alone.lacks
