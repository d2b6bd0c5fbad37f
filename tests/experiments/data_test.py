"""The data command shows what is there, prepares it, and says how to use it."""

import json
import shlex
import sys

import pytest

from opsd_jax import config as configs
from opsd_jax.data import source
from opsd_jax.data.config import DataConfig, FieldsConfig
from tests.experiments import tiny

# Several commands in one process, because most of a command's time goes into its imports.
ONE_BY_ONE = """
import contextlib, io, json, sys
import grain  # defines flags of its own, which flagsaver must not take away
from absl import flags
from absl.testing import flagsaver
from experiments import data
from opsd_jax.config import ConfigError

results = []
for given in json.loads(sys.argv[1]):
  with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()) as printed:
    flags.FLAGS(['data', *given])
    try:
      data.main()
      error = None
    except ConfigError as caught:
      error = str(caught)
  results.append((printed.getvalue(), error))
print(json.dumps(results))
"""


def one_by_one(*commands):
  """What each command prints, and its error or None."""
  done = tiny.call([sys.executable, '-c', ONE_BY_ONE, json.dumps(commands)])
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('sums')
  for split, size in (('train', 12), ('test', 5)):
    rows = [
      {'question': f'{split} {i % 10}?', 'answer': f'thus\n#### {i}', 'hint': 'x' * 700} for i in range(size)
    ]
    (path / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_a_summary(folder):
  flags = (f'--path={folder}', '--fields=gsm8k', '--field=meta=hint')
  done = tiny.call([sys.executable, '-m', 'experiments.data', *flags])
  assert done.returncode == 0, done.stderr
  for text in (
    'fields of a row of train: question, answer, hint',
    'train        12 problems, 2 of them copies',
    'test         5 problems\n',
    'problem    8 to 8 characters, median 8',
    f'first problem: train/0 of {folder.name}',
    "solution   'thus'",
    "answer     '0'",
    f'hint       {"x" * 600 + " ..."!r}',
  ):
    assert text in done.stdout, (text, done.stdout)
  assert sorted(p.name for p in folder.iterdir()) == ['test.jsonl', 'train.jsonl']


def settings_of(printed):
  """The config of the settings in the last line, as a shell reads it."""
  settings = shlex.split(printed.splitlines()[-1])
  assert all(s.startswith('--set=data.') for s in settings)
  return configs.override(DataConfig(), [s.removeprefix('--set=data.') for s in settings])


def test_what_is_prepared_can_be_used_as_printed(folder, tmp_path):
  tmp_path = tmp_path / "a folder; it's odd"
  flags = [f'--path={folder}', '--fields=gsm8k', f'--output={tmp_path}']
  (printed, error), (second, refusal), (third, _) = one_by_one(
    [*flags, '--name=sums'], [*flags, '--name=sums'], [*flags, '--name=one', '--splits=test', '--shards=2']
  )
  assert error is None
  config = settings_of(printed)
  assert config.source == 'tfds'
  splits = source.load(config)
  assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [11, 1, 5]
  original = DataConfig(source='files', path=str(folder), fields=FieldsConfig.named('gsm8k'))
  for split in ('train', 'test'):
    assert list(source.open_problems(config, split)) == list(source.open_problems(original, split))

  assert 'exists already' in refusal and not second  # refused before anything is read

  assert '--set=data.train=test --set=data.test=none --set=data.test_problems=1 ' in third
  splits = source.load(settings_of(third))
  assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [3, 1, 1]
  assert len(list(tmp_path.rglob('*.array_record-*-of-00002'))) == 2


MISTAKES = [
  ([], ['--path is missing']),
  (['--path=nowhere'], ['nowhere does not exist']),
  (['--path={folder}', '--fields=gsm'], ['--fields=gsm', "Did you mean 'gsm8k'"]),
  (['--path={folder}', '--field=probem=x'], ["'probem' is unknown", "Did you mean 'problem'"]),
  (['--path={folder}'], ["line 1 has no field 'problem'", 'data.fields.problem', 'answer, hint, question']),
  (['--path={folder}', '--fields=gsm8k', '--output=x'], ['--name is missing']),
  (['--path={folder}', '--fields=gsm8k', '--output=x', '--name=a/b'], ["'a/b' is no name"]),
  (['--path={folder}', '--fields=gsm8k', '--name=a'], ['--name=a says how to write', 'add --output=']),
  (['--path={folder}', '--fields=gsm8k', '--shards=2'], ['--shards=2 says how to write', 'add --output=']),
  (['--path={folder}', '--fields=gsm8k', '--output=x', '--name=a', '--shards=0'], ['--shards=0 must be']),
  (['--path={folder}', '--fields=gsm8k', '--splits=dev'], ["no split 'dev'", 'test.jsonl, train.jsonl']),
]


def test_mistakes_are_named(folder):
  results = one_by_one(*([flag.format(folder=folder) for flag in flags] for flags, _ in MISTAKES))
  for (_, error), (_, words) in zip(results, MISTAKES, strict=True):
    assert '\n' not in error and all(word in error for word in words), error
