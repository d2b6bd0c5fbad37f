"""Imports run one way: each room knows only the rooms below it.

A file is parsed, not imported, so an import inside a function counts as well. A new file or folder
needs a rank here and a line in WORKSPACE.md.
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ('kernels', 'opsd_jax', 'experiments')

# A room may import itself and any room of a lower rank.
RANK = {
  'kernels': -2,
  'opsd_jax': -1,  # its __init__ runs before every room, so it imports none
  'opsd_jax.records': 0,
  'opsd_jax.config': 0,
  'opsd_jax.mesh': 0,
  'opsd_jax.jsonlines': 0,
  'opsd_jax.files': 0,
  'opsd_jax.checkpoint': 1,
  'opsd_jax.data': 1,
  'opsd_jax.text': 1,
  'opsd_jax.grade': 1,
  'opsd_jax.models': 1,
  'opsd_jax.rollout': 2,
  'opsd_jax.distill': 2,
  'opsd_jax.evaluate': 3,
  'opsd_jax.train': 4,
  'opsd_jax.analyze': 4,
  'opsd_jax.experiment': 5,
  'experiments': 6,
}
SIDEWAYS = {
  ('opsd_jax.mesh', 'opsd_jax.config'),  # a mesh refuses bad settings like the rest
  ('opsd_jax.data', 'opsd_jax.grade'),  # a row's tests are read where the row is
}
CLOSED = {('opsd_jax.rollout', 'opsd_jax.grade')}  # rolling out is not grading

# Imported where they are used, so that the library works without them.
OPTIONAL = {'wandb', 'trackio', 'transformers', 'torch', 'trl', 'peft', 'xmanager', 'tunix', 'matplotlib'}
AT_THE_TOP = {('opsd_jax.analyze', 'matplotlib'), ('experiments', 'xmanager')}


def sources() -> list[str]:
  return sorted(
    path.relative_to(REPOSITORY).as_posix()
    for package in PACKAGES
    for path in (REPOSITORY / package).rglob('*.py')
  )


def dotted(path: str) -> str:
  """'opsd_jax/data/index.py' -> 'opsd_jax.data.index'; a package's __init__ is the package."""
  parts = path.removesuffix('.py').split('/')
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def room(module: str) -> str:
  """The room of one of our modules: 'opsd_jax.data.index' -> 'opsd_jax.data'."""
  parts = module.split('.')
  return '.'.join(parts[:2]) if parts[0] == 'opsd_jax' else parts[0]


def names(node: ast.AST, path: str) -> Iterator[str]:
  """The dotted names an import statement mentions: 'absl.flags' for `from absl import flags`."""
  if isinstance(node, ast.Import):
    yield from (alias.name for alias in node.names)
  elif isinstance(node, ast.ImportFrom):
    package = path.split('/')[:-1]
    above = package[: len(package) - node.level + 1] if node.level else []
    base = '.'.join([*above, *([node.module] if node.module else [])])
    yield from (f'{base}.{alias.name}' for alias in node.names)


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
  """Every node that runs when the module is imported: all but the insides of functions."""
  for node in body:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      yield node
      yield from at_import(list(ast.iter_child_nodes(node)))


def room_fault(own: str, name: str) -> str | None:
  """Why a file of room `own` may not import our `name`, else None."""
  other = room(name)
  if other not in RANK and name.count('.') == 1:  # `from opsd_jax import __version__`
    other = name.split('.')[0]
  if own == other or (own, other) in SIDEWAYS:
    return None
  if (own, other) in CLOSED or RANK.get(other, RANK['experiments']) >= RANK[own]:
    return f'{own} may not import {other}'
  return None


def faults(path: str, source: str) -> list[str]:
  """What is wrong with the imports of the file at `path`, one message each."""
  tree, own = ast.parse(source, path), room(dotted(path))
  if own not in RANK:
    return [f'{own} has no rank']
  found = []
  for name in (name for node in ast.walk(tree) for name in names(node, path)):
    top = name.split('.')[0]
    if top in PACKAGES:
      found.append(room_fault(own, name))
    elif own == 'kernels' and top != 'jax' and top not in sys.stdlib_module_names:
      found.append(f'kernels may not import {top}')
    elif top == 'tensorflow':
      found.append('nothing may import tensorflow')
    elif top == 'tests' or top == 'pytest':
      found.append(f'only tests may import {top}')
    elif (name + '.').startswith('absl.flags.') and own != 'experiments':
      found.append(f'{own} may not define or read flags')
  for name in (name for node in at_import(tree.body) for name in names(node, path)):
    top = name.split('.')[0]
    if top in OPTIONAL and (own, top) not in AT_THE_TOP:
      found.append(f'{top} is optional: import it inside the function that uses it')
  return sorted({fault for fault in found if fault})


@pytest.mark.parametrize('path', sources())
def test_imports_run_one_way(path):
  assert faults(path, (REPOSITORY / path).read_text(encoding='utf-8')) == []


def test_there_is_something_to_check():
  assert {'opsd_jax/config.py', 'opsd_jax/records.py', 'kernels/__init__.py'} <= set(sources())


