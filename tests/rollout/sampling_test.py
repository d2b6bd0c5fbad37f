"""Truncation, the inverse CDF and counted randomness, against NumPy and brute force."""

import dataclasses
import functools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from opsd_jax.config import ConfigError
from opsd_jax.rollout import sampling
from opsd_jax.rollout.config import SamplingConfig, drawable, validate_sampling

# Log-probabilities are O(10) and float32 rounds at 6e-8; a dozen roundings stay below this.
LOG_PROB = dict(atol=1e-5, rtol=1e-6)
# The largest uniform that float32 can hold.
ALMOST_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


# Truncation.


def kept(probs, config):
  """Set of ids that one row [V] of probabilities leaves, by the definitions, in float64."""
  ids = set(range(len(probs)))
  if config.top_k is not None:
    ids = {i for i in ids if sum(probs[j] > probs[i] for j in ids) < config.top_k}
  if config.top_p < 1:
    limit = config.top_p * sum(probs[i] for i in ids)
    ids = {i for i in ids if sum(probs[j] for j in ids if probs[j] > probs[i]) < limit}
  if config.min_p > 0:
    ids = {i for i in ids if probs[i] >= config.min_p * max(probs)}
  return ids


def truncated(logits, config):
  """Log-probabilities [V] of what one row [V] of logits is drawn from, in float64."""
  logits = np.asarray(logits, np.float64)
  if config.temperature == 0:
    ids, scaled = {int(logits.argmax())}, logits
  else:
    scaled = logits / config.temperature
    ids = kept(np.exp(scaled - scaled.max()), config)
  out = np.full(len(logits), -np.inf)
  chosen = sorted(ids)
  out[chosen] = scaled[chosen] - np.logaddexp.reduce(scaled[chosen])
  return out


def near_a_threshold(logits, config):
  """Whether a rounding could move a token over a threshold: such a row proves nothing."""
  masks = set()
  for shift in (1 - 1e-5, 1, 1 + 1e-5):
    top_p = config.top_p * shift if config.top_p < 1 else 1.0
    moved = dataclasses.replace(config, top_p=top_p, min_p=config.min_p * shift)
    masks.add(tuple(np.isfinite(truncated(logits, moved)).tolist()))
  return len(masks) > 1


def check_truncation(logits, config):
  actual = np.asarray(sampling.truncate(jnp.asarray(logits, jnp.float32), config))
  assert actual.dtype == np.float32
  for row, got in zip(np.float32(logits), actual):
    expected = truncated(row, config)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(got[finite], expected[finite], **LOG_PROB)
    assert np.exp(np.float64(got)).sum() == pytest.approx(1, abs=1e-5)


ROWS = np.random.default_rng(0).normal(size=(6, 11)) * 3


@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(temperature=0.3),
    dict(temperature=2.5),
    dict(temperature=0),
    dict(top_k=1),
    dict(top_k=4),
    dict(top_k=11),
    dict(top_p=0.9),
    dict(top_p=1e-6),
    dict(min_p=0.1),
    dict(top_k=5, top_p=0.7),
    dict(top_p=0.95, min_p=0.05),
    dict(temperature=1.7, top_k=6, top_p=0.8, min_p=0.1),
  ],
  ids=str,
)
def test_truncation_matches_numpy(changes):
  check_truncation(ROWS, SamplingConfig(**changes))


CONFIGS = st.builds(
  SamplingConfig,
  temperature=st.sampled_from([0.5, 1.0, 2.0]),
  top_k=st.sampled_from([None, 1, 3, 8]),
  top_p=st.sampled_from([0.2, 0.63, 0.97, 1.0]),
  min_p=st.sampled_from([0.0, 0.07, 0.33]),
)


@hypothesis.settings(max_examples=40)
@hypothesis.given(CONFIGS, st.lists(st.integers(-9, 9), min_size=8, max_size=8))
def test_truncation_of_any_row_with_ties(config, logits):
  # Whole and half numbers tie often, and ties are the same numbers in float32 and float64.
  hypothesis.assume(not near_a_threshold(logits, config))
  check_truncation([np.array(logits) / 2], config)


