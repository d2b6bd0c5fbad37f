"""The divergence from a teacher's top-k: against float64 NumPy that knows the whole teacher."""

import contextlib
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from kernels.linear_divergence import tpu_cached
from kernels.linear_divergence.api import (
  Divergence,
  DivergenceSpec,
  TeacherTopK,
  linear_divergence,
  linear_divergence_from_top_k,
)
from tests.kernels import oracle, pairwise
from tests.kernels.simulated import blocks_of, simulated

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
  teacher = top_k(arrays, spec)
  keywords |= dict(implementation=implementation, statistics=statistics)
  if implementation == 'chunked':
    keywords = dict(chunk_tokens=2) | keywords
  result, gradients = run(arrays, teacher, targets, without_shaping(spec), weights, places, **keywords)
  # What padding of the vocabulary holds does not matter.
  expected, pulls = oracle.call([np.nan_to_num(x) for x in arrays], targets, spec, weights)
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
  spec = DivergenceSpec(
    kind=row['kind'],
    beta=0.3,
    support='teacher_topk',
    k=5,
    tail=row['tail'],
    entry_clip_min=low,
    entry_clip_max=high,
    **SHAPINGS[row['shaping']],
  )
  arrays, targets = make(5, valid=spec.valid_vocab)
  # Races are looked for where there are several blocks of rows, below.
  check(arrays, targets, spec, row['implementation'], row['places'], row['statistics'], races=False)


@pytest.mark.parametrize('places', [(0, 1), (0,)], ids=['both', 'frozen head'])
def test_several_blocks_and_groups_of_rows_on_a_tpu(places, monkeypatch):
  # Groups of eight rows, the last of which reaches back: 18 are no multiple of it.
  monkeypatch.setattr(tpu_cached, '_GATHERED', 1)
  spec = DivergenceSpec(kind='jsd', support='teacher_topk', k=4, tail='bucket', valid_vocab=290)
  arrays, targets = make(7, time=9, valid=290)
  for head in arrays[1::2]:
    head[290:] = np.nan
  check(arrays, targets, spec, 'tpu', places)


@st.composite
def cases(draw):
  """(Spec, batch, time, vocab) of ragged sizes, lists as long as the vocabulary among them."""
  vocab = draw(st.integers(5, 300))
  valid = draw(st.sampled_from([None, max(5, vocab - 3)]))
  spec = DivergenceSpec(
    kind=draw(st.sampled_from(['forward_kl', 'reverse_kl', 'both_kl', 'jsd'])),
    beta=draw(st.sampled_from([0.1, 0.5])),
    support='teacher_topk',
    k=draw(st.sampled_from([1, 5, min(valid or vocab, 40)])),
    tail=draw(st.sampled_from(['renormalise', 'bucket'])),
    entry_clip_max=draw(st.sampled_from([None, 0.05])),
    teacher_temperature=draw(st.sampled_from([1.0, 1.3])),
    student_softcap=draw(st.sampled_from([None, 3.0])),
    valid_vocab=valid,
  )
  return spec, draw(st.integers(1, 2)), draw(st.integers(1, 3)), vocab


@pytest.mark.slow
@PROPERTY
@given(cases(), st.booleans(), st.integers(0, 99))
def test_any_shape_and_mask(case, frozen, seed):
  spec, batch, time, vocab = case
  arrays, targets = make(seed, batch, time, vocab, scale=0.4, valid=spec.valid_vocab)
  weights = np.random.default_rng(seed).integers(0, 2, targets.shape).astype(np.float32)
  check(arrays, targets, spec, 'chunked', (0,) if frozen else (0, 1), weights=weights)


# --- The teacher itself.

IMPLEMENTATIONS_AND_TAILS = pytest.mark.parametrize(
  'implementation, tail',
  [
    ('chunked', 'renormalise'),
    ('chunked', 'bucket'),
    pytest.param('tpu', 'renormalise', marks=pytest.mark.slow),
    ('tpu', 'bucket'),
  ],
)


