"""Heads whose rows devices share: what comes out is the same, and few numbers are exchanged for it.

Everything is compared with float64 NumPy on whole heads. The TPU kernels are simulated on the CPU;
what XLA makes of them on a TPU is `tpu_compile_test.py`'s.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kernels.linear_divergence import tpu_blocks, tpu_forward, tpu_merge, tpu_sides, tpu_top_k
from kernels.linear_divergence.api import DivergenceSpec, linear_divergence
from tests.kernels import linear_divergence_cover_test as cover
from tests.kernels import oracle, pairwise
from tests.kernels import simulated as whole

AXES = ('data', 'fsdp', 'tensor')
SHARED = ('tensor',)
OPSD = dict(entry_clip_max=0.05)


def mesh_of(*sizes):
  devices = jax.devices()[: math.prod(sizes)]
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def step_of(spec, wanted, implementation, vocab_axes=SHARED, **settings):
  """Result and gradients of the weighted losses to the `wanted` of the four arrays."""

  def loss(some, arrays, targets, weights):
    inside = list(arrays)
    for place, x in zip(wanted, some, strict=True):
      inside[place] = x
    result = linear_divergence(
      *inside,
      targets,
      spec,
      implementation=implementation,
      chunk_tokens=2,
      batch_axes=('data', 'fsdp'),
      vocab_axes=vocab_axes,
      **settings,
    )
    return (result.loss * weights).sum(), result

  return jax.value_and_grad(loss, has_aux=True)


def placed(mesh, arrays, targets, weights, vocab_axes=SHARED):
  """Everything where a run has it: rows over the data axes, heads over those that share them."""
  place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: E731
  whole_head = arrays[1].shape[0] % math.prod(mesh.shape[axis] for axis in vocab_axes)
  head, rows = None if whole_head else vocab_axes, 'data'
  student, student_head, teacher, teacher_head = map(jnp.asarray, arrays)
  arrays = [place(student, rows), place(student_head, head), place(teacher, rows), place(teacher_head, head)]
  return arrays, place(jnp.asarray(targets), rows), place(jnp.asarray(weights, jnp.float32), rows)


def run(mesh, arrays, targets, weights, spec, wanted, **settings):
  """The step on a mesh."""
  vocab_axes = settings.setdefault('vocab_axes', SHARED)
  arrays, targets, weights = placed(mesh, arrays, targets, weights, vocab_axes)
  with jax.set_mesh(mesh):
    step = jax.jit(step_of(spec, wanted, **settings), compiler_options=oracle.QUICK)
    (_, result), gradients = step([arrays[i] for i in wanted], arrays, targets, weights)
    if 1 in wanted:
      assert gradients[wanted.index(1)].sharding.is_equivalent_to(arrays[1].sharding, 2)
    return jax.block_until_ready((result, gradients))


def with_junk(arrays, spec):
  """The arrays with NaN in the heads' padding."""
  student, head, teacher, own = arrays
  row = np.arange(head.shape[0])[:, None]
  junk = lambda x: np.where(row < (spec.valid_vocab or len(row)), x, np.nan).astype(x.dtype)  # noqa: E731
  return student, junk(head), teacher, junk(own)


# --- In JAX alone.


