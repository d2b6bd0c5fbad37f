"""Tokens drawn from hidden states, against float64 NumPy.

A head that is the identity makes hidden states logits, exactly. Blocks are taken two at a time and two
are candidates, so that a vocabulary of 700 goes every way that a real one does.
"""

import functools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from opsd_jax import mesh as meshes
from opsd_jax.rollout import blocks, drawing, sampling, thresholds
from opsd_jax.rollout.config import SamplingConfig
from tests.rollout.oracle import near_a_threshold, truncated

# Log-probabilities are O(10) and float32 rounds at 6e-8; sums of 700 terms stay below this.
LOG_PROB = dict(atol=1e-5, rtol=1e-6)
# float32 sums of 128 and then of a few terms: within 128 roundings of 6e-8, far less on average.
SLICE = 2e-6
# The largest uniform that float32 can hold.
ALMOST_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
SIZE = 700  # five blocks and a part of a sixth
LOSS_TEMPERATURE = 1.3


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  monkeypatch.setattr(blocks, '_TILE', 2)
  monkeypatch.setattr(drawing, '_CANDIDATES', 2)


@functools.cache
def program(truncation, tiled=True, softcap=None, valid=None):
  """Compiled as a CPU does it, or as the others do."""

  def run(hidden, head, uniform, law):
    vocabulary = blocks.vocabulary(head.shape[0], valid, softcap)
    return drawing._draw(vocabulary, truncation, tiled, hidden, head, uniform, law)

  return jax.jit(run)


def draw_rows(logits, uniforms, config, **more):
  """Token of rows [B, V] of logits, whose head is the identity."""
  law, truncation = drawing.law_of(config, LOSS_TEMPERATURE), drawing.truncation_of(config)
  logits, uniforms = np.float32(logits), np.float32(uniforms)
  token = program(truncation, **more)(logits, np.eye(logits.shape[1], dtype=np.float32), uniforms, law)
  assert [x.dtype for x in token] == [np.int32, np.float32, np.float32]
  return jax.tree.map(np.asarray, token)


def log_softmax(logits):
  return logits - np.logaddexp.reduce(logits)


def check_row(logits, config, expected=None, **more):
  """The middle of every slice of the expected distribution draws its token, with its log-probabilities."""
  logits = np.float32(logits)
  expected = truncated(logits, config) if expected is None else np.float64(expected)
  probs = np.exp(expected)
  middles = np.where(probs > 0, np.cumsum(probs) - probs / 2, 0)
  rows = np.broadcast_to(logits, (len(logits), len(logits)))
  token = draw_rows(rows, np.minimum(middles, ALMOST_ONE), config, **more)
  assert (probs[token.id] > 0).all()
  large = probs > 1e-5  # the middle of a smaller slice may round into the next
  np.testing.assert_array_equal(token.id[large], np.flatnonzero(large))
  np.testing.assert_allclose(token.behaviour_logp, expected[token.id], **LOG_PROB)
  raw = log_softmax(np.float64(logits) / LOSS_TEMPERATURE)
  np.testing.assert_allclose(token.raw_logp, raw[token.id], **LOG_PROB)


SETTINGS = [
  {},
  dict(temperature=0.3),
  dict(temperature=2.5),
  dict(temperature=LOSS_TEMPERATURE),
  dict(temperature=0.0),
  dict(top_k=1),
  dict(top_k=2),
  dict(top_k=4),
  dict(top_k=SIZE),
  dict(top_p=0.9),
  dict(top_p=0.3),
  dict(top_p=1e-6),
  dict(top_p=0.9, temperature=4.0),
  dict(min_p=0.1),
  dict(min_p=0.6),
  dict(top_k=2, top_p=0.4),
  dict(top_k=2, top_p=0.4, temperature=0.0),
  dict(top_p=0.95, min_p=0.05),
  dict(top_p=0.95, min_p=0.05, temperature=0.4),
  dict(temperature=1.7, top_k=9, top_p=0.8, min_p=0.1),
]
NORMAL = np.random.default_rng(0).normal(size=SIZE)


@pytest.mark.parametrize('changes', SETTINGS, ids=str)
def test_every_setting_draws_what_numpy_says(changes):
  config = SamplingConfig(**changes)
  assert not near_a_threshold(np.float32(3 * NORMAL), config)
  check_row(3 * NORMAL, config)


AT_ONCE = [0, 9, 19]


