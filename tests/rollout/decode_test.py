"""The decode loop against teacher forcing, whole-sequence greedy search and a hand-made chain.

The float64 oracles are the decoder of the model's tests and `truncated` of `oracle.py`. The chain
is a model whose next token depends on the last one alone, so that counting predicts its output.
"""

import dataclasses
import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode, drawing, layout, sampling
from opsd_jax.rollout.config import DecodeConfig, RolloutConfig, SamplingConfig, bucket, validate
from tests.models.oracle import continuation_rows, float64, row_logits
from tests.models.transformer_test import UNTIED, cube, make_params, one_device
from tests.rollout.oracle import truncated

SPEC, VALID, EOS = UNTIED, 17, 2  # 20 rows in the head, 17 ids in use
CONFIG = SamplingConfig(temperature=0.8, top_k=14, top_p=0.98, min_p=0.01, max_tokens=6)
# Logits of a few units: float32 leaves errors below 1e-6 (measured) in a log-probability.
LOG_PROB = dict(atol=1e-5, rtol=0)


def make_prompts(lengths=(1, 3, 5, 2), width=5, seed=0, first_id=2**32 - 2):
  """Random prompts; row q has the same tokens and problem id whatever the width."""
  ids = np.zeros((len(lengths), width), np.int32)
  for q, n in enumerate(lengths):
    ids[q, :n] = np.random.default_rng((seed, q)).integers(0, VALID, n)
  problem_id = (first_id + np.arange(len(lengths), dtype=np.uint64)) % 2**32
  return Prompts(ids=ids, length=np.int32(lengths), problem_id=problem_id.astype(np.uint32))


def generate(prompts, config=CONFIG, *, eos_ids=(EOS,), per_question=2, params=None, spec=SPEC, **more):
  params = make_params(SPEC) if params is None else params
  rollout = decode.generate(
    spec, params, prompts, config, eos_ids=eos_ids, per_question=per_question, valid_vocab=VALID, **more
  )
  return jax.tree.map(np.asarray, rollout)


def take(prompts, rows):
  return jax.tree.map(lambda x: x[np.asarray(rows)], prompts)


def rows_of(rollout, rows):
  return jax.tree.map(lambda x: x[np.asarray(rows)], rollout)


def assert_same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def assert_close(one, two):
  """The same tokens; log-probabilities up to the order of float32 sums."""
  for field in ('ids', 'length', 'stopped', 'rollout_index'):
    np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
  for field in ('raw_logp', 'behaviour_logp'):
    np.testing.assert_allclose(getattr(one, field), getattr(two, field), **LOG_PROB)


@functools.cache
def whole_rollout():
  return generate(make_prompts())


# What was drawn, and how probable it was.


def forced_logits(prompts, rollout):
  """float64 logits [B, T, VALID] of the sampled ids under teacher forcing."""
  hidden = continuation_rows(SPEC, make_params(SPEC), prompts.ids, prompts.length, rollout.ids)
  return hidden @ float64(make_params(SPEC)['head'])[:VALID].T


def at(log_probs, rollout):
  picked = np.take_along_axis(log_probs, rollout.ids[..., None], -1)[..., 0]
  return np.where(rollout.mask, picked, 0)


@pytest.mark.parametrize('temperature', [0.6, 1.0, 1.7])
def test_raw_logp_is_the_teacher_forced_one(temperature):
  prompts = make_prompts()
  rollout = generate(prompts, loss_temperature=temperature)
  logits = forced_logits(prompts, rollout) / temperature
  expected = at(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True), rollout)
  np.testing.assert_allclose(rollout.raw_logp, expected, **LOG_PROB)
  np.testing.assert_array_equal(rollout.ids, whole_rollout().ids)


def behaviour_log_probs(prompts, rollout):
  logits = forced_logits(prompts, rollout)
  return np.stack([[truncated(token, CONFIG) for token in row] for row in logits])


def test_behaviour_logp_is_that_of_the_truncated_distribution():
  prompts, rollout = make_prompts(), whole_rollout()
  expected = at(behaviour_log_probs(prompts, rollout), rollout)
  np.testing.assert_allclose(rollout.behaviour_logp, expected, **LOG_PROB)