def test_equals_the_teacher_itself():
  spec = DivergenceSpec(kind='jsd', support='teacher_topk', k=5, tail='bucket', teacher_softcap=3.0)
  arrays, targets = make(2)
  live = jax.value_and_grad(lambda x: linear_divergence(x, *arrays[1:], targets, spec).loss.sum())
  known = jax.value_and_grad(
    lambda x: linear_divergence_from_top_k(
      x, arrays[1], top_k(arrays, spec), targets, without_shaping(spec)
    ).loss.sum()
  )
  pair = [jax.jit(step, compiler_options=oracle.QUICK)(jnp.asarray(arrays[0])) for step in (live, known)]
  for left, right in zip(*pair, strict=True):
    np.testing.assert_allclose(left, right, atol=2e-6, rtol=2e-6)


@IMPLEMENTATIONS_AND_TAILS
def test_positions_without_weight_may_hold_anything(tail, implementation):
  spec = DivergenceSpec(support='teacher_topk', k=5, tail=tail)
  arrays, targets = make(3, time=5)
  weights = np.broadcast_to(np.arange(5) < 2, targets.shape).astype(np.float32)
  ids, logp = top_k(arrays, spec)
  keywords = dict(implementation=implementation, statistics=False, races=False)
  expected = run(arrays, TeacherTopK(ids, logp), targets, spec, weights, **keywords)[1]
  # Padding of a cache, and ids that no head has.
  ids[:, 2:], logp[:, 2:] = np.array([0, -1, 10**6])[:, None], 0
  actual = run(arrays, TeacherTopK(ids, logp), targets, spec, weights, **keywords)[1]
  for left, right in zip(actual, expected, strict=True):
    np.testing.assert_allclose(left, right, atol=1e-6)
  assert not np.any(actual[0][:, 2:])


@pytest.mark.parametrize(
  'places', [pytest.param((0, 1), marks=pytest.mark.slow), (0,)], ids=['both', 'frozen head']
)
def test_narrow_gradients_of_models_that_hardly_differ(places):
  # A mean of the head's rows and the rows of the support cancel; their rounding must not be what is left.
  spec = DivergenceSpec(support='teacher_topk', k=9, tail='bucket')
  (student, head, noise, _), targets = make(11, width=32, scale=0.3)
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in (student, head, student + 0.02 * noise, head)]
  rounded = [np.asarray(x, np.float32) for x in arrays]
  weights = np.ones(targets.shape, np.float32)
  settings = dict(implementation='tpu', statistics=False, races=False)
  teacher = top_k(rounded, spec)
  result, gradients = run(arrays[:2], teacher, targets, spec, weights, places, **settings)
  expected, pulls = oracle.call(rounded, targets, spec, weights)
  np.testing.assert_allclose(result.loss, expected['loss'], atol=1e-6)
  assert np.abs(pulls[0]).max() < 0.05
  for place, gradient in zip(places, gradients, strict=True):
    assert gradient.dtype == jnp.bfloat16
    bound = 0.01 * np.abs(pulls[place]).max()
    np.testing.assert_allclose(np.asarray(gradient, np.float32), pulls[place], atol=bound, rtol=0)


def test_agreement_of_equal_largest_entries_is_by_the_lowest_id():
  student = np.zeros((1, 3, 40), np.float32)
  student[0, range(3), [7, 9, 7]] = 5
  ids = np.array([[[9, 7], [9, 7], [7, 9]]], np.int32)
  teacher = TeacherTopK(ids, np.full((1, 3, 2), np.log(0.4), np.float32))
  spec, targets = DivergenceSpec(support='teacher_topk', k=2), np.zeros((1, 3), np.int32)
  for name in ('reference', 'chunked'):
    result = linear_divergence_from_top_k(student, np.eye(40), teacher, targets, spec, implementation=name)
    np.testing.assert_array_equal(result.agreement, [[1, 0, 1]])


# --- What it costs.


