"""Plans of a tiny model on eight simulated devices, against the ledger's formulas and hand counts."""

import dataclasses
import json

import jax
import pytest

from experiments import common, recipes
from experiments.planning import programs, search, text, whole
from opsd_jax import config as configs
from opsd_jax import experiment as experiments
from opsd_jax.analyze.chips import Chip, Slice
from opsd_jax.config import ConfigError
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import lora
from opsd_jax.train import ledger

# A chip as none is sold: a second for 1e9 FLOPs, 1e9 bytes or 5e8 bytes along a ring.
CHIP = Chip(1e9, 2**24, 1e9, 2e9, 4, 16, (8, 1, 1), 'this test')
WHERE = Slice('cpu:8', CHIP, (8,))
SETTINGS = (
  'model.num_layers=3',
  'model.embed_dim=32',
  'model.num_heads=4',
  'model.num_kv_heads=2',
  'model.head_dim=8',
  'model.mlp_dim=64',
  'model.vocab_size=96',
  'rollout.questions=8',
  'rollout.sampling.max_tokens=10',
  'views.student_tokens=7',
  'views.teacher_tokens=13',
  'objective.statistics=false',
  'loop.updates=30',
)


def tiny(*settings):
  return configs.override(recipes.load('quickstart'), [*SETTINGS, *settings])


@pytest.fixture(scope='module')
def plan():
  return whole.make(tiny('mesh.fsdp=4', 'mesh.tensor=2', 'lora.rank=4'), WHERE, jax.devices(), quiet=True)


def phase(plan, name):
  (found,) = (p for p in plan.phases if p.name == name)
  return found


def test_the_teachers_products_are_those_of_the_formulas(plan):
  e = plan.experiment
  computed = ledger.padded_positions((8, 13), (8, 10), 0)
  assert phase(plan, 'score').flops * 8 == computed.forward(e.model, 0)


def test_a_loop_over_tokens_counts_as_often_as_a_budget_has_tokens(plan):
  e, adapters = plan.experiment, lora.size(plan.experiment.lora, plan.experiment.model)
  m, rows, width = e.model, e.rollout.questions, e.rollout.sampling.max_tokens
  # The side of an adapter that is as wide as the model is whole on both chips of the tensor axis.
  twice = 2 * m.num_layers * len(e.lora.targets) * m.embed_dim * e.lora.rank
  # Weights, adapters and head at each of the tokens, whatever attention reads of the cache.
  floor = rows * width * (2 * (_weights(e) + adapters + m.vocab_size * m.embed_dim) + twice)
  pairs = rows * width * (e.views.student_tokens - 1 + width + 1)
  attention = 4 * m.num_layers * m.num_heads * m.head_dim * pairs
  assert floor + attention * 15 / 17 <= phase(plan, 'decode').flops * 8 <= floor + attention
  prefill = ledger.padded_positions((8, 7), (8, 0), 0)
  expected = prefill.forward(m, adapters) + prefill.positions * twice
  assert phase(plan, 'prefill').flops * 8 == expected


def _weights(e):
  m = e.model
  return m.num_layers * m.embed_dim * (m.head_dim * 2 * (m.num_heads + m.num_kv_heads) + 3 * m.mlp_dim)


def test_what_a_chip_holds(plan):
  e = plan.experiment
  norms = e.model.num_layers * (2 * e.model.embed_dim + 2 * e.model.head_dim) + e.model.embed_dim
  matrices = 4 * (_weights(e) + e.model.vocab_size * e.model.embed_dim) // 8  # over fsdp and tensor
  adapters = lora.size(e.lora, e.model)
  # Float32 masters and two moments; one side of an adapter is split over fsdp alone, the other over tensor.
  assert 3 * 4 * adapters / 8 < plan.held - matrices < 3 * 4 * adapters / 2 + 4 * norms + 64
  # The decoding copy is split over the tensor axis alone: four times the base's share, and the adapters.
  assert plan.copy.copied > 4 * matrices
  assert phase(plan, 'prefill').arguments >= plan.copy.held
  assert phase(plan, 'update').others == 0  # it is given all that a run holds


def test_the_updates_products_are_those_of_the_formulas(plan):
  e, adapters = plan.experiment, lora.size(plan.experiment.lora, plan.experiment.model)
  m, computed = e.model, ledger.padded_positions((8, 7), (8, 10), 80)
  twice = 3 * computed.positions * 2 * m.num_layers * len(e.lora.targets) * m.embed_dim * e.lora.rank
  # Beside the student's passes: the teacher's logits, and logits that are made again for the gradient.
  logits = 2 * 2 * 80 * m.vocab_size * m.embed_dim
  assert phase(plan, 'update').flops * 8 == computed.backward(m, adapters) + twice + logits


