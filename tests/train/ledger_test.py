"""Tokens counted by hand, FLOPs token by token from the weights of the model itself.

What programs compute is compared with the matrix products of the programs.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.benching import flops as products
from opsd_jax.distill import packing, reading, scoring
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import attention, flops, lora, model
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Rollout, Sampled
from opsd_jax.train import ledger
from opsd_jax.train.ledger import Ledger

SPEC = ModelSpec(vocab_size=7, num_layers=2, embed_dim=6, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=10)
# Two questions of 3 and 2 prompt tokens, two completions each.
PROMPTS, COMPLETIONS = np.array([3, 2]), np.array([4, 1, 2, 3])


def layer_weights():
  """Weights of all matrices in the layers of a real parameter tree."""
  mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
  layers = model.abstract_params(SPEC, mesh)['layers']
  return sum(x.size for x in jax.tree.leaves(layers) if x.ndim > 2)  # Norms are [L, D].


def token_flops(keys, with_head):
  """One token that attends to `keys` tokens, itself among them."""
  matrices = 2 * layer_weights() + with_head * 2 * 7 * 6
  scores_and_values = 2 * (2 * 4 * keys)  # Two products over a head width of 4.
  return matrices + 2 * 4 * scores_and_values  # Two layers of four heads.


def reading_flops(prompts, completions):
  """Every prompt but its last token without the head, then each completion's inputs with it."""
  total = 0
  for prompt, rows in zip(prompts, completions):
    total += sum(token_flops(i + 1, False) for i in range(prompt - 1))
    total += sum(token_flops(prompt + t, True) for n in rows for t in range(n))
  return total


READING = reading_flops([3, 2], [[4, 1], [2, 3]])


def test_flops_of_rows_are_sums_over_their_tokens():
  before, new = np.array([0, 5, 2]), np.array([3, 1, 0])
  wanted = sum(token_flops(b + i + 1, True) for b, n in zip(before, new) for i in range(n))
  assert flops.forward_flops(SPEC, before, new, with_head=True) == wanted
  no_head = flops.forward_flops(SPEC, before, new, with_head=False)
  assert wanted - no_head == 4 * 2 * 7 * 6
  assert flops.matmul_params(SPEC) == layer_weights() == 2 * (6 * 4 * (4 + 2 + 2 + 4) + 3 * 6 * 10)


def test_flops_of_a_large_model_do_not_overflow():
  large = ModelSpec(
    vocab_size=151_936,
    num_layers=36,
    embed_dim=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=12_288,
  )
  found = flops.forward_flops(large, np.zeros(512, np.int32), np.full(512, 32_768, np.int32), with_head=True)
  assert found > 2 * 7.5e9 * 512 * 32_768  # Seven and a half billion weights, two FLOPs each.


def test_sampling_reads_each_prompt_once():
  assert ledger.rollout_entry(SPEC, PROMPTS, COMPLETIONS) == Ledger(
    sampled=10, prompt_sampler=5, flops=READING
  )


def test_training_costs_three_forwards():
  assert ledger.student_entry(SPEC, PROMPTS, COMPLETIONS) == Ledger(
    scored_student=10, prompt_student=5, flops=3 * READING
  )


def test_training_adapters_costs_no_gradients_of_the_frozen_weights():
  """100 weights beside the others: met by every token, and thrice where gradients are taken."""
  tokens, projected = 2 + 1 + 10, 10  # prompts but their last tokens, and completions
  beside = READING + 2 * 100 * tokens
  frozen = 2 * layer_weights() * tokens + 2 * 7 * 6 * projected
  entry = ledger.student_entry(SPEC, PROMPTS, COMPLETIONS, 100)
  assert entry.flops == 3 * beside - frozen
  assert (entry.scored_student, entry.prompt_student) == (10, 5)
  assert ledger.rollout_entry(SPEC, PROMPTS, COMPLETIONS, 100).flops == beside
  assert ledger.teacher_entry(SPEC, PROMPTS, COMPLETIONS, 100).flops == beside


def test_a_teacher_view_has_its_own_prompts():
  wanted = reading_flops([8, 5], [[4, 1], [2, 3]])
  assert ledger.teacher_entry(SPEC, np.array([8, 5]), COMPLETIONS) == Ledger(
    scored_teacher=10, prompt_teacher=13, flops=wanted
  )


def test_a_prompt_of_one_token_has_no_prefill():
  entry = ledger.rollout_entry(SPEC, np.array([1]), np.array([2]))
  assert entry.flops == token_flops(1, True) + token_flops(2, True)


def test_an_update_adds_up():
  total = (
    Ledger()
    + ledger.rollout_entry(SPEC, PROMPTS, COMPLETIONS)
    + ledger.student_entry(SPEC, PROMPTS, COMPLETIONS)
    + ledger.teacher_entry(SPEC, PROMPTS, COMPLETIONS)
    + ledger.teacher_entry(SPEC, PROMPTS, COMPLETIONS)
  )
  assert total == Ledger(
    sampled=10,
    scored_student=10,
    scored_teacher=20,
    prompt_sampler=5,
    prompt_student=5,
    prompt_teacher=10,
    flops=6 * READING,
  )


