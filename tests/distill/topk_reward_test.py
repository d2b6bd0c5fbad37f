"""Rewards of a top-k: published numbers, the definition in float64, finite differences, settings."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.distill import objective, topk_reward
from opsd_jax.distill.config import REWARD_SUPPORTS, ObjectiveConfig, Softcaps, validate_objective
from opsd_jax.models.spec import ModelSpec
from tests.distill.objective_test import log_softmax, random_logits
from tests.models.transformer_test import quick_jit

STUDENT = np.array([2.0, 1.0, 0.0, -1.0, 0.5])
TEACHER = np.array([0.5, 2.5, 1.5, -0.5, -2.0])
HEAD = np.eye(5, dtype=np.float32)  # Hidden states are logits.
SHARES = ('student_p', 'teacher_p', 'none')
PAIRS = list(itertools.product(REWARD_SUPPORTS, SHARES))


def make_config(support='student_topk', weighting='student_p', k=2, **changes):
  return ObjectiveConfig(
    estimator='reward_topk',
    divergence='reverse_kl',
    support=support,
    reward_weights=weighting,
    k=k,
    **changes,
  )


def compare(student, teacher, config, tokens=None, valid=5, softcap=None):
  """`objective.compare` of logits [B, T, 5]."""
  student, teacher = (jnp.asarray(x, jnp.float32) for x in (student, teacher))
  tokens = jnp.zeros(student.shape[:2], jnp.int32) if tokens is None else jnp.asarray(tokens)
  head = jnp.asarray(HEAD)
  return objective.compare(student, head, teacher, head, tokens, config, valid, Softcaps(softcap, softcap))


def results(student, teacher, config, tokens=None):
  """`compare`, compiled as one program: many small ones take longer."""
  return quick_jit(lambda x: compare(x, teacher, config, tokens))(jnp.asarray(student, jnp.float32))


def slope_of(student, teacher, config):
  """Gradient of the summed loss to the student's logits."""
  loss = lambda x: compare(x, teacher, config)[0].sum()  # noqa: E731
  return quick_jit(jax.grad(loss))(jnp.asarray(student, jnp.float32))


def rewards(config, student=STUDENT, teacher=TEACHER):
  """Ids that count, their weights and rewards, of one position, in the code's own order."""
  mine, theirs = (jax.lax.top_k(jnp.asarray(x, jnp.float32), config.k)[1] for x in (student, teacher))
  ids, counted = topk_reward.choose(mine, theirs, config.support)
  log_p, log_q = (jnp.asarray(log_softmax(x), jnp.float32)[ids] for x in (student, teacher))
  weights = topk_reward.shares(log_p, log_q, counted, config.support, config.reward_weights)
  assert (np.asarray(weights)[~np.asarray(counted)] == 0).all()
  return [np.asarray(x)[np.asarray(counted)] for x in (ids, weights, -weights * (log_p - log_q))]


@pytest.mark.parametrize(
  ('support', 'weighting', 'ids', 'weights', 'values'),
  [
    ('student_topk', 'student_p', [0, 1], [0.731059, 0.268941], [-1.369185, 0.303129]),
    ('teacher_topk', 'student_p', [1, 2], [0.731059, 0.268941], [0.823991, 0.303129]),
    ('intersection', 'student_p', [1], [1], [1.127120]),
    ('union', 'student_p', [0, 1, 2], [0.665241, 0.244728, 0.090031], [-1.245916, 0.275838, 0.101475]),
    ('symmetric_difference', 'student_p', [0, 2], [0.563021, 0.076197], [-1.054471, 0.085883]),
    ('student_topk', 'teacher_p', [0, 1], None, [-0.223253, 0.992764]),
    ('student_topk', 'none', [0, 1], [0.5, 0.5], [-0.936440, 0.563560]),
  ],
)
def test_published_rewards(support, weighting, ids, weights, values):
  found = rewards(make_config(support, weighting))
  order = np.argsort(found[0])
  assert found[0][order].tolist() == ids
  if weights is not None:
    np.testing.assert_allclose(found[1][order], weights, atol=1e-6)
  np.testing.assert_allclose(found[2][order], values, atol=1e-6)
  loss, _ = results(STUDENT[None, None], TEACHER[None, None], make_config(support, weighting))
  np.testing.assert_allclose(loss, [[-np.sum(values)]], atol=2e-6)


def test_the_published_gradient():
  wanted = [0.768973, -0.523935, -0.081230, -0.029883, -0.133925]
  slope = slope_of(STUDENT[None, None], TEACHER[None, None], make_config())
  np.testing.assert_allclose(slope[0, 0], wanted, atol=1e-6)


