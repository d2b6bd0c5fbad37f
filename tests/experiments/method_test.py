"""The method of WORKSPACE.md, as it stands there: found as a recipe, right by NumPy, and trained with."""

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, recipes
from opsd_jax import jsonlines
from opsd_jax.distill import signals, weighing
from opsd_jax.experiment import build
from opsd_jax.train import cold_start, distill
from tests.distill import weighing_test
from tests.experiments import tiny
from tests.models.transformer_test import one_device
from tests.train.engine_run_test import compiled_once  # noqa: F401

ONCE = ('loop.updates=2', 'loop.evaluate_every=0', 'loop.show_every=0', 'cold_start.updates=0')
SHORT = ('rollout.sampling.max_tokens=8', 'objective.statistics=false')


def block():
  """The one block of Python in its section."""
  text = (tiny.REPOSITORY / 'WORKSPACE.md').read_text(encoding='utf-8')
  section = re.search(r'^## Add a method in 20 lines\n(.*?)^## ', text, re.MULTILINE | re.DOTALL)[1]
  (found,) = re.findall(r'^```python\n(.*?)^```$', section, re.MULTILINE | re.DOTALL)
  return found


@pytest.fixture
def apart(tmp_path, monkeypatch):
  """The experiment, by its name, from a file beside the recipes; afterwards nothing knows of it."""
  (tmp_path / 'apart.py').write_text(block(), encoding='utf-8')
  monkeypatch.setattr(recipes, '__path__', [*recipes.__path__, str(tmp_path)])
  try:
    yield recipes.load('apart')
  finally:
    signals.SIGNALS.pop('apart', None)
    sys.modules.pop('experiments.recipes.apart', None)
    vars(recipes).pop('apart', None)


def test_it_takes_twenty_lines():
  assert len([line for line in block().split('\n') if line.strip()]) <= 20


def test_it_is_a_recipe_like_others_and_weighs_as_it_says(apart):
  assert apart.name == 'apart' and recipes.summary('apart').endswith('.') and recipes.source('apart')
  rng, length = np.random.default_rng(2), [5, 3, 0, 4]
  student, teacher = (-rng.exponential(size=(4, 5)).astype(np.float32) for _ in range(2))
  found = weighing.weigh(apart.weigh, jnp.array(length), jnp.array(student), jnp.array(teacher))
  values, count = weighing_test.oracle(apart.weigh, np.abs(np.float64(student) - teacher), length)
  np.testing.assert_allclose(found.values, values, rtol=1e-5)
  np.testing.assert_array_equal(found.selected, count)
  assert values.max() > 1.05, 'something is told apart'


def test_it_trains(apart, tmp_path):
  experiment = common.with_settings(apart, [*tiny.ALONE, *ONCE, *SHORT])
  setup = dataclasses.replace(build(experiment), mesh=one_device())
  with jax.set_mesh(setup.mesh):
    distill.run(setup, str(tmp_path), cold_start.initial_params(setup))
  rows = jsonlines.read(tmp_path / 'metrics.jsonl')
  assert len(rows) == 2 and all(row['update_norm'] > 0 for row in rows)
  assert all(row['weight_min'] < row['weight_mean'] < row['weight_max'] for row in rows)
  assert rows[-1]['total/needed_weigh'] > 0, 'the teacher was asked, and that is counted'
