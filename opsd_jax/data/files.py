"""Finds and opens the files of a split: one file, or some of a folder's."""

import collections
import glob
import os
from collections.abc import Sequence

from opsd_jax.config import require
from opsd_jax.data import layout, rows, tables
from opsd_jax.data.layout import Found

_SHOWN = 12


def open_split(path: str, split: str, columns: Sequence[str] | None) -> rows.Rows:
  """The rows of a split.

  Args:
    path: a file, which is the split whatever its name, or a folder.
    split: its name; or the name, or a pattern of the names, of its files.
    columns: top-level fields that are needed; None for all.

  Raises:
    ConfigError: there is no such split, it is not the only one, or a file cannot be read.
  """
  path = layout.resolve(path)
  opened = rows.join([_open(file, columns) for file in files_of(path, split)])
  require(len(opened) > 0, f'split {split!r} of {path} is empty: there are no rows in its files.')
  return opened


def _open(path: str, columns: Sequence[str] | None) -> rows.Rows:
  if path.endswith('.parquet'):
    return tables.open_parquet(path, columns)
  if path.endswith('.arrow'):
    return tables.open_arrow(path, columns)
  return rows.open_json(path)


def splits(path: str) -> list[str]:
  """Names of the splits of a file or folder, in the usual order.

  Raises:
    ConfigError: there is no data.
  """
  path = layout.resolve(path)
  names = (
    {layout.split_name(os.path.basename(path))}
    if os.path.isfile(path)
    else {f.split for f in layout.scan(path)}
  )
  require(bool(names), _nothing_in(path))
  return sorted(names, key=lambda n: (layout.USUAL.index(n) if n in layout.USUAL else len(layout.USUAL), n))


def files_of(path: str, split: str) -> list[str]:
  """The files of a split, in the order of their rows. `path` is resolved.

  Raises:
    ConfigError: there is none, several sets of files could be meant, or some of a set are missing.
  """
  if os.path.isfile(path):
    require(
      bool(layout.ending(path)), f'{path} is no data file; its name must end in {", ".join(layout.ENDINGS)}.'
    )
    return [path]
  named = sorted(f for f in glob.glob(os.path.join(glob.escape(path), split)) if layout.is_data(f))
  if named:
    return named
  every = layout.scan(path)
  require(bool(every), _nothing_in(path))
  fitting = [f for f in every if split in (f.split, os.path.basename(f.folder))]
  least = min((f.path.count(os.sep) for f in fitting), default=0)
  fitting = [f for f in fitting if f.path.count(os.sep) == least]
  _require_one_group(path, split, fitting, every)
  return [os.path.join(path, f.path) for f in fitting]


def _require_one_group(path: str, split: str, fitting: list[Found], every: list[Found]) -> None:
  setting = 'data.path, data.train or data.test'
  require(
    bool(fitting),
    f'{path} has no split {split!r}. It has {_listed([f.path for f in every])}. Name a split or a file of it '
    'in data.train or data.test.',
  )
  groups = collections.Counter(f.group for f in fitting)
  require(
    len(groups) == 1,
    f'split {split!r} of {path} could be any of {_listed([f.path for f in fitting])}. Name the folder or '
    f'the file that is meant in {setting}.',
  )
  total = fitting[0].total
  require(
    total in (None, len(fitting)),
    f'split {split!r} of {path} has {len(fitting)} of its {total} files: '
    f'{_listed([f.path for f in fitting])}. Fetch the others.',
  )


def _nothing_in(path: str) -> str:
  present = sorted(os.listdir(path)) if os.path.isdir(path) else [os.path.basename(path)]
  if 'features.json' in present and any('array_record' in name for name in present):
    return f'{path} was prepared by TFDS: set data.source=tfds.'
  return f'{path} holds no data files ({", ".join(layout.ENDINGS)}). It holds {_listed(present)}.'


def _listed(names: Sequence[str]) -> str:
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return (', '.join(names[:_SHOWN]) or 'nothing') + more