def test_ties_at_the_threshold_are_all_kept():
  logits = [[2.0, 1.0, 1.0, 1.0, 0.0]]
  for config in (SamplingConfig(top_k=2), SamplingConfig(top_p=0.6)):
    ids = np.flatnonzero(np.isfinite(sampling.truncate(jnp.array(logits), config)[0]))
    assert ids.tolist() == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_that_holds_the_mass():
  logits = jnp.log(jnp.array([[0.15, 0.5, 0.05, 0.3]]))
  for top_p, ids in ((0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [0, 1, 3])):
    out = sampling.truncate(logits, SamplingConfig(top_p=top_p))
    assert np.flatnonzero(np.isfinite(out[0])).tolist() == ids


def test_each_rule_works_on_what_the_one_before_left():
  logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
  # Alone, top_p 0.65 would keep two. Of the two that top_k leaves, the first holds 4/7 < 0.65.
  both = sampling.truncate(logits, SamplingConfig(top_k=2, top_p=0.5))
  np.testing.assert_allclose(np.exp(both[0]), [1, 0, 0, 0], atol=1e-6)
  alone = sampling.truncate(logits, SamplingConfig(top_p=0.5))
  np.testing.assert_allclose(np.exp(alone[0]), [4 / 7, 3 / 7, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
  'changes',
  [{}, dict(top_k=3), dict(top_p=0.5), dict(min_p=0.2), dict(top_k=5, top_p=0.999999, min_p=1e-9)],
  ids=str,
)
def test_tokens_excluded_before_stay_excluded(changes):
  logits = np.where(np.arange(11)[None] < 7, ROWS, -np.inf)
  out = np.asarray(sampling.truncate(jnp.asarray(logits, jnp.float32), SamplingConfig(**changes)))
  assert np.isneginf(out[:, 7:]).all() and not np.isnan(out).any()
  for row, got in zip(logits, out):
    expected = truncated(np.float32(row[:7]), SamplingConfig(**changes))
    np.testing.assert_array_equal(np.isfinite(got[:7]), np.isfinite(expected))


def test_greedy_puts_all_mass_on_the_first_of_the_largest():
  out = sampling.truncate(jnp.array([[0.0, 3.0, 3.0, -jnp.inf]]), SamplingConfig(temperature=0))
  np.testing.assert_array_equal(out, [[-np.inf, 0, -np.inf, -np.inf]])


# The inverse CDF.


def log_of(probs):
  with np.errstate(divide='ignore'):
    return jnp.asarray(np.log(np.asarray(probs, np.float64)), jnp.float32)


@functools.cache
def compiled_inverse_cdf():
  return jax.jit(sampling.inverse_cdf)


def pick(probs, uniforms):
  """Tokens [U] that one distribution [V] gives for several uniforms [U]."""
  uniforms = np.float32(uniforms)
  rows = jnp.broadcast_to(log_of(probs)[None], (len(uniforms), len(probs)))
  tokens = compiled_inverse_cdf()(rows, jnp.asarray(uniforms))
  assert tokens.dtype == jnp.int32 and tokens.shape == uniforms.shape
  return np.asarray(tokens)


def check_slices(probs, uniforms, tolerance):
  """Each token's slice of the float64 CDF holds its uniform, and no token of mass 0 is picked."""
  probs = np.exp(np.float64(np.asarray(log_of(probs))))
  end = np.cumsum(probs) / probs.sum()
  tokens = pick(probs, uniforms)
  assert (tokens >= 0).all() and (tokens < len(probs)).all()
  assert (probs[tokens] > 0).all()
  start = end - probs / probs.sum()
  assert (start[tokens] - tolerance <= uniforms).all()
  assert (uniforms <= end[tokens] + tolerance).all()


def holed(size, seed, holes=0.5):
  """Random probabilities [size], many of them exactly 0 and at least one not."""
  rng = np.random.default_rng(seed)
  probs = rng.exponential(size=size) ** 3
  probs[rng.random(size) < holes] = 0
  probs[rng.integers(size)] = 1
  return probs / probs.sum()


# float32 sums of 128 and then of a few terms: within 128 roundings of 6e-8, far less on average.
SLICE = 2e-6


@hypothesis.settings(max_examples=40)
@hypothesis.given(
  st.sampled_from([1, 2, 127, 128, 129, 300]),
  st.integers(0, 2**32 - 1),
  st.sampled_from([0.0, 0.5, 0.98]),
  st.lists(st.floats(0, ALMOST_ONE, width=32), min_size=61, max_size=61),
)
def test_inverse_cdf_matches_brute_force(size, seed, holes, uniforms):
  edges = [0.0, float(np.float32(2**-24)), ALMOST_ONE]
  check_slices(holed(size, seed, holes), np.float32(uniforms + edges), SLICE)


@pytest.mark.parametrize(
  'probs',
  [
    [0, 0, 1, 0],
    [1, 0, 0, 0],
    [0, 0, 0, 1],
    [1],
    [0, 0.5, 0, 0.5, 0],
    [0] * 200 + [1] + [0] * 200,
    [0.5] + [0] * 127 + [0.5] + [0] * 3,
    [0] * 127 + [0.5, 0.5] + [0] * 300,
  ],
  ids=len,
)
def test_mass_at_the_edges_of_blocks(probs):
  check_slices(np.float64(probs), np.float32([0, 2**-24, 0.25, 0.75, ALMOST_ONE]), SLICE)


def test_exact_slices():
  # Sums of powers of two are exact: u at a boundary belongs to the slice that starts there.
  probs = [0.25, 0.0, 0.5, 0.125, 0.125]
  below = np.nextafter(np.float32([0.25, 0.75, 0.875]), np.float32(0))
  assert pick(probs, [0, 0.25, 0.75, 0.875, ALMOST_ONE]).tolist() == [0, 2, 3, 4, 4]
  assert pick(probs, below).tolist() == [0, 2, 3]


def cdf_edges(probs, around=8):
  """Uniforms at every step of the CDF and a few float32 grid points to either side."""
  grid = np.arange(-around, around + 1) * 2.0**-24
  edges = np.unique(np.float32(np.cumsum(probs)[:, None] + grid))
  return edges[(edges >= 0) & (edges < 1)]


@pytest.mark.parametrize('seed', range(3))
def test_no_mass_is_never_picked_at_the_steps_of_the_cdf(seed):
  probs = holed(300, seed)
  assert (probs[pick(probs, cdf_edges(probs))] > 0).all()


@pytest.mark.parametrize('seed', range(3))
def test_no_mass_is_never_picked_however_the_sums_are_ordered(seed, monkeypatch):
  # Accelerators sum prefixes as a tree, where the sum may grow by a rounding at an entry of 0.
  def tree(x, axis):
    return jax.lax.associative_scan(jnp.add, x, axis=axis % x.ndim)

  monkeypatch.setattr(sampling.jnp, 'cumsum', tree)
  probs = holed(300, seed)
  uniforms = cdf_edges(probs)
  rows = jnp.broadcast_to(log_of(probs)[None], (len(uniforms), 300))
  tokens = np.asarray(jax.jit(lambda *x: sampling.inverse_cdf(*x))(rows, uniforms))
  assert (probs[tokens] > 0).all()


@pytest.mark.parametrize('kept_tokens', [None, 20])
def test_a_real_vocabulary(kept_tokens):
  size = 151936
  rng = np.random.default_rng(0)
  probs = np.exp(rng.normal(size=size) * 3)
  if kept_tokens:
    probs[rng.permutation(size)[kept_tokens:]] = 0
  probs /= probs.sum()
  uniforms = np.append(rng.random(13), [0.0, ALMOST_ONE])
  # 128 and 1187 terms in sequence: float32 sums drift by about a part in a million.
  check_slices(probs, np.float32(uniforms), 5e-6)


def test_no_mass_is_never_picked_in_a_real_vocabulary():
  # 1187 blocks of which 20 hold mass, as after top-k: here even the CPU sums prefixes as a tree.
  size, rng, probs = 151936, np.random.default_rng(20), np.zeros(151936)
  probs[rng.permutation(size)[:20]] = rng.exponential(size=20)
  probs /= probs.sum()
  for uniforms in np.resize(cdf_edges(probs), (7, 48)):
    assert (probs[pick(probs, uniforms)] > 0).all()


def test_draws_have_the_distribution():
  probs = holed(40, 1, holes=0.3)
  tokens = pick(probs, draw(0, 0, np.arange(20000), np.zeros(20000), 3))
  counts, expected = np.bincount(tokens, minlength=40), 20000 * probs
  assert (counts[probs == 0] == 0).all()
  large = expected > 5
  # A fixed draw; a wrong distribution gives a p-value of 0 to many digits.
  observed = np.append(counts[large], counts[~large].sum())
  predicted = np.append(expected[large], expected[~large].sum())
  assert scipy.stats.chisquare(observed, predicted).pvalue > 1e-3


# Counted randomness.


def draw(seed, step, problems, rollouts, position):
  problems, rollouts = jnp.array(problems, jnp.uint32), jnp.array(rollouts, jnp.int32)
  return np.asarray(_uniforms(seed, step, problems, rollouts, position))


@jax.jit
def _uniforms(seed, step, problems, rollouts, position):
  keys = sampling.row_keys(seed, step, problems, rollouts)
  return sampling.uniforms(keys, position)


BASE = (7, 3, [11, 11, 2**32 - 1], [0, 1, 0], 5)


@pytest.mark.parametrize(
  ('which', 'value'),
  [(0, 8), (1, 4), (2, [12, 13, 14]), (3, [2, 3, 4]), (4, 6)],
  ids=['seed', 'step', 'problem', 'rollout', 'position'],
)
def test_every_count_changes_every_draw(which, value):
  changed = [*BASE[:which], value, *BASE[which + 1 :]]
  assert (draw(*BASE) != draw(*changed)).all()


def test_draws_depend_on_nothing_but_the_counts():
  seed, step, problems, rollouts, position = BASE
  order = [2, 0, 1]
  shuffled = draw(seed, step, [problems[i] for i in order], [rollouts[i] for i in order], position)
  np.testing.assert_array_equal(shuffled, draw(*BASE)[order])
  alone = draw(seed, step, problems[1:2], rollouts[1:2], position)
  np.testing.assert_array_equal(alone, draw(*BASE)[1:2])


def test_counts_are_not_confused_with_one_another():
  # 4 problems, rollouts, positions, steps and seeds: every combination has its own number.
  grid = np.stack(np.meshgrid(*[np.arange(4)] * 2), -1).reshape(-1, 2)
  draws = [
    draw(seed, step, grid[:, 0], grid[:, 1], position)
    for seed in range(4)
    for step in range(4)
    for position in range(4)
  ]
  # Of 1024 numbers on a grid of 2^23, a repeat has probability 0.06; mixed-up counts repeat many.
  assert len(set(np.concatenate(draws).tolist())) >= 1023


def test_draws_are_uniform_and_never_one():
  draws = draw(0, 0, np.arange(5000), np.zeros(5000, int), 0)
  assert draws.dtype == np.float32 and draws.min() >= 0 and draws.max() < 1
  assert scipy.stats.kstest(draws, 'uniform').pvalue > 1e-3


def test_positions_are_uncorrelated():
  draws = np.stack([draw(0, 0, np.arange(5000), np.zeros(5000, int), t) for t in range(3)])
  correlation = np.corrcoef(draws) - np.eye(3)
  assert np.abs(correlation).max() < 4 / np.sqrt(5000)  # four standard errors


# Settings.


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(temperature=-1.0), 's.temperature is -1.0; use 0 for greedy, or more.'),
    (dict(top_k=0), 's.top_k is 0; it must lie in 1..9'),
    (dict(top_k=10), 's.top_k is 10; it must lie in 1..9'),
    (dict(top_p=0.0), 's.top_p is 0.0; it must lie in (0, 1].'),
    (dict(top_p=1.1), 's.top_p is 1.1; it must lie in (0, 1].'),
    (dict(min_p=1.0), 's.min_p is 1.0; it must lie in [0, 1).'),
    (dict(max_tokens=0), 's.max_tokens is 0; it must be positive.'),
  ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(ConfigError, match=re.escape(message)):
    validate_sampling('s', SamplingConfig(**changes), 9)


def test_good_settings_pass():
  validate_sampling('s', SamplingConfig(temperature=0, top_k=9, top_p=1.0, min_p=0.5), 9)


def test_a_cpu_does_not_sort_the_vocabulary_for_a_top_k():
  """It would if the slice of the k-th value were merged into the top-k: 70 times slower at 152k entries."""
  logits = jax.ShapeDtypeStruct((2, 4096), jnp.float32)
  program = jax.jit(lambda x: sampling.truncate(x, SamplingConfig(top_k=20, top_p=0.95))).lower(logits)
  text = program.compile().as_text()
  assert 'TopK' in text and ' sort(' not in text
  plain = jax.jit(lambda x: sampling.truncate(x, SamplingConfig(top_p=0.95))).lower(logits)
  assert ' sort(' in plain.compile().as_text(), 'a sort would be seen'


def test_ids_without_a_row_are_control_tokens():
  assert drawable(9, 12, ()) == 9 and drawable(9, 8, {8}) == 8
  with pytest.raises(ConfigError, match=r'vocab_size is 7, but the tokenizer has 9 ids, of which \[7\]'):
    drawable(9, 7, {8})