def check_chunked(mesh, spec, wanted=(0, 1), vocab=704, scale=1.5, **settings):
  student, head, teacher, own, targets = whole.make_inputs(
    1, 2, 3, vocab, scale=scale, valid=spec.valid_vocab
  )
  # A tie across devices, which the lower id wins.
  head[vocab // 2 + 9], own[vocab // 2 + 9] = head[3], own[3]
  arrays, weights = (student, head, teacher, own), np.random.default_rng(0).normal(size=targets.shape)
  settings = dict(implementation='chunked') | settings
  result, gradients = run(mesh, with_junk(arrays, spec), targets, weights, spec, wanted, **settings)
  expected, pulls = oracle.call(arrays, targets, spec, weights)
  for name, value in expected.items():
    if settings.get('statistics', True) or name in ('loss', 'clip_fraction'):
      np.testing.assert_allclose(getattr(result, name), value, atol=2e-5, rtol=2e-5, err_msg=name)
  for place, gradient in zip(wanted, gradients, strict=True):
    scale = np.abs(pulls[place]).max()
    np.testing.assert_allclose(gradient, pulls[place], atol=3e-5 * scale, rtol=2e-5)


@pytest.mark.parametrize(
  'spec, wanted, settings',
  [
    (OPSD | dict(valid_vocab=650, student_softcap=3.0), (0,), {}),
    (dict(kind='both_kl', beta=0.3, valid_vocab=300), (0,), {}),  # one device has padding alone
    pytest.param(
      dict(kind='jsd', beta=0.3, valid_vocab=650, teacher_softcap=3.0), (0, 1), {}, marks=pytest.mark.slow
    ),
    (dict(kind='jsd', support='union', k=5, tail='bucket', valid_vocab=300), (0,), {}),
    (dict(kind='reverse_kl', support='student_topk', k=5), (1,), dict(statistics=False)),
    # More entries than a device has.
    pytest.param(
      dict(support='teacher_topk', k=200, tail='bucket', entry_clip_min=0.0),
      (0, 1),
      {},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      dict(kind='both_kl', beta=0.3, support='sampled', student_temperature=0.7),
      (0, 1),
      {},
      marks=pytest.mark.slow,
    ),
    (dict(kind='jsd'), (0, 1), dict(mode='speed')),  # which leaves the heads to XLA
  ],
)
def test_parts_in_jax_are_the_whole(spec, wanted, settings):
  check_chunked(mesh_of(2, 1, 4), DivergenceSpec(**spec), wanted, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
  'row',
  pairwise.cover(
    cover.FACTORS | dict(implementation=('memory',), heads=('two',), dtype=('float32',)), cover.allowed
  ),
  ids=cover.named,
)
def test_every_pair_of_settings_in_jax(row):
  spec, wanted = cover.spec_of(row), dict(both=(0, 1), hidden=(0,), head=(1,))[row['wanted']]
  # Nearly all mass in a support would leave few digits of the rest, on one device as on several.
  check_chunked(mesh_of(1, 2, 4), spec, wanted, vocab=320, scale=1.0, vocab_axes=('fsdp', 'tensor'))


def test_a_vocabulary_that_no_axis_divides_stays_whole():
  check_chunked(mesh_of(2, 1, 4), DivergenceSpec(kind='reverse_kl'), vocab=701)


# --- In the TPU kernels.


def simulated(mesh, arguments, spec, wanted=(0, 1), shared_head=False, **settings):
  *arrays, targets = arguments
  weights = np.random.default_rng(0).normal(size=targets.shape).astype(np.float32)
  settings = dict(implementation='tpu') | settings
  with (
    whole.blocks_of(16, 128),
    pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory='nan')),
  ):
    actual = run(mesh, with_junk(arrays, spec), targets, weights, spec, wanted, **settings)
  rounded = [np.asarray(x, np.float32) for x in arrays]
  results, pulls = whole.exact((*rounded, targets), spec, weights)
  return actual, (results, [pulls[place] for place in wanted])


