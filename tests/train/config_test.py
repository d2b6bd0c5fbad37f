"""Budgets and what training refuses, with the words that a person needs."""

import dataclasses

import pytest

from opsd_jax.config import ConfigError
from opsd_jax.train import config as lib
from opsd_jax.train.config import Budget, ColdStartConfig, LoopConfig, OptimizerConfig


@pytest.mark.parametrize(
  ('text', 'budget'),
  [
    (None, Budget('updates', 12)),
    ('updates:40', Budget('updates', 40)),
    ('tokens:1_000_000', Budget('tokens', 1e6)),
    ('tokens:2e6', Budget('tokens', 2e6)),
    ('minutes:0.5', Budget('minutes', 0.5)),
  ],
)
def test_budgets(text, budget):
  assert lib.parse_budget(LoopConfig(updates=12, budget=text)) == budget


@pytest.mark.parametrize(
  'text',
  [
    '',
    '100',
    'tokens',
    'tokens:',
    'tokens:many',
    'tokens:0',
    'tokens:-5',
    'tokens:nan',
    'hours:2',
    'Tokens:5',
    ':5',
    'tokens:5:6',
  ],
)
def test_what_is_no_budget(text):
  with pytest.raises(ConfigError) as caught:
    lib.parse_budget(LoopConfig(budget=text))
  assert str(caught.value) == (
    f'the budget is {text!r}; write tokens:N, updates:N or minutes:X with a positive number.'
  )


@pytest.mark.parametrize(
  ('unit', 'limit', 'fraction'), [('updates', 20, 0.25), ('tokens', 1000, 0.3), ('minutes', 4, 0.375)]
)
def test_the_share_of_a_budget_that_is_spent(unit, limit, fraction):
  assert Budget(unit, limit).fraction(updates=5, tokens=300, seconds=90.0) == fraction


@pytest.mark.parametrize(('ceiling', 'fraction'), [(100, 0.3), (10, 0.5), (5, 1.0)])
def test_a_ceiling_of_updates_ends_any_budget(ceiling, fraction):
  budget = lib.parse_budget(LoopConfig(budget='tokens:1000', max_updates=ceiling))
  assert budget.fraction(updates=5, tokens=300, seconds=0.0) == fraction


def test_a_schedule_must_last_as_long_as_the_run():
  optimizer = OptimizerConfig(schedule='cosine', decay_updates=50)
  lib.validate_decay('optimizer', optimizer, 50)
  lib.validate_decay('optimizer', OptimizerConfig(), 1000)
  with pytest.raises(ConfigError, match='optimizer.decay_updates is 50.* 51 updates'):
    lib.validate_decay('optimizer', optimizer, 51)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'learning_rate': 0.0}, ['learning_rate is 0.0', 'positive']),
    ({'learning_rate': float('nan')}, ['learning_rate is nan']),
    ({'schedule': 'cosinus'}, ["schedule is 'cosinus'", "'cosine'"]),
    ({'warmup_updates': -1}, ['warmup_updates is -1']),
    ({'schedule': 'linear'}, ['decay_updates is 0', 'linear', 'warmup_updates (0)']),
    ({'schedule': 'cosine', 'warmup_updates': 9, 'decay_updates': 9}, ['decay_updates is 9']),
    ({'beta1': 1.0}, ['beta1 is 1.0', '[0, 1)']),
    ({'beta2': -0.5}, ['beta2 is -0.5']),
    ({'clip_norm': 0.0}, ['clip_norm is 0.0', 'none']),
    ({'epsilon': 0.0}, ['epsilon is 0.0']),
    ({'weight_decay': -0.1}, ['weight_decay is -0.1']),
  ],
)
def test_an_optimizer_that_cannot_step(changes, words):
  with pytest.raises(ConfigError) as caught:
    lib.validate_optimizer('some.optimizer', OptimizerConfig(**changes))
  assert str(caught.value).startswith('some.optimizer.')
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize('text', ['tokens:inf', 'minutes:infinity'])
def test_a_budget_without_an_end(text):
  with pytest.raises(ConfigError, match='positive'):
    lib.parse_budget(LoopConfig(budget=text))


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'clip_norm': None},
    {'schedule': 'linear', 'warmup_updates': 3, 'decay_updates': 4},
    {'warmup_updates': 10},
    {'beta1': 0.0},
  ],
)
def test_an_optimizer_that_works(changes):
  lib.validate_optimizer('optimizer', OptimizerConfig(**changes))


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'updates': 0}, ['loop.updates is 0', 'positive']),
    ({'budget': 'forever'}, ["'forever'", 'minutes:X']),
    ({'micro_tokens': 0}, ['loop.micro_tokens is 0']),
    ({'micro_tokens': 99}, ['loop.micro_tokens is 99', '100 positions', 'views.teacher_tokens', 'none']),
    ({'packing': 'tight'}, ["loop.packing is 'tight'"]),
    ({'evaluate_every': -1}, ['loop.evaluate_every is -1', 'negative']),
    ({'show_every': -2}, ['loop.show_every is -2']),
    ({'max_bad_updates': 0}, ['loop.max_bad_updates is 0']),
    ({'max_updates': 0}, ['loop.max_updates is 0', 'none']),
  ],
)
def test_a_loop_that_cannot_run(changes, words):
  with pytest.raises(ConfigError) as caught:
    lib.validate_loop(LoopConfig(**changes), widest=100)
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize('changes', [{}, {'micro_tokens': 100}, {'packing': 'packed'}])
def test_a_loop_that_can_run(changes):
  lib.validate_loop(LoopConfig(**changes), widest=100)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'updates': -1}, 'cold_start.updates is -1'),
    ({'batch': 0}, 'cold_start.batch is 0'),
    ({'teacher_fraction': 1.2}, r'cold_start.teacher_fraction is 1.2; .* 0\.\.1'),
    ({'optimizer': OptimizerConfig(learning_rate=-1)}, 'cold_start.optimizer.learning_rate is -1'),
  ],
)
def test_a_cold_start_that_cannot_run(changes, words):
  with pytest.raises(ConfigError, match=words):
    lib.validate_cold_start(dataclasses.replace(ColdStartConfig(), **changes))


def test_no_cold_start_is_allowed():
  lib.validate_cold_start(ColdStartConfig(updates=0))
