"""The TPU kernels in simulation, against float64: the full vocabulary, types, devices, what they refuse."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from kernels.linear_divergence import api, reference, tpu, tpu_backward, tpu_blocks
from kernels.linear_divergence.api import DivergenceSpec, linear_divergence
from tests.kernels.simulated import (
  assert_close,
  blocks_of,
  check_against_float64,
  exact,
  make_inputs,
  run,
  simulated,
)

QWEN3_VOCAB = 151_936
ORIGINAL_BLOCKS = dict(ROW_MAJOR=tpu_blocks.ROW_MAJOR, VOCAB_MAJOR=tpu_blocks.VOCAB_MAJOR)
ORIGINAL_TILE = tpu_backward.VOCAB_TILE


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Blocks of 16 rows by 128 entries, so that small arrays have several."""
  with blocks_of(16, 128):
    yield


def test_oracle_is_the_reference():
  spec = DivergenceSpec(kind='jsd', beta=0.3, support='student_topk', k=5, tail='bucket', student_softcap=2.0)
  arguments = make_inputs(0, 2, 3, 20)
  with jax.enable_x64(True):
    student, head, teacher, teacher_head = (jnp.asarray(np.float64(x)) for x in arguments[:4])

    @jax.jit
    def loss(student, head):
      arrays = (student, head, teacher, teacher_head, arguments[4])
      result = reference.linear_divergence(*arrays, spec, chunk_tokens=1)
      return result.loss.sum(), result

    (_, result), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(student, head)
  expected = exact(arguments, spec)
  for left, right in zip(jax.tree.leaves(result), jax.tree.leaves(expected[0]), strict=True):
    np.testing.assert_allclose(left, right, atol=1e-12)
  for left, right in zip(gradients, expected[1], strict=False):
    np.testing.assert_allclose(left, right, atol=1e-12)


def test_bounds_of_these_tests_are_tight():
  # A wrong digit in any result or gradient must fail: the oracle against itself, a little off.
  arguments = make_inputs(0, 1, 3, 20)
  right = exact(arguments, DivergenceSpec())
  single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), right)
  assert_close(single, right)
  for wrong in (
    (dataclasses.replace(single[0], student_entropy=single[0].student_entropy + 1e-4), single[1]),
    (single[0], (single[1][0] * 1.001, *single[1][1:])),
  ):
    with pytest.raises(AssertionError):
      assert_close(wrong, right)


def test_a_race_between_cores_would_be_seen():
  def accumulate(x_ref, sum_ref):
    sum_ref[...] += x_ref[...]

  block = (8, 128)
  with pytest.raises(AssertionError), simulated():
    # Every step of an axis that cores share adds to the same block.
    call = pl.pallas_call(
      accumulate,
      grid=(4,),
      in_specs=[pl.BlockSpec(block, lambda i: (i, 0))],
      out_specs=pl.BlockSpec(block, lambda i: (0, 0)),
      out_shape=jax.ShapeDtypeStruct(block, jnp.float32),
      compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',)),
    )
    jax.block_until_ready(jax.jit(call)(jnp.ones((32, 128))))