@pytest.mark.parametrize('changes', [SETTINGS[i] for i in AT_ONCE], ids=str)
def test_accelerators_draw_the_same_at_once(changes):
  check_row(3 * NORMAL, SamplingConfig(**changes), tiled=False)


CONFIGS = st.builds(
  SamplingConfig,
  temperature=st.sampled_from([0.5, 1.0, 2.0]),
  top_k=st.sampled_from([None, 2]),
  top_p=st.sampled_from([0.2, 0.63, 0.97, 1.0]),
  min_p=st.sampled_from([0.0, 0.07, 0.33]),
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(CONFIGS, st.integers(0, 2**32 - 1), st.integers(1, 30), st.sampled_from([1, 2, 8]))
def test_any_row_with_ties(config, seed, spread, grid):
  """Fractions of two tie often, and are the same numbers in float32 and float64."""
  logits = np.random.default_rng(seed).integers(-spread * grid, spread * grid + 1, SIZE) / grid
  hypothesis.assume(not near_a_threshold(logits, config))
  check_row(logits, config)


def test_ties_at_the_threshold_are_all_kept():
  logits = np.full(SIZE, -20.0)
  logits[[3, 130, 400, 600, 699]] = 1.0  # more blocks than there are candidates
  logits[5] = 2.0
  for config in (SamplingConfig(top_k=2), SamplingConfig(top_p=0.6)):
    assert np.isfinite(truncated(logits, config)).sum() == 6
    check_row(logits, config)


def test_each_rule_works_on_what_the_one_before_left():
  logits = np.log(np.r_[0.4, 0.3, 0.2, 0.1, np.full(SIZE - 4, 1e-12)])
  # Of the two that top_k leaves, the first holds 4/7 > 0.5; of all it does not.
  assert np.isfinite(truncated(logits, SamplingConfig(top_k=2, top_p=0.5))).sum() == 1
  assert np.isfinite(truncated(logits, SamplingConfig(top_p=0.5))).sum() == 2
  for config in (SamplingConfig(top_k=2, top_p=0.5), SamplingConfig(top_p=0.5)):
    check_row(logits, config)


@pytest.mark.parametrize('tiled', [True, False])
def test_what_serves_a_row_does_not_depend_on_its_mates(tiled):
  """Peaked rows are served by candidates and flat ones are not; each draws the very bits in any company."""
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(8, SIZE)) * np.float64([30, 0.1] * 4)[:, None]
  uniforms = rng.random(8)
  for config in (SamplingConfig(top_p=0.9), SamplingConfig(min_p=0.05)):
    mixed = draw_rows(logits, uniforms, config, tiled=tiled)
    for kind in (0, 1):
      rows = np.r_[kind:8:2, kind:8:2]
      alike = draw_rows(logits[rows], uniforms[rows], config, tiled=tiled)
      for one, two in zip(mixed, alike):
        np.testing.assert_array_equal(one[rows], two)


# Which ids there are.


@pytest.mark.parametrize(
  ('valid', 'tiled'),
  [
    (1, True),
    (640, True),
    (650, True),
    (650, False),
    pytest.param(100, True, marks=pytest.mark.slow),
    pytest.param(128, False, marks=pytest.mark.slow),
  ],
)
def test_ids_beyond_the_valid_ones_have_no_part(valid, tiled):
  logits = np.where(np.arange(SIZE) < valid, 3 * NORMAL, 50.0)
  uniforms = np.linspace(0, ALMOST_ONE, 200)
  for changes in (dict(top_k=min(3, valid), top_p=0.8), {}, dict(temperature=0.0)):
    config = SamplingConfig(**changes)
    token = draw_rows(np.tile(logits, (200, 1)), uniforms, config, tiled=tiled, valid=valid)
    expected = truncated(np.float32(logits[:valid]), config)
    assert token.id.max() < valid
    behaviour = np.zeros(200) if config.temperature == 0 else expected[token.id]
    np.testing.assert_allclose(token.behaviour_logp, behaviour, **LOG_PROB)
    raw = log_softmax(np.float64(np.float32(logits[:valid])) / LOSS_TEMPERATURE)
    np.testing.assert_allclose(token.raw_logp, raw[token.id], **LOG_PROB)


@pytest.mark.parametrize('size', [1, 129])
def test_vocabularies_of_other_sizes(size):
  for changes in ({}, dict(top_p=0.9)):
    check_row(2 * NORMAL[:size], SamplingConfig(**changes))