def test_published_overlaps():
  _, two = results(STUDENT[None, None], TEACHER[None, None], make_config())
  found = {name: float(value[0, 0]) for name, value in topk_reward.overlaps(two).items()}
  assert found['overlap'] == 0.5
  assert found['overlap_student_mass'] == pytest.approx(0.207124, abs=1e-6)
  assert found['overlap_teacher_mass'] == pytest.approx(0.639341, abs=1e-6)
  assert float(two.student_entropy[0, 0]) == pytest.approx(1.206489, abs=1e-6)
  assert float(two.teacher_entropy[0, 0]) == pytest.approx(0.983022, abs=1e-6)
  assert found['entropy_gap'] == pytest.approx(1.206489 - 0.983022, abs=2e-6)
  _, three = results(STUDENT[None, None], TEACHER[None, None], make_config(k=3))
  assert float(three.overlap[0, 0]) == pytest.approx(2 / 3)
  assert float(three.overlap_advantage[0, 0]) == pytest.approx(-0.503421, abs=1e-6)
  # The code's: the mean reward of the ids that are in both, of which there are two.
  assert float(three.overlap_reward[0, 0]) / 2 == pytest.approx(-0.458274, abs=1e-6)


# --- The definition in float64, one position at a time.


def top(logits, k):
  """Ids of the k largest, the lowest ids of equal ones."""
  return sorted(range(len(logits)), key=lambda v: (-logits[v], v))[:k]


def support_of(config, student, teacher):
  mine, theirs = top(student, config.k), top(teacher, config.k)
  return {
    'student_topk': mine,
    'teacher_topk': theirs,
    'intersection': [v for v in mine if v in theirs],
    'union': mine + [v for v in theirs if v not in mine],
    'symmetric_difference': [v for v in mine + theirs if (v in mine) != (v in theirs)],
  }[config.support]


def shaped(logits, temperature, softcap):
  logits = np.float64(logits)
  logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
  return logits / temperature


def oracle(config, student, teacher, softcap=None):
  """Ids, weights and log-ratios of one position, from logits [V]."""
  student = shaped(student, config.student_temperature, softcap)
  teacher = shaped(teacher, config.teacher_temperature, softcap)
  ids = support_of(config, student, teacher)
  log_p, log_q = log_softmax(student)[ids], log_softmax(teacher)[ids]
  share = np.exp(log_q if config.reward_weights == 'teacher_p' else log_p)
  if config.reward_weights == 'none':
    share = np.ones(len(ids)) / max(len(ids), 1)
  elif config.support != 'symmetric_difference':
    share = share / share.sum() if ids else share
  return ids, share, log_p - log_q


def oracle_gradient(config, student, teacher):
  """1[j in S] w_j d_j - p_j Σ w d, over the temperature; without a soft-cap."""
  ids, share, ratio = oracle(config, student, teacher)
  signal = np.zeros(len(student))
  signal[ids] = share * ratio
  p = np.exp(log_softmax(np.float64(student) / config.student_temperature))
  return (signal - p * signal.sum()) / config.student_temperature


def differences(config, student, teacher, softcap):
  """Central differences of Σ w d log p with ids, w and d held, to the logits [V]."""
  ids, share, ratio = oracle(config, student, teacher, softcap)

  def value(x):
    return (share * ratio * log_softmax(shaped(x, config.student_temperature, softcap))[ids]).sum()

  step = 1e-6
  unit = np.eye(len(student)) * step
  return np.array([(value(student + u) - value(student - u)) / (2 * step) for u in unit])


WARM = dict(k=3, student_temperature=1.1, teacher_temperature=0.8, chunk_tokens=4)  # 2 and 1 time steps
FACTORS = np.random.default_rng(2).uniform(0.5, 2, (2, 3))


def logits_of_a_batch():
  return 2 * random_logits(0, 2, 3), 2 * random_logits(1, 2, 3)


@functools.cache
def warm_results():
  """{pair: (loss [2, 3], gradient of its weighed sum)}, compiled as one program."""
  student, teacher = logits_of_a_batch()

  def one(pair, x):
    loss = compare(x, teacher, make_config(*pair, **WARM))[0]
    return jnp.sum(jnp.asarray(FACTORS, jnp.float32) * loss), loss

  def every(x):
    return {pair: jax.value_and_grad(functools.partial(one, pair), has_aux=True)(x) for pair in PAIRS}

  return {pair: (loss, slope) for pair, ((_, loss), slope) in quick_jit(every)(student).items()}


