"""A training run whose rollouts are written down, or read where an earlier one has written them.

  python -m tests.experiments.replaying NOTES RUN

With rollouts given, all that runs differ by is arithmetic. Besides them, every update leaves its gradient.
"""

import functools
import os
import pickle
import sys

import jax
import numpy as np
import optax

from experiments import common, processes, recipes
from opsd_jax import experiment as experiments
from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.train import controller, distill, sources, state
from tests.experiments import tiny

UPDATES = 20


def main(notes: str, folder: str) -> None:
  processes.join(os.environ)
  settings = [*tiny.ALONE, f'loop.updates={UPDATES}', 'loop.evaluate_every=0', 'rollout.questions=6']
  setup = experiments.build(common.with_settings(recipes.load('quickstart'), settings))
  os.makedirs(notes, exist_ok=True)
  sources.sample = functools.partial(_sample, sources.sample, notes)
  state.make_optimizer = functools.partial(_with_gradient, state.make_optimizer)
  controller.around = functools.partial(_noted, folder)
  with jax.set_mesh(setup.mesh):
    initial = model.init_params(setup.spec, jax.random.key(0), setup.mesh)
    distill.run(setup, folder, initial)


def _sample(sample, notes: str, setup, spec, params, prompts, number: int):
  path = os.path.join(notes, f'rollout_{number}.pickle')
  if os.path.exists(path):
    with open(path, 'rb') as file:
      return pickle.load(file)
  drawn = sample(setup, spec, params, prompts, number)
  with open(path, 'wb') as file:
    pickle.dump(jax.tree.map(np.asarray, drawn), file)
  return drawn


def _with_gradient(make, config) -> optax.GradientTransformation:
  """The optimiser, whose state holds the last gradient, too."""
  keep = optax.GradientTransformation(
    lambda params: jax.tree.map(jax.numpy.zeros_like, params), lambda grads, *_: (grads, grads)
  )
  return optax.chain(keep, make(config))


def _noted(folder: str, setup, initial, optimizer, layout, update):
  del setup, initial, optimizer, layout

  def both(weights, number: int):
    weights, outcome = update(weights, number)
    gradient = meshes.host(weights.optimizer[0])
    if jax.process_index() == 0:
      named = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(gradient)}
      np.savez(os.path.join(folder, f'gradient_{number}.npz'), **named)
    return weights, outcome

  return both


if __name__ == '__main__':
  main(*sys.argv[1:])