def test_tokens_are_the_inverse_cdf_of_counted_uniforms():
  prompts, rollout = make_prompts(), generate(make_prompts(), seed=9, step=4)
  keys = sampling.row_keys(9, 4, np.repeat(prompts.problem_id, 2), np.tile(np.int32([0, 1]), 4))
  uniforms = np.stack([sampling.uniforms(keys, jnp.full(8, t)) for t in range(6)], axis=1)
  probs = np.exp(behaviour_log_probs(prompts, rollout))
  end = np.take_along_axis(np.cumsum(probs, -1), rollout.ids[..., None], -1)[..., 0]
  start = end - np.take_along_axis(probs, rollout.ids[..., None], -1)[..., 0]
  real = rollout.mask
  assert (start[real] - 1e-5 <= uniforms[real]).all() and (uniforms[real] <= end[real] + 1e-5).all()


def test_padding_is_zero_and_the_last_token_is_kept():
  seen = set()
  for seed in range(4):
    rollout = generate(make_prompts(), seed=seed)
    after = ~np.asarray(rollout.mask)
    for field in (rollout.ids, rollout.raw_logp, rollout.behaviour_logp):
      assert (field[after] == 0).all()
    last = np.take_along_axis(rollout.ids, rollout.length[:, None] - 1, 1)[:, 0]
    np.testing.assert_array_equal(rollout.stopped, last == EOS)
    assert (rollout.length[~rollout.stopped] == 6).all()
    assert ((rollout.ids == EOS).sum(1) == rollout.stopped).all()
    seen |= set(rollout.length.tolist())
  assert {1, 6} < seen, 'the seeds must show rows of many lengths'


def test_ids_beyond_the_valid_vocabulary_are_never_drawn():
  params = dict(make_params(SPEC))
  prompts = make_prompts(lengths=(5, 5, 5, 5))
  # Copies of the likeliest rows, twice as large: without the mask they would win nearly always.
  params['head'] = params['head'].at[VALID:].set(2 * params['head'][: SPEC.vocab_size - VALID])
  for seed in range(5):
    rollout = generate(prompts, params=params, seed=seed)
    assert rollout.ids.max() < VALID and np.isfinite(rollout.raw_logp).all()
  same_head = generate(prompts, seed=4)
  assert_same(rollout, same_head)  # not even the log-probabilities know of them


# What a row does not depend on.


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.permutations(range(4)))
def test_a_row_does_not_depend_on_its_slot(order):
  moved = generate(take(make_prompts(), order))
  rows = [2 * q + i for q in order for i in range(2)]
  assert_same(moved, rows_of(whole_rollout(), rows))


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(0, 3), st.integers(1, 99))
def test_a_row_does_not_depend_on_its_mates(question, seed):
  mine, others = make_prompts(), make_prompts((5, 1, 2, 4), seed=seed, first_id=seed)
  keep = np.arange(4) == question
  mixed = jax.tree.map(lambda a, b: np.where(keep.reshape(-1, *[1] * (a.ndim - 1)), a, b), mine, others)
  rows = [2 * question, 2 * question + 1]
  assert_same(rows_of(generate(mixed), rows), rows_of(whole_rollout(), rows))


def test_one_row_alone_and_its_prompt_padded_further():
  # Another program, with one question, one rollout of it and a wider prompt.
  alone = generate(take(make_prompts(width=9), [2]), per_question=1)
  assert alone.ids.shape == (1, 6)
  assert_close(alone, rows_of(whole_rollout(), [4]))


@pytest.mark.parametrize('changes', [dict(seed=1), dict(step=1)])
def test_seed_and_step_change_the_draws(changes):
  changed = generate(make_prompts(), **changes)
  assert (changed.ids != whole_rollout().ids).any(1).mean() > 0.5


def test_problem_and_rollout_change_the_draws():
  same = dataclasses.replace(take(make_prompts((5,)), [0, 0, 0, 0]), problem_id=np.uint32([0, 1, 2, 3]))
  assert len({tuple(row) for row in generate(same).ids.tolist()}) == 8


