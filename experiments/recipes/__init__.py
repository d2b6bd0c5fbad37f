"""Recipes: experiments by name, each with a docstring that says what it is and whose.

A file is one experiment (`get_experiment()`, which goes by the file's name) or a family (`RECIPES`, functions
that go by their own). The docstring of an experiment begins with a line that says what it is; `Source:` says
where its numbers are from.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import NamedTuple

from opsd_jax.config import ConfigError, nearest
from opsd_jax.experiment import Experiment


class Recipe(NamedTuple):
  """How an experiment is made, and its docstring."""

  make: Callable[[], Experiment]
  text: str


def find() -> dict[str, Recipe]:
  """Every recipe by its name, in the order of the names."""
  found = {}
  for each in pkgutil.iter_modules(__path__):
    module = importlib.import_module(f'{__name__}.{each.name}')
    if hasattr(module, 'get_experiment'):
      found[each.name] = Recipe(module.get_experiment, inspect.getdoc(module) or '')
    for make in getattr(module, 'RECIPES', ()):
      found[make.__name__] = Recipe(make, inspect.getdoc(make) or '')
  return dict(sorted(found.items()))


def names() -> list[str]:
  """Every recipe, by name."""
  return list(find())


def load(name: str) -> Experiment:
  """The experiment of a recipe.

  Raises:
    ConfigError: there is no such recipe; the message names the nearest.
  """
  found = find()
  if name not in found:
    raise ConfigError(f'--experiment={name} is unknown.{nearest(name, found)}')
  return found[name].make()


def summary(name: str) -> str:
  """The first line of a recipe's docstring."""
  return find()[name].text.split('\n')[0]


def source(name: str) -> str:
  """Where a recipe's numbers are from: `Source:` of its docstring and the indented lines after it."""
  said = re.search(r'^Source: (.*(?:\n +.*)*)', find()[name].text, re.MULTILINE)
  return ' '.join(said[1].split()) if said else ''
