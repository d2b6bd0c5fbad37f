"""Writes in place against NumPy's, on one device and on eight, by a loop as by a scatter."""

import contextlib

import jax
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.rollout import rows as lib

LAYERS, ROWS, HEADS, COLUMNS, WIDTH, QUESTIONS, PROMPT = 2, 16, 2, 7, 3, 8, 4
MESHES = {'none': None, 'fsdp': (1, 8, 1), 'cube': (2, 2, 2)}


def on(name):
  if MESHES[name] is None:
    return contextlib.nullcontext()
  return jax.set_mesh(meshes.make_mesh(meshes.MeshConfig(*MESHES[name])))


def draw(*shape):
  return np.random.default_rng(len(shape) + shape[1]).normal(size=shape).astype(np.float32)


def arrays(rows, columns):
  """Keys, and something without a width as scales are."""
  return draw(LAYERS, rows, HEADS, columns, WIDTH), draw(LAYERS, rows, HEADS, columns)


@pytest.mark.parametrize('way', ['_one_by_one', '_scattered'])
@pytest.mark.parametrize('rows', [ROWS, 3])  # three rows are no multiple of the devices: all have all
@pytest.mark.parametrize('name', MESHES)
def test_a_token_lands_in_its_column(name, rows, way):
  cache, new = arrays(rows, COLUMNS), arrays(rows, 1)
  column = np.random.default_rng(0).integers(0, COLUMNS, rows).astype(np.int32)
  with on(name):
    done = jax.jit(lambda *a: lib._on_each_device(getattr(lib, way), *a))(cache, new, column)
    chosen = jax.jit(lib.write)(cache, new, column)
  for before, token, after, same in zip(cache, new, done, chosen, strict=True):
    expected = before.copy()
    for s in range(rows):
      expected[:, s, :, column[s]] = token[:, s, :, 0]
    np.testing.assert_array_equal(after, expected)
    np.testing.assert_array_equal(same, expected)


@pytest.mark.parametrize('name, groups', [('none', 1), ('none', 2), ('fsdp', 8), ('cube', 4), ('cube', 1)])
def test_a_prompt_lands_in_its_row_or_nowhere(name, groups):
  cache, prompts = arrays(ROWS, COLUMNS), arrays(QUESTIONS, PROMPT)
  each = ROWS // groups
  row = np.arange(groups, dtype=np.int32) % (each + 1)  # each is beyond a group's last row
  row[-1] = each if groups > 1 else 1
  question = np.arange(groups, dtype=np.int32) % (QUESTIONS // groups)
  with on(name):
    done = jax.jit(lib.place)(cache, prompts, question, row)
  for before, prompt, after in zip(cache, prompts, done, strict=True):
    expected = before.copy()
    for g in range(groups):
      if row[g] < each:
        expected[:, g * each + row[g], :, :PROMPT] = prompt[:, g * (QUESTIONS // groups) + question[g]]
    np.testing.assert_array_equal(after, expected)
