"""The benchmarks that are known by name.

Nothing is downloaded and no problem is kept here: only where people have the files, what these call their
fields, whose the problems are, and the sha256 of those copies whose content was looked at.
"""

from collections.abc import Mapping

from opsd_jax.config import ConfigError, nearest
from opsd_jax.data.config import FieldsConfig
from opsd_jax.evaluate.benchmark import MATHS, TEST, TRAIN, Benchmark, Kind, Schema
from opsd_jax.evaluate.catalogue_contests import CONTESTS
from opsd_jax.evaluate.catalogue_programs import PROGRAMS
from opsd_jax.evaluate.catalogue_sets import SETS

__all__ = ('BENCHMARKS', 'Benchmark', 'Kind', 'Schema', 'find', 'own')

_ALL = (*CONTESTS, *SETS, *PROGRAMS)
BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
_ALIASES = {alias: benchmark for benchmark in _ALL for alias in benchmark.aliases}


def find(name: str) -> Benchmark:
  """The benchmark that goes by a name or an alias.

  Raises:
    ConfigError: there is none; names the nearest.
  """
  found = BENCHMARKS.get(name) or _ALIASES.get(name)
  if found is None:
    raise ConfigError(
      f'benchmark {name!r} is unknown.{nearest(name, [*BENCHMARKS, *_ALIASES])} A file of your own is '
      f'{name}=PATH.'
    )
  return found


def own(name: str, fields: FieldsConfig | None) -> Benchmark:
  """A benchmark that is somebody's own file; without `fields`, `problem` and `answer` are read.

  A worked `solution` is then kept where the rows have one.
  """
  schemas = MATHS if fields is None else (Schema('the given fields', _needed(fields), fields=fields),)
  return Benchmark(
    name, name, 'maths', None, schemas, (name,), (*TEST, *TRAIN), (), 'of the file: not known here'
  )


def _needed(fields: FieldsConfig) -> tuple[str, ...]:
  answer = None if fields.answer_marker else fields.answer
  return tuple(n for n in (fields.problem, fields.solution, answer, fields.id, *fields.meta) if n is not None)
