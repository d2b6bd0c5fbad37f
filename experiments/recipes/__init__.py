"""One file an experiment. A recipe is a module with a docstring and `get_experiment()`."""

import importlib
import pkgutil

from opsd_jax.config import ConfigError, nearest
from opsd_jax.experiment import Experiment


def names() -> list[str]:
  """Every recipe, by file name."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Experiment:
  """The experiment of a recipe.

  Raises:
    ConfigError: there is no such recipe; the message names the nearest.
  """
  if name not in names():
    raise ConfigError(f'--experiment={name} is unknown.{nearest(name, names())}')
  return importlib.import_module(f'{__name__}.{name}').get_experiment()


def summary(name: str) -> str:
  """The first line of a recipe's docstring."""
  return (importlib.import_module(f'{__name__}.{name}').__doc__ or '').strip().split('\n')[0]
