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


ONE = ['--path={folder}', '--fields=gsm8k', '--splits=train']
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
  (['--path={folder}', '--fields=gsm8k', '--output=x.jsonl'], ['one split', 'train, test', '--splits=train']),
  (['--path={folder}', '--fields=gsm8k', '--rule=filters.copies=drop'], ['a check reads one split']),
  ([*ONE, '--output=x.jsonl', '--name=a'], ['--name=a is for a prepared data set', '--output=x.jsonl']),
  ([*ONE, '--output={folder}/test.jsonl'], ['test.jsonl exists already']),
  ([*ONE, '--report={folder}/none/x.json'], ['--report=', 'none does not exist; make it']),
  ([*ONE, '--report='], ['--report is empty']),
  ([*ONE, '--rule=copies=drop'], ['--rule=copies=drop is no setting of the check', '--rule=filters.']),
  ([*ONE, '--rule=filters.copie=drop'], ['--rule=filters.copie=drop', "mean 'copies'"]),
  ([*ONE, '--rule=filters.copies=off'], ['--rule=filters.copies=off', 'filters.copies']),
  ([*ONE, '--rule=filters.conflicts=error'], ['different answers: 2 in all', "'train/0', 'train/10'"]),
  ([*ONE, '--rule=contamination.path=x'], ['--against=FOLDER']),
  ([*ONE, '--rule=contamination.benchmarks=amc23'], ['names amc23', 'data.contamination.path']),
  ([*ONE, '--against={folder}'], ['has no benchmark in a folder of its own', 'amc23']),
  ([*ONE, '--against={folder}/x'], ['/x is not a folder']),
  ([*ONE, '--against={folder}', '--rule=contamination.benchmarks=amc32'], ['amc32']),
]


def test_mistakes_are_named(folder):
  results = one_by_one(*([flag.format(folder=folder) for flag in flags] for flags, _ in MISTAKES))
  for (_, error), (_, words) in zip(results, MISTAKES, strict=True):
    assert '\n' not in error and all(word in error for word in words), error


# --- JSON lines, and the check.

LONG = (
  'A train leaves the first of {} stations at noon and reaches the last of them after {} hours; how many '
  'stations does it pass in an hour, if they are as far from each other as a man walks in a day?'
)


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture(scope='module')
def studied(tmp_path_factory):
  """Seven rows to train on, one of them bad, and a benchmark of which one problem of two is there."""
  path = tmp_path_factory.mktemp('studied')
  rows = [
    {'problem': LONG.format(40, 41), 'solution': 'so', 'answer': '1', 'hint': 'h'},
    {'problem': 'How old is Bo?', 'solution': 'é', 'answer': '5', 'hint': 'h'},
    {'problem': 'how old is  Bo', 'solution': 's', 'answer': '5.0', 'hint': 'h'},
    {'problem': 'How old is Cy?', 'solution': 's', 'answer': '5', 'hint': 'h'},
    {'problem': 'How old is $Cy$?', 'solution': 's', 'answer': '6', 'hint': 'h'},
    {'problem': 'How big?', 'solution': 's', 'hint': 'no answer'},
    {'problem': 'How are you, and how is everybody at home?', 'solution': 's', 'answer': '1', 'hint': 'h'},
  ]
  write(path / 'data' / 'train.jsonl', rows)
  asked = [{'id': 7, 'problem': LONG.format(40, 41).upper(), 'answer': 1.0}]
  write(path / 'benchmarks' / 'amc23' / 'test.jsonl', [*asked, {'id': 8, 'problem': 'Why so?', 'answer': 2}])
  write(path / 'benchmarks' / 'other' / 'test.jsonl', asked)
  return path


@pytest.fixture(scope='module')
def printed(studied):
  """A check that writes, a plain conversion, one that meets the bad row, and a check that refuses."""
  flags = [f'--path={studied}/data', '--field=meta=hint', '--splits=train']
  against = f'--against={studied}/benchmarks'
  written = [f'--report={studied}/report.json', f'--output={studied}/kept.jsonl']
  return one_by_one(
    [*flags, '--skip', against, *written, '--rule=filters.max_problem=300'],
    [*flags, '--skip', f'--output={studied}/all.jsonl'],
    [*flags, f'--output={studied}/none.jsonl'],
    [*flags, '--skip', against, '--rule=contamination.action=error'],
  )


def test_a_check_says_what_it_found(printed):
  text, error = printed[0]
  assert error is None
  for words in (
    'train: 1 rows are no problems and left out. The first:',
    "line 6 has no field 'answer'",
    'of 6 problems 2 are left',
    '2 left out: its copies have different answers (data.filters.conflicts)',
    '1 left out: it is a copy of an earlier problem (data.filters.copies)',
    '1 left out: it repeats amc23 (data.contamination)',
    'copies with the same answer: 1',
    'problems that stand there with different answers: 1\n  train/3, train/4',
    'amc23                   2        1                    1',
    'train/0 repeats amc23/0 of amc23 (100% of its own words)',
    "'A TRAIN LEAVES THE FIRST OF 40",
  ):
    assert words in text, (words, text)
  assert 'other ' not in text  # a folder that is no benchmark's


def test_the_report_has_every_reason(printed, studied):
  report = json.loads((studied / 'report.json').read_text())
  assert (report['read'], report['kept']) == (6, 2) and sum(report['left_out'].values()) == 4
  assert set(report['reasons']) == {'train/0', 'train/2', 'train/3', 'train/4'}
  assert report['filters']['max_problem'] == 300 and report['contamination']['n'] == 13
  assert report['repeated']['amc23']['repeated'] == 1


def test_the_lines_that_were_written(printed, studied):
  rows = [json.loads(line) for line in (studied / 'kept.jsonl').read_text().splitlines()]
  assert [row['id'] for row in rows] == ['train/1', 'train/6']
  assert rows[0] == {
    'id': 'train/1',
    'problem': 'How old is Bo?',
    'solution': 'é',
    'answer': '5',
    'source': 'data',
    'meta': {'hint': 'h'},
  }


def test_lines_are_used_as_printed(printed, studied):
  assert printed[1][1] is None
  config = settings_of(printed[1][0])
  again = list(source.open_problems(config, 'train'))
  kept = (0, 1, 2, 3, 4, 6)
  assert [p.id for p in again] == [f'train/{i}' for i in kept]
  fields = FieldsConfig(meta=('hint',))
  original = source.open_problems(DataConfig('files', path=f'{studied}/data', fields=fields), 'train')
  texts = [(p.problem, p.solution, p.answer, p.meta) for p in again]
  assert texts == [(p.problem, p.solution, p.answer, p.meta) for p in (original[i] for i in kept)]


def test_a_bad_row_writes_nothing(printed, studied):
  assert "line 6 has no field 'answer'" in printed[2][1]
  assert not (studied / 'none.jsonl').exists()


def test_a_repeated_problem_can_be_an_error(printed):
  assert "such as 'train/0', which repeats 'amc23/0' of amc23 (100% of its words)" in printed[3][1]


@pytest.mark.slow
@pytest.mark.data
def test_dapo_is_checked_by_name(data_root, tmp_path):
  flags = [f'--path={data_root}/dapo_math_17k', '--fields=dapo', '--splits=train', f'--against={data_root}']
  rule = '--rule=contamination.benchmarks=amc23,aime24'
  ((text, error),) = one_by_one([*flags, rule, f'--output={tmp_path}/dapo.jsonl'])
  assert error is None and 'amc23                  40       28                   39' in text
  assert len((tmp_path / 'dapo.jsonl').read_text().splitlines()) == 17_917 - 1_693 - 54 - 39
