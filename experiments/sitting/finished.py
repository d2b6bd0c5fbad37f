"""A finished evaluation as it lies in its folder, for whoever compares."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from opsd_jax.config import ConfigError, require


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A folder: its settings, and for each benchmark what `results.json` says of it."""

  folder: str
  settings: Mapping[str, Any]
  benchmarks: Mapping[str, Mapping[str, Any]]


def read(folder: str) -> Evaluation:
  """The evaluation in a folder.

  Raises:
    ConfigError: it is none, or it is not finished.
  """
  folder = os.path.abspath(os.path.expanduser(folder))
  require(os.path.isdir(folder), f'{folder} is no folder; name one that experiments.evaluate wrote.')
  found = _json(os.path.join(folder, 'results.json'))
  benchmarks = found.get('benchmarks')
  require(
    isinstance(benchmarks, Mapping) and all(isinstance(b, Mapping) for b in benchmarks.values()),
    f'{folder}/results.json is not what experiments.evaluate writes; name another folder.',
  )
  settings = os.path.join(folder, 'settings.json')
  return Evaluation(
    folder, _json(settings) if os.path.exists(settings) else found.get('settings', {}), benchmarks
  )


def _json(path: str) -> dict[str, Any]:
  try:
    with open(path, encoding='utf-8') as file:
      found = json.load(file)
  except FileNotFoundError as error:
    raise ConfigError(f'{path} does not exist; let experiments.evaluate come to its end first.') from error
  except (OSError, ValueError) as error:
    raise ConfigError(f'{path} cannot be read: {error}.') from error
  require(isinstance(found, dict), f'{path} holds no settings; name another folder.')
  return found