def test_weighing_costs_the_teachers_head_again_and_the_students_pass():
  read = ledger.Computed(positions=30, pairs=90, projected=24)
  wide = dataclasses.replace(SPEC, embed_dim=8)
  head = ledger.weigh_entry(SPEC, PROMPTS, COMPLETIONS, 0, read, student=False, teacher=wide)
  assert head == Ledger(flops=10 * 2 * 7 * 8, needed_weigh=10 * 2 * 7 * 8, spent_weigh=24 * 2 * 7 * 8)
  own = ledger.weigh_entry(SPEC, PROMPTS, COMPLETIONS, 0, read, student=True, teacher=None)
  assert own == Ledger(
    scored_weigh=10,
    prompt_weigh=5,
    flops=READING,
    positions_weigh=30,
    needed_weigh=READING,
    spent_weigh=read.forward(SPEC, 0),
  )
  both = ledger.weigh_entry(SPEC, PROMPTS, COMPLETIONS, 100, read, student=True, teacher=wide)
  assert both.flops == READING + head.flops + 2 * 100 * 13  # 2 + 1 + 10 tokens meet the adapters.
  assert ledger.weigh_entry(SPEC, PROMPTS, COMPLETIONS, 0, read, student=False, teacher=None) == Ledger()


def test_counts_are_whole_python_numbers():
  # They are written as JSON and outgrow 64 bits in no run.
  entry = ledger.rollout_entry(SPEC, PROMPTS.astype(np.int32), COMPLETIONS.astype(np.int32))
  assert all(type(value) is int for value in vars(entry).values())


# What the programs compute, padding and all.


def make_update():
  """The two questions above in wider records: prompts of 3 and 2 of 5 tokens, completions of up to 4 of 6."""
  counters, rows = np.arange(2, dtype=np.uint32), np.zeros((4, 6), np.int32)
  prompts = Prompts(np.zeros((2, 5), np.int32), PROMPTS.astype(np.int32), counters)
  flat = rows.astype(np.float32)
  return prompts, Rollout(
    rows, COMPLETIONS.astype(np.int32), np.ones(4, bool), flat, flat, *np.zeros((2, 4), np.int32)
  )


LAYOUTS = [dict(packing='rows'), dict(packing='packed'), dict(packing='packed', micro_tokens=30)]
ADAPTERS = LoraConfig(rank=2)


def params_of(spec, adapters):
  mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
  base = model.abstract_params(spec, mesh)
  return base, lora.abstract(ADAPTERS, spec, mesh) if adapters else None


@pytest.fixture
def small_blocks(monkeypatch):
  """Attention goes over fewer queries at a time than rows have."""
  monkeypatch.setattr(attention, 'BLOCK', 3)


@pytest.mark.usefixtures('small_blocks')
@pytest.mark.parametrize('settings', LAYOUTS)
def test_the_teacher_computes_what_the_ledger_says(settings):
  prompts, rollout = make_update()
  plan, (params, _) = packing.plan(prompts, [prompts], rollout, **settings), params_of(SPEC, False)
  found = products.count(functools.partial(scoring.score_teacher, SPEC), params, (prompts,), rollout, plan)
  read = ledger.read_positions(plan, plan.teacher[0], prompts, rollout)
  assert found + read.projected * 2 * 7 * 6 == read.forward(SPEC, 0)
  entry = ledger.teacher_entry(SPEC, prompts.length, rollout.length, computed=read)
  assert (entry.positions_teacher, entry.spent_teacher) == (read.positions, read.forward(SPEC, 0))
  assert entry.needed_teacher == entry.flops == READING
  assert entry.utilisation == {'teacher': READING / read.forward(SPEC, 0)}


@pytest.mark.parametrize('remat', ['none', 'full', 'dots'])
@pytest.mark.parametrize('settings', LAYOUTS[:2])
def test_the_student_computes_what_the_ledger_says(settings, remat):
  prompts, rollout = make_update()
  spec = dataclasses.replace(SPEC, remat=remat)
  plan, (params, _) = packing.plan(prompts, [prompts], rollout, **settings), params_of(spec, False)

  def loss(params):
    inputs = reading.prepare(plan.student, plan.origin.shape[0], prompts, rollout)
    part = jax.tree.map(lambda x: x[0], inputs)
    return (reading.states(spec, params, part) @ model.head(spec, params).T).sum()

  read = ledger.read_positions(plan, plan.student, prompts, rollout)
  assert products.count(jax.grad(loss), params) == read.backward(spec, 0)


def test_idle_rows_and_padding_of_the_sampler():
  prompts, rollout = make_update()
  assert ledger.sampled_positions(prompts, Sampled(rollout, None, None)) is None
  told = ledger.sampled_positions(prompts, Sampled(rollout, 5, np.int32(12)))
  assert (told.positions, told.projected) == (17, 12)
  entry = ledger.rollout_entry(SPEC, PROMPTS, COMPLETIONS, computed=told)
  assert entry.flops == entry.needed_rollout == READING < entry.spent_rollout
  assert entry.spent_rollout == flops.computed_flops(SPEC, 17, told.pairs, 12)


def test_a_ledger_saved_before_there_were_such_counts():
  saved = {'sampled': 10, 'flops': 99}
  total = Ledger(**saved) + ledger.rollout_entry(SPEC, PROMPTS, COMPLETIONS)
  assert total.sampled == 20 and total.utilisation == {}


def test_a_budget_counts_what_was_drawn_or_given_once():
  """However often a training learns from it; a supervised one has nothing but what it learned from."""
  step = Ledger(scored_student=10)
  assert (Ledger(sampled=10) + step + step).completions == 10
  assert (Ledger(sampled=10) + Ledger(given=4) + step).completions == 14
  assert (step + step).completions == 20
