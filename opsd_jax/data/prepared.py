"""Data sets that TFDS prepared, read with random access; TensorFlow is never imported."""

import dataclasses
import glob
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from opsd_jax.config import ConfigError, require
from opsd_jax.data.rows import Row
from opsd_jax.records import Problem

FIELDS = ('id', 'problem', 'solution', 'answer', 'source', 'meta')  # of the data sets of `builder.py`


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """The rows of one split of a prepared data set; texts are bytes."""

  name: str
  split: str
  fields: tuple[str, ...]
  data: Any

  def __len__(self) -> int:
    return len(self.data)

  def __getitem__(self, row: int) -> Row:
    return self.data[int(row)]

  def where(self, row: int) -> str:
    """`<data set> <split>, row <number>`, from 0."""
    return f'{self.name} {self.split!r}, row {row}'


def open_split(name: str | None, split: str, data_dir: str | None) -> Prepared:
  """The rows of a split, which may be a slice such as `train[:50%]`.

  Args:
    name: as `opsd_problems/gsm8k`; None where `data_dir` is the version folder of a data set.
    split: as TFDS writes it.
    data_dir: the folder of the prepared data sets; None for the default of TFDS.

  Raises:
    ConfigError: the data set is not there, has no such split, or has no random access.
  """
  folder = None if data_dir is None else os.path.abspath(os.path.expanduser(data_dir))
  require(folder is None or os.path.isdir(folder), f'data.path={folder} is not a folder.')
  builder = _builder_of_folder(folder) if name is None else _builder(name, folder)
  try:
    data = builder.as_data_source(split)
    size = len(data)
  except Exception as error:  # of many types, all about what was asked for
    raise ConfigError(
      f'split {split!r} of {builder.info.full_name} cannot be read: {_first_line(error)}'
    ) from error
  require(size > 0, f'split {split!r} of {builder.info.full_name} is empty.')
  return Prepared(builder.info.full_name, split, tuple(builder.info.features), data)


def _builder_of_folder(folder: str) -> Any:
  import tensorflow_datasets as tfds

  if not os.path.isfile(os.path.join(folder, 'features.json')):
    raise ConfigError(
      f'data.path={folder} is no version folder of a prepared data set.{_present(folder)} Name a data set in '
      'data.tfds.'
    )
  return tfds.builder_from_directory(folder)


def _builder(name: str, folder: str | None) -> Any:
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=folder)
    found = os.path.isfile(os.path.join(builder.data_dir, 'dataset_info.json'))
  except Exception as error:  # an unknown name, version or config, each with a type of its own
    raise ConfigError(_unknown(name, folder)) from error
  require(found, _unknown(name, folder))
  return builder


def _unknown(name: str, folder: str | None) -> str:
  where = folder or 'the default folder of TFDS'
  return (
    f'data.tfds={name} is not prepared in {where}.{_present(folder)} See python -m experiments.data --help.'
  )


def _present(folder: str | None) -> str:
  """' It has ...' for the data sets prepared in a folder."""
  if folder is None:
    return ''
  files = glob.glob('**/dataset_info.json', root_dir=folder, recursive=True)
  names = sorted('/'.join(f.split(os.sep)[:-2]) + ':' + f.split(os.sep)[-2] for f in files if os.sep in f)
  return f' It has {", ".join(names) or "no prepared data sets"}.'


def _first_line(error: Exception) -> str:
  return f'{type(error).__name__}: {error}'.splitlines()[0]


def is_ours(rows: Prepared) -> bool:
  """Whether its rows were written from `Problem`s."""
  return set(rows.fields) == set(FIELDS)


def encode(problem: Problem) -> dict[str, str]:
  """A `Problem` as texts."""
  meta = json.dumps(dict(problem.meta), ensure_ascii=False)
  return {name: getattr(problem, name) for name in FIELDS if name != 'meta'} | {'meta': meta}


def decoder(where: Callable[[int], str]) -> Callable[[int, Mapping[str, bytes]], Problem]:
  """The function (row number, row) -> `Problem` that reads what `encode` wrote."""

  def decode(number: int, row: Mapping[str, bytes]) -> Problem:
    try:
      texts = {name: row[name].decode() for name in FIELDS}
      return Problem(**texts | {'meta': json.loads(texts['meta'])})
    except ValueError as error:
      raise ConfigError(f'{where(number)} is broken: {error}. Prepare the data set again.') from error

  return decode