@pytest.mark.parametrize('tiled', [True, False])
def test_logits_are_capped(tiled):
  config, cap = SamplingConfig(top_k=2), 5.0
  rows = np.tile(np.float32(9 * NORMAL), (64, 1))
  token = draw_rows(rows, np.linspace(0, ALMOST_ONE, 64), config, softcap=cap, tiled=tiled)
  capped = cap * np.tanh(np.float64(rows[0]) / cap)
  np.testing.assert_allclose(token.behaviour_logp, truncated(capped, config)[token.id], **LOG_PROB)
  np.testing.assert_allclose(token.raw_logp, log_softmax(capped / LOSS_TEMPERATURE)[token.id], **LOG_PROB)


def test_bfloat16_products_are_summed_in_float32():
  rng = np.random.default_rng(2)
  hidden = jnp.asarray(rng.normal(size=(64, 96)), jnp.bfloat16)
  head = jnp.asarray(rng.normal(size=(SIZE, 96)), jnp.float32)  # read in the dtype of the hidden states
  config = SamplingConfig()
  law, uniform = drawing.law_of(config, LOSS_TEMPERATURE), np.float32(rng.random(64))
  token = program(drawing.truncation_of(config))(hidden, head, uniform, law)
  exact = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (hidden, head)]
  raw = np.array([log_softmax(row / LOSS_TEMPERATURE) for row in exact[0] @ exact[1].T])
  # Sums of 96 products in bfloat16 would be off by 0.1.
  np.testing.assert_allclose(token.raw_logp, raw[np.arange(64), token.id], atol=5e-5)


# Greedy.


@pytest.mark.parametrize('tiled', [True, False])
@pytest.mark.parametrize('changes', [{}, dict(top_k=2, top_p=0.5)], ids=str)
def test_greedy_is_the_first_of_the_largest(changes, tiled):
  logits = np.tile(NORMAL, (4, 1))
  for row, ids in enumerate([[3, 4], [127, 128], [300, 699], [699]]):
    logits[row, ids] = 9.0
  config = SamplingConfig(temperature=0.0, **changes)
  token = draw_rows(logits, [0, 0.5, 0.9, ALMOST_ONE], config, tiled=tiled)
  assert token.id.tolist() == [3, 127, 300, 699]
  assert (token.behaviour_logp == 0).all()


def test_numbers_compile_nothing():
  compiled = jax.jit(functools.partial(drawing.draw, softcap=None, valid_vocab=None), static_argnums=4)
  given = np.float32(NORMAL[None]), np.eye(SIZE, dtype=np.float32), np.float32([0.3])
  for numbers in ((1.0, 0.9, 0.1), (0.0, 0.8, 0.2), (0.7, 0.5, 0.3)):
    config = SamplingConfig(numbers[0], 3, *numbers[1:])
    compiled(*given, drawing.law_of(config, numbers[0] + 1), drawing.truncation_of(config))
  assert compiled._cache_size() == 1


# The inverse CDF.


def pick(probs, uniforms, config=SamplingConfig(), **more):
  """Tokens [U] that one distribution [V] gives for several uniforms [U]."""
  with np.errstate(divide='ignore'):
    logits = np.maximum(np.log(np.float64(probs)), -1e6)  # of which the exponential is 0
  head = np.stack([logits, np.zeros(len(probs))], axis=1).astype(np.float32)
  hidden = np.tile(np.float32([1, 0]), (len(uniforms), 1))
  law = drawing.law_of(config, 1.0)
  return np.asarray(
    program(drawing.truncation_of(config), **more)(hidden, head, np.float32(uniforms), law).id
  )


def check_slices(probs, uniforms, tolerance, config=SamplingConfig(), **more):
  """Each token's slice of the float64 CDF holds its uniform, and no token of mass 0 is picked."""
  uniforms = np.float32(uniforms)
  tokens = pick(probs, uniforms, config, **more)
  end = np.cumsum(probs) / np.sum(probs)
  assert (probs[tokens] > 0).all()
  assert (end[tokens] - probs[tokens] / np.sum(probs) - tolerance <= uniforms).all()
  assert (uniforms <= end[tokens] + tolerance).all()


def holed(size, seed, holes=0.5):
  """Random probabilities [size], many of them exactly 0 and at least one not."""
  rng = np.random.default_rng(seed)
  probs = rng.exponential(size=size) ** 3
  probs[rng.random(size) < holes] = 0
  probs[rng.integers(size)] = 1
  return probs / probs.sum()