@pytest.mark.parametrize(
  ('path', 'line'),
  [
    ('kernels/op/tpu.py', 'from kernels import chunks'),
    ('kernels/op/tpu.py', 'from . import reference'),
    ('kernels/op/tpu.py', 'from jax.experimental import pallas as pl'),
    ('kernels/op/tpu.py', 'import functools'),
    ('opsd_jax/mesh.py', 'from opsd_jax.config import require'),
    ('opsd_jax/models/model.py', 'import opsd_jax.models.spec, opsd_jax.records'),
    ('opsd_jax/models/model.py', 'from kernels.linear_divergence import api'),
    ('opsd_jax/distill/views.py', 'from opsd_jax import text, data, models, records'),
    ('opsd_jax/evaluate/run.py', 'from opsd_jax import rollout, distill, grade'),
    ('opsd_jax/data/fields.py', 'from opsd_jax.grade.programs import given'),
    ('opsd_jax/train/loop.py', 'from opsd_jax.evaluate import run'),
    ('opsd_jax/train/loop.py', 'from opsd_jax import __version__'),
    ('opsd_jax/experiment/config.py', 'from opsd_jax.analyze import config'),
    ('experiments/recipes/tiny.py', 'from opsd_jax.experiment import Experiment'),
    ('experiments/train.py', 'from absl import app, flags'),
    ('experiments/launch_xm.py', 'from xmanager import xm'),
    ('opsd_jax/analyze/plots.py', 'import matplotlib.pyplot as plt'),
    ('opsd_jax/data/sources.py', 'import tensorflow_datasets as tfds'),
    ('opsd_jax/train/log.py', 'from absl import logging'),
    ('opsd_jax/train/log.py', 'def start():\n  import wandb'),
    ('opsd_jax/train/log.py', 'class Log:\n  def start(self):\n    import wandb'),
  ],
)
def test_allowed(path, line):
  assert faults(path, line) == []


@pytest.mark.parametrize(
  ('path', 'line', 'fault'),
  [
    ('kernels/op/tpu.py', 'import flax', 'kernels may not import flax'),
    ('kernels/op/tpu.py', 'from opsd_jax.config import require', 'may not import opsd_jax.config'),
    ('opsd_jax/__init__.py', 'from opsd_jax import train', 'may not import opsd_jax.train'),
    ('opsd_jax/config.py', 'from opsd_jax import mesh', 'may not import opsd_jax.mesh'),
    ('opsd_jax/records.py', 'from .models import spec', 'may not import opsd_jax.models'),
    ('opsd_jax/models/model.py', 'from opsd_jax.distill import x', 'may not import opsd_jax.distill'),
    ('opsd_jax/models/model.py', 'from opsd_jax import data', 'may not import opsd_jax.data'),
    ('opsd_jax/grade/grading.py', 'from opsd_jax.data import fields', 'may not import opsd_jax.data'),
    ('opsd_jax/rollout/decode.py', 'from opsd_jax.grade import math', 'not import opsd_jax.grade'),
    ('opsd_jax/rollout/decode.py', 'import opsd_jax.distill.views', 'not import opsd_jax.distill'),
    ('opsd_jax/distill/score.py', 'from ..rollout import decode', 'not import opsd_jax.rollout'),
    ('opsd_jax/distill/score.py', 'def f():\n  import opsd_jax.rollout', 'opsd_jax.rollout'),
    ('opsd_jax/evaluate/run.py', 'import opsd_jax.train', 'may not import opsd_jax.train'),
    ('opsd_jax/train/loop.py', 'from opsd_jax import analyze', 'may not import opsd_jax.analyze'),
    ('opsd_jax/analyze/read.py', 'from opsd_jax import train', 'may not import opsd_jax.train'),
    ('opsd_jax/train/loop.py', 'import opsd_jax.experiment', 'may not import opsd_jax.experiment'),
    ('opsd_jax/experiment/config.py', 'from experiments import recipes', 'may not import experiments'),
    ('opsd_jax/attic/old.py', '', 'opsd_jax.attic has no rank'),
    ('opsd_jax/train/loop.py', 'import opsd_jax.attic.old', 'may not import opsd_jax.attic'),
    ('opsd_jax/train/loop.py', 'from absl import flags', 'flags'),
    ('opsd_jax/train/loop.py', 'import absl.flags', 'flags'),
    ('opsd_jax/data/read.py', 'def f():\n  import tensorflow as tf', 'tensorflow'),
    ('opsd_jax/train/log.py', 'import wandb', 'wandb is optional'),
    ('opsd_jax/train/log.py', 'try:\n  import wandb\nexcept ImportError:\n  pass', 'is optional'),
    ('opsd_jax/train/log.py', 'class Log:\n  import torch', 'torch is optional'),
    ('opsd_jax/train/plot.py', 'from matplotlib import pyplot', 'matplotlib is optional'),
    ('opsd_jax/models/hf.py', 'from transformers import AutoModel', 'transformers is optional'),
    ('opsd_jax/models/hf.py', 'from tests import util', 'only tests may import tests'),
  ],
)
def test_refused(path, line, fault):
  assert len(faults(path, line)) == 1
  assert fault in faults(path, line)[0]
