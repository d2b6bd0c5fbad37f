"""Sample weights against their definition in float64, by hand, and what they must not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.distill import signals, weigh_config, weighing
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.distill.weighing import Weights
from opsd_jax.records import Graded, Plan, Reading, Rollout, Verdict

RENIO = WeighConfig(kind='renio')
# Log-ratios of three samples of four tokens, cap 2.5, threshold 0.8.
PUBLISHED = np.array([[0.1, 1.2, 3.5, -0.4], [0.9, 0.2, -1, 0], [0.3, 0.5, 0.1, 0.79]])


def oracle(config, signal, length):
  """Weights [B] and averaged tokens [B] in float64, sample by sample, from signals [B, T] by `length` [B]."""
  raw, count = [], []
  for row, n in zip(np.float64(signal), length, strict=True):
    clipped = [min(x, config.cap) for x in row[:n]]
    chosen = [x for x in clipped if x >= config.threshold]
    mean = sum(chosen) / len(chosen) if chosen else 0.0
    raw.append(float(n) if config.kind == 'length' else np.exp(mean / config.temperature))
    count.append(n if config.kind == 'length' else len(chosen))
  if config.normalise == 'clamp':
    raw = [min(max(w, 1 / config.largest), config.largest) for w in raw]
  if config.normalise == 'none':
    return np.array([w if n else 0.0 for w, n in zip(raw, length)]), np.array(count)
  size = len(raw) if config.scope == 'global' else config.micro
  weights = []
  for start in range(0, len(raw), size):
    group = [(w, n) for w, n in zip(raw[start : start + size], length[start : start + size])]
    real = [w for w, n in group if n]
    mean = sum(real) / len(real) if real else 1.0
    weights += [w / mean if n else 0.0 for w, n in group]
  if config.normalise == 'batch_mean':
    weights = [min(w, config.largest) for w in weights]
  return np.array(weights), np.array(count)


def weigh(config, signal, length, entropy=None):
  """`weighing.weigh` of log-ratios: the teacher says what the student says less the signal."""
  student = -np.random.default_rng(3).exponential(size=np.shape(signal)).astype(np.float32)
  teacher = student - np.asarray(signal, np.float32)
  return weighing.weigh(config, jnp.array(length), jnp.array(student), jnp.array(teacher), entropy)


def test_published_numbers():
  raw = weigh(dataclasses.replace(RENIO, normalise='none'), PUBLISHED, [4, 4, 4])
  np.testing.assert_allclose(raw.values, [6.359820, 2.459603, 1.0], rtol=1e-6)
  assert raw.selected.tolist() == [2, 1, 0]
  normalised = weigh(RENIO, PUBLISHED, [4, 4, 4])
  np.testing.assert_allclose(normalised.values, [1.943033, 0.751450, 0.305517], rtol=2e-6)
  assert normalised.values.dtype == jnp.float32


CONFIGS = [
  RENIO,
  dataclasses.replace(RENIO, cap=2.0, threshold=0.01, temperature=0.5),
  dataclasses.replace(RENIO, normalise='none', threshold=-0.5),
  dataclasses.replace(RENIO, normalise='clamp', largest=1.5),
  dataclasses.replace(RENIO, largest=1.2),
  dataclasses.replace(RENIO, scope='micro', micro=2),
  dataclasses.replace(RENIO, scope='micro', micro=3, normalise='clamp'),
  WeighConfig(kind='length'),
  WeighConfig(kind='length', scope='micro', micro=2, largest=1.1),
]


@pytest.mark.parametrize('config', CONFIGS)
def test_by_definition(config):
  rng = np.random.default_rng(0)
  signal, length = rng.normal(0.5, 1.5, (6, 5)), [5, 3, 0, 1, 4, 2]
  found = weigh(config, signal, length)
  values, count = oracle(config, signal, length)
  np.testing.assert_allclose(found.values, values, rtol=1e-5)
  np.testing.assert_array_equal(found.selected, count)
  assert values.max() > 1.05, 'something is told apart'


def test_entropies_take_the_place_of_the_log_ratio():
  config, rng = WeighConfig(kind='entropy', threshold=0.5), np.random.default_rng(1)
  logp, entropy = -rng.exponential(size=(3, 4)), rng.exponential(size=(3, 4))
  arrays = [jnp.array(x, jnp.float32) for x in (logp, np.full((3, 4), np.nan), entropy)]
  length = [4, 2, 3]
  told = weighing.weigh(config, jnp.array(length), *arrays)
  np.testing.assert_allclose(told.values, oracle(config, entropy, length)[0], rtol=1e-5)
  # The sampler's: of a token, -log p of what was drawn.
  drawn = weighing.weigh(config, jnp.array(length), *arrays[:2])
  np.testing.assert_allclose(drawn.values, oracle(config, -logp, length)[0], rtol=1e-5)


ROWS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=30)
@given(ROWS, st.sampled_from([0, 2, 5]))
def test_padding_and_the_order_of_samples_do_not_matter(rng, extra):
  length = rng.integers(0, 5, 6)
  signal = rng.normal(0.5, 2, (6, 4)).astype(np.float32)
  student = rng.normal(size=(6, 4)).astype(np.float32)
  padding = np.arange(4 + extra)[None, :] >= length[:, None]
  wide = [np.pad(x, ((0, 0), (0, extra))) for x in (student, student - signal)]
  wide = [np.where(padding, np.float32(np.nan), x) for x in wide]
  order = rng.permutation(6)
  first = weighing.weigh(RENIO, jnp.array(length), jnp.array(student), jnp.array(student - signal))
  second = weighing.weigh(RENIO, jnp.array(length[order]), *(jnp.array(x[order]) for x in wide))
  np.testing.assert_allclose(second.values, first.values[order], rtol=1e-5)
  np.testing.assert_array_equal(second.selected, first.selected[order])


@settings(max_examples=30)
@given(ROWS)
def test_the_mean_weight_is_one_where_none_is_bounded(rng):
  length = rng.integers(0, 5, 6)
  found = weigh(RENIO, rng.normal(1, 2, (6, 4)), length)
  real = length > 0  # Of six samples none can have ten times their mean.
  assert float(found.values.sum()) == pytest.approx(real.sum(), rel=1e-5)
  assert (np.asarray(found.values)[~real] == 0).all()


def test_groups_do_not_see_each_other():
  config = dataclasses.replace(RENIO, scope='micro', micro=2)
  signal = np.repeat([[1.0], [2.0], [1.0], [3.0]], 3, axis=1)
  other = signal.copy()
  other[2:] = 0.9
  first, second = weigh(config, signal, [3] * 4).values, weigh(config, other, [3] * 4).values
  np.testing.assert_array_equal(first[:2], second[:2])
  assert abs(float(first[3] - second[3])) > 0.1
  whole = [weigh(RENIO, x, [3] * 4).values for x in (signal, other)]
  assert abs(float(whole[0][0] - whole[1][0])) > 0.1  # The global mean does see them.


def test_extreme_signals_and_empty_batches_stay_finite():
  found = weigh(dataclasses.replace(RENIO, threshold=-1e9), np.full((2, 3), [[-900.0], [5.0]]), [3, 3])
  np.testing.assert_allclose(found.values, [0.0, 2.0], rtol=1e-6)
  nothing = weigh(RENIO, np.zeros((2, 3)), [0, 0])
  assert nothing.values.tolist() == [0, 0] and nothing.selected.tolist() == [0, 0]


# --- Which samples count at all.

GRADED = Graded((Verdict.CORRECT, Verdict.WRONG, Verdict.UNFORMATTED, Verdict.GOLD_UNPARSABLE, Verdict.ERROR))


@pytest.mark.parametrize(
  ('keep', 'wanted'), [('all', [1, 1, 1, 1, 1]), ('correct', [1, 0, 0, 0, 0]), ('incorrect', [0, 1, 1, 0, 1])]
)
def test_what_is_kept(keep, wanted):
  found = weighing.kept(WeighConfig(keep=keep), GRADED)
  assert found.dtype == bool and found.tolist() == [bool(x) for x in wanted]


def test_what_is_left_out_has_no_tokens():
  length, zeros = np.int32([3, 1, 2]), np.zeros((3, 4), np.float32)
  rollout = Rollout(np.int32(zeros), length, length > 0, zeros, zeros, *np.zeros((2, 3), np.int32))
  left = weighing.without(rollout, np.array([True, False, True]))
  assert left.length.tolist() == [3, 0, 2] and left.length.dtype == np.int32
  assert np.asarray(left.mask).sum() == 5 and rollout.length.tolist() == [3, 1, 2]


# --- What is said of them.


def test_statistics():
  weights = Weights(np.float32([2.0, 0.5, 0.5, 0.0]), np.int32([3, 1, 0, 0]))
  found = weighing.statistics(weights, np.array([4, 3, 1, 0]), np.array([False, True, True, True]))
  assert found.pop('weight_selected') == 4 / 8
  assert found.pop('weight_correctness') == pytest.approx(np.corrcoef([2, 0.5, 0.5], [0, 1, 1])[0, 1])
  assert found == pytest.approx({'weight_mean': 1.0, 'weight_min': 0.5, 'weight_max': 2.0})


@pytest.mark.parametrize(
  ('values', 'length', 'correct'),
  [
    ([1.0, 1.0], [2, 2], [True, False]),
    ([1.5, 0.5], [2, 2], [True, True]),
    ([0.0, 0.0], [0, 0], [True, False]),
  ],
)
def test_without_variation_there_is_no_correlation(values, length, correct):
  weights = Weights(np.float32(values), np.int32([0, 0]))
  found = weighing.statistics(weights, np.array(length), np.array(correct))
  assert found['weight_correctness'] == 0 and all(np.isfinite(v) for v in found.values())


# --- Settings.


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(kind='renyo'), ["weigh.kind is 'renyo'", "'renio'"]),
    (dict(normalise='ema'), ["weigh.normalise is 'ema'"]),
    (dict(scope='device'), ["weigh.scope is 'device'"]),
    (dict(source='teacher'), ["weigh.source is 'teacher'"]),
    (dict(keep='wrong'), ["weigh.keep is 'wrong'"]),
    (dict(cap=0.0), ['weigh.cap is 0.0']),
    (dict(temperature=0.0), ['weigh.temperature is 0.0']),
    (dict(cap=2.5, temperature=0.01), ['250', 'not finite']),
    (dict(threshold=2.5), ['weigh.threshold is 2.5', 'weigh.cap (2.5)', 'weigh 1']),
    (dict(largest=0.5), ['weigh.largest is 0.5']),
    (dict(micro=0), ['weigh.micro is 0']),
    (dict(scope='micro', micro=5), ['weigh.micro is 5', '12 samples', 'weigh.scope=global']),
    (dict(scope='micro', micro=1), ['weigh.micro is 1', 'every sample weighs 1']),
    (dict(kind='none', source='pass'), ['weigh.source is pass', 'weigh.kind=none']),
    (dict(kind='length', source='pass'), ['weigh.source is pass', 'weigh.kind=length']),
  ],
)
def test_weights_that_cannot_be(changes, words):
  with pytest.raises(ConfigError) as caught:
    weigh_config.validate(WeighConfig(**{'kind': 'renio', **changes}), 12)
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
  'config', [WeighConfig(), *CONFIGS, WeighConfig(keep='correct', scope='micro', micro=5)]
)
def test_weights_that_can_be(config):
  weigh_config.validate(config, 12)


# --- From hidden states.


@pytest.mark.parametrize('chunk_tokens', [2, 64])
def test_log_probs_of_the_sampled_tokens(chunk_tokens):
  """Two micro-batches, padding of the plan and of the vocabulary, two temperatures, one soft-cap."""
  rng = np.random.default_rng(2)
  rows, width, vocab, valid = 4, 3, 7, 6
  ids, length = rng.integers(0, valid, (rows, width), np.int32), np.int32([3, 1, 2, 3])
  raw = rng.normal(-2, 1, (rows, width)).astype(np.float32)
  rollout = Rollout(ids, length, length < 3, raw, raw, *np.zeros((2, rows), np.int32))
  places = np.flatnonzero(np.arange(width) < length[:, None])  # 9 real tokens in 2 · 1 · 6 places
  origin = np.full(12, rows * width, np.int32)
  origin[rng.permutation(12)[: len(places)]] = places
  plan = Plan(origin.reshape(2, 1, 6), Reading(None, None), (Reading(None, None),))
  models = [(rng.normal(size=(rows, width, d)), rng.normal(size=(vocab, d))) for d in (4, 5)]

  def laid_out(hidden):
    flat = np.concatenate([hidden.reshape(rows * width, -1), np.ones((1, hidden.shape[-1]))])
    return jnp.array(flat[plan.origin], jnp.float32)

  def logp(model, temperature, softcap):
    logits = (model[0] @ model[1].T)[..., :valid]
    logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
    logits = logits / temperature
    every = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return np.take_along_axis(every, ids[..., None], -1)[..., 0], -(np.exp(every) * every).sum(-1)

  student, teacher = logp(models[0], 1.1, None), logp(models[1], 0.7, 3.0)
  given_states = [(laid_out(h), jnp.array(w, jnp.float32)) for h, w in models]
  more = dict(temperatures=(1.1, 0.7), softcaps=(None, 3.0), valid_vocab=valid, chunk_tokens=chunk_tokens)
  wanted = {
    (True, 'renio'): student[0] - teacher[0],
    (False, 'renio'): raw - teacher[0],
    (True, 'entropy'): student[1],
    (False, 'entropy'): -raw,
  }
  for (own, kind), signal in wanted.items():
    config = WeighConfig(kind=kind, threshold=0.1, source='pass' if own else 'sampler')
    found = jax.jit(weighing.from_states, static_argnums=0, static_argnames=tuple(more))(
      config, rollout, plan, given_states[1], given_states[0] if own else None, **more
    )
    np.testing.assert_allclose(found.values, oracle(config, signal, length)[0], rtol=1e-4)
    np.testing.assert_array_equal(found.selected, oracle(config, signal, length)[1])


@pytest.mark.parametrize('name', ['none', 'length', 'renio', 'entropy'])
def test_a_signal_that_is_there_stays_what_it_is(name):
  before = dict(signals.SIGNALS)
  with pytest.raises(ValueError, match=f'weigh.kind={name} is there already'):
    signals.register(name, signals.Signal(signals.log_ratio))
  assert before == signals.SIGNALS