@hypothesis.settings(max_examples=40)
@hypothesis.given(
  st.sampled_from([2, 127, 300]),
  st.integers(0, 2**32 - 1),
  st.sampled_from([0.0, 0.5, 0.98]),
  st.lists(st.floats(0, ALMOST_ONE, width=32), min_size=61, max_size=61),
)
def test_slices_match_brute_force(size, seed, holes, uniforms):
  edges = [0.0, float(np.float32(2**-24)), ALMOST_ONE]
  check_slices(holed(size, seed, holes), uniforms + edges, SLICE)


@pytest.mark.parametrize(
  'probs',
  [
    [0, 0, 1, 0],
    [1, 0, 0, 0],
    [0, 0, 0, 1],
    [1],
    [0] * 200 + [1] + [0] * 200,
    [0.5] + [0] * 127 + [0.5] + [0] * 3,
    [0] * 127 + [0.5, 0.5] + [0] * 300,
  ],
  ids=len,
)
def test_mass_at_the_edges_of_blocks(probs):
  uniforms = [0, 2**-24, 0.25, 0.75, ALMOST_ONE]
  check_slices(np.float64(probs), uniforms, SLICE)
  check_slices(np.float64(probs), uniforms, SLICE, tiled=False)


def test_exact_slices():
  # Sums of powers of two are exact: u at a boundary belongs to the slice that starts there.
  probs = np.float64([0.5, 0.0, 0.25, 0.0625, 0.1875])
  # Logarithms are rounded, and so are what the masses are made of: a few roundings to either side.
  edges = np.float32([0.5, 0.75, 0.8125])
  assert pick(probs, [0, *(edges + 1e-6), ALMOST_ONE]).tolist() == [0, 2, 3, 4, 4]
  assert pick(probs, [*(edges - 1e-6), 0.25, 0]).tolist() == [0, 2, 3, 0, 0]


def cdf_edges(probs, around=8):
  """Uniforms at every step of the CDF and a few float32 grid points to either side."""
  grid = np.arange(-around, around + 1) * 2.0**-24
  edges = np.unique(np.float32(np.cumsum(probs)[:, None] + grid))
  return edges[(edges >= 0) & (edges < 1)]


@pytest.mark.parametrize('tree', [False, True], ids=['in order', 'as a tree'])
def test_no_mass_is_never_picked_at_the_steps_of_the_cdf(tree, monkeypatch):
  # Accelerators sum prefixes as a tree, where the sum may grow by a rounding at an entry of 0.
  if tree:
    scan = lambda x, axis: jax.lax.associative_scan(jnp.add, x, axis=axis % x.ndim)  # noqa: E731
    monkeypatch.setattr(drawing.jnp, 'cumsum', scan)
  program.cache_clear()
  for seed in range(3):
    probs = holed(300, seed)
    uniforms = np.resize(cdf_edges(probs), 3000)
    assert (probs[pick(probs, uniforms)] > 0).all()
  program.cache_clear()


@pytest.mark.parametrize('kept_tokens', [None, pytest.param(20, marks=pytest.mark.slow)])
def test_a_real_vocabulary(kept_tokens, monkeypatch):
  monkeypatch.undo()  # tiles and candidates of the usual sizes
  program.cache_clear()
  rng = np.random.default_rng(0)
  probs = np.exp(rng.normal(size=151936) * 3)
  if kept_tokens:
    probs[np.argsort(probs)[:-kept_tokens]] *= 1e-3  # what the top-k leaves out has mass of its own
  left = np.where(probs >= np.sort(probs)[-(kept_tokens or 151936)], probs, 0)
  uniforms = np.append(rng.random(13), [0.0, ALMOST_ONE])
  tokens = pick(probs / probs.sum(), uniforms, SamplingConfig(top_k=kept_tokens))
  end = np.cumsum(left) / left.sum()
  # 128 and 1187 terms in sequence: float32 sums drift by about a part in a million.
  assert (left[tokens] > 0).all() and (uniforms <= end[tokens] + 5e-6).all()
  assert (end[tokens] - left[tokens] / left.sum() - 5e-6 <= uniforms).all()
  program.cache_clear()