@st.composite
def cases(draw):
  """(spec, batch, time, vocab) with the kernels' range of specs and ragged sizes."""
  vocab = draw(st.one_of(st.integers(5, 140), st.integers(129, 700)))
  valid = draw(st.sampled_from([None, vocab, max(5, vocab - 3), max(5, vocab // 2)]))
  support = draw(st.sampled_from(['full', 'full', 'teacher_topk', 'student_topk']))
  full = support == 'full'
  softcaps = st.sampled_from([None, 2.0, 15.0])
  spec = DivergenceSpec(
    kind=draw(st.sampled_from(['forward_kl', 'reverse_kl', 'jsd'])),
    beta=draw(st.sampled_from([0.1, 0.5, 0.9])),
    support=support,
    k=0 if full else min(draw(st.sampled_from([2, 4, 9])), valid or vocab),
    tail=draw(st.sampled_from(['renormalise', 'bucket'])),
    student_temperature=draw(st.sampled_from([1.0, 0.7])),
    teacher_temperature=draw(st.sampled_from([1.0, 1.3])),
    entry_clip_min=draw(st.sampled_from([None, 0.0])),
    entry_clip_max=draw(st.sampled_from([None, 0.05])),
    student_softcap=draw(softcaps),
    teacher_softcap=draw(softcaps),
    valid_vocab=valid,
  )
  return spec, draw(st.integers(1, 3)), draw(st.integers(1, 13)), vocab


@pytest.mark.slow
# Without shrinking, whose every attempt compiles kernels: a failure would take minutes to show.
@settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate])
@given(cases(), st.integers(0, 99), st.booleans())
def test_equals_the_definition_in_float64(case, seed, frozen):
  check_against_float64(case, seed, frozen)


FULL = [
  (dict(kind='forward_kl', student_softcap=2.0, student_temperature=0.7), False),
  (dict(kind='jsd', beta=0.3, teacher_softcap=15.0), True),
  (dict(kind='forward_kl', entry_clip_min=0.0, entry_clip_max=0.05, valid_vocab=297), False),
]
MORE = [
  (dict(kind='reverse_kl', valid_vocab=297), True),
  (dict(kind='jsd', entry_clip_min=0.001, student_softcap=2.0, valid_vocab=140), False),
  (dict(kind='both_kl', beta=0.3, entry_clip_max=0.05), True),
  (dict(kind='both_kl', beta=0.3), False),
]


@pytest.mark.parametrize(
  'settings, frozen', [*FULL, *(pytest.param(*x, marks=pytest.mark.slow) for x in MORE)]
)
def test_the_full_vocabulary_over_several_tiles(settings, frozen):
  check_against_float64((DivergenceSpec(**settings), 2, 9, 300), seed=3, frozen=frozen)


@pytest.mark.slow
@pytest.mark.parametrize('settings, frozen', FULL + MORE)
def test_the_full_vocabulary_with_the_other_gradients(settings, frozen):
  check_against_float64((DivergenceSpec(**settings), 2, 9, 300), seed=3, frozen=not frozen)


@pytest.mark.parametrize(
  'settings',
  [
    pytest.param(dict(kind='reverse_kl', valid_vocab=151_669), marks=pytest.mark.slow),
    pytest.param(
      dict(kind='jsd', support='teacher_topk', k=20, tail='bucket', valid_vocab=151_669),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_whole_vocabulary_of_qwen3(settings):
  spec = DivergenceSpec(**settings)
  arguments = make_inputs(1, 1, 3, QWEN3_VOCAB, width=4, teacher_width=3, valid=spec.valid_vocab)
  with blocks_of(16, 16_384):
    actual = run(arguments, spec)
  assert_close(actual, exact(arguments, spec), size=4)


@pytest.mark.parametrize(
  'scale, settings',
  [
    pytest.param(1e2, dict(kind='reverse_kl'), marks=pytest.mark.slow),
    pytest.param(1e3, dict(), marks=pytest.mark.slow),
    (1e3, dict(kind='reverse_kl')),
    pytest.param(1e3, dict(support='student_topk', k=9, tail='bucket'), marks=pytest.mark.slow),
  ],
)
def test_large_logits(scale, settings):
  spec, arguments = DivergenceSpec(**settings), make_inputs(2, 2, 9, 300, scale=scale)
  # The rounding of the logits is in the exponents of the gradients.
  assert_close(run(arguments, spec), exact(arguments, spec), size=4 * scale, gradient=1e-6 * scale)


@pytest.mark.slow
def test_agreement_of_equal_maxima_is_by_the_lowest_id():
  student, teacher = np.zeros((2, 1, 4, 260), np.float32)
  student[0, :, [7, 200]] = 1  # In two tiles.
  teacher[0, range(4), [7, 200, 3, 130]] = 1
  eye = np.eye(260, dtype=np.float32)
  result, _ = run((student, eye, teacher, eye, np.zeros((1, 4), np.int32)), DivergenceSpec())
  np.testing.assert_array_equal(result.agreement, [[1, 0, 0, 0]])


@pytest.mark.parametrize(
  'shared, settings',
  [
    pytest.param(False, dict(), marks=pytest.mark.slow),
    pytest.param(True, dict(kind='reverse_kl'), marks=pytest.mark.slow),
    pytest.param(True, dict(kind='jsd', support='teacher_topk', k=5, tail='bucket'), marks=pytest.mark.slow),
    (False, dict(kind='reverse_kl', support='student_topk', k=5)),
  ],
)
def test_equal_teacher_and_student_give_zero(shared, settings):
  hidden, head, _, _, targets = make_inputs(4, 2, 9, 300)
  arguments = (hidden, head, hidden, None if shared else head, targets)
  result, gradients = run(arguments, DivergenceSpec(**settings))
  for value in (result.loss, result.forward_kl, result.reverse_kl):
    np.testing.assert_allclose(value, 0, atol=1e-7)
  for gradient in gradients[:2]:
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
  assert np.all(result.agreement == 1)


@pytest.mark.parametrize(
  'junk, settings',
  [
    (np.nan, dict(kind='reverse_kl')),
    pytest.param(np.inf, dict(support='teacher_topk', k=5, tail='bucket'), marks=pytest.mark.slow),
    pytest.param(-3e38, dict(support='student_topk', k=5), marks=pytest.mark.slow),
  ],
)
def test_what_padding_of_the_vocabulary_holds_does_not_matter(junk, settings):
  spec, arguments = DivergenceSpec(valid_vocab=130, **settings), make_inputs(5, 2, 9, 300, valid=130)
  expected = exact(arguments, spec)
  for head in arguments[1::2]:
    head[130:] = junk
  actual = run(arguments, spec)
  assert_close(actual, expected)
  assert not np.any(actual[1][1][130:])


@pytest.mark.parametrize(
  'settings',
  [
    pytest.param(dict(), marks=pytest.mark.slow),
    dict(kind='jsd', support='student_topk', k=5, tail='bucket'),
  ],
)
def test_rows_without_weight_add_nothing(settings):
  spec, arguments = DivergenceSpec(**settings), make_inputs(6, 2, 9, 300)
  weights = np.broadcast_to(np.arange(9) < 5, (2, 9)).astype(np.float32)
  expected = exact(arguments, spec, weights)
  for hidden, junk in zip(arguments[:4:2], (1e3, -1e3), strict=True):
    hidden[:, 5:] = junk
  _, gradients = run(arguments, spec, weights)
  for left, right in zip(gradients, expected[1], strict=True):
    np.testing.assert_allclose(left, right, atol=2e-5 * np.abs(right).max())
  assert not np.any(gradients[0][:, 5:])


@pytest.mark.parametrize('head_dtype', [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_bfloat16_hidden_states(head_dtype):
  spec = DivergenceSpec(support='teacher_topk', k=9, tail='bucket')
  student, head, teacher, teacher_head, targets = make_inputs(7, 2, 20, 300, width=32, scale=0.3)
  narrow = [jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)]
  heads = [jnp.asarray(x, head_dtype) for x in (head, teacher_head)]
  actual = run((narrow[0], heads[0], narrow[1], heads[1], targets), spec)
  # The kernels see rounded numbers; the rounding of the gradients is what may differ.
  rounded = [
    np.asarray(x.astype(jnp.bfloat16), np.float32) for x in (narrow[0], heads[0], narrow[1], heads[1])
  ]
  expected = exact((*rounded, targets), spec)
  assert actual[1][0].dtype == jnp.bfloat16 and actual[1][1].dtype == head_dtype
  assert_close(actual, expected, gradient=0.01)
  if head_dtype == jnp.float32:  # Summed in float32, and not rounded on the way out.
    assert np.mean(actual[1][1].astype(jnp.bfloat16).astype(jnp.float32) != actual[1][1]) > 0.5


@pytest.mark.parametrize(
  'settings',
  [dict(), *(pytest.param(dict(kind=kind), marks=pytest.mark.slow) for kind in ('reverse_kl', 'jsd'))],
)
def test_narrow_gradients_of_models_that_hardly_differ(settings):
  # Sums of q·w and of p·w alone, each of narrow weights, would be off by as much as they differ.
  spec = DivergenceSpec(**settings)
  student, head, _, _, targets = make_inputs(11, 2, 9, 300, width=32, scale=0.3)
  teacher = student + 0.02 * np.random.default_rng(0).normal(size=student.shape)
  student, head, teacher = (jnp.asarray(x, jnp.bfloat16) for x in (student, head, teacher))
  actual = run((student, head, teacher, head, targets), spec, gradients=(0,))
  rounded = [np.asarray(x, np.float32) for x in (student, head, teacher, head)]
  expected = exact((*rounded, targets), spec)
  assert np.abs(expected[1][0]).max() < 0.05
  assert_close(actual, (expected[0], expected[1][:1]), gradient=0.01)


def test_missing_teacher_head_is_the_students_without_gradient():
  student, head, _, _, targets = make_inputs(8, 2, 9, 300)
  teacher, spec = np.ascontiguousarray(student[:, ::-1]), DivergenceSpec(kind='reverse_kl')
  expected = exact((student, head, teacher, head, targets), spec)
  _, gradients = run((student, head, teacher, None, targets), spec)
  for left, right in zip(gradients[:2], expected[1], strict=False):
    np.testing.assert_allclose(left, right, atol=2e-5 * np.abs(right).max())


# --- Devices.


@pytest.mark.parametrize(
  'sizes, batch_axes, batch, time, settings',
  [
    pytest.param(
      (2, 2, 2), ('data', 'fsdp'), 4, 6, dict(kind='reverse_kl', valid_vocab=250), marks=pytest.mark.slow
    ),
    ((2, 1, 4), ('data', 'fsdp'), 3, 8, dict(support='teacher_topk', k=5, tail='bucket')),  # B stays whole
    pytest.param((1, 8, 1), ('fsdp',), 8, 3, dict(), marks=pytest.mark.slow),
    pytest.param(  # nothing divides
      (2, 2, 2), (), 3, 5, dict(kind='reverse_kl', support='student_topk', k=5), marks=pytest.mark.slow
    ),
  ],
)
def test_sharded_equals_unsharded(sizes, batch_axes, batch, time, settings):
  arguments, spec = make_inputs(9, batch, time, 260, valid=250), DivergenceSpec(**settings)
  weights = np.random.default_rng(0).normal(size=(batch, time)).astype(np.float32)
  expected = exact(arguments, spec, weights)
  mesh = jax.make_mesh(sizes, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    actual = run(arguments, spec, weights, races=False, batch_axes=batch_axes)
  assert_close(actual, expected)


def test_unknown_batch_axes_are_refused():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh), pytest.raises(ValueError, match=r'batch_axes has fsdp.*its axes are data'):
    run(make_inputs(0, 1, 2, 7), DivergenceSpec(), batch_axes=('data', 'fsdp'))


def lowered(spec, batch, time, width, grad=(0, 1)):
  """StableHLO of value and gradients at the sizes of Qwen3, for a TPU, from shapes alone."""
  vocab, bfloat16 = QWEN3_VOCAB, jnp.bfloat16
  hidden = jax.ShapeDtypeStruct((batch, time, width), bfloat16)
  head = jax.ShapeDtypeStruct((vocab, width), bfloat16)
  targets = jax.ShapeDtypeStruct((batch, time), jnp.int32)

  def loss(*arrays):
    result = linear_divergence(*arrays, spec, implementation='tpu')
    return result.loss.sum(), result

  call = jax.value_and_grad(loss, grad, has_aux=True) if grad else loss
  exported = jax.export.export(jax.jit(call), platforms=['tpu'])(hidden, head, hidden, head, targets)
  return exported.mlir_module()


@pytest.mark.parametrize(
  'kernels, settings',
  [
    (2, dict()),
    (2, dict(kind='reverse_kl', student_softcap=30.0)),
    (3, dict(kind='jsd', support='teacher_topk', k=64, tail='bucket')),
    (2, dict(kind='reverse_kl', support='student_topk', k=64)),
  ],
)
def test_lowers_for_a_tpu_without_logits(kernels, settings):
  batch, time, width = 4, 513, 2048
  with pytest.MonkeyPatch.context() as patch:
    for name, value in ORIGINAL_BLOCKS.items():
      patch.setattr(tpu_blocks, name, value)
    patch.setattr(tpu_backward, 'VOCAB_TILE', ORIGINAL_TILE)
    text = lowered(DivergenceSpec(valid_vocab=151_669, **settings), batch, time, width)
  assert text.count('@tpu_custom_call') == kernels
  shapes = re.findall(r'tensor<((?:\d+x)+)[a-z]\w*>', text)
  largest = max(math.prod(int(n) for n in shape.split('x') if n) for shape in shapes)
  assert largest == QWEN3_VOCAB * width  # The head and its gradient; logits would be 2052 wide.


@pytest.mark.parametrize('kind, passes', [('forward_kl', [1, 1, 2]), ('jsd', [2, 2, 3])])
def test_unused_gradients_cost_nothing(kind, passes):
  spec = DivergenceSpec(kind=kind)
  count = lambda grad: lowered(spec, 1, 64, 64, grad).count('@tpu_custom_call')  # noqa: E731
  assert [count(grad) for grad in ((), (0,), (0, 1))] == passes
  # A frozen head needs no third pass, and nothing as large as its gradient.
  frozen = lowered(spec, 1, 64, 64, (0,))
  assert 'while' not in frozen and frozen.count(f'tensor<{QWEN3_VOCAB}x64xf32>') == 0


# --- What is refused, and what is chosen.


UNSUPPORTED = [(dict(support='teacher_topk', k=129), ['k = 129', '128'])]


@pytest.mark.parametrize('settings, words', UNSUPPORTED)
def test_unsupported_specs(settings, words):
  spec, arguments = DivergenceSpec(**settings), make_inputs(0, 1, 2, 140)
  with pytest.raises(ValueError) as error:
    linear_divergence(*arguments, spec, implementation='tpu')
  for word in words:
    assert word in str(error.value)
  with pytest.raises(NotImplementedError, match=re.escape(words[0])):
    tpu.linear_divergence(*arguments, spec)


def test_unsupported_arrays():
  hidden = jax.ShapeDtypeStruct((1, 2, 8), jnp.float16)
  assert 'float16' in tpu.unsupported(DivergenceSpec(), hidden)
  with jax.enable_x64(True):
    assert 'float64' in tpu.unsupported(DivergenceSpec(), jnp.zeros((1, 2, 8), jnp.float64))
  head = jax.ShapeDtypeStruct((2**24, 8), jnp.float32)
  assert '16777216' in tpu.unsupported(DivergenceSpec(), head)


def test_choice(monkeypatch):
  arguments, spec = tuple(map(jnp.asarray, make_inputs(0, 1, 2, 140))), DivergenceSpec()
  name, why = api.choose(spec, *arguments[:4])
  assert name == 'chunked' and 'backend is' in why
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert api.choose(spec, *arguments[:4])[0] == 'tpu'
  too_many = DivergenceSpec(support='teacher_topk', k=129)
  name, why = api.choose(too_many, *arguments[:4])
  assert name == 'chunked' and '129' in why
  chosen = []
  monkeypatch.setattr(tpu, 'linear_divergence', lambda *_, **__: chosen.append('tpu'))
  linear_divergence(*arguments, spec)
  assert chosen == ['tpu']
  linear_divergence(*arguments, too_many)
  assert chosen == ['tpu']


@pytest.mark.parametrize('width', [576, 2048, 4096, 8192])
@pytest.mark.parametrize('rows', [1, 100, 4096])
def test_blocks_obey_the_rules_of_the_hardware(width, rows):
  hidden = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16)
  for candidates in ORIGINAL_BLOCKS.values():
    size = 2 * tpu_blocks.bytes_per_row(hidden)
    blocks = tpu_blocks.choose(rows, QWEN3_VOCAB, QWEN3_VOCAB, size, 2 * size, candidates)
    assert blocks.block_rows % 16 == 0 and blocks.block_vocab % 128 == 0
    assert blocks.block_rows < rows + 16
    used = blocks.block_rows * size + blocks.block_vocab * 2 * size + 32 * math.prod(blocks.tile)
    assert used < tpu_blocks.VMEM_LIMIT
