"""Sweeps: every combination once, commas that belong to a value, and what is no sweep."""

import pytest

from experiments.launching import sweep
from opsd_jax.config import ConfigError


def test_every_combination_in_order():
  found = sweep.points(['seed=0,1', 'optimizer.learning_rate=1e-4, 3e-4'])
  assert found == [
    ('seed=0', 'optimizer.learning_rate=1e-4'),
    ('seed=0', 'optimizer.learning_rate=3e-4'),
    ('seed=1', 'optimizer.learning_rate=1e-4'),
    ('seed=1', 'optimizer.learning_rate=3e-4'),
  ]
  assert sweep.points([]) == [()]


@pytest.mark.parametrize(
  ('text', 'values'),
  [
    ('0,1', ['0', '1']),
    ('0', ['0']),
    (' a , b,', ['a', 'b']),
    ('(1, 2),(3,)', ['(1, 2)', '(3,)']),
    ('[a,{b,c}],d', ['[a,{b,c}]', 'd']),
    ('"a, b",c', ['a, b', 'c']),
    ("'',x", ['', 'x']),
    ("it's,x", ["it's", 'x']),
    ("('a,b', 1)", ["('a,b', 1)"]),
    ('', []),
  ],
)
def test_values(text, values):
  assert list(sweep.split(text)) == values


@pytest.mark.parametrize(
  ('sweeps', 'said'),
  [
    (['seed'], '--sweep=seed has no setting before an "="; write --sweep=seed=0,1.'),
    (['=0,1'], 'has no setting'),
    (['seed='], '--sweep=seed= has no values; write some, as --sweep=seed=0,1.'),
    (['seed=,'], 'has no values'),
    (['seed=0,1,0'], 'has 0 more than once'),
    (['seed=0', 'seed=1'], 'names a setting twice'),
    (['views=(a,b'], 'not closed'),
    (['views="a,b'], 'not closed'),
  ],
)
def test_no_sweep(sweeps, said):
  with pytest.raises(ConfigError) as caught:
    sweep.points(sweeps)
  assert said in str(caught.value)


def test_names_are_folders_of_their_own():
  found = sweep.names(
    [('seed=0',), ('seed=1', 'model=a/b c'), ('x=(1)',), ('x=[1]',), ('x=' + '7' * 300,), ()]
  )
  assert found[:4] == ['seed_0', 'seed_1__model_a_b_c', 'x_1', 'x_1_3'] and found[5] == 'run'
  assert len(set(found)) == 6 and all(len(name) < 110 and '/' not in name for name in found)
