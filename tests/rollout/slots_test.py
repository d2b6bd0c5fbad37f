"""Rows that take the next request when they have ended draw what rows of their own would have drawn."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.rollout import decode, slots
from opsd_jax.rollout.config import DecodeConfig, RolloutConfig, SamplingConfig, validate
from tests.models.transformer_test import make_params
from tests.rollout import decode_test as whole
from tests.rollout.decode_test import (
  CHAIN,
  CONFIG,
  LAST,
  SPEC,
  VALID,
  assert_close,
  assert_same,
  rows_of,
  take,
)

LENGTHS = (1, 3, 5, 2, 4, 1)
SLOW = pytest.mark.slow
ENDS = (2, 5, 11)  # so many that rows end early and late


def prompts_of(lengths=LENGTHS, **more):
  return whole.make_prompts(lengths, **more)


def sampled(
  size, prompts=None, *, compact=False, cache='compute', config=CONFIG, eos_ids=ENDS, per_question=2, **more
):
  """What `size` slots draw, on the host."""
  return jax.tree.map(
    np.asarray,
    decode.sample(
      SPEC,
      make_params(SPEC),
      prompts_of() if prompts is None else prompts,
      config,
      eos_ids=eos_ids,
      per_question=per_question,
      valid_vocab=VALID,
      decode=DecodeConfig(slots=size, compact=compact, cache=cache),
      **more,
    ),
  )


@functools.cache
def expected(seed=0):
  rollout = sampled(None, seed=seed).rollout
  assert len(set(rollout.length.tolist())) > 2, 'rows that all end together would prove nothing'
  return rollout


@pytest.mark.parametrize('size', [pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), 5, 99])
def test_any_number_of_slots(size):
  for seed in range(2):
    assert_close(sampled(size, seed=seed).rollout, expected(seed))


@pytest.mark.parametrize('size', [8, pytest.param(12, marks=SLOW)])
def test_fewer_slots_for_what_is_left(size):
  for seed in range(3):
    both = sampled(size, seed=seed, compact=True), sampled(size, seed=seed)
    assert_close(both[0].rollout, expected(seed))
    assert both[0].token_positions < both[1].token_positions


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.permutations(range(len(LENGTHS))))
def test_a_row_does_not_depend_on_its_slot_or_turn(order):
  moved = sampled(5, take(prompts_of(), order)).rollout
  assert_same(moved, rows_of(sampled(5).rollout, [2 * q + i for q in order for i in range(2)]))


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(0, 5), st.integers(1, 99))
def test_a_row_does_not_depend_on_its_mates(question, seed):
  mine, others = prompts_of(), prompts_of(LENGTHS[::-1], seed=seed, first_id=seed)
  keep = np.arange(len(LENGTHS)) == question
  mixed = jax.tree.map(lambda a, b: np.where(keep.reshape(-1, *[1] * (a.ndim - 1)), a, b), mine, others)
  rows = [2 * question, 2 * question + 1]
  assert_same(rows_of(sampled(5, mixed).rollout, rows), rows_of(sampled(5).rollout, rows))


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(0, 2**31), st.lists(st.integers(0, 8), min_size=12, max_size=12))
def test_budgets_of_their_own(seed, budgets):
  """One of nothing takes no slot, and leaves the others what they are."""
  got = sampled(5, seed=seed, max_tokens=np.int32(budgets)).rollout
  assert_close(got, sampled(None, seed=seed, max_tokens=np.int32(budgets)).rollout)


def test_all_rows_of_one_prompt():
  one = take(prompts_of(), [2])
  assert_close(sampled(3, one, per_question=8).rollout, sampled(None, one, per_question=8).rollout)


def test_one_row():
  one = take(prompts_of(), [0])
  got = sampled(4, one, per_question=1).rollout
  assert got.ids.shape == (1, 6)
  assert_close(got, sampled(None, one, per_question=1).rollout)


def test_everything_ends_at_once():
  everything = tuple(range(VALID))
  got = sampled(5, eos_ids=everything)
  assert (got.rollout.length == 1).all() and got.rollout.stopped.all()
  assert got.token_positions == 5 * 3  # twelve requests in five slots


def test_nothing_ends():
  got = sampled(5, eos_ids=())
  assert (got.rollout.length == 6).all() and not got.rollout.stopped.any()
  assert got.token_positions == 5 * 18


def test_greedy():
  config = dataclasses.replace(CONFIG, temperature=0.0)
  assert_close(sampled(5, config=config).rollout, sampled(None, config=config).rollout)


def chain(size, budgets):
  """Rows whose lengths are their budgets."""
  prompts = whole.Prompts(
    ids=np.int32([[1, t] for t in LAST]),
    length=np.full(5, 2, np.int32),
    problem_id=np.arange(5, dtype=np.uint32),
  )
  params = whole.chain_params(50 * np.eye(8)[(np.arange(8) + 1) % 8])
  config = SamplingConfig(temperature=0.0, max_tokens=9)
  how = DecodeConfig(slots=size)
  return decode.sample(CHAIN, params, prompts, config, eos_ids=(), max_tokens=np.array(budgets), decode=how)


def test_what_it_took():
  """Two slots: 9 tokens of the first row, beside them 2, 3, 1 and then 3 of the 4 of the last."""
  got = chain(2, [9, 2, 3, 1, 4])
  assert int(got.token_positions) == 2 * 10
  assert got.prompt_positions == 5
  assert int(chain(None, [9, 2, 3, 1, 4]).token_positions) == 5 * 9


def test_numbers_do_not_compile_anew():
  sampled(5)
  programs = decode._sample._cache_size()
  for seed in range(3):
    config = dataclasses.replace(
      CONFIG, temperature=0.5 * seed, top_p=0.9 + seed / 99, min_p=0.02 + seed / 99
    )
    prompts = prompts_of(LENGTHS[::-1], seed=seed, first_id=seed)
    budgets = np.arange(12)
    sampled(5, prompts, config=config, seed=seed, step=seed, max_tokens=budgets, loss_temperature=1.0 + seed)
  assert decode._sample._cache_size() == programs


def test_slots_on_a_mesh():
  """Each shard of the rows serves its own requests."""
  mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))
  shardings = jax.tree.map(lambda x: x.sharding, model.abstract_params(SPEC, mesh))
  prompts = prompts_of((1, 3, 5, 2, 4, 1, 5, 2))
  with jax.set_mesh(mesh):
    got = decode.generate(
      SPEC,
      jax.device_put(make_params(SPEC), shardings),
      meshes.shard_rows(mesh, prompts),
      CONFIG,
      eos_ids=ENDS,
      per_question=2,
      valid_vocab=VALID,
      decode=DecodeConfig(slots=8),
    )
  assert_close(jax.tree.map(np.asarray, got), sampled(None, prompts).rollout)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(slots=0), r'rollout.decode.slots is 0; it must be positive, or none'),
    (dict(compact=True), r'rollout.decode.compact is true, but .*; set rollout.decode.slots'),
    (dict(cache='int4'), r"rollout.decode.cache is 'int4'"),
  ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    validate(RolloutConfig(decode=DecodeConfig(**changes)), 9)
  validate(RolloutConfig(decode=DecodeConfig(slots=4, compact=True, cache='int8')), 9)


@pytest.mark.parametrize(
  ('asked', 'requests', 'groups', 'expected'), [(5, 12, 1, 5), (99, 12, 1, 12), (5, 12, 4, 8)]
)
def test_slots_are_those_that_are_of_use(asked, requests, groups, expected):
  assert slots.slots_of(asked, requests, groups) == expected
