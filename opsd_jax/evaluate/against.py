"""The benchmarks that training problems are checked against, found in a folder of them."""

import os
from collections.abc import Sequence

from opsd_jax.config import ConfigError, require
from opsd_jax.data.contamination import ContaminationConfig
from opsd_jax.evaluate import benchmark_files, benchmarks
from opsd_jax.records import Problem


def load_benchmarks(config: ContaminationConfig) -> dict[str, Sequence[Problem]]:
  """The problems of the benchmarks that `config` names, or of all that its folder has; none without a folder.

  Raises:
    ConfigError: a named benchmark is not there, the folder has none, or one cannot be read.
  """
  if config.action == 'off' or config.path is None:
    return {}
  names = config.benchmarks or found(config.path)
  require(
    bool(names),
    f'data.contamination.path={config.path} has no benchmark in a folder of its own; known are '
    f'{", ".join(benchmarks.BENCHMARKS)}.',
  )
  loaded = [benchmarks.load(name, config.path) for name in names]
  return {one.name: one.problems for one in loaded}


def found(root: str) -> tuple[str, ...]:
  """Names of the benchmarks that have a folder of their own under `root`.

  Raises:
    ConfigError: there is no such folder.
  """
  root = os.path.abspath(os.path.expanduser(root))
  require(os.path.isdir(root), f'data.contamination.path={root} is not a folder.')
  names = []
  for name, benchmark in benchmarks.BENCHMARKS.items():
    caches = [f'datasets--{hub.replace("/", "--")}' for hub in benchmark.hub]
    places = [*benchmark.folders, *caches, *(os.path.join('hub', cache) for cache in caches)]
    if any(os.path.isdir(os.path.join(root, place)) for place in places) and _is_there(benchmark, root):
      names.append(name)
  return tuple(names)


def _is_there(benchmark: benchmarks.Benchmark, root: str) -> bool:
  """Whether the folder has its files; a folder of the same name may hold its training split alone."""
  try:
    return bool(benchmark_files.locate(benchmark, root))
  except ConfigError:
    return False