def test_draws_have_the_distribution():
  config = SamplingConfig(top_p=0.97)
  logits = np.float32(1.5 * NORMAL[:40])
  probs = np.exp(truncated(logits, config))
  keys = sampling.row_keys(0, 0, jnp.arange(20000, dtype=jnp.uint32), jnp.zeros(20000, jnp.int32))
  tokens = pick(np.exp(np.float64(logits)), np.asarray(sampling.uniforms(keys, 3)), config)
  counts, expected = np.bincount(tokens, minlength=40), 20000 * probs
  assert (counts[probs == 0] == 0).all() and (probs == 0).any()
  large = expected > 5
  # A fixed draw; a wrong distribution gives a p-value of 0 to many digits.
  observed = np.append(counts[large], counts[~large].sum())
  predicted = np.append(expected[large], expected[~large].sum())
  keep = predicted > 0
  assert observed[~keep].sum() == 0
  assert scipy.stats.chisquare(observed[keep], predicted[keep]).pvalue > 1e-3


# Thresholds.


def test_thresholds_are_exact():
  rng = np.random.default_rng(3)
  values = np.float32(rng.normal(size=(5, 2, 128)) * np.float64([1e-30, 1, 1e30, 1, 1])[:, None, None])
  values[3, 0, 5:] = -np.inf
  values[4] = 7.0
  ordered = -np.sort(-values.reshape(5, -1), axis=1)
  for k in (1, 3, 131):
    low = np.full(5, -np.inf, np.float32)
    got = np.asarray(thresholds.least(values, np.ones_like(values), np.full(5, k, np.float32), low))
    # The least number with fewer than k values above it is the k-th value.
    np.testing.assert_array_equal(got, ordered[:, k - 1])
    floor = ordered[:, 0] - np.float32(1e-3) * np.abs(ordered[:, 0])
    got = np.asarray(thresholds.least(values, np.ones_like(values), np.full(5, k, np.float32), floor))
    np.testing.assert_array_equal(got, np.maximum(ordered[:, k - 1], floor))


# The program.


def test_the_vocabulary_is_never_sorted(monkeypatch):
  monkeypatch.undo()
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 4), (66 * 128, 4), (2,))]
  law = drawing.law_of(SamplingConfig(), 1.0)
  for truncation in (drawing.Truncation(20, True, True), drawing.Truncation(None, True, False)):
    run = functools.partial(drawing.draw, truncation=truncation, softcap=None, valid_vocab=None)
    text = jax.jit(run).lower(*shapes, law).compile().as_text()
    sorts = [line for line in text.splitlines() if ' sort(' in line]
    width = truncation.top_k or 64
    assert 'TopK' in text and sorts and all(f'[2,{width}]' in line for line in sorts), sorts


@pytest.mark.parametrize(
  ('changes', 'sizes'),
  [({}, (2, 2, 2)), pytest.param(dict(top_k=2, top_p=0.9), (1, 1, 4), marks=pytest.mark.slow)],
  ids=str,
)
def test_a_head_over_devices_draws_the_same(changes, sizes):
  rng, config = np.random.default_rng(4), SamplingConfig(**changes)
  hidden, head = np.float32(rng.normal(size=(8, 16))), np.float32(rng.normal(size=(SIZE, 16)))
  given = np.float32(rng.random(8)), drawing.law_of(config, LOSS_TEMPERATURE), drawing.truncation_of(config)
  compiled = jax.jit(drawing.draw, static_argnames=('truncation', 'softcap', 'valid_vocab'))
  alone = compiled(hidden, head, *given, softcap=None, valid_vocab=690)
  mesh = meshes.make_mesh(meshes.MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
  with jax.set_mesh(mesh):
    placed = jax.device_put(head, meshes.sharding(mesh, ('vocab', None), head.shape))
    program = compiled.lower(
      meshes.shard_rows(mesh, hidden), placed, *given, softcap=None, valid_vocab=690
    ).compile()
    split = program(meshes.shard_rows(mesh, hidden), placed, *given[:2])
  np.testing.assert_array_equal(split.id, alone.id)
  np.testing.assert_allclose(split.raw_logp, alone.raw_logp, **LOG_PROB)
  np.testing.assert_allclose(split.behaviour_logp, alone.behaviour_logp, **LOG_PROB)
  # What travels is maxima and candidates, never the logits.
  moves = [line for line in program.as_text().splitlines() if re.search(r' all-(gather|reduce)\(', line)]
  shapes = [x.split(',') for line in moves for x in re.findall(r'\w\[([\d,]+)\]', line.split(' all-')[0])]
  assert shapes and max(np.prod([int(n) for n in shape]) for shape in shapes) <= 8 * 2 * blocks.BLOCK
