"""Finds the files of a benchmark: in a folder of data sets, in its own, or in Hugging Face's cache."""

import csv
import glob
import hashlib
import os
from collections.abc import Iterator

from opsd_jax.config import ConfigError, require
from opsd_jax.data import files, layout, rows
from opsd_jax.evaluate.benchmark import Benchmark
from opsd_jax.evaluate.catalogue import BENCHMARKS

_ENDINGS = (*layout.ENDINGS, '.csv')


def locate(benchmark: Benchmark, path: str) -> list[str]:
  """The files of the benchmark, in the order of their rows.

  Args:
    benchmark: what is looked for.
    path: a file; the benchmark's own folder, or a folder of such folders; the cache folder of a data set
      (`datasets--org--name`), or the folder of such folders (`~/.cache/huggingface/hub`, or the one above).

  Raises:
    ConfigError: it is not there; says what was looked for and where it can be had.
  """
  path = os.path.abspath(os.path.expanduser(path))
  require(os.path.exists(path), f'{path}, where {benchmark.title} should be, does not exist.')
  if os.path.isfile(path):
    require(path.endswith(_ENDINGS), f'{path} is no data file; its name must end in {", ".join(_ENDINGS)}.')
    return [path]
  for folder in _folders(benchmark, path):
    for pattern in benchmark.names:
      found = sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
      if found:
        return found
    # A single file of another name can only be meant; training data, where a test was asked for, cannot.
    every = [f for f in layout.scan(folder) if f.split != 'train']
    if len(every) == 1:
      return [os.path.join(folder, every[0].path)]
  raise ConfigError(_not_found(benchmark, path))


def _folders(benchmark: Benchmark, path: str) -> Iterator[str]:
  """Where its files may lie, the likeliest first."""
  for name in benchmark.folders:
    if os.path.isdir(os.path.join(path, name)):
      yield os.path.join(path, name)
  for cache in (path, os.path.join(path, 'hub')):
    for dataset in benchmark.hub:
      folder = os.path.join(cache, _cached(dataset))
      if os.path.isdir(folder):
        yield _snapshot(benchmark, folder)
  if os.path.isdir(os.path.join(path, 'snapshots')):
    yield _snapshot(benchmark, path)
  elif not _has_others(benchmark, path):
    yield path


def _snapshot(benchmark: Benchmark, folder: str) -> str:
  try:
    return layout.resolve(folder)
  except ConfigError as error:  # a benchmark has no settings
    raise ConfigError(str(error).replace('in data.path, as ', f'as {benchmark.name}=')) from error


def _has_others(benchmark: Benchmark, path: str) -> bool:
  """Whether a folder has folders of other benchmarks: a `test.jsonl` beside them could be anybody's."""
  others = {folder for b in BENCHMARKS.values() if b is not benchmark for folder in b.folders}
  return any(name in others or name.startswith('datasets--') for name in os.listdir(path))


def _cached(dataset: str) -> str:
  """The name of a data set's folder in Hugging Face's cache."""
  return f'datasets--{dataset.replace("/", "--")}'


def _not_found(benchmark: Benchmark, path: str) -> str:
  folders = ', '.join([*benchmark.folders, *map(_cached, benchmark.hub)])
  names = ', '.join(dict.fromkeys(benchmark.names))
  had = f' It can be had from {", ".join(f"https://huggingface.co/datasets/{d}" for d in benchmark.hub)}.'
  return (
    f'{path} has no {benchmark.title}: looked for the folders {folders}, and there for {names}. Name its '
    f'file as {benchmark.name}=PATH.{had if benchmark.hub else ""} Licence: {benchmark.licence}.'
  )


def open_rows(paths: list[str]) -> rows.Rows:
  """The rows of all files, one after the other.

  Raises:
    ConfigError: a file cannot be read, or there are no rows.
  """
  opened = rows.join([_open_csv(p) if p.endswith('.csv') else _open(p) for p in paths])
  require(len(opened) > 0, f'{", ".join(paths)} has no rows.')
  return opened


def _open(path: str) -> rows.Rows:
  try:
    return files.open_split(path, '', None)
  except ConfigError as error:  # a benchmark has no splits
    raise ConfigError(str(error).removeprefix("split '' of ")) from error


def _open_csv(path: str) -> rows.Rows:
  """The rows of a table of texts whose first line has the names."""
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      return rows.Items(path, list(csv.DictReader(file)))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ConfigError(f'{path} cannot be read as a table: {error}.') from error


def digest(path: str) -> str:
  """The sha256 of a file, as hexadecimal digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