@pytest.mark.parametrize('pair', PAIRS)
def test_loss_and_gradient_by_definition(pair):
  config, (loss, slope) = make_config(*pair, **WARM), warm_results()[pair]
  student, teacher = (np.float64(x) for x in logits_of_a_batch())
  for at in np.ndindex(2, 3):
    _, share, ratio = oracle(config, student[at], teacher[at])
    np.testing.assert_allclose(loss[at], (share * ratio).sum(), atol=2e-6)
    exact = oracle_gradient(config, student[at], teacher[at])
    np.testing.assert_allclose(exact, differences(config, student[at], teacher[at], None), atol=1e-7)
    np.testing.assert_allclose(slope[at], FACTORS[at] * exact, atol=3e-6)


def test_a_soft_cap_and_padding_of_the_vocabulary():
  config = make_config('union', k=2)
  student, teacher = 2 * random_logits(3, 1, 2), 2 * random_logits(4, 1, 2)
  capped = lambda x: compare(x, teacher, config, valid=4, softcap=1.5)[0].sum()  # noqa: E731
  loss, slope = quick_jit(jax.value_and_grad(capped))(student)
  wanted = [oracle(config, student[0, t, :4], teacher[0, t, :4], 1.5) for t in range(2)]
  assert float(loss) == pytest.approx(sum((w * d).sum() for _, w, d in wanted), abs=3e-6)
  for t in range(2):
    exact = differences(config, np.float64(student[0, t, :4]), teacher[0, t, :4], 1.5)
    np.testing.assert_allclose(slope[0, t], [*exact, 0], atol=3e-6)


@functools.cache
def slopes_over_all_ids():
  """Value and gradient by rewards of all five ids, and of the reverse KL, from student and teacher."""
  full = ObjectiveConfig(divergence='reverse_kl', implementation='reference')

  def both(student, teacher):
    configs = make_config(k=5), full
    return [jax.value_and_grad(lambda x, c=c: compare(x, teacher, c)[0].sum())(student) for c in configs]

  return quick_jit(both)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_over_all_ids_the_gradient_is_the_reverse_kls(seed):
  (value, found), (kl, wanted) = slopes_over_all_ids()(
    random_logits(seed, 1, 2), random_logits(seed + 1, 1, 2)
  )
  np.testing.assert_allclose(value, kl, atol=2e-6)
  np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_one_reward_has_a_gradient_where_the_renormalised_divergence_has_none():
  exact = ObjectiveConfig(divergence='reverse_kl', support='student_topk', k=1)
  arrays = STUDENT[None, None], TEACHER[None, None]
  found = slope_of(*arrays, make_config(k=1))
  np.testing.assert_allclose(found[0, 0], oracle_gradient(make_config(k=1), STUDENT, TEACHER), atol=1e-6)
  assert np.abs(found).max() > 0.1 and np.abs(slope_of(*arrays, exact)).max() < 1e-6


@pytest.mark.parametrize('weighting', SHARES)
def test_nothing_in_common_is_no_reward(weighting):
  student, teacher = np.array([[[3.0, 2, 0, 0, 0]]]), np.array([[[0.0, 0, 0, 2, 3]]])
  config = make_config('intersection', weighting)
  loss, out = results(student, teacher, config)
  assert loss.tolist() == [[0]] and (np.asarray(slope_of(student, teacher, config)) == 0).all()
  found = {name: float(value[0, 0]) for name, value in topk_reward.overlaps(out).items()}
  assert found.pop('entropy_gap') < 1e-6 and not any(found.values())


def test_the_teacher_gets_no_gradient_and_a_live_one_has_the_students_head():
  student, teacher = jnp.asarray(random_logits(0, 1, 2)), jnp.asarray(random_logits(1, 1, 2))
  tokens, config = jnp.zeros((1, 2), jnp.int32), make_config()

  def loss(student, head, teacher, own):
    return objective.compare(student, head, teacher, own, tokens, config, 5)[0].sum()

  head = jnp.asarray(HEAD) * 1.5
  slopes = quick_jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(student, head, teacher, head)
  assert [bool(np.any(x)) for x in slopes] == [True, True, False, False]
  live = quick_jit(jax.grad(loss, argnums=1))(student, head, teacher, None)
  np.testing.assert_allclose(live, slopes[1], atol=1e-7)


@functools.cache
def chunked(chunk_tokens):
  student, teacher = random_logits(5, 2, 5), random_logits(6, 2, 5)
  config = make_config('union', chunk_tokens=chunk_tokens)
  weights = jnp.asarray(np.random.default_rng(7).uniform(size=(2, 5)), jnp.float32)

  def loss(head):
    value, out = objective.compare(
      jnp.asarray(student), head, jnp.asarray(teacher), None, jnp.zeros((2, 5), jnp.int32), config, 5
    )
    return jnp.sum(weights * value), out

  return quick_jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(HEAD))