@pytest.mark.parametrize(
  'sizes, vocab_axes, vocab, settings, wanted',
  [
    pytest.param((2, 1, 4), SHARED, 1200, dict(), (0, 1), marks=pytest.mark.slow),
    # Two devices have padding alone.
    (
      (1, 2, 4),
      ('fsdp', 'tensor'),
      1200,
      dict(kind='reverse_kl', valid_vocab=800, student_softcap=3.0),
      (0,),
    ),
    pytest.param(
      (2, 2, 2), SHARED, 700, dict(kind='both_kl', beta=0.3, valid_vocab=650), (0,), marks=pytest.mark.slow
    ),
    ((2, 2, 2), SHARED, 700, OPSD | dict(valid_vocab=340), (0, 1)),
    # More entries than a device has.
    pytest.param(
      (2, 1, 4),
      SHARED,
      320,
      dict(support='teacher_topk', k=90, tail='bucket', valid_vocab=250),
      (0, 1),
      marks=pytest.mark.slow,
    ),
    ((1, 1, 4), SHARED, 600, dict(kind='jsd', support='student_topk', k=9), (0,)),
    # That no axis divides.
    pytest.param((2, 1, 4), SHARED, 101, dict(kind='reverse_kl'), (0, 1), marks=pytest.mark.slow),
  ],
)
def test_parts_in_tpu_kernels_are_the_whole(sizes, vocab_axes, vocab, settings, wanted):
  spec = DivergenceSpec(**settings)
  arguments = whole.make_inputs(3, 2, 6, vocab, valid=spec.valid_vocab)
  # A tie across devices, which the lower id wins.
  arguments[1][vocab // 2 + 9], arguments[3][vocab // 2 + 9] = arguments[1][3], arguments[3][3]
  whole.assert_close(*simulated(mesh_of(*sizes), arguments, spec, wanted, vocab_axes=vocab_axes))


@pytest.mark.parametrize(
  'kind', ['forward_kl', *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('reverse_kl', 'jsd'))]
)
def test_narrow_shares_of_models_that_hardly_differ(kind):
  # The shares' rounding is relative to what tells the models apart, as that of the whole is.
  student, head, _, _, targets = whole.make_inputs(11, 2, 9, 600, width=32, scale=0.3)
  teacher = student + 0.02 * np.random.default_rng(0).normal(size=student.shape)
  student, head, teacher = (jnp.asarray(x, jnp.bfloat16) for x in (student, head, teacher))
  actual, expected = simulated(
    mesh_of(1, 1, 4), (student, head, teacher, head, targets), DivergenceSpec(kind=kind), (0,)
  )
  assert np.abs(expected[1][0]).max() < 0.1
  whole.assert_close(actual, expected, gradient=0.01)


def test_ties_within_and_across_devices_go_to_the_lowest_ids():
  # Devices list their k largest in any order; the last device has fewer than k.
  rows, here, k, vocab, rng = 18, 30, 9, 95, np.random.default_rng(3)
  logits = rng.integers(-1, 5, (rows, 4 * here)).astype(np.float32)
  logits[:, vocab:] = tpu_blocks.FLOOR
  lists = np.full((3, rows, 4 * 128), tpu_blocks.FLOOR, np.float32)
  for device in range(4):
    own = logits[:, device * here : (device + 1) * here]
    ids = rng.permuted(np.argsort(-own, axis=1, kind='stable')[:, :k], axis=1)
    values = np.take_along_axis(own, ids, 1)
    ids = np.where(values > tpu_blocks.FLOOR, ids, -1.0 - np.arange(k))
    lists[:, :, device * 128 : device * 128 + k] = values, ids, 7 * values
  spec = DivergenceSpec(support='teacher_topk', k=k, valid_vocab=vocab)

  def merge(lists):
    part = tpu_merge.part(spec, SHARED, here)
    side = tpu_sides.Side(*[jnp.ones((rows, 1))] * 6)
    own = tpu_forward.First(side, side, tpu_top_k.TopK(*lists), None, None, None)
    return jnp.stack(tpu_merge.first_pass(spec, part, own).top)

  with jax.set_mesh(mesh_of(1, 1, 4)):
    split = PartitionSpec(None, None, 'tensor')
    found = jax.jit(jax.shard_map(merge, in_specs=split, out_specs=PartitionSpec(), check_vma=False))(lists)
  values, ids = jax.lax.top_k(logits[:, :vocab], k)
  np.testing.assert_array_equal(found[:, :, :k], [values, ids, 7 * values])


# --- What is exchanged.

BATCH, TIME, WIDTH, VOCAB, DEVICES = 2, 4, 16, 4096, 4
POSITIONS = BATCH * TIME


