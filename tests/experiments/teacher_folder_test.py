"""An external teacher from a folder: its shape, its weights, and whether its ids mean the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, recipes
from opsd_jax.config import ConfigError
from opsd_jax.experiment import build
from opsd_jax.models.folder import read
from opsd_jax.train import external
from tests.experiments import model_folder, real_text, tiny

WIDER = dataclasses.replace(model_folder.SPEC, embed_dim=40, num_layers=1, vocab_size=310)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A teacher's folder, and the settings of a student that shares its tokenizer."""
  folder = tmp_path_factory.mktemp('models')
  return str(model_folder.write_model(folder / 'teacher', WIDER, seed=1)), real_text.settings(folder)


def taught_by(folder, *more):
  return ('teacher.kind=external', f'teacher.model={folder}', f'teacher.weights.path={folder}', *more)


def test_a_teachers_folder_gives_its_shape_and_its_weights(folders, tmp_path):
  folder, student = folders
  settings = [*student, *taught_by(folder, 'teacher.model.dtype=bfloat16')]
  setup = build(common.with_settings(recipes.load('gsm8k_tiny'), settings))
  assert setup.teacher.model == dataclasses.replace(WIDER, dtype='bfloat16')
  assert setup.spec.embed_dim != 40
  finished = external.prepare(setup, str(tmp_path))
  wanted = read.load(folder, WIDER, setup.mesh)
  assert finished.params['embedding'].dtype == jnp.bfloat16 and finished.progress.updates == 0
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), finished.params, wanted)


def test_another_vocabulary_is_refused(folders):
  settings = [*tiny.ALONE, *taught_by(folders[0])]
  with pytest.raises(ConfigError, match='has another vocabulary than the student: 305 ids instead of 20'):
    common.with_settings(recipes.load('quickstart'), settings)


def test_another_shape_than_the_folders_is_refused(folders):
  folder, student = folders
  settings = [*student, *taught_by(folder, 'teacher.model.embed_dim=48')]
  with pytest.raises(ConfigError, match='holds another model than `teacher.model`.*--set=teacher.model='):
    common.with_settings(recipes.load('gsm8k_tiny'), settings)