@pytest.mark.parametrize('chunk_tokens', [1, 4])
def test_chunks_change_nothing(chunk_tokens):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), chunked(chunk_tokens), chunked(1024))


def test_the_backward_pass_ranks_nothing_again():
  student, teacher = (jnp.asarray(random_logits(seed, 1, 4)) for seed in (0, 1))
  program = jax.make_jaxpr(jax.grad(lambda x: compare(x, teacher, make_config(chunk_tokens=2))[0].sum()))(
    student
  )
  assert str(program).count('top_k[') == 2


# --- What is reported.


def test_statistics_are_those_of_the_divergence_and_of_the_overlap():
  student, teacher = random_logits(6, 2, 3), random_logits(7, 2, 3)
  tokens, raw = np.array([[0, 4, 1], [2, 0, 3]]), jnp.full((2, 3), -1.0)
  mask, config = jnp.array([[True, True, False], [True, True, True]]), make_config(k=3)
  loss, out = results(student, teacher, config, tokens)
  found = objective.statistics(loss, out, mask, raw, None)
  other = ObjectiveConfig(divergence='reverse_kl', support='student_topk', k=3, implementation='reference')
  plain = objective.statistics(*results(student, teacher, other, tokens), mask, raw, None)
  assert set(found) == {*plain, *topk_reward.overlaps(out)}
  for name in set(plain) - {'token_loss'}:
    np.testing.assert_allclose(found[name], plain[name], rtol=1e-5, atol=1e-6, err_msg=name)
  real = [at for at in np.ndindex(2, 3) if mask[at]]
  overlap = [len({*top(student[at], 3)} & {*top(teacher[at], 3)}) / 3 for at in real]
  assert float(found['overlap']) == pytest.approx(sum(overlap), rel=1e-6)
  wanted = sum((w * d).sum() for _, w, d in (oracle(config, student[at], teacher[at]) for at in real))
  assert float(found['token_loss']) == pytest.approx(wanted, abs=1e-5)


def test_statistics_that_are_not_asked_for_are_left_out():
  loss, out = results(random_logits(6, 1, 2), random_logits(7, 1, 2), make_config(statistics=False))
  found = objective.statistics(loss, out, jnp.ones((1, 2), bool), jnp.zeros((1, 2)), None)
  assert set(found) == {'token_loss', 'entry_clip_fraction', 'token_clip_fraction'}
  whole, _ = results(random_logits(6, 1, 2), random_logits(7, 1, 2), make_config())
  np.testing.assert_allclose(loss, whole, atol=1e-6)


# --- Settings.


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(estimator='reward'), ["objective.estimator is 'reward'", "'reward_topk'"]),
    (
      dict(divergence='forward_kl'),
      ['objective.divergence is forward_kl', 'objective.divergence=reverse_kl'],
    ),
    (dict(support='full'), ['objective.support is full', 'student_topk', 'objective.estimator=divergence']),
    (dict(support='sampled'), ['objective.support is sampled', 'objective.estimator=divergence']),
    (dict(k=0), ['k is 0', 'k >= 1']),
    (dict(k=21), ['k is 21', '20']),
    (dict(reward_weights='p'), ["objective.reward_weights is 'p'"]),
    (dict(tail='bucket'), ['objective.tail is bucket', 'leave it out']),
    (dict(entry_clip_max=0.05), ['objective.entry_clip_max is 0.05']),
    (dict(token_clip=0.5), ['objective.token_clip is 0.5']),
    (dict(mode='speed'), ['objective.mode is speed']),
    (dict(implementation='chunked'), ['objective.implementation is chunked']),
    (dict(student_temperature=0.0), ['student_temperature is 0']),
    (dict(chunk_tokens=0), ['objective.chunk_tokens is 0']),
  ],
)
def test_rewards_that_cannot_work(changes, words):
  with pytest.raises(ConfigError) as caught:
    validate_objective(dataclasses.replace(make_config(), **changes), 20)
  assert all(word in str(caught.value) for word in ['objective', *words])


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(support='intersection', k=2), ['objective.support is intersection', '.estimator=reward_topk']),
    (dict(support='symmetric_difference', k=2), ['objective.estimator=reward_topk']),
    (dict(reward_weights='none'), ['objective.reward_weights is none', 'objective.estimator=reward_topk']),
  ],
)
def test_what_rewards_alone_have(changes, words):
  with pytest.raises(ConfigError) as caught:
    validate_objective(ObjectiveConfig(**changes), 20)
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(('support', 'weighting'), PAIRS)
def test_rewards_that_work(support, weighting):
  config = make_config(support, weighting, k=16, correction='token')
  validate_objective(config, 20)
  shape = ModelSpec(20, num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8)
  assert 'chunk of positions' in objective.served_by(config, shape, 20)
