"""Shows what is in your data, and prepares it as a TFDS data set.

  python -m experiments.data --path=data/gsm8k --fields=gsm8k
  python -m experiments.data --path=data/gsm8k --fields=gsm8k --output=data/tfds --name=gsm8k

The path is a file or a folder: JSON lines (.jsonl, .json, .gz), Parquet, Arrow, or a folder of Hugging
Face's cache. The first command prints the rows of every split, the fields of a row, the first problem and
the lengths of the texts. The second writes the same problems as ArrayRecord files and prints the settings
that use them. Every row is read, so that a bad one is found here.

Messages use the names of a run's settings: data.path is --path here, data.train and data.test are splits
of --splits, data.fields is --fields, and data.fields.answer is --field=answer=...
"""

import os
import shlex
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

from experiments import entry
from experiments.options import OUTPUT
from opsd_jax import config as configs
from opsd_jax.config import ConfigError, require
from opsd_jax.data import builder, fields, files, index, source
from opsd_jax.data import config as data_config
from opsd_jax.data.config import DataConfig, FieldsConfig
from opsd_jax.records import Problem

flags.declare_key_flag('output')
_PATH = flags.DEFINE_string('path', None, 'A file or a folder of data.')
_FIELDS = flags.DEFINE_string('fields', 'default', f'Names of the fields: {", ".join(data_config.NAMED)}.')
_FIELD = flags.DEFINE_multi_string(
  'field', [], 'The name of one field, as --field=problem=question or --field=solution=none. May be repeated.'
)
_SPLITS = flags.DEFINE_list('splits', None, 'Which splits; all that are found, if left out.')
_NAME = flags.DEFINE_string('name', None, 'Name of the prepared data set; it becomes opsd_problems/<name>.')
_SHARDS = flags.DEFINE_integer('shards', None, 'Files of every prepared split; TFDS decides if left out.')
_SHOWN = 600  # characters of a text
_HELD_OUT = 100  # problems that the printed settings hold out for the test, where there are enough


def main() -> None:
  """Prints the summary; with --output, prepares the data set."""
  config = _config()
  _check_output()
  names = _SPLITS.value or files.splits(config.path)
  row = files.open_split(config.path, names[0], None)[0]
  print(f'fields of a row of {names[0]}: {", ".join(fields.names(row))}')  # before one is missed
  splits = {name: source.open_problems(config, name) for name in names}
  distinct = {name: _summarize(name, problems) for name, problems in splits.items()}
  if OUTPUT.value is None:
    _show(splits[names[0]][0])
  else:
    target = builder.prepare(splits, _NAME.value, OUTPUT.value, _SHARDS.value)
    print(f'\nwritten to {target}\nUse it with:\n  {_usage(distinct)}')


def _config() -> DataConfig:
  require(bool(_PATH.value), '--path is missing; name a file or a folder of data.')
  try:
    named = configs.override(FieldsConfig.named(_FIELDS.value), _FIELD.value)
    data_config.validate_fields(named)
  except ConfigError as error:
    given = ' '.join([f'--fields={_FIELDS.value}', *(f'--field={f}' for f in _FIELD.value)])
    raise ConfigError(f'{given}: {error}') from error
  return DataConfig(source='files', path=_PATH.value, fields=named)


def _check_output() -> None:
  """What can be refused before everything is read."""
  if OUTPUT.value is None:
    for flag, value in (('name', _NAME.value), ('shards', _SHARDS.value)):
      require(
        value is None,
        f'--{flag}={value} says how to write, but not where; add --output=FOLDER or leave it out.',
      )
    return
  require(bool(OUTPUT.value), '--output is empty; name a folder for prepared data sets, as data/tfds.')
  require(bool(_NAME.value), '--name is missing; with --output, name the data set, as --name=gsm8k.')
  require(
    _SHARDS.value is None or _SHARDS.value > 0,
    f'--shards={_SHARDS.value} must be positive; leave it out, and TFDS decides.',
  )
  builder.target_folder(_NAME.value, OUTPUT.value)


def _summarize(name: str, problems: Sequence[Problem]) -> int:
  """Prints rows, copies and the lengths of the texts; reads every row. Returns how many texts differ."""
  marks = index.fingerprints(problems)
  distinct = len(set(marks))
  copies = len(marks) - distinct
  print(f'  {name:12} {len(problems):,} problems' + (f', {copies:,} of them copies' if copies else ''))
  lengths = np.array([[len(p.problem), len(p.solution), len(p.answer)] for p in problems])  # [N, 3]
  for text, column in zip(('problem', 'solution', 'answer'), lengths.T):
    if column.any():
      low, middle, high = column.min(), int(np.median(column)), column.max()
      print(f'    {text:10} {low:,} to {high:,} characters, median {middle:,}')
  return distinct


def _show(problem: Problem) -> None:
  print(f'first problem: {problem.id} of {problem.source}')
  texts = {name: getattr(problem, name) for name in ('problem', 'solution', 'answer')}
  for name, text in (texts | dict(problem.meta)).items():
    print(f'  {name:10} {_cut(text)!r}')


def _cut(text: str) -> str:
  return text if len(text) <= _SHOWN else text[:_SHOWN] + ' ...'


def _usage(distinct: Mapping[str, int]) -> str:
  """The settings that make a run use the prepared data set, as one types them.

  Args:
    distinct: how many different problems each split has; a tenth of them is held out at the most.
  """
  chosen = [
    'data.source=tfds',
    f'data.tfds={builder.NAME}/{_NAME.value}',
    f'data.path={os.path.abspath(os.path.expanduser(OUTPUT.value))}',
  ]
  train = 'train' if 'train' in distinct else next(iter(distinct))
  most, usual = max(1, distinct[train] // 10), DataConfig().validation_problems
  if train != 'train':
    chosen.append(f'data.train={train}')
  if train == 'test' or 'test' not in distinct:
    chosen += ['data.test=none', f'data.test_problems={min(_HELD_OUT, most)}']
  if most < usual:
    chosen.append(f'data.validation_problems={most}')
  return ' '.join(shlex.quote(f'--set={setting}') for setting in chosen)


if __name__ == '__main__':
  entry.run(main, __doc__)