def test_gradients_are_exchanged(plan):
  update = phase(plan, 'update')
  assert update.sent > 0 and sum(update.sent_by.values()) == update.sent


def test_times_add_up_and_the_recipe_follows(plan):
  assert plan.fits
  assert plan.most == pytest.approx(sum(p.seconds.both + p.seconds.exchange for p in plan.phases))
  assert 0 < plan.least < plan.most
  assert plan.updates == 30 and plan.tokens == 80
  assert plan.chip_hours == pytest.approx(30 * plan.most * 8 / 3600)
  budget = dataclasses.replace(plan, experiment=tiny('loop.budget=tokens:1000'))
  assert budget.updates == 13
  assert json.loads(json.dumps(plan.to_dict()))['recipe']['updates'] == 30


def test_it_says_what_to_change(plan):
  said = text.describe(plan)
  for words in ('It fits', 'update in all', '30 updates', 'none hidden', 'Not counted: grading'):
    assert words in said
  cramped = dataclasses.replace(plan, where=Slice('cpu:8', dataclasses.replace(CHIP, memory=1000), (8,)))
  said = text.describe(cramped)
  assert 'does not fit' in said and 'more chips' in said
  worst = dataclasses.replace(cramped, phases=tuple(p for p in plan.phases if p.name == 'decode'))
  assert 'rollout.decode.cache=int8' in text.describe(worst)
  worst = dataclasses.replace(cramped, phases=tuple(p for p in plan.phases if p.name == 'update'))
  assert f'loop.micro_tokens={13 - 1 + 10}' in text.describe(worst)


def test_meshes_and_micro_batches_are_tried():
  e = tiny('loop.packing=packed')
  sizes = [(m.data, m.fsdp, m.tensor) for m in search.meshes(e, 8)]
  assert sizes == [(1, 8, 1), (1, 4, 2)]
  least = 13 - 1 + 10
  assert search.budgets(e, search.meshes(e, 8)[1]) == [None, least]
  many = configs.override(e, ['rollout.questions=64'])
  assert search.budgets(many, search.meshes(e, 8)[1]) == [None, 64 * least // 4, 64 * least // 16, least]
  tried = [search.Tried(m, None, None, 'too large') for m in search.meshes(e, 8)]
  assert search.best(tried) is None
  assert '| 1x4x2 | none | | not compiled: too large' in search.table(tried)


@pytest.mark.slow
def test_a_search_finds_the_fastest():
  tried = list(search.search(tiny(), WHERE, jax.devices()))
  chosen = search.best(tried)
  assert len(tried) == 2 and chosen.plan.most == min(t.plan.most for t in tried)


@pytest.mark.slow
@pytest.mark.parametrize(
  'settings',
  [
    (),
    ('teacher.kind=ema', 'loop.packing=packed', 'loop.micro_tokens=88'),
    ('teacher.kind=live', 'rollout.decode.slots=4', 'rollout.per_question=2'),
    ('objective.estimator=nll', 'source.kind=solutions'),
    ('objective.extrapolation=1.2', 'objective.divergence=reverse_kl', 'objective.support=sampled'),
    ('teacher.kind=external', 'teacher.model.vocab_size=96', 'teacher.model.embed_dim=48'),
  ],
)
def test_other_updates_compile(settings):
  plan = whole.make(tiny('mesh.fsdp=4', 'mesh.tensor=2', *settings), WHERE, jax.devices(), quiet=True)
  assert plan.fits and plan.phases[-1].flops > 0


def test_a_teachers_head_is_held_where_it_has_other_rows():
  """Float32 rows of 32 numbers, over 4 x 2 chips; with as many rows it is the teacher's own."""
  mesh, external = make_mesh(MeshConfig(1, 4, 2)), ('teacher.kind=external', 'teacher.model.embed_dim=32')
  found = [programs.shapes(tiny(*external, f'teacher.model.vocab_size={rows}'), mesh) for rows in (96, 128)]
  assert [each.head is None for each in found] == [True, False]
  rest = [programs.bytes_of((each.state, each.initial, each.external)) for each in found]
  assert [each.held - other for each, other in zip(found, rest, strict=True)] == [0, 96 * 32 * 4 // 8]


def test_recipes_are_planned_without_their_weights():
  for name in recipes.names():
    e = common.with_settings(recipes.load(name), [], experiments.validate_shapes)
    if e.method == 'distill':
      programs.supported(e)
    else:
      with pytest.raises(ConfigError, match='not planned'):
        programs.supported(e)