def test_greedy_is_the_argmax_of_whole_sequences():
  prompts = make_prompts()
  config = dataclasses.replace(CONFIG, temperature=0.0)
  rollout = generate(prompts, config, eos_ids=(), per_question=1, loss_temperature=1.0)
  for q, n in enumerate(prompts.length):
    tokens = prompts.ids[q, :n].tolist()
    for got in rollout.ids[q].tolist():
      logits = row_logits(SPEC, make_params(SPEC), tokens)[-1, :VALID]
      assert np.diff(np.sort(logits)[-2:]) > 1e-3, 'a near tie proves nothing: change the seed'
      assert got == logits.argmax()
      tokens.append(got)
  assert (rollout.behaviour_logp == 0).all() and (rollout.raw_logp < 0).all()


# Where rows end: a chain whose token t is followed by token t + 1, and 7 by 0.

CHAIN = ModelSpec(
  vocab_size=8,
  num_layers=1,
  embed_dim=8,
  num_heads=1,
  num_kv_heads=1,
  head_dim=2,
  mlp_dim=2,
  tie_embeddings=False,
  qk_norm=False,
)
GREEDY = SamplingConfig(temperature=0.0, max_tokens=5)
LAST = [6, 3, 0, 7, 2]  # the prompts' last tokens


def chain_params(log_probs):
  """A model with next-token log-probabilities log_probs[last, next]: its layers add nothing."""
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), model.abstract_params(CHAIN, one_device()))
  # A one-hot embedding has root mean square 8^-1/2, which the final norm divides by.
  return params | {
    'embedding': jnp.eye(8),
    'head': jnp.asarray(log_probs, jnp.float32).T / 8**0.5,
    'final_norm': {'scale': jnp.ones(8)},
  }


def run_chain(config=GREEDY, eos_ids=(7, 4), draw=decode.generate, **more):
  prompts = Prompts(
    ids=np.int32([[1, t] for t in LAST]),
    length=np.full(5, 2, np.int32),
    problem_id=np.arange(5, dtype=np.uint32),
  )
  params = chain_params(50 * np.eye(8)[(np.arange(8) + 1) % 8])
  return jax.tree.map(np.asarray, draw(CHAIN, params, prompts, config, eos_ids=eos_ids, **more))


def walk(token, budget, eos_ids):
  """The tokens after `token` and whether an EOS ended them."""
  tokens = []
  while len(tokens) < budget and not (tokens and tokens[-1] in eos_ids):
    token = (token + 1) % 8
    tokens.append(token)
  return tokens, bool(tokens) and tokens[-1] in eos_ids


def check_walks(rollout, budgets, eos_ids):
  for row, (start, budget) in enumerate(zip(LAST, budgets)):
    tokens, stopped = walk(start, min(budget, 5), eos_ids)
    assert rollout.ids[row].tolist() == tokens + [0] * (5 - len(tokens))
    assert rollout.length[row] == len(tokens) and rollout.stopped[row] == stopped


@pytest.mark.parametrize('eos_ids', [(7, 4), ()], ids=str)
def test_rows_end_at_an_eos(eos_ids):
  check_walks(run_chain(eos_ids=eos_ids), [5] * 5, eos_ids)


@pytest.mark.parametrize('budgets', [[0, 1, 2, 3, 4], [1, 4, 0, 5, 99], [0] * 5, [1] * 5], ids=str)
def test_rows_end_at_their_budget(budgets):
  check_walks(run_chain(max_tokens=np.array(budgets)), budgets, (7, 4))


def test_a_smaller_budget_gives_a_prefix():
  budgets = np.array([0, 1, 2, 3, 4, 5, 6, 6])
  cut = generate(make_prompts(), max_tokens=budgets)
  whole = whole_rollout()
  np.testing.assert_array_equal(cut.length, np.minimum(budgets, whole.length))
  kept = np.asarray(cut.mask)
  for field in ('ids', 'raw_logp', 'behaviour_logp'):
    np.testing.assert_array_equal(getattr(cut, field), np.where(kept, getattr(whole, field), 0))


