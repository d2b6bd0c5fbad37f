"""The loss of a batch: published numbers, closed-form gradients, and weights worked out by hand.

Oracles are float64 NumPy; the code is float32, hence tolerances of a few 1e-6.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.distill import objective
from opsd_jax.distill.config import ObjectiveConfig, validate_objective
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import length_mask

STUDENT = np.array([2.0, 1.0, 0.0, -1.0, 0.5])
TEACHER = np.array([0.5, 2.5, 0.0, -0.5, -2.0])
HEAD = np.eye(5, dtype=np.float32)  # Hidden states are logits.
TEMPERATURE = 1.1

# Student and teacher temperature 1.1; value, and gradient with respect to the student's logits.
GOLDEN = {
  'forward_kl': (
    dict(divergence='forward_kl'),
    0.723441,
    [0.372423, -0.480497, 0.008717, -0.012604, 0.111962],
  ),
  'opsd': (
    dict(divergence='forward_kl', entry_clip_max=0.05),
    -0.150879,
    [0.014765, 0.050070, -0.049339, -0.035994, 0.020498],
  ),
  'renio': (
    dict(divergence='forward_kl', entry_clip_min=0.0, entry_clip_max=0.05),
    0.066327,
    [0.023390, 0.009424, 0.003797, -0.042592, 0.005981],
  ),
  'reverse_kl': (dict(divergence='reverse_kl'), 0.842144, None),
  'jsd .1': (dict(divergence='jsd', beta=0.1), 0.064050, None),
  'jsd .5': (dict(divergence='jsd', beta=0.5), 0.177659, None),
  'jsd .9': (dict(divergence='jsd', beta=0.9), 0.071243, None),
  'jsd clipped': (dict(divergence='jsd', beta=0.5, entry_clip_max=0.05), 0.130689, None),
}


def make_config(implementation='reference', **changes):
  return ObjectiveConfig(
    student_temperature=TEMPERATURE, teacher_temperature=TEMPERATURE, implementation=implementation, **changes
  )


def compare(student, teacher, config, tokens=None, teacher_head=HEAD):
  """`objective.compare` of logits [B, T, 5]."""
  student, teacher = (jnp.asarray(x, jnp.float32) for x in (student, teacher))
  tokens = jnp.zeros(student.shape[:2], jnp.int32) if tokens is None else jnp.asarray(tokens)
  return objective.compare(student, jnp.asarray(HEAD), teacher, teacher_head, tokens, config, 5)


def batch_loss(student, teacher, length, config, tokens=None):
  """The scalar that is minimised."""
  length = jnp.asarray(length)
  weights = objective.token_weights(length, student.shape[1], config.reduction)
  return jnp.sum(weights * compare(student, teacher, config, tokens)[0])


def log_softmax(x):
  x = np.asarray(x, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def forward_kl(student, teacher):
  """KL(teacher || student) [...] at the temperature of this file."""
  log_q, log_p = log_softmax(student / TEMPERATURE), log_softmax(teacher / TEMPERATURE)
  return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def random_logits(seed, *shape):
  return np.random.default_rng(seed).normal(size=(*shape, 5)).astype(np.float32)


# --- Values and gradients.


@functools.cache
def golden_results():
  """{name: (loss, gradient)} of the default implementation, compiled as one program."""

  def one(changes, logits):
    config = make_config(implementation=None, **changes)
    return jax.value_and_grad(lambda x: batch_loss(x, TEACHER[None, None], [1], config))(logits)

  student = jnp.asarray(STUDENT[None, None], jnp.float32)
  compiled = jax.jit(lambda x: {name: one(GOLDEN[name][0], x) for name in GOLDEN})
  return jax.device_get(compiled(student))


@pytest.mark.parametrize('name', GOLDEN)
def test_published_numbers(name):
  _, value, gradient = GOLDEN[name]
  found, slope = golden_results()[name]
  np.testing.assert_allclose(found, value, rtol=0, atol=2e-6)
  if gradient is not None:
    np.testing.assert_allclose(slope[0, 0], gradient, rtol=0, atol=2e-6)


def closed_form(config, student, teacher):
  """d loss / d student logits [5] of one position, without clipping."""
  log_q, log_p = log_softmax(student / TEMPERATURE), log_softmax(teacher / TEMPERATURE)
  p, q = np.exp(log_p), np.exp(log_q)
  if config.divergence == 'forward_kl':
    return (q - p) / TEMPERATURE
  other = log_p if config.divergence == 'reverse_kl' else np.log(config.beta * p + (1 - config.beta) * q)
  scale = 1 if config.divergence == 'reverse_kl' else 1 - config.beta
  return scale * q * (log_q - other - (q * (log_q - other)).sum()) / TEMPERATURE


@pytest.mark.parametrize(
  'changes', [dict(divergence='forward_kl'), dict(divergence='reverse_kl'), dict(divergence='jsd', beta=0.3)]
)
def test_gradients_of_a_batch_are_weighed_closed_forms(changes):
  student, teacher, length = random_logits(0, 2, 3), random_logits(1, 2, 3), [3, 1]
  config = make_config(reduction='sample_mean', **changes)
  slope = jax.grad(lambda x: batch_loss(x, teacher, length, config))(jnp.asarray(student))
  for row in range(2):
    for t in range(3):
      weight = 0.5 / length[row] if t < length[row] else 0.0
      wanted = weight * closed_form(config, student[row, t], teacher[row, t])
      np.testing.assert_allclose(slope[row, t], wanted, rtol=0, atol=1e-6)


def test_the_teacher_gets_no_gradient():
  student, config = random_logits(0, 1, 2), make_config()

  def loss(teacher, head):
    return jnp.sum(compare(student, teacher, config, teacher_head=head)[0])

  slopes = jax.grad(loss, argnums=(0, 1))(jnp.asarray(random_logits(1, 1, 2)), jnp.asarray(HEAD))
  assert not any(np.any(slope) for slope in slopes)


def test_a_live_teachers_head_is_the_students_held_constant():
  student, teacher = jnp.asarray(random_logits(0, 1, 2)), jnp.asarray(random_logits(1, 1, 2))
  tokens = jnp.zeros((1, 2), jnp.int32)

  def loss(head, given):
    return jnp.sum(objective.compare(student, head, teacher, given, tokens, make_config(), 5)[0])

  head = jnp.asarray(HEAD) * 1.5
  value, slope = jax.value_and_grad(loss)(head, None)
  value_of_copy, slope_of_copy = jax.value_and_grad(loss)(head, head)
  assert float(value) == float(value_of_copy) > 0
  np.testing.assert_array_equal(slope, slope_of_copy)


def test_ids_beyond_the_vocabulary_have_no_share():
  student, teacher = random_logits(0, 1, 1), random_logits(1, 1, 1)
  config = make_config()
  loss, _ = objective.compare(
    jnp.asarray(student),
    jnp.asarray(HEAD),
    jnp.asarray(teacher),
    jnp.asarray(HEAD),
    jnp.zeros((1, 1), jnp.int32),
    config,
    3,
  )
  wanted = forward_kl(student[..., :3], teacher[..., :3])
  np.testing.assert_allclose(loss, wanted, rtol=0, atol=1e-6)


# --- The clip of a whole token.


@pytest.mark.parametrize(('clip', 'value', 'share'), [(0.5, 0.5, 0.0), (0.8, 0.723441, 1.0)])
def test_a_clipped_token_is_worth_the_bound_and_has_no_gradient(clip, value, share):
  config = make_config(token_clip=clip)
  found, slope = jax.value_and_grad(lambda x: batch_loss(x, TEACHER[None, None], [1], config))(
    jnp.asarray(STUDENT[None, None], jnp.float32)
  )
  np.testing.assert_allclose(found, value, rtol=0, atol=2e-6)
  np.testing.assert_allclose(slope[0, 0], share * np.array(GOLDEN['forward_kl'][2]), atol=2e-6)


def test_the_clip_is_of_each_token_not_of_the_mean():
  student = np.stack([STUDENT, TEACHER])[None]  # The second position agrees with the teacher.
  teacher = np.stack([TEACHER, TEACHER])[None]
  loss, out = compare(student, teacher, make_config(token_clip=0.5))
  np.testing.assert_allclose(loss, [[0.5, 0.0]], atol=1e-6)
  np.testing.assert_allclose(out.loss, [[0.723441, 0.0]], atol=2e-6)


# --- Weights.


def by_hand(length, width, reduction):
  """Weights [B][width] by counting."""
  total, samples = sum(length), sum(n > 0 for n in length)
  share = {'token_mean': lambda n: 1 / total, 'sample_mean': lambda n: 1 / (n * samples)}[reduction]
  return [[share(n) if t < n else 0.0 for t in range(width)] for n in length]


@pytest.mark.parametrize('reduction', ['token_mean', 'sample_mean'])
@settings(max_examples=12)
@given(length=st.lists(st.integers(0, 4), min_size=3, max_size=3), extra=st.sampled_from([0, 3]))
def test_weights_are_counted_sum_to_one_and_ignore_padding(reduction, length, extra):
  found = np.asarray(objective.token_weights(jnp.array(length), 4 + extra, reduction))
  np.testing.assert_allclose(found, by_hand(length, 4 + extra, reduction), rtol=1e-6)
  np.testing.assert_allclose(found.sum(), float(any(length)), rtol=1e-6)
  assert found.dtype == np.float32
  narrow = np.asarray(objective.token_weights(jnp.array(length), 4, reduction))
  np.testing.assert_array_equal(found[:, :4], narrow)


def test_the_two_reductions_of_one_example():
  length = jnp.array([3, 1, 0])
  np.testing.assert_allclose(
    objective.token_weights(length, 3, 'token_mean'), [[0.25, 0.25, 0.25], [0.25, 0, 0], [0, 0, 0]]
  )
  np.testing.assert_allclose(
    objective.token_weights(length, 3, 'sample_mean'),
    np.array([[1 / 6] * 3, [0.5, 0, 0], [0, 0, 0]]),
    rtol=1e-6,
  )


@pytest.mark.parametrize('reduction', ['token_mean', 'sample_mean'])
def test_the_loss_of_a_batch_is_the_weighed_sum_over_real_tokens(reduction):
  student, teacher, length = random_logits(2, 3, 4), random_logits(3, 3, 4), [4, 2, 0]
  kl, weights = forward_kl(student, teacher), by_hand(length, 4, reduction)
  wanted = sum(weights[b][t] * kl[b, t] for b in range(3) for t in range(length[b]))
  found = batch_loss(student, teacher, length, make_config(reduction=reduction))
  np.testing.assert_allclose(found, wanted, rtol=2e-6)


def test_a_sampled_pad_id_inside_a_completion_counts():
  """Regression: masking where id == pad, as published code does, would drop positions 1 and 2."""
  student, teacher = jnp.asarray(random_logits(4, 1, 4)), random_logits(5, 1, 4)
  kl, tokens = forward_kl(student, teacher)[0], [[3, 0, 0, 0]]
  config = make_config()

  def loss(x):
    return batch_loss(x, teacher, [3], config, tokens)

  value, slope = jax.value_and_grad(loss)(student)
  np.testing.assert_allclose(value, kl[:3].mean(), rtol=2e-6)
  assert abs(kl[:3].mean() - kl[0]) > 0.1  # The bug would be seen.
  moved = np.abs(np.asarray(slope[0])).max(-1) > 1e-4
  assert moved.tolist() == [True, True, True, False]  # The fourth 0 is padding.


# --- What is reported.


def test_statistics_are_sums_over_sampled_tokens():
  student, teacher, length = random_logits(6, 2, 3), random_logits(7, 2, 3), np.array([2, 3])
  tokens, raw = np.array([[0, 4, 1], [2, 0, 3]]), np.full((2, 3), -1.0, np.float32)
  config = make_config(token_clip=0.3)
  loss, out = compare(student, teacher, config, tokens)
  found = objective.statistics(loss, out, length_mask(length, 3), jnp.asarray(raw), 0.3)

  real = np.arange(3) < length[:, None]
  log_q, log_p = log_softmax(student / TEMPERATURE), log_softmax(teacher / TEMPERATURE)
  kl = forward_kl(student, teacher)
  taken = np.take_along_axis(log_q, tokens[..., None], -1)[..., 0]
  wanted = {
    'forward_kl': kl,
    'token_loss': np.minimum(kl, 0.3),
    'token_clip_fraction': kl > 0.3,
    'student_entropy': -(np.exp(log_q) * log_q).sum(-1),
    'student_logp': taken,
    'reverse_kl': (np.exp(log_q) * (log_q - log_p)).sum(-1),
    'logp_gap': abs(taken + 1),
    'agreement': log_q.argmax(-1) == log_p.argmax(-1),
    'student_topk_mass': np.ones((2, 3)),
    'entry_clip_fraction': np.zeros((2, 3)),
  }
  assert 0 < (kl > 0.3)[real].sum() < real.sum()
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value[real].sum(), rtol=5e-6, err_msg=name)


def test_without_a_clip_no_token_is_clipped():
  loss, out = compare(random_logits(6, 1, 2), random_logits(7, 1, 2), make_config())
  found = objective.statistics(loss, out, jnp.ones((1, 2), bool), jnp.zeros((1, 2)), None)
  assert float(found['token_clip_fraction']) == 0


def test_statistics_that_are_not_asked_for_are_left_out():
  config = make_config('chunked', support='teacher_topk', k=2, statistics=False)
  loss, out = compare(random_logits(6, 1, 2), random_logits(7, 1, 2), config)
  found = objective.statistics(loss, out, jnp.ones((1, 2), bool), jnp.zeros((1, 2)), None)
  assert set(found) == {'token_loss', 'entry_clip_fraction', 'token_clip_fraction'}


def test_second_looks_for_a_clip_are_counted():
  # A vocabulary of several tiles, and a bound that leaves nothing to a certificate.
  rng = np.random.default_rng(0)
  hidden, head = rng.normal(size=(2, 1, 8, 4)), rng.normal(size=(300, 4))
  arrays = [jnp.asarray(x, jnp.float32) for x in (hidden[0], head, hidden[1], head)]
  config = make_config('chunked', entry_clip_max=0.0, chunk_tokens=1)
  loss, out = objective.compare(*arrays, jnp.zeros((1, 8), jnp.int32), config, 300)
  mask = length_mask(jnp.array([5]), 8)
  found = objective.statistics(loss, out, mask, jnp.zeros((1, 8)), None)
  assert float(found['clip_fallback']) == 5


@pytest.mark.parametrize('mode', ['memory', 'speed'])
def test_a_mode_changes_neither_loss_nor_gradient(mode):
  student, teacher = (jnp.asarray(random_logits(seed, 2, 3), jnp.float32) for seed in (8, 9))
  weights = objective.token_weights(jnp.array([3, 2]), 3, 'token_mean')

  def loss(student, config):
    tokens, head = jnp.zeros((2, 3), jnp.int32), jnp.asarray(HEAD)
    arrays = (student, head, teacher, head, tokens)
    return jnp.sum(weights * objective.compare(*arrays, config, 5, weights=weights)[0])

  # A token's clip changes the weights that were announced.
  settings = dict(divergence='both_kl', token_clip=0.5)
  actual, expected = (
    jax.value_and_grad(loss)(student, make_config(name, mode=mode, **settings))
    for name in ('chunked', 'reference')
  )
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(actual[1], expected[1], atol=2e-6)


# --- Settings.


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(divergence='jsd', beta=0.0), ['beta is 0.0', 'forward_kl']),
    (dict(divergence='jsd', beta=1.0), ['beta is 1.0', 'reverse_kl']),
    (dict(divergence='kl'), ["'kl'", 'forward_kl', 'reverse_kl', 'jsd']),
    (dict(support='teacher_topk', k=21), ['k is 21', '20']),
    (dict(support='student_topk', k=0), ['k is 0', 'full']),
    (dict(support='full', k=5), ['k is 5', 'teacher_topk']),
    (dict(student_temperature=0.0), ['student_temperature is 0']),
    (dict(teacher_temperature=-1.0), ['teacher_temperature is -1']),
    (dict(entry_clip_min=0.1, entry_clip_max=0.05), ['entry_clip_min is 0.1', '0.05']),
    (dict(token_clip=0.0), ['objective.token_clip is 0.0', 'none']),
    (dict(token_clip=float('nan')), ['objective.token_clip is nan']),
    (dict(divergence='both_kl', beta=1.0), ['beta is 1.0', "objective.divergence='forward_kl'"]),
    (dict(support='sampled', divergence='jsd'), ['sampled', "'jsd'"]),
    (dict(support='union', k=21), ['k is 21', '20']),
    (dict(mode='fast'), ["objective.mode is 'fast'"]),
    (dict(implementation='tpu,chunk'), ["objective.implementation is 'chunk'", "'chunked'"]),
    (dict(implementation='chunk'), ["objective.implementation is 'chunk'", "'chunked'"]),
    (dict(reduction='mean'), ["objective.reduction is 'mean'"]),
    (dict(chunk_tokens=0), ['objective.chunk_tokens is 0']),
  ],
)
def test_an_objective_that_cannot_work(changes, words):
  with pytest.raises(ConfigError) as caught:
    validate_objective(ObjectiveConfig(**changes), 20)
  assert all(word in str(caught.value) for word in ['objective', *words])


def test_an_implementation_that_lacks_the_objective_is_refused_before_anything_runs():
  config = ObjectiveConfig(support='teacher_topk', k=200, implementation='tpu')
  with pytest.raises(ConfigError, match='objective.implementation is tpu, but tpu lacks k = 200'):
    validate_objective(config, 300)
  validate_objective(dataclasses.replace(config, implementation='tpu,chunked'), 300)


def test_which_implementation_serves_a_run_is_told_with_reasons():
  spec = ModelSpec(
    vocab_size=300, num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8
  )
  told = objective.served_by(ObjectiveConfig(), spec, 290)
  assert told.startswith('chunked; tpu lacks this machine: the backend is')
  config = ObjectiveConfig(support='teacher_topk', k=200, implementation='tpu')
  assert objective.served_by(config, spec, 290).startswith('none; tpu lacks k = 200')


@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(divergence='jsd', beta=0.9),
    dict(beta=0.0),
    dict(support='student_topk', k=20),
    dict(entry_clip_max=0.05),
    dict(token_clip=0.5, implementation='reference'),
    dict(support='union', k=3, tail='bucket', implementation='tpu,chunked', mode='speed'),
    dict(support='sampled', divergence='both_kl', statistics=False),
  ],
)
def test_an_objective_that_works(changes):
  validate_objective(ObjectiveConfig(**changes), 20)
