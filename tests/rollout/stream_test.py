"""Tokens that come a few at a time are those that come at once."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.rollout import decode, drawing
from opsd_jax.rollout import stream as lib
from opsd_jax.rollout.config import DecodeConfig
from tests.models.transformer_test import make_params
from tests.rollout import decode_test as whole
from tests.rollout.decode_test import CONFIG, EOS, SPEC, VALID, make_prompts


def drawn(prompts, config=CONFIG, *, eos_ids=(EOS,), per_question=2, params=None, **more):
  params = make_params(SPEC) if params is None else params
  return list(
    lib.stream(
      SPEC, params, prompts, config, eos_ids=eos_ids, per_question=per_question, valid_vocab=VALID, **more
    )
  )


def rows(parts):
  """The tokens of every row."""
  return [
    sum((part.ids[b, : part.count[b]].tolist() for part in parts), []) for b in range(len(parts[0].count))
  ]


def expected(rollout):
  return [row[:n].tolist() for row, n in zip(rollout.ids, rollout.length)]


@pytest.mark.parametrize('every', [1, 2, 4, 6, 9])
def test_the_ids_are_those_of_generate(every):
  for seed, step in ((0, 0), (3, 1)):
    parts = drawn(make_prompts(), seed=seed, step=step, every=every)
    rollout = whole.generate(make_prompts(), seed=seed, step=step)
    assert rows(parts) == expected(rollout)
    np.testing.assert_array_equal(parts[-1].stopped, rollout.stopped)


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(0, 2**31), st.lists(st.integers(0, 8), min_size=8, max_size=8))
def test_rows_with_budgets_of_their_own(seed, budget):
  parts = drawn(make_prompts(), seed=seed, every=4, max_tokens=np.int32(budget))
  assert rows(parts) == expected(whole.generate(make_prompts(), seed=seed, max_tokens=np.int32(budget)))
  for before, after in zip(parts, parts[1:]):
    assert (after.stopped >= before.stopped).all() and (after.active <= before.active).all()
    assert (after.count[~before.active] == 0).all() and (after.count <= after.ids.shape[1]).all()


def test_greedy():
  config = dataclasses.replace(CONFIG, temperature=0.0)
  assert rows(drawn(make_prompts(), config, every=3)) == expected(whole.generate(make_prompts(), config))


def test_the_first_says_that_the_prompts_are_read():
  first, *others = drawn(make_prompts(), eos_ids=(), every=4)
  assert first.ids.shape == (8, 0) and first.active.all() and not first.count.any()
  assert [part.ids.shape for part in others] == [(8, 4), (8, 2)]
  assert [part.active.any() for part in others] == [True, False]


def test_it_ends_when_every_row_has_ended():
  everything = tuple(range(VALID))
  _, *others = drawn(make_prompts(), eos_ids=everything, every=2)
  assert len(others) == 1 and (others[0].count == 1).all() and others[0].stopped.all()


def test_without_a_budget_everything_is_compiled_and_nothing_is_drawn():
  config = dataclasses.replace(CONFIG, top_k=13)  # used nowhere else
  before = lib._go_on._cache_size()
  parts = drawn(make_prompts(), config, max_tokens=np.zeros(8, np.int32))
  assert not any(part.count.any() for part in parts) and lib._go_on._cache_size() == before + 1
  drawn(make_prompts(), config)
  assert lib._go_on._cache_size() == before + 1


def test_it_may_be_left_at_any_time():
  parts = lib.stream(SPEC, make_params(SPEC), make_prompts(), CONFIG, eos_ids=(), every=1)
  next(parts), next(parts)
  parts.close()


def test_the_cache_is_written_in_place():
  """The compiled step takes the old cache's memory for the new one's."""
  setting = decode.setting_of(SPEC, CONFIG, (EOS,), 1, VALID, DecodeConfig(slots=3))
  counters = decode.Counters(np.uint32(0), np.uint32(0))
  law, budget = drawing.law_of(CONFIG, 1.0), np.full(4, CONFIG.max_tokens, np.int32)
  requests, state, _ = lib._begin(setting, make_params(SPEC), make_prompts(), budget, counters)
  compiled = lib._go_on.lower(setting, make_params(SPEC), law, requests, state, 2).compile()
  donated = sum(x.nbytes for x in jax.tree.leaves(state))
  assert compiled.memory_analysis().alias_size_in_bytes >= donated


@pytest.mark.slow
def test_on_a_mesh():
  mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))
  shardings = jax.tree.map(lambda x: x.sharding, model.abstract_params(SPEC, mesh))
  with jax.set_mesh(mesh):
    params = jax.device_put(make_params(SPEC), shardings)
    prompts = meshes.shard_rows(mesh, make_prompts())
    assert rows(drawn(prompts, params=params, every=4)) == expected(whole.generate(prompts, params=params))


def test_on_a_mesh_the_state_keeps_its_layout():
  """Or the second dispatch would be compiled anew."""
  mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))
  shardings = jax.tree.map(lambda x: x.sharding, model.abstract_params(SPEC, mesh))
  config = dataclasses.replace(CONFIG, top_k=12)  # used nowhere else
  before = lib._go_on._cache_size()
  with jax.set_mesh(mesh):
    params = jax.device_put(make_params(SPEC), shardings)
    drawn(meshes.shard_rows(mesh, make_prompts()), config, params=params, eos_ids=(), every=2)
  assert lib._go_on._cache_size() == before + 1
