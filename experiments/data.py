"""Shows what is in your data, and prepares it as a TFDS data set.

  python -m experiments.data --path=data/gsm8k --fields=gsm8k
  python -m experiments.data --path=data/gsm8k --fields=gsm8k --output=data/tfds --name=gsm8k

The path is a file or a folder: JSON lines (.jsonl, .json, .gz), Parquet, Arrow, or a folder of Hugging
Face's cache. The first command prints the rows of every split, the fields of a row, the first problem and
the lengths of the texts. The second writes the same problems as ArrayRecord files and prints the settings
that use them. Every row is read, so that a bad one is found here; what a message calls data.fields.answer
is --field=answer=... here.
"""

import os
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments import entry
from opsd_jax import config as configs
from opsd_jax.config import ConfigError, require
from opsd_jax.data import builder, fields, files, index, source
from opsd_jax.data import config as data_config
from opsd_jax.data.config import DataConfig, FieldsConfig
from opsd_jax.records import Problem

_PATH = flags.DEFINE_string('path', None, 'A file or a folder of data.')
_FIELDS = flags.DEFINE_string('fields', 'default', f'Names of the fields: {", ".join(data_config.NAMED)}.')
_FIELD = flags.DEFINE_multi_string(
  'field', [], 'The name of one field, as --field=problem=question or --field=solution=none. May be repeated.'
)
_SPLITS = flags.DEFINE_list('splits', None, 'Which splits; all that are found, if left out.')
_OUTPUT = flags.DEFINE_string('output', None, 'A folder for prepared data sets; left out: write nothing.')
_NAME = flags.DEFINE_string('name', None, 'Name of the prepared data set; it becomes opsd_problems/<name>.')
_SHARDS = flags.DEFINE_integer('shards', None, 'Files of every prepared split; TFDS decides if left out.')
_SHOWN = 600  # characters of a text


def main() -> None:
  """Prints the summary; with --output, prepares the data set."""
  config = _config()
  if _OUTPUT.value is not None:
    require(bool(_NAME.value), '--name is missing; with --output, name the data set, as --name=gsm8k.')
    builder.target_folder(_NAME.value, _OUTPUT.value)  # found to be taken before everything is read
  names = _SPLITS.value or files.splits(config.path)
  row = files.open_split(config.path, names[0], None)[0]
  print(f'fields of a row of {names[0]}: {", ".join(fields.names(row))}')  # before one is missed
  splits = {name: source.open_problems(config, name) for name in names}
  for name, problems in splits.items():
    _summarize(name, problems)
  if _OUTPUT.value is None:
    _show(splits[names[0]][0])
  else:
    target = builder.prepare(splits, _NAME.value, _OUTPUT.value, _SHARDS.value)
    print(f'\nwritten to {target}\nUse it with:\n  {_usage(list(splits))}')


def _config() -> DataConfig:
  require(bool(_PATH.value), '--path is missing; name a file or a folder of data.')
  try:
    named = configs.override(FieldsConfig.named(_FIELDS.value), _FIELD.value)
    data_config.validate_fields(named)
  except ConfigError as error:
    given = ' '.join([f'--fields={_FIELDS.value}', *(f'--field={f}' for f in _FIELD.value)])
    raise ConfigError(f'{given}: {error}') from error
  return DataConfig(source='files', path=_PATH.value, fields=named)


def _summarize(name: str, problems: Sequence[Problem]) -> None:
  """Rows, equal problems, and the lengths of the texts; reads every row."""
  marks = index.fingerprints(problems)
  copies = len(marks) - len(set(marks))
  print(f'  {name:12} {len(problems):,} problems' + (f', {copies:,} of them copies' if copies else ''))
  lengths = np.array([[len(p.problem), len(p.solution), len(p.answer)] for p in problems])  # [N, 3]
  for text, column in zip(('problem', 'solution', 'answer'), lengths.T):
    if column.any():
      low, middle, high = column.min(), int(np.median(column)), column.max()
      print(f'    {text:10} {low:,} to {high:,} characters, median {middle:,}')


def _show(problem: Problem) -> None:
  print(f'first problem: {problem.id} of {problem.source}')
  texts = {name: getattr(problem, name) for name in ('problem', 'solution', 'answer')}
  for name, text in (texts | dict(problem.meta)).items():
    print(f'  {name:10} {_cut(text)!r}')


def _cut(text: str) -> str:
  return text if len(text) <= _SHOWN else text[:_SHOWN] + ' ...'


def _usage(names: list[str]) -> str:
  """The settings that make a run use the prepared data set."""
  chosen = [
    'data.source=tfds',
    f'data.tfds={builder.NAME}/{_NAME.value}',
    f'data.path={os.path.abspath(os.path.expanduser(_OUTPUT.value))}',
  ]
  train = 'train' if 'train' in names else names[0]
  if train != 'train':
    chosen.append(f'data.train={train}')
  if train == 'test' or 'test' not in names:
    chosen += ['data.test=none', 'data.test_problems=100']
  return ' '.join(f'--set={setting}' for setting in chosen)


if __name__ == '__main__':
  entry.run(main, __doc__)