def test_the_loop_stops_with_the_last_row():
  config = dataclasses.replace(GREEDY, max_tokens=30)  # compiled here and nowhere else

  def steps_of(**more):
    sampled = run_chain(config, (7,), draw=decode.sample, **more)
    steps, idle = divmod(int(sampled.token_positions), len(LAST))
    assert not idle
    return steps, sampled.rollout.length.max()

  programs = decode._sample._cache_size()
  assert steps_of() == (8, 8)  # after token 7 come eight tokens to the next 7
  assert steps_of(max_tokens=np.full(5, 1)) == (1, 1)
  assert steps_of(max_tokens=np.zeros(5)) == (0, 0)
  assert steps_of(max_tokens=np.array([0, 0, 3, 0, 0])) == (3, 3)
  assert decode._sample._cache_size() == programs + 1


def test_tokens_follow_the_model_jointly():
  rng = np.random.default_rng(0)
  table = rng.dirichlet(np.ones(8), size=8)
  count = 4096
  prompts = Prompts(
    ids=np.full((count, 1), 3, np.int32),
    length=np.ones(count, np.int32),
    problem_id=np.arange(count, dtype=np.uint32),
  )
  rollout = decode.generate(
    CHAIN, chain_params(np.log(table)), prompts, SamplingConfig(max_tokens=2), eos_ids=()
  )
  pairs = np.asarray(rollout.ids) @ [8, 1]
  expected = count * (table[3][:, None] * table).ravel()
  counts, large = np.bincount(pairs, minlength=64), expected > 5
  observed = np.append(counts[large], counts[~large].sum())
  predicted = np.append(expected[large], expected[~large].sum())
  # A fixed draw; one uniform used for both tokens gives a p-value of 0 to many digits.
  assert scipy.stats.chisquare(observed, predicted).pvalue > 1e-3


# Compilation and layout.


def test_new_prompts_do_not_recompile():
  whole_rollout()
  programs = decode._sample._cache_size()
  for seed in range(3):
    generate(
      make_prompts((2, 5, 1, 4), seed=seed, first_id=seed),
      seed=seed,
      step=seed + 1,
      loss_temperature=0.5 + seed,
      max_tokens=np.arange(8),
    )
  assert decode._sample._cache_size() == programs


def test_numbers_of_the_sampling_do_not_recompile(monkeypatch):
  once = chex.assert_max_traces(decode._sample.__wrapped__, n=1)
  monkeypatch.setattr(decode, '_sample', jax.jit(once, static_argnums=0))
  for temperature, top_p, min_p in ((0.8, 0.98, 0.01), (0.0, 0.5, 0.1), (1.3, 0.9, 0.02)):
    config = SamplingConfig(temperature, CONFIG.top_k, top_p, min_p, CONFIG.max_tokens)
    rollout = generate(make_prompts(), config, loss_temperature=temperature + 1, max_tokens=np.arange(8))
    assert (rollout.behaviour_logp == 0).all() == (temperature == 0)


@functools.cache
def on_the_cube():
  """The sampler on eight devices: the program as written, as compiled, and its usual rollout."""
  mesh = cube()
  born = model.abstract_params(SPEC, mesh)
  params = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), make_params(SPEC), born)
  with jax.set_mesh(mesh):
    prompts = meshes.shard_rows(mesh, make_prompts())
    setting = decode.setting_of(SPEC, CONFIG, (EOS,), 2, VALID, DecodeConfig())
    counters = decode.Counters(np.uint32(0), np.uint32(0))
    arguments = (
      layout.for_decoding(SPEC, params),
      prompts,
      jnp.full(8, 6),
      counters,
      drawing.law_of(CONFIG, 1.0),
    )
    lowered = decode._sample.lower(setting, *arguments)
    compiled = lowered.compile()
    rollout, _ = compiled(*arguments)
    return lowered.as_text(), compiled.as_text(), jax.tree.map(np.asarray, rollout)


def test_eight_devices_draw_the_same_tokens():
  assert_close(on_the_cube()[-1], whole_rollout())