def lowered(settings, wanted, implementation, platform):
  """The step of heads over four devices, as far as a platform's compiler is given it."""
  mesh = mesh_of(1, 1, DEVICES)
  *arrays, targets = whole.make_inputs(0, BATCH, TIME, VOCAB, WIDTH, WIDTH)
  arrays, targets, weights = placed(mesh, arrays, targets, np.ones((BATCH, TIME)))
  with jax.set_mesh(mesh):
    step = jax.jit(step_of(DivergenceSpec(**settings), wanted, implementation))
    traced = step.trace([arrays[i] for i in wanted], arrays, targets, weights)
    return traced.lower(lowering_platforms=(platform,))


def sizes_of(pattern, dimensions, text):
  """How many numbers each operand of every collective has on a device, once it is through."""
  return [
    math.prod(int(n) for n in re.findall(r'\d+', shape))
    for shapes in re.findall(pattern, text, re.DOTALL)
    for shape in re.findall(dimensions, shapes)
  ]


def check_exchange(sizes, numbers, k=0, lists=0):
  """Once a gradient [T, D]; beside it `numbers` of a position and every device's `lists` of a top-k."""
  assert sizes.count(POSITIONS * WIDTH) == 1
  others = [size for size in sizes if size != POSITIONS * WIDTH]
  assert sum(others) <= POSITIONS * (numbers + lists * DEVICES * (k + 1))


@pytest.mark.parametrize(
  'settings, wanted, lists',
  [
    (dict(valid_vocab=4000), (0, 1), 0),
    (dict(kind='both_kl'), (0,), 0),
    # Values and ids of two lists, and the same for positions that are looked at again.
    (dict(kind='jsd', support='union', k=5, tail='bucket'), (0,), 8),
  ],
)
def test_devices_exchange_numbers_of_positions_in_jax(settings, wanted, lists):
  text = lowered(settings, wanted, 'chunked', 'cpu').compile().as_text()
  assert not re.search(r' (reduce-scatter|all-to-all|collective-permute)\(', text)
  sizes = sizes_of(r'= ([^\n]*?) all-(?:reduce|gather)\(', r'\[[\d,]*\]', text)
  # Two maxima, two ids, eight sums and the clips'; of the union, the other model's logits as well.
  check_exchange(sizes, 16, settings.get('k', 0), lists)


@pytest.mark.parametrize(
  'settings, wanted, numbers, lists',
  [
    (dict(valid_vocab=4000), (0, 1), 13, 0),
    (dict(kind='reverse_kl'), (0,), 13, 0),
    (dict(kind='jsd'), (0,), 16, 0),
    (dict(kind='jsd', support='teacher_topk', k=5, tail='bucket'), (0, 1), 13, 3),
    (dict(support='student_topk', k=5), (0,), 13, 3),
  ],
)
def test_devices_exchange_numbers_of_positions_in_tpu_kernels(settings, wanted, numbers, lists):
  text = lowered(settings, wanted, 'tpu', 'tpu').as_text()
  assert not re.search(r'stablehlo.(reduce_scatter|all_to_all|collective_\w+)"', text)
  shape = r'(?<=tensor<)[\dx]*(?=[fi]\d)'
  # Not those over mesh axes of one device, which are none. Newer versions name the axis.
  over_devices = r'(?:tensor<1x4xi64>|name = "tensor")'
  collective = r'"stablehlo.all_(?:reduce|gather)"[^\n]*' + over_devices + r'.*?\) -> (tensor<\w+>)'
  sizes = sizes_of(collective, shape, text)
  check_exchange(sizes, numbers, settings.get('k', 0), lists)


@pytest.mark.parametrize('implementation', ['chunked', 'tpu'])
def test_unknown_axes_are_refused(implementation):
  arguments = map(jnp.asarray, whole.make_inputs(0, 1, 2, 8))
  with (
    jax.set_mesh(mesh_of(8, 1, 1)),
    pytest.raises(ValueError, match=r'vocab_axes has model.*axes are data'),
  ):
    linear_divergence(
      *arguments, DivergenceSpec(), implementation=implementation, vocab_axes=('data', 'model')
    )
