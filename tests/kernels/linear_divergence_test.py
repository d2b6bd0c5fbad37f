"""Divergence kernels: against published numbers, formulas in float64 NumPy, and one another."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from kernels.linear_divergence import api, bench, reference
from kernels.linear_divergence.api import Divergence, DivergenceSpec, linear_divergence

STUDENT = np.array([2.0, 1.0, 0.0, -1.0, 0.5])
TEACHER = np.array([0.5, 2.5, 0.0, -0.5, -2.0])
PROPERTY = settings(max_examples=10, deadline=None, derandomize=True)


# --- Oracles: the definitions once more, in float64 NumPy, with derivatives in closed form.


def log_softmax(x):
  x = np.asarray(x, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def shaped(logits, temperature, softcap, valid_vocab):
  logits = np.asarray(logits, np.float64)
  logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
  return logits[..., :valid_vocab] / temperature


def oracle_entries(log_p, log_q, spec):
  p, q = np.exp(log_p), np.exp(log_q)
  if spec.kind == 'forward_kl':
    return p * (log_p - log_q)
  if spec.kind == 'reverse_kl':
    return q * (log_q - log_p)
  m = spec.beta * p + (1 - spec.beta) * q
  return spec.beta * p * (log_p - np.log(m)) + (1 - spec.beta) * q * (log_q - np.log(m))


def restricted(log_x, ids, spec):
  top = log_x[ids]
  if spec.tail == 'renormalise' or len(ids) == len(log_x):
    return log_softmax(top)
  rest = np.delete(log_x, ids)
  return np.append(top, np.log(np.exp(rest).sum()))


def oracle_row(student, teacher, target, spec):
  """Every field of one position, as a dict, from logits [V]."""
  z = shaped(student, spec.student_temperature, spec.student_softcap, spec.valid_vocab)
  u = shaped(teacher, spec.teacher_temperature, spec.teacher_softcap, spec.valid_vocab)
  log_q, log_p = log_softmax(z), log_softmax(u)
  p, q = np.exp(log_p), np.exp(log_q)
  ids = np.arange(len(z))
  if spec.support != 'full':
    ids = np.argsort(-(u if spec.support == 'teacher_topk' else z), kind='stable')[: spec.k]
  pair = (log_p, log_q)
  if spec.support != 'full':
    pair = tuple(restricted(x, ids, spec) for x in pair)
  values = oracle_entries(*pair, spec)
  low = -np.inf if spec.entry_clip_min is None else spec.entry_clip_min
  high = np.inf if spec.entry_clip_max is None else spec.entry_clip_max
  return dict(
    loss=np.clip(values, low, high).sum(),
    forward_kl=(p * (log_p - log_q)).sum(),
    reverse_kl=(q * (log_q - log_p)).sum(),
    student_entropy=-(q * log_q).sum(),
    teacher_entropy=-(p * log_p).sum(),
    student_logp=log_q[target],
    teacher_logp=log_p[target],
    student_mass=q[ids].sum(),
    teacher_mass=p[ids].sum(),
    clip_fraction=np.mean((values < low) | (values > high)),
    agreement=float(np.argmax(z) == np.argmax(u)),
  )


def oracle_gradient(student, teacher, spec):
  """d loss / d student logits for full support without soft-cap: g - q sum(g), g = d/d log q."""
  log_q, log_p = (
    log_softmax(x) for x in (student / spec.student_temperature, teacher / spec.teacher_temperature)
  )
  p, q = np.exp(log_p), np.exp(log_q)
  values = oracle_entries(log_p, log_q, spec)
  m = spec.beta * p + (1 - spec.beta) * q
  g = {
    'forward_kl': -p,
    'reverse_kl': q * (log_q - log_p + 1),
    'jsd': (1 - spec.beta) * q * (log_q - np.log(m)),
  }[spec.kind]
  low = -np.inf if spec.entry_clip_min is None else spec.entry_clip_min
  high = np.inf if spec.entry_clip_max is None else spec.entry_clip_max
  g = g * ((values >= low) & (values <= high))
  return (g - q * g.sum()) / spec.student_temperature


# --- Helpers.


def from_logits(spec, student=STUDENT, teacher=TEACHER, target=0):
  result = reference.divergence_from_logits(
    jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(target), spec
  )
  fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
  return {name: np.asarray(value) for name, value in fields.items() if value is not None}


def gradient(spec, student=STUDENT, teacher=TEACHER):
  def loss(logits):
    zero = jnp.zeros(logits.shape[:-1], jnp.int32)
    return reference.divergence_from_logits(logits, jnp.asarray(teacher), zero, spec).loss.sum()

  return np.asarray(jax.grad(loss)(jnp.asarray(student)))


def make_inputs(seed, batch, time, vocab, width=6, teacher_width=5, scale=1.5):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  return (
    normal(batch, time, width),
    scale * normal(vocab, width) / 2,
    normal(batch, time, teacher_width),
    scale * normal(vocab, teacher_width) / 2,
    jnp.asarray(rng.integers(0, max(1, vocab - 3), (batch, time)), jnp.int32),
  )


def run(arguments, spec, weights=None, eager=False, **keywords):
  """Result, and gradients of its weighted loss in all four float arguments.

  `eager` skips compiling a program for each spec, which takes seconds; operations are cached.
  """
  *floats, targets = arguments

  def loss(*floats):
    result = linear_divergence(*floats, targets, spec, **keywords)
    scale = jnp.ones_like(result.loss) if weights is None else weights
    return (result.loss * scale).sum(), result

  step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))
  with jax.disable_jit(eager):
    (_, result), gradients = step(*floats)
  return result, gradients


def assert_trees_close(actual, expected, atol=2e-5, rtol=2e-4):
  actual, expected = (jax.tree.map(without_fallback, x, is_leaf=is_divergence) for x in (actual, expected))
  for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert left.dtype == right.dtype
    np.testing.assert_allclose(left, right, atol=atol, rtol=rtol)


def is_divergence(x):
  return isinstance(x, Divergence)


def without_fallback(x):
  """What implementations may differ in is how often they look."""
  return dataclasses.replace(x, clip_fallback=None) if is_divergence(x) else x


@st.composite
def specs(draw, vocab):
  """Any valid spec for a head of `vocab` rows."""
  support = draw(st.sampled_from(['full', 'teacher_topk', 'student_topk']))
  valid = draw(st.sampled_from([None, vocab, vocab - 3]))
  softcaps = st.sampled_from([None, 2.0])
  return DivergenceSpec(
    kind=draw(st.sampled_from(['forward_kl', 'reverse_kl', 'jsd'])),
    beta=draw(st.sampled_from([0.1, 0.5, 0.9])),
    support=support,
    k=0 if support == 'full' else draw(st.sampled_from([4, valid or vocab])),
    tail=draw(st.sampled_from(['renormalise', 'bucket'])),
    student_temperature=draw(st.sampled_from([1.0, 0.7])),
    teacher_temperature=draw(st.sampled_from([1.0, 1.3])),
    entry_clip_min=draw(st.sampled_from([None, 0.0, 0.001])),
    entry_clip_max=draw(st.sampled_from([None, 0.05])),
    student_softcap=draw(softcaps),
    teacher_softcap=draw(softcaps),
    valid_vocab=valid,
  )


# --- Published and derived numbers.


GOLDEN = [
  (dict(), 0.723441),
  (dict(kind='reverse_kl'), 0.842144),
  (dict(kind='jsd', beta=0.1), 0.064050),
  (dict(kind='jsd', beta=0.5), 0.177659),
  (dict(kind='jsd', beta=0.9), 0.071243),
  (dict(entry_clip_max=0.05), -0.150879),
  (dict(entry_clip_min=0.0, entry_clip_max=0.05), 0.066327),
  (dict(kind='jsd', beta=0.5, entry_clip_max=0.05), 0.130689),
]
GOLDEN_GRADIENT = [
  (dict(), [0.372423, -0.480497, 0.008717, -0.012604, 0.111962]),
  (dict(entry_clip_max=0.05), [0.014765, 0.050070, -0.049339, -0.035994, 0.020498]),
  (dict(entry_clip_min=0.0, entry_clip_max=0.05), [0.023390, 0.009424, 0.003797, -0.042592, 0.005981]),
]


def warm(**settings):
  return DivergenceSpec(student_temperature=1.1, teacher_temperature=1.1, **settings)


@pytest.mark.parametrize('settings, expected', GOLDEN)
def test_golden_losses(settings, expected):
  np.testing.assert_allclose(from_logits(warm(**settings))['loss'], expected, atol=1.5e-6)


def test_golden_entries():
  log_p, log_q = log_softmax(TEACHER / 1.1), log_softmax(STUDENT / 1.1)
  values = reference.entries(jnp.asarray(log_p), jnp.asarray(log_q), warm())
  expected = [-0.178499, 0.924321, -0.009033, 0.016327, -0.029674]
  np.testing.assert_allclose(values, expected, atol=1.5e-6)


@pytest.mark.parametrize('settings, expected', GOLDEN_GRADIENT)
def test_golden_gradients(settings, expected):
  np.testing.assert_allclose(gradient(warm(**settings)), expected, atol=1.5e-6)


def test_golden_numbers_through_heads():
  # An identity head turns hidden states into logits.
  eye, targets = jnp.eye(5), jnp.zeros((1, 1), jnp.int32)
  student, teacher = (jnp.asarray(x, jnp.float32)[None, None] for x in (STUDENT, TEACHER))
  for implementation in ('reference', 'chunked'):
    result, gradients = run(
      (student, eye, teacher, eye, targets), warm(entry_clip_max=0.05), implementation=implementation
    )
    np.testing.assert_allclose(result.loss, [[-0.150879]], atol=1.5e-6)
    np.testing.assert_allclose(gradients[0][0, 0], GOLDEN_GRADIENT[1][1], atol=1.5e-6)
    # d loss / d head[v, d] = d loss / d logit[v] · hidden[d].
    np.testing.assert_allclose(gradients[1], np.outer(GOLDEN_GRADIENT[1][1], STUDENT), atol=4e-6)


def test_golden_top_k_reverse_kl():
  # Renormalised over the student's two best ids the weights are softmax([2, 1]) = [.731, .269];
  # known rewards (-1.369185 and .303129: weight times log-ratio of the two) change sign in a loss.
  spec = DivergenceSpec(kind='reverse_kl', support='student_topk', k=2)
  teacher = np.array([0.5, 2.5, 1.5, -0.5, -2.0])
  result = from_logits(spec, teacher=teacher)
  # Renormalising shifts each log-ratio by the same log(mass ratio).
  shift = math.log(result['teacher_mass'] / result['student_mass'])
  np.testing.assert_allclose(result['loss'], 1.369185 - 0.303129 + shift, atol=2e-6)
  np.testing.assert_allclose(result['student_entropy'], 1.206489, atol=2e-6)
  np.testing.assert_allclose(result['teacher_entropy'], 0.983022, atol=2e-6)
  overlap = from_logits(dataclasses.replace(spec, support='teacher_topk'), teacher=teacher)
  # Teacher's best are {1, 2}; the mass at the shared id 1 is .207124 / .639341.
  np.testing.assert_allclose(
    overlap['student_mass'] - math.exp(result['student_logp']) * math.exp(-2), 0.207124, atol=2e-6
  )


@pytest.mark.parametrize('kind', ['forward_kl', 'reverse_kl', 'jsd'])
@pytest.mark.parametrize('clip', [(None, None), (None, 0.05), (0.0, 0.05)])
def test_closed_form_gradients(kind, clip):
  spec = DivergenceSpec(
    kind=kind,
    beta=0.3,
    entry_clip_min=clip[0],
    entry_clip_max=clip[1],
    student_temperature=0.8,
    teacher_temperature=1.2,
  )
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 7, 11)) * 2
  expected = np.stack([oracle_gradient(s, t, spec) for s, t in zip(student, teacher, strict=True)])
  np.testing.assert_allclose(gradient(spec, student, teacher), expected, atol=2e-6)


def test_renormalised_gradient_is_sparse_and_closed_form():
  spec = DivergenceSpec(kind='reverse_kl', support='teacher_topk', k=2)
  ids = [1, 0]
  small = oracle_gradient(STUDENT[ids], TEACHER[ids], dataclasses.replace(spec, support='full'))
  expected = np.zeros(5)
  expected[ids] = small
  np.testing.assert_allclose(gradient(spec), expected, atol=1e-6)


@pytest.mark.parametrize(
  'settings',
  [
    dict(kind='jsd', student_softcap=3.0, valid_vocab=9),
    dict(kind='forward_kl', support='teacher_topk', k=4, tail='bucket'),
    dict(kind='reverse_kl', support='student_topk', k=4, tail='renormalise', valid_vocab=9),
  ],
)
def test_finite_differences(settings):
  spec = DivergenceSpec(beta=0.3, student_temperature=1.1, **settings)
  with jax.enable_x64(True):
    arguments = [np.asarray(x, np.float64) for x in make_inputs(1, 1, 3, 12)[:4]]
    student, head, teacher, teacher_head = map(jnp.asarray, arguments)
    targets = jnp.zeros((1, 3), jnp.int32)

    @jax.jit
    def loss(student, head):
      result = linear_divergence(student, head, teacher, teacher_head, targets, spec, chunk_tokens=2)
      assert result.loss.dtype == jnp.float64
      return result.loss.sum()

    check_grads(loss, (student, head), order=1, modes=['rev'], atol=1e-7, rtol=1e-7)


# --- Properties.


@settings(PROPERTY, max_examples=80)
@given(st.data(), st.integers(0, 99))
def test_reference_matches_numpy(data, seed):
  spec = data.draw(specs(11))
  rng = np.random.default_rng(seed)
  student, teacher = (rng.normal(size=(2, 3, 11)) * 2).astype(np.float32)
  targets = rng.integers(0, 8, 3)
  actual = from_logits(spec, student, teacher, targets)
  rows = [oracle_row(*row, spec) for row in zip(student, teacher, targets, strict=True)]
  for name, value in actual.items():
    expected = [row[name] for row in rows]
    np.testing.assert_allclose(value, expected, atol=5e-6, rtol=1e-5, err_msg=name)


@pytest.mark.slow
@PROPERTY
@given(st.data(), st.integers(0, 99))
def test_chunked_equals_reference(data, seed):
  spec = data.draw(specs(11))
  arguments = make_inputs(seed, 2, 5, 11)
  weights = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 5)), jnp.float32)
  expected = run(arguments, spec, weights, eager=True, implementation='reference')
  actual = run(arguments, spec, weights, eager=True, chunk_tokens=4)
  assert_trees_close(actual, expected)
  for teacher_gradient in actual[1][2:]:
    assert not np.any(teacher_gradient)


@pytest.mark.parametrize(
  'shape, chunk_tokens, settings',
  [
    ((3, 7, 13), 6, dict(kind='jsd', beta=0.3, valid_vocab=9, student_softcap=2.0)),
    ((2, 1, 40), 1, dict(kind='reverse_kl', support='teacher_topk', k=5, tail='bucket')),
    ((4, 3, 9), 99, dict(kind='forward_kl', support='student_topk', k=5, entry_clip_max=0.05)),
  ],
)
def test_compiled_chunked_equals_reference(shape, chunk_tokens, settings):
  spec, arguments = DivergenceSpec(**settings), make_inputs(2, *shape)
  expected = run(arguments, spec, implementation='reference')
  actual = run(arguments, spec, implementation='chunked', chunk_tokens=chunk_tokens)
  assert_trees_close(actual, expected)


@PROPERTY
@given(st.data(), st.integers(0, 99))
def test_batch_permutation_and_masked_positions(data, seed):
  spec = data.draw(specs(11))
  student, head, teacher, teacher_head, targets = make_inputs(seed, 2, 5, 11)
  order = np.array([1, 0])
  keywords = dict(eager=True, chunk_tokens=4)
  whole, _ = run((student, head, teacher, teacher_head, targets), spec, **keywords)
  moved, _ = run((student[order], head, teacher[order], teacher_head, targets[order]), spec, **keywords)
  assert_trees_close(moved, jax.tree.map(lambda x: x[order], whole))
  # What masked positions hold changes neither the others' results nor any gradient.
  mask = jnp.broadcast_to(jnp.arange(5) < 3, (2, 5))
  junk = lambda x: jnp.where(mask[..., None], x, 3.0)  # noqa: E731
  moved, actual = run(
    (junk(student), head, junk(teacher), teacher_head, targets * mask), spec, mask, **keywords
  )
  expected = run((student, head, teacher, teacher_head, targets), spec, mask, **keywords)[1]
  assert_trees_close(
    jax.tree.map(lambda x: x[:, :3], (moved, actual[0])),
    jax.tree.map(lambda x: x[:, :3], (whole, expected[0])),
  )
  assert not np.any(actual[0][:, 3:])
  np.testing.assert_allclose(actual[1], expected[1], atol=2e-5)


@PROPERTY
@given(st.data(), st.floats(-50, 50))
def test_shift_of_logits_changes_nothing(data, shift):
  spec = dataclasses.replace(data.draw(specs(5)), student_softcap=None, teacher_softcap=None)
  plain, moved = from_logits(spec), from_logits(spec, STUDENT + shift, TEACHER - shift)
  for name, value in plain.items():
    np.testing.assert_allclose(moved[name], value, atol=1e-4, err_msg=name)


@PROPERTY
@given(st.data())
def test_equal_distributions_give_zero(data):
  spec = dataclasses.replace(
    data.draw(specs(11)),
    entry_clip_min=None,
    entry_clip_max=None,
    student_temperature=1.0,
    teacher_temperature=1.0,
    student_softcap=None,
    teacher_softcap=None,
  )
  hidden, head, _, _, targets = make_inputs(3, 2, 5, 11)
  result, gradients = run((hidden, head, hidden, head, targets), spec, eager=True, chunk_tokens=4)
  np.testing.assert_allclose(result.loss, 0, atol=1e-6)
  np.testing.assert_allclose(gradients[0], 0, atol=1e-6)
  np.testing.assert_allclose(gradients[1], 0, atol=1e-6)
  assert np.all(result.agreement == 1) and not np.any(result.clip_fraction)


@PROPERTY
@given(st.data())
def test_large_logits_stay_finite(data):
  spec = data.draw(specs(11))
  arguments = make_inputs(4, 2, 5, 11, scale=1e3)
  for implementation in ('reference', 'chunked'):
    outcome = run(arguments, spec, eager=True, implementation=implementation, chunk_tokens=4)
    for leaf in jax.tree.leaves(outcome):
      assert np.all(np.isfinite(leaf))


# --- Particular behaviours.


def test_clipped_entry_has_no_gradient_of_its_own():
  # With every entry clipped the loss is constant.
  spec = DivergenceSpec(entry_clip_max=-10.0)
  result = from_logits(spec)
  assert result['loss'] == -50 and result['clip_fraction'] == 1
  assert not np.any(gradient(spec))


def test_lower_clip_above_zero_does_not_count_padding():
  spec = DivergenceSpec(entry_clip_min=0.1, valid_vocab=3)
  expected = oracle_row(STUDENT, TEACHER, 0, spec)
  actual = from_logits(spec)
  np.testing.assert_allclose(actual['loss'], expected['loss'], rtol=1e-6)
  np.testing.assert_allclose(actual['clip_fraction'], expected['clip_fraction'], rtol=1e-6)


def test_full_support_ignores_tail_and_bucket_of_nothing_is_absent():
  full = from_logits(DivergenceSpec(kind='jsd'))
  for tail in ('renormalise', 'bucket'):
    spec = DivergenceSpec(kind='jsd', support='student_topk', k=5, tail=tail)
    np.testing.assert_allclose(from_logits(spec)['loss'], full['loss'], rtol=1e-6)
    np.testing.assert_allclose(gradient(spec), gradient(DivergenceSpec(kind='jsd')), atol=1e-7)


def test_padded_vocabulary_gets_no_gradient_whatever_it_holds():
  student, head, teacher, teacher_head, targets = make_inputs(5, 2, 5, 11)
  spec = DivergenceSpec(kind='jsd', valid_vocab=8)
  small = (student, head[:8], teacher, teacher_head[:8], targets)
  expected = run(small, DivergenceSpec(kind='jsd'), eager=True)
  head, teacher_head = head.at[8:].set(40.0), teacher_head.at[8:].set(-40.0)
  arguments = (student, head, teacher, teacher_head, targets)
  result, gradients = run(arguments, spec, chunk_tokens=4, eager=True)
  assert_trees_close(result, expected[0])
  assert not np.any(gradients[1][8:])
  np.testing.assert_allclose(gradients[1][:8], expected[1][1], atol=1e-5)


def test_only_loss_carries_a_gradient():
  student, head, teacher, teacher_head, targets = make_inputs(6, 1, 2, 7)

  def rest(student, head):
    result = linear_divergence(student, head, teacher, teacher_head, targets, DivergenceSpec())
    return sum(x.sum() for x in jax.tree.leaves(dataclasses.replace(result, loss=jnp.zeros(()))))

  assert not any(np.any(g) for g in jax.grad(rest, (0, 1))(student, head))


def test_missing_teacher_head_is_the_students_without_gradient():
  student, head, _, _, targets = make_inputs(7, 2, 3, 7)
  teacher = student[:, ::-1]
  spec = DivergenceSpec(kind='reverse_kl')

  def loss(head):
    return linear_divergence(student, head, teacher, None, targets, spec).loss.sum()

  expected = run((student, head, teacher, head, targets), spec)
  np.testing.assert_allclose(loss(head), expected[0].loss.sum(), rtol=1e-6)
  np.testing.assert_allclose(jax.grad(loss)(head), expected[1][1], atol=1e-6)


@pytest.mark.parametrize('implementation', ['reference', 'chunked'])
def test_bfloat16_activations_with_float32_master_head(implementation):
  arguments = make_inputs(8, 2, 8, 32)
  student, head, teacher, teacher_head, targets = arguments
  narrow = (student.astype(jnp.bfloat16), head, teacher.astype(jnp.bfloat16), teacher_head, targets)
  result, gradients = run(narrow, DivergenceSpec(), implementation=implementation, chunk_tokens=4)
  expected, expected_gradients = run(arguments, DivergenceSpec())
  assert gradients[0].dtype == jnp.bfloat16 and gradients[1].dtype == jnp.float32
  assert result.loss.dtype == jnp.float32
  np.testing.assert_allclose(result.loss, expected.loss, atol=0.05)
  np.testing.assert_allclose(gradients[1], expected_gradients[1], atol=0.03)
  # Sums of more than 8 bits show that no chunk's gradient was rounded to bfloat16.
  rounded = gradients[1].astype(jnp.bfloat16).astype(jnp.float32)
  assert np.mean(rounded != gradients[1]) > 0.5


def largest_buffer(compiled):
  """Elements of the largest array in the optimised program."""
  shapes = re.findall(r'\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]', compiled.as_text())
  return max(math.prod(int(n) for n in shape.split(',')) for shape in shapes)


@pytest.mark.parametrize(
  'spec',
  [
    DivergenceSpec(entry_clip_max=0.05, valid_vocab=250),
    DivergenceSpec(kind='jsd', support='teacher_topk', k=4, tail='bucket'),
  ],
)
def test_chunked_program_never_holds_all_logits(spec):
  batch, time, vocab = 2, 32, 2048
  arguments = make_inputs(9, batch, time, vocab)

  def compiled(implementation):
    def loss(*arguments):
      keywords = dict(implementation=implementation, chunk_tokens=8)
      return linear_divergence(*arguments, spec, **keywords).loss.sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()

  assert largest_buffer(compiled('reference')) >= batch * time * vocab
  assert largest_buffer(compiled('chunked')) <= 8 * vocab


# --- Errors: the setting, its value, the remedy.


@pytest.mark.parametrize(
  'settings, words',
  [
    (dict(kind='kl'), ['kind', "'kl'", 'forward_kl']),
    (dict(support='topk'), ['support', "'topk'", 'teacher_topk']),
    (dict(tail='drop'), ['tail', "'drop'", 'bucket']),
    (dict(kind='jsd', beta=0.0), ['beta', '0.0', 'forward_kl', 'reverse_kl']),
    (dict(kind='jsd', beta=1.0), ['beta', '1.0', 'forward_kl', 'reverse_kl']),
    (dict(kind='jsd', beta=-0.5), ['beta', '-0.5']),
    (dict(support='teacher_topk', k=8), ['k is 8', '7 valid', 'k <= 7']),
    (dict(support='teacher_topk', k=6, valid_vocab=5), ['k is 6', '5 valid', 'k <= 5']),
    (dict(support='student_topk', k=0), ['k is 0', 'k >= 1', "'full'"]),
    (dict(k=3), ['k is 3', "'full'", 'k=0']),
    (dict(student_temperature=0.0), ['student_temperature', '0.0', '> 0']),
    (dict(teacher_temperature=-1.0), ['teacher_temperature', '-1.0', '> 0']),
    (dict(teacher_temperature=math.nan), ['teacher_temperature', 'nan']),
    (dict(student_softcap=0.0), ['student_softcap', '0.0', 'None']),
    (dict(teacher_softcap=-2.0), ['teacher_softcap', '-2.0', 'None']),
    (dict(valid_vocab=0), ['valid_vocab', '0', '1..7']),
    (dict(valid_vocab=8), ['valid_vocab', '8', '1..7']),
    (dict(support='union', k=0), ['k is 0', "'union'", 'k >= 1']),
    (dict(support='union', k=8), ['k is 8', '7 valid', 'k <= 7']),
    (dict(support='sampled', k=3), ['k is 3', "'sampled'", 'one entry', 'k=0']),
    (dict(support='sampled', kind='jsd'), ["'jsd'", 'sampled', 'reverse_kl']),
    (dict(support='sampled', entry_clip_max=0.05), ['entry_clip_max', '0.05', "'sampled'", 'None']),
    (dict(kind='both_kl', beta=1.0), ['beta', '1.0', 'both_kl', 'forward_kl']),
    (dict(kind='both_kl', beta=0.0), ['beta', '0.0', 'both_kl', 'reverse_kl']),
    (dict(entry_clip_min=0.1, entry_clip_max=0.05), ['entry_clip_min', '0.1', '0.05', 'swap']),
  ],
)
def test_spec_errors(settings, words):
  with pytest.raises(ValueError) as error:
    linear_divergence(*make_inputs(0, 2, 3, 7), DivergenceSpec(**settings))
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  'position, replacement, words',
  [
    (0, jnp.zeros((6, 6)), ['student_hidden', '(6, 6)', '[batch, time, width]']),
    (0, jnp.zeros((2, 3, 6), jnp.int32), ['student_hidden', 'int32', 'floating']),
    (1, jnp.zeros((6, 7)), ['student_head', '(6, 7)', 'transpose']),
    (1, jnp.zeros(6), ['student_head', '(6,)', '[vocab, width]']),
    (2, jnp.zeros((2, 4, 5)), ['teacher_hidden', '(2, 4, 5)', 'gather']),
    (3, jnp.zeros((9, 5)), ['teacher_head', '9', 'valid_vocab']),
    (3, None, ['teacher_head', 'widths 6 and 5']),
    (4, jnp.zeros((2, 4), jnp.int32), ['targets', '(2, 4)', '(2, 3)']),
    (4, jnp.zeros((2, 3)), ['targets', 'float32', 'integer']),
  ],
)
def test_shape_errors(position, replacement, words):
  arguments = list(make_inputs(0, 2, 3, 7))
  arguments[position] = replacement
  with pytest.raises(ValueError) as error:
    linear_divergence(*arguments, DivergenceSpec())
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  'keywords, words',
  [
    (dict(implementation='fused'), ['implementation', "'fused'", 'chunked, gpu, reference']),
    (dict(implementation=()), ['implementation', 'empty']),
    (dict(implementation=('tpu', 'fast')), ['implementation', "'fast'"]),
    (dict(chunk_tokens=0), ['chunk_tokens', '0', '>= 1']),
    (dict(mode='fast'), ['mode', "'fast'", 'memory, speed']),
    (dict(weights=jnp.ones((2, 4))), ['weights', '(2, 4)', '(2, 3)']),
    (dict(weights=jnp.ones((2, 3), int)), ['weights', 'int32', 'floating']),
  ],
)
def test_call_errors(keywords, words):
  spec = DivergenceSpec(support='union', k=2)
  with pytest.raises(ValueError) as error:
    linear_divergence(*make_inputs(0, 2, 3, 7), spec, **keywords)
  for word in words:
    assert word in str(error.value)


def test_the_first_that_supports_a_call_serves_it():
  arguments, spec = make_inputs(0, 2, 3, 7), DivergenceSpec(support='union', k=2)
  result = linear_divergence(*arguments, spec, implementation=('tpu', 'reference', 'chunked'))
  assert_trees_close(result, linear_divergence(*arguments, spec, implementation='reference'), 0, 0)
  tpu, first, second = api.explain(spec, *arguments[:4], implementation=('tpu', 'reference', 'chunked'))
  assert 'cpu' in tpu.lacks and first == ('reference', None) and second == ('chunked', None)
  # A name that stands alone is meant wherever it can run.
  (alone,) = api.explain(DivergenceSpec(), implementation='tpu')
  assert alone.lacks is None
  assert api.choose(spec)[0] == 'chunked' and 'tpu lacks' in api.choose(spec)[1]


def test_bench_writes_its_records(tmp_path, capsys):
  out = tmp_path / 'deep' / 'bench.json'
  bench.main(['--smoke', '--out', str(out), '--variants', 'reference,chunked,chunked:speed*'])
  records = json.loads(out.read_text())['records']
  assert [r['implementation'] for r in records] == ['reference', 'chunked', 'chunked:speed*']
  assert all(r['wall_ms'] > 0 and r['temp_bytes'] > 0 for r in records)
  assert '| chunked |' in capsys.readouterr().out
