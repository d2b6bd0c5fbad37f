"""Shows what is in your data, checks it, and prepares it as a TFDS data set or as JSON lines.

  python -m experiments.data --path=data/gsm8k --fields=gsm8k
  python -m experiments.data --path=data/gsm8k --fields=gsm8k --output=data/tfds --name=gsm8k
  python -m experiments.data --path=data/dapo --fields=dapo --splits=train --output=dapo.jsonl
  python -m experiments.data --path=data/dapo --fields=dapo --splits=train --against=BENCHMARKS \
    --report=dapo.json --output=dapo_clean.jsonl

The path is a file or a folder: JSON lines (.jsonl, .json, .gz), Parquet, Arrow, or a folder of Hugging
Face's cache. The first command prints the rows of every split, the fields of a row, the first problem and
the lengths of the texts. The second writes the same problems as ArrayRecord files, the third one split as
JSON lines with the fields id, problem, solution, answer, source and meta; both print the settings that use
them. Every row is read, so that a bad one is found here; with --skip, bad rows are left out and counted.

The fourth checks one split as a run would: for copies, for copies with different answers, and for problems
that repeat those of benchmarks, which are looked for in folders of their names. --rule sets what
data.filters and data.contamination are in a run, as --rule=filters.max_problem=4000 or
--rule=contamination.benchmarks=amc23,math500, and may stand without --against. What is written are the
problems that are left, --report is what was found.

Messages use the names of a run's settings: data.path is --path here, data.train and data.test are splits
of --splits, data.fields is --fields, data.fields.answer is --field=answer=..., data.contamination.path is
--against, and data.filters.copies is --rule=filters.copies=...
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

from experiments import data_check, entry
from experiments.options import OUTPUT
from opsd_jax import config as configs
from opsd_jax.config import ConfigError, require
from opsd_jax.data import builder, cleaning, contamination, fields, files, filters, index, schemas, source
from opsd_jax.data.config import DataConfig
from opsd_jax.data.schemas import FieldsConfig
from opsd_jax.evaluate import against
from opsd_jax.files import write_json
from opsd_jax.records import Problem

flags.declare_key_flag('output')
_PATH = flags.DEFINE_string('path', None, 'A file or a folder of data.')
_FIELDS = flags.DEFINE_string('fields', 'default', f'Names of the fields: {", ".join(schemas.NAMED)}.')
_FIELD = flags.DEFINE_multi_string(
  'field', [], 'The name of one field, as --field=problem=question or --field=solution=none. May be repeated.'
)
_SPLITS = flags.DEFINE_list('splits', None, 'Which splits; all that are found, if left out.')
_NAME = flags.DEFINE_string('name', None, 'Name of the prepared data set; it becomes opsd_problems/<name>.')
_SHARDS = flags.DEFINE_integer('shards', None, 'Files of every prepared split; TFDS decides if left out.')
_AGAINST = flags.DEFINE_string(
  'against', None, 'A folder of benchmarks that the problems are checked against.'
)
_RULE = flags.DEFINE_multi_string(
  'rule', [], 'A setting of the check; the text above says how. May be repeated.'
)
_REPORT = flags.DEFINE_string('report', None, 'A JSON file for what the check finds.')
_SKIP = flags.DEFINE_bool('skip', False, 'Leave out rows that are no problems, and count them.')
_LINES = '.jsonl'
_RULES = ('filters.', 'contamination.')
_SHOWN = 600  # characters of a text


def main() -> None:
  """Prints the summary; checks where that is asked for; with --output, writes the problems."""
  config = _config()
  _check_flags()
  benchmarks = against.load_benchmarks(config.contamination)
  names = _SPLITS.value or files.splits(config.path)
  _check_one_split(names)
  row = files.open_split(config.path, names[0], None)[0]
  print(f'fields of a row of {names[0]}: {", ".join(fields.names(row))}')  # before one is missed
  splits = {name: _open(config, name) for name in names}
  distinct = {name: _summarize(name, problems) for name, problems in splits.items()}
  if _is_checking():
    splits = {names[0]: _clean(config, splits[names[0]], benchmarks)}
    distinct = {names[0]: len(set(index.fingerprints(splits[names[0]])))}
  if OUTPUT.value is None:
    _show(splits[names[0]][0])
  else:
    _write(splits, distinct)


def _write(splits: Mapping[str, Sequence[Problem]], distinct: Mapping[str, int]) -> None:
  """Writes the problems and prints the settings that use them."""
  if OUTPUT.value.endswith(_LINES):
    (problems,) = splits.values()
    data_check.write_canonical(OUTPUT.value, problems)
    target, of = OUTPUT.value, problems[0]
  else:
    target, of = builder.prepare(splits, _NAME.value, OUTPUT.value, _SHARDS.value), _NAME.value
  print(f'\nwritten to {target}\nUse it with:\n  {data_check.usage(distinct, OUTPUT.value, of)}')


def _is_checking() -> bool:
  return _AGAINST.value is not None or bool(_RULE.value) or _REPORT.value is not None


def _open(config: DataConfig, split: str) -> Sequence[Problem]:
  problems = source.open_problems(config, split)
  if not _SKIP.value:
    return problems
  problems, faults = data_check.readable(problems)
  if faults:
    print(f'{split}: {len(faults):,} rows are no problems and left out. The first: {faults[0]}')
  return problems


def _clean(
  config: DataConfig, problems: Sequence[Problem], benchmarks: Mapping[str, Sequence[Problem]]
) -> Sequence[Problem]:
  """Checks the problems, says what was found, and returns those that are left."""
  left, report = cleaning.clean_problems(problems, config, benchmarks)
  data_check.show(report, problems, benchmarks)
  if _REPORT.value is not None:
    rules = {name: configs.to_dict(getattr(config, name)) for name in ('filters', 'contamination')}
    write_json(
      _REPORT.value, {'path': config.path, **rules, **report.to_dict(), 'reasons': dict(report.reasons)}
    )
    print(f'\nreport written to {_REPORT.value}')
  return left


def _config() -> DataConfig:
  require(bool(_PATH.value), '--path is missing; name a file or a folder of data.')
  try:
    named = configs.override(FieldsConfig.named(_FIELDS.value), _FIELD.value)
    schemas.validate_fields(named)
  except ConfigError as error:
    given = ' '.join([f'--fields={_FIELDS.value}', *(f'--field={f}' for f in _FIELD.value)])
    raise ConfigError(f'{given}: {error}') from error
  return _with_rules(DataConfig(source='files', path=_PATH.value, fields=named))


def _with_rules(config: DataConfig) -> DataConfig:
  for rule in _RULE.value:
    require(
      rule.startswith(_RULES),
      f'--rule={rule} is no setting of the check; write --rule=filters.NAME=... or '
      '--rule=contamination.NAME=..., as --rule=filters.max_problem=4000.',
    )
    require(
      not rule.startswith('contamination.path='), f'--rule={rule}: name that folder with --against=FOLDER.'
    )
  try:
    config = configs.override(config, _RULE.value)
    check = dataclasses.replace(config.contamination, path=_AGAINST.value)
    filters.validate(config.filters)
    contamination.validate(check)
  except ConfigError as error:
    given = ' '.join(f'--rule={rule}' for rule in _RULE.value)
    raise ConfigError(f'{given}: {error}' if given else str(error)) from error
  return dataclasses.replace(config, contamination=check)


def _check_flags() -> None:
  """What can be refused before everything is read."""
  written = OUTPUT.value
  for flag, value in (('name', _NAME.value), ('shards', _SHARDS.value)):
    require(
      value is None or written is not None,
      f'--{flag}={value} says how to write, but not where; add --output=FOLDER or leave it out.',
    )
    require(
      value is None or not written.endswith(_LINES),
      f'--{flag}={value} is for a prepared data set, and --output={written} is a file; leave it out, or name '
      'a folder.',
    )
  for flag, value in (('report', _REPORT.value), ('against', _AGAINST.value)):
    require(
      value is None or bool(value), f'--{flag} is empty; name a {"file" if flag == "report" else "folder"}.'
    )
  for flag, value in (('output', written), ('report', _REPORT.value)):
    if value is not None and (flag == 'report' or value.endswith(_LINES)):
      data_check.require_new(flag, value)
  if written is None or written.endswith(_LINES):
    return
  require(bool(written), '--output is empty; name a folder for prepared data sets, or a file, as data.jsonl.')
  require(bool(_NAME.value), '--name is missing; with --output=FOLDER, name the data set, as --name=gsm8k.')
  require(
    _SHARDS.value is None or _SHARDS.value > 0,
    f'--shards={_SHARDS.value} must be positive; leave it out, and TFDS decides.',
  )
  builder.target_folder(_NAME.value, written)


def _check_one_split(names: Sequence[str]) -> None:
  """JSON lines hold one split, and a check is of one: the one that will be trained on."""
  lines = OUTPUT.value is not None and OUTPUT.value.endswith(_LINES)
  what = f'--output={OUTPUT.value} holds' if lines else 'a check reads'
  require(
    len(names) == 1 or not (lines or _is_checking()),
    f'{what} one split, and here are {", ".join(names)}; name one, as --splits={names[0]}.',
  )


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


if __name__ == '__main__':
  entry.run(main, __doc__)