def test_the_cache_is_sharded_on_eight_devices():
  written, compiled, _ = on_the_cube()
  # [layers, rows, key/value heads, tokens, width]: rows over four devices, heads over two.
  layout = '<@mesh, [{}, {"data", "fsdp"}, {"tensor"}, {}, {}]> : tensor<2x8x2x6x4xf32>'
  assert written.count(layout) == 2  # keys and values
  assert 'f32[2,2,1,6,4]' in compiled and 'f32[2,8,2,6,4]' not in compiled


# Widths an update may be compiled for.


@pytest.mark.parametrize(
  ('length', 'buckets', 'largest', 'expected'),
  [
    (3, (), 48, 48),
    (0, (8, 16), 48, 8),
    (8, (8, 16), 48, 8),
    (9, (8, 16), 48, 16),
    (17, (8, 16), 48, 48),
    (48, (8, 16), 48, 48),
    (9, (8, 16, 99), 12, 12),
    (5, (48,), 48, 48),
  ],
)
def test_bucket(length, buckets, largest, expected):
  assert bucket(length, buckets, largest) == expected


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.integers(0, 40), st.lists(st.integers(1, 60), max_size=4))
def test_a_bucket_is_the_narrowest_that_fits(length, buckets):
  width = bucket(length, tuple(buckets), 40)
  assert length <= width <= 40 and width in [*buckets, 40]
  assert not any(length <= b < width for b in buckets)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(questions=0), r'rollout.questions is 0; it must be positive'),
    (dict(per_question=0), r'rollout.per_question is 0; it must be positive'),
    (dict(buckets=(8, 4)), r'rollout.buckets is \(8, 4\); widths must be positive and ascending'),
    (dict(buckets=(0, 4)), r'rollout.buckets is \(0, 4\); widths must be positive and ascending'),
  ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    validate(RolloutConfig(**changes), 9)
  validate(RolloutConfig(buckets=(4, 8)), 9)


def test_rollouts_are_cropped_to_a_width():
  rollout = whole_rollout()
  cropped = rollout.cropped(4)
  for field in ('ids', 'raw_logp', 'behaviour_logp'):
    np.testing.assert_array_equal(getattr(cropped, field), getattr(rollout, field)[:, :4])
  np.testing.assert_array_equal(cropped.length, rollout.length)


def test_prompts_are_placed_by_rows():
  placed = meshes.shard_rows(cube(), make_prompts())
  assert tuple(placed.ids.sharding.spec) == (('data', 'fsdp'), None)
  assert {s.data.shape for s in placed.ids.addressable_shards} == {(1, 5)}
  assert_same(meshes.host(placed), make_prompts())


# Local layers and soft-caps.

GEMMA2 = dataclasses.replace(
  SPEC, sliding_window=3, layer_pattern='LG', attention_softcap=2.0, final_softcap=1.5, norm_plus_one=True
)


@functools.cache
def greedy_gemma(rows=(0, 1, 2, 3)):
  config = SamplingConfig(temperature=0.0, max_tokens=8)
  prompts = take(make_prompts(), list(rows))
  return generate(prompts, config, eos_ids=(), per_question=1, params=make_params(GEMMA2), spec=GEMMA2)


def test_windows_and_soft_caps_decode_like_whole_rows():
  # Prompts of 1 to 5 tokens and 8 more, with a window of 3: it leaves the prompt and moves on.
  prompts, rollout = make_prompts(), greedy_gemma()
  for q, length in enumerate(prompts.length):
    whole = np.concatenate([prompts.ids[q, :length], rollout.ids[q]])
    logits = row_logits(GEMMA2, make_params(GEMMA2), whole[:-1])[length - 1 :, :VALID]
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    assert rollout.ids[q].tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(rollout.raw_logp[q], log_probs.max(-1), **LOG_PROB)
    # The cap of 1.5 bounds how probable anything can be.
    assert (log_probs.max(-1) < -np.log1p((VALID - 1) * np.exp(-3.0))).all()


def test_windows_decode_a_row_alone_as_among_others():
  for row in (0, 2):
    assert_close(greedy_gemma((row,)), rows_of(greedy_gemma(), [row]))