def lowered(spec, places, statistics, implementation):
  """StableHLO at the vocabulary of Qwen3, for a TPU, from shapes alone."""
  rows, width = (1, 64), 64
  hidden = jax.ShapeDtypeStruct((*rows, width), jnp.bfloat16)
  head = jax.ShapeDtypeStruct((151_936, width), jnp.bfloat16)
  lists = [jax.ShapeDtypeStruct((*rows, spec.k), dtype) for dtype in (jnp.int32, jnp.float32)]

  def loss(*arrays):
    settings = dict(implementation=implementation, statistics=statistics, chunk_tokens=8)
    result = linear_divergence_from_top_k(*arrays, spec, **settings)
    return result.loss.sum(), result

  call = jax.value_and_grad(loss, places, has_aux=True) if places else loss
  arguments = (hidden, head, TeacherTopK(*lists), jax.ShapeDtypeStruct(rows, jnp.int32))
  return jax.export.export(jax.jit(call), platforms=['tpu'])(*arguments).mlir_module()


@pytest.mark.parametrize(
  'tail, statistics, kernels',
  [('renormalise', False, [0, 0, 1]), ('renormalise', True, [1, 1, 2]), ('bucket', False, [1, 1, 2])],
)
def test_passes_over_the_vocabulary(tail, statistics, kernels):
  spec = DivergenceSpec(support='teacher_topk', k=16, tail=tail)
  texts = [lowered(spec, places, statistics, 'tpu') for places in ((), (0,), (0, 1))]
  assert [text.count('@tpu_custom_call') for text in texts] == kernels
  # A frozen head needs nothing as large as its gradient, nor any logits of all positions.
  sizes = [math.prod(map(int, re.findall(r'\d+', shape))) for shape in re.findall(r'<((?:\d+x)+)', texts[1])]
  assert max(sizes) == 151_936 * 64 and 'x151936x' not in texts[1]


def test_a_renormalised_support_takes_no_product_over_the_vocabulary():
  spec = DivergenceSpec(support='teacher_topk', k=16)
  for places in ((), (0,), (0, 1)):
    text = lowered(spec, places, False, 'chunked')
    products = [line for line in text.splitlines() if 'dot_general' in line]
    assert products and not any('151936' in line or '2048' in line for line in products)


# --- Devices.


@IMPLEMENTATIONS_AND_TAILS
def test_sharded_equals_unsharded(implementation, tail):
  mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  spec = DivergenceSpec(kind='jsd', support='teacher_topk', k=5, tail=tail, valid_vocab=290)
  arrays, targets = make(9, 4, 6, valid=290)
  with jax.set_mesh(mesh):
    axes = dict(batch_axes=('data', 'fsdp'), vocab_axes=('tensor',))
    check(arrays, targets, spec, implementation, races=False, **axes)


# --- What is refused.


@pytest.mark.parametrize(
  'settings, change, words',
  [
    (dict(support='student_topk'), {}, ["support is 'student_topk'", 'linear_divergence']),
    (dict(support='full', k=0), {}, ["support is 'full'", "'teacher_topk'"]),
    (dict(teacher_temperature=0.7), {}, ['teacher_temperature is 0.7', '1.0']),
    (dict(teacher_softcap=30.0), {}, ['teacher_softcap 30.0', 'None']),
    (dict(k=4), {}, ['teacher.ids', '(2, 3, 3)', '(2, 3, 4)', 'k of the spec']),
    (dict(k=8), {}, ['k is 8', '7 valid']),
    (dict(), dict(ids=np.zeros((2, 3, 3), np.float32)), ['teacher.ids', 'float32', 'integer']),
    (dict(), dict(logp=np.zeros((2, 3, 3), np.int32)), ['teacher.logp', 'int32', 'floating']),
    (dict(), dict(logp=np.zeros((2, 4, 3), np.float32)), ['teacher.logp', '(2, 4, 3)', '(2, 3, 3)']),
  ],
)
def test_errors(settings, change, words):
  teacher = TeacherTopK(np.zeros((2, 3, 3), np.int32), np.zeros((2, 3, 3), np.float32))._replace(**change)
  spec = DivergenceSpec(**dict(support='teacher_topk', k=3) | settings)
  (hidden, head, _, _), targets = make(0, 2, 3, 7)
  with pytest.raises(ValueError) as error:
    linear_divergence_from_top_k(hidden, head, teacher, targets, spec)
  for word in words:
    assert word in str(error.value)
