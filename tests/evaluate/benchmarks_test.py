"""Benchmarks in the forms that people have them; what is missing, strange or broken is said by name."""

import csv
import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.data.config import FieldsConfig
from opsd_jax.evaluate import benchmark_rows, benchmarks, catalogue
from opsd_jax.evaluate.benchmarks import BENCHMARKS, load
from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Verdict

ROW = {'problem': 'What is $1+1$?', 'answer': '2'}


def write(path, *rows):
  """A file of rows: JSON lines, Parquet or CSV by its ending."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.parquet':
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
  elif path.suffix == '.csv':
    with open(path, 'w', newline='', encoding='utf-8') as file:
      writer = csv.DictWriter(file, list(rows[0]))
      writer.writeheader()
      writer.writerows(rows)
  else:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def one(name, tmp_path, row, file='test.jsonl'):
  """The only problem of a benchmark whose file has that row."""
  (problem,) = load(name, write(tmp_path / file, row)).problems
  return problem


def refused(name, *arguments, **more):
  with pytest.raises(ConfigError) as caught:
    load(name, *arguments, **more)
  return str(caught.value)


# --- The forms that distributions have.


@pytest.mark.parametrize(
  ('row', 'solution'),
  [
    ({'id': 60, 'problem': 'Q', 'answer': '25'}, ''),
    ({'problem': 'Q', 'answer': 25, 'id': '0'}, ''),
    ({'id': 0, 'problem': 'Q', 'answer': 25.0, 'url': 'u', 'question': 'Q'}, ''),
    ({'id': 1, 'problem': 'Q', 'solution': 'S', 'answer': '025', 'url': 'u', 'year': '2024'}, 'S'),
    ({'ID': '2024-I-1', 'Problem': 'Q', 'Solution': 'S', 'Answer': 25}, 'S'),
    ({'problem_idx': 1, 'problem': 'Q', 'answer': 25, 'problem_type': ['Algebra']}, ''),
    ({'question': 'Q', 'answer': '25'}, ''),
    ({'problem': 'Q', 'solution': '\\boxed{025}', 'url': 'u'}, '\\boxed{025}'),
    ({'prompt': [{'role': 'user', 'content': 'Q'}], 'reward_model': {'ground_truth': '25'}}, ''),
  ],
)
def test_a_contest_is_read_whatever_its_fields_are_called(tmp_path, row, solution):
  problem = one('aime24', tmp_path, row)
  assert (problem.id, problem.problem, problem.answer) == ('aime24/0', 'Q', '25')
  assert (problem.solution, problem.source) == (solution, 'aime24')


@pytest.mark.parametrize(
  ('answer', 'expected'), [('\\frac{1}{576}', '\\frac{1}{576}'), ('007', '007'), (0.5, '0.5'), (-1.0, '-1')]
)
def test_answers_of_other_contests_stay_as_they_are(tmp_path, answer, expected):
  assert one('hmmt25', tmp_path, {'problem': 'Q', 'answer': answer}).answer == expected


def test_gsm8k_answers_stand_after_the_mark(tmp_path):
  problem = one('gsm8k', tmp_path, {'question': 'Q', 'answer': 'work <<1=1>>\n#### 1,080'})
  assert (problem.answer, problem.solution) == ('1080', 'work <<1=1>>')


@pytest.mark.parametrize(('body', 'said'), [('He has 2', 'He has 2. More?'), ('Two. ', 'Two. More?')])
def test_svamp_joins_the_story_and_the_question(tmp_path, body, said):
  row = {'ID': 'chal-7', 'Body': body, 'Question': 'More?', 'Answer': 145.0}
  problem = one('svamp', tmp_path, row)
  assert (problem.id, problem.problem, problem.answer) == ('svamp/chal-7', said, '145')


def test_minerva_answers_stand_in_the_last_box(tmp_path):
  row = {'problem': 'Q', 'solution': '\\boxed{1} then \\boxed{\\frac{1}{2}}.', 'type': 't', 'idx': 3}
  assert one('minerva', tmp_path, row).answer == '\\frac{1}{2}'
  row['solution'] = 'no box'
  assert "line 1: the field 'solution' has no closed \\boxed{}" in refused(
    'minerva', write(tmp_path / 'a.jsonl', row)
  )


@pytest.mark.parametrize(
  ('answers', 'expected'),
  [
    (['2'], '2'),
    (['$\\frac{1}{2}$'], '\\frac{1}{2}'),
    (['1', '3'], '1, 3'),
    (['$1$, $3$'], '$1$, $3$'),
    ('7', '7'),
    (['$\\$5$'], '$\\$5$'),
  ],
)
def test_olympiadbench_lists_its_answers(tmp_path, answers, expected):
  row = {'question': 'Q', 'solution': ['first', 'second'], 'final_answer': answers}
  problem = one('olympiadbench', tmp_path, row)
  assert (problem.answer, problem.solution) == (expected, 'first\nsecond')


@pytest.mark.parametrize(
  'other',
  [
    {'modality': 'Multimodal'},
    {'question_type': 'Theorem proof'},
    {'subject': 'Physics'},
    {'final_answer': None},
  ],
)
def test_olympiadbench_keeps_open_answers_in_text(tmp_path, other):
  row = {'question': 'Q', 'final_answer': ['2'], 'modality': 'Text-only', 'question_type': 'Open-ended'}
  loaded = load('olympiadbench', write(tmp_path / 'test.jsonl', row, row | other))
  assert [p.id for p in loaded.problems] == ['olympiadbench/0']
  assert '1 of 2 rows are not part of the benchmark' in loaded.notes


def gpqa_row(id='rec1'):
  wrong = {f'Incorrect Answer {i}': f'wrong {i}\n' for i in (1, 2, 3)}
  return {'Record ID': id, 'Question': 'Which?\n', 'Correct Answer': ' right', 'Explanation': 'why', **wrong}


@pytest.mark.parametrize('file', ['gpqa_diamond.csv', 'test.jsonl', 'train.parquet'])
def test_multiple_choice_has_the_right_letter(tmp_path, file):
  problem = one('gpqa', tmp_path, gpqa_row(), file)
  question, blank, *options = problem.problem.split('\n')
  assert (problem.id, question, blank, problem.solution) == ('gpqa/rec1', 'Which?', '', 'why')
  assert [o[:4] for o in options] == ['(A) ', '(B) ', '(C) ', '(D) ']
  assert sorted(o[4:] for o in options) == ['right', 'wrong 1', 'wrong 2', 'wrong 3']
  assert options['ABCD'.index(problem.answer)] == f'({problem.answer}) right'


def test_the_order_of_options_depends_on_the_id_alone(tmp_path):
  rows = [gpqa_row(f'rec{i}') for i in range(400)]
  first = load('gpqa', write(tmp_path / 'a.jsonl', *rows))
  second = load('gpqa', write(tmp_path / 'deep' / 'b.csv', *rows[::-1]))
  assert {p.id: p for p in first.problems} == {p.id: p for p in second.problems}
  letters = [p.answer for p in first.problems]
  assert all(70 <= letters.count(letter) <= 130 for letter in 'ABCD')  # 100 each, give or take 3.5 sigma
  # What the draw is, so that no other version makes another benchmark of it.
  order = sorted(range(4), key=lambda i: hashlib.sha256(f'0\ngpqa/rec0\n{i}'.encode()).digest())
  assert letters[0] == 'ABCD'[order.index(0)]


def test_options_in_a_list_keep_their_order(tmp_path):
  row = {'question': 'Q', 'choices': ['u', 'v', 'w', 'x'], 'answer': '?', 'answer_index': 2}
  problem = one('gpqa', tmp_path, row)
  assert (problem.problem, problem.answer) == ('Q\n\n(A) u\n(B) v\n(C) w\n(D) x', 'C')


@pytest.mark.parametrize(
  ('change', 'complaint'), [({'answer_index': 4}, "'answer_index' is 4"), ({'choices': 'u'}, 'list')]
)
def test_broken_options_are_refused(tmp_path, change, complaint):
  row = {'question': 'Q', 'choices': ['u', 'v'], 'answer_index': 0} | change
  assert complaint in refused('gpqa', write(tmp_path / 'test.jsonl', row))


@given(question=st.text(min_size=1), id=st.text(min_size=1))
def test_any_texts_make_a_question(question, id):
  row = gpqa_row(id) | {'Question': 'Q' + question}
  try:
    problem = benchmark_rows.read(BENCHMARKS['gpqa'], BENCHMARKS['gpqa'].schemas[0], 0, row, 'here')
  except ConfigError as error:  # half a character
    assert 'half a character' in str(error)
  else:
    assert f'\n({problem.answer}) right' in problem.problem


# --- Where files are found.


@pytest.mark.parametrize(
  'file',
  [
    'aime24/test.jsonl',
    'AIME24/test.parquet',
    'aime_2024/data/train-00000-of-00001.parquet',
    'datasets--HuggingFaceH4--aime_2024/snapshots/abc/data/train-00000-of-00001.parquet',
    'hub/datasets--math-ai--aime24/snapshots/abc/test.jsonl',
    'datasets--Maxwell-Jia--AIME_2024/snapshots/abc/aime_2024_problems.parquet',
    'test.jsonl',
    'of_any_name.json',
  ],
)
def test_the_files_are_found_below_a_folder(tmp_path, file):
  path = write(tmp_path / file, ROW)
  loaded = load('aime24', str(tmp_path))
  assert list(loaded.files) == [path]
  assert loaded.files[path] == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
  assert load('aime24', path).problems == loaded.problems
  assert load('aime24', path).digest == loaded.digest


def test_the_cache_folder_of_a_data_set_will_do(tmp_path):
  cache = tmp_path / 'datasets--MathArena--hmmt_feb_2025'
  for revision, answer in (('old', '1'), ('new', '2')):
    blob, link = (
      cache / 'blobs' / answer,
      cache / 'snapshots' / revision / 'data' / 'train-00000-of-00001.parquet',
    )
    write(blob.with_suffix('.parquet'), ROW | {'answer': answer})
    blob.with_suffix('.parquet').rename(blob)
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
  message = refused('hmmt25_feb', str(cache))
  assert message.endswith(f'Name one as hmmt25={cache}/snapshots/<revision>.')
  (cache / 'refs').mkdir()
  (cache / 'refs' / 'main').write_text('old')
  (problem,) = load('hmmt25_feb', str(cache)).problems
  assert (problem.id, problem.answer) == ('hmmt25/0', '1')


@pytest.mark.parametrize('place', ['.', 'snapshots/x'])
@pytest.mark.parametrize(
  ('name', 'dataset', 'file', 'beside', 'row'),
  [
    (
      'olympiadbench',
      'Hothan/OlympiadBench',
      'OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet',
      'OlympiadBench/OE_TO_physics_en_COMP/OE_TO_physics_en_COMP.parquet',
      {'question': 'Q', 'final_answer': ['1']},
    ),
    (
      'gsm8k',
      'openai/gsm8k',
      'main/test-00000-of-00001.parquet',
      'socratic/test-00000-of-00001.parquet',
      {'question': 'Q', 'answer': '#### 1'},
    ),
    ('gpqa', 'Idavidrein/gpqa', 'gpqa_diamond.csv', 'gpqa_main.csv', gpqa_row()),
    (
      'aime25',
      'yentinglin/aime_2025',
      'data/train-00000-of-00001-243207c6c994e1bd.parquet',
      'part1/train-00000-of-00001.parquet',
      {'problem': 'Q', 'answer': '1', 'solution': 'S', 'year': 2025},
    ),
  ],
)
def test_the_right_part_of_a_data_set_is_read(tmp_path, name, dataset, file, beside, row, place):
  folder = tmp_path / f'datasets--{dataset.replace("/", "--")}'
  path = write(folder / 'snapshots' / 'x' / file, row)
  write(folder / 'snapshots' / 'x' / beside, row)
  for asked in (tmp_path, folder / place):
    assert list(load(name, str(asked)).files) == [path]


def test_several_files_are_one_benchmark(tmp_path):
  for part in ('I', 'II'):
    row = {'question': part, 'answer': '1'}
    write(tmp_path / 'datasets--opencompass--AIME2025' / 'snapshots' / 'x' / f'aime2025-{part}.jsonl', row)
  found = load('aime25', str(tmp_path)).problems
  assert [(p.id, p.problem) for p in found] == [('aime25/0', 'I'), ('aime25/1', 'II')]


def test_the_better_of_two_files_is_taken(tmp_path):
  write(tmp_path / 'math500' / 'test.jsonl', ROW)
  write(
    tmp_path / 'math500' / 'test_with_solution.jsonl', ROW | {'solution': 'S', 'unique_id': 'test/a/1.json'}
  )
  (problem,) = load('math500', str(tmp_path)).problems
  assert (problem.id, problem.solution) == ('math500/test/a/1.json', 'S')


def test_training_data_is_not_taken_for_a_test(tmp_path):
  write(tmp_path / 'gsm8k' / 'train.jsonl', {'question': 'Q', 'answer': '#### 1'})
  assert 'has no GSM8K' in refused('gsm8k', str(tmp_path))
  write(tmp_path / 'gsm8k' / 'main' / 'test-00000-of-00001.parquet', {'question': 'R', 'answer': '#### 2'})
  assert [p.answer for p in load('gsm8k', str(tmp_path)).problems] == ['2']


def test_what_lies_beside_other_data_sets_is_not_taken(tmp_path):
  write(tmp_path / 'test.jsonl', ROW)
  write(tmp_path / 'amc23' / 'test.jsonl', ROW)
  message = refused('aime24', str(tmp_path))
  for part in (
    'aime24, AIME24, aime_2024, datasets--HuggingFaceH4--aime_2024',
    'aime24=PATH',
    'Mathematical',
  ):
    assert part in message
  assert 'https://huggingface.co/datasets/HuggingFaceH4/aime_2024' in message


@pytest.mark.parametrize('name', ['aime24', 'aime24=/nowhere'])
def test_a_path_that_is_missing_is_named(name):
  assert '/nowhere, where AIME 2024 should be, does not exist' in refused(name, '/nowhere')


def test_an_unknown_benchmark_names_the_nearest():
  assert "'math50' is unknown. Did you mean 'math500'?" in refused('math50', '/data')
  assert 'where AIME 2024 is was not said' in refused('aime24')
  assert 'no data file' in refused('aime24', __file__)


# --- Files of one's own.


@pytest.mark.parametrize('solution', [{}, {'solution': 'S'}])
def test_a_file_of_ones_own_needs_a_problem_and_an_answer(tmp_path, solution):
  path = write(tmp_path / 'asked.jsonl', ROW | solution, {'problem': 'R', 'answer': 3} | solution)
  loaded = load(f'mine={path}', '/not/used')
  assert [(p.id, p.answer) for p in loaded.problems] == [('mine/0', '2'), ('mine/1', '3')]
  assert loaded.problems[0].solution == solution.get('solution', '')
  assert (loaded.benchmark.kind, loaded.notes) == ('maths', ())


def test_any_path_and_any_line_ends_will_do(tmp_path):
  path = tmp_path / 'my data = x' / 'asked, all.jsonl'
  path.parent.mkdir()
  path.write_bytes(b'{"problem": "P", "answer": 3}\r\n{"problem": "Q", "answer": -0.5}\r\n')
  assert [p.answer for p in load(f'mine={path}').problems] == ['3', '-0.5']


def test_a_file_of_ones_own_may_name_its_fields(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'question': 'Q', 'answer': 'work #### 7', 'key': 'k'})
  (problem,) = load(f'mine={path}', fields=FieldsConfig.named('gsm8k')).problems
  assert (problem.id, problem.answer) == ('mine/0', '7')
  fields = FieldsConfig(problem='question', answer='key', solution=None, id='key')
  assert load(f'mine={path}', fields=fields).problems[0].id == 'mine/k'
  fields = FieldsConfig(problem='question', answer='key', solution=None, meta=('answer',))
  with pytest.raises(ConfigError, match='would show two texts'):
    load(f'mine={path}', fields=fields)
  fields = FieldsConfig(problem='question', answer='answer', solution=None, meta=('key',))
  assert load(f'mine={path}', fields=fields).problems[0].meta == {'key': 'k'}


def test_a_known_benchmark_may_lie_anywhere(tmp_path):
  path = write(tmp_path / 'strange.jsonl', {'question': 'Q', 'answer': '#### 7'})
  assert load(f'gsm8k={path}').problems[0].answer == '7'


# --- Programs.

TASK = {
  'task_id': 'HumanEval/7',
  'prompt': 'def f(x):\n',
  'entry_point': 'f',
  'canonical_solution': '  return x\n',
  'test': 'def check(f):\n  assert f(1) == 1\n',
}
CONTEST = {
  'question_id': '1873_A',
  'question_content': 'Say it again.',
  'starter_code': '',
  'platform': 'codeforces',
  'public_test_cases': json.dumps([{'input': 'a\n', 'output': 'a\n', 'testtype': 'stdin'}]),
  'private_test_cases': '[]',
  'metadata': '{}',
}


@pytest.mark.parametrize(
  ('name', 'row', 'id', 'file'),
  [
    ('humaneval', TASK, 'HumanEval/7', 'humaneval/HumanEval.jsonl'),
    (
      'livecodebench',
      CONTEST,
      '1873_A',
      'datasets--livecodebench--code_generation_lite/snapshots/a/test6.jsonl',
    ),
  ],
)
def test_programs_have_their_tests(tmp_path, name, row, id, file):
  write(tmp_path / file, row)
  loaded = load(name, str(tmp_path))
  (problem,) = loaded.problems
  assert (problem.id, problem.answer, problem.source) == (id, '', name)
  task = loaded.tasks[id]
  assert (task.id, task.prompt, task.solution) == (id, problem.problem, problem.solution)
  assert benchmarks.check(loaded, GradeConfig()) == {}


def test_other_tests_are_another_benchmark(tmp_path):
  """Of programs the digest covers the tests as well."""
  other = TASK | {'test': TASK['test'].replace('1', '2')}
  swapped = dict(reversed(TASK.items()))
  first, second, third = (
    load('humaneval', write(tmp_path / f'{i}.jsonl', row)).digest
    for i, row in enumerate((TASK, other, swapped))
  )
  assert first == third != second


def test_tasks_that_lack_something_are_named(tmp_path):
  row = {k: v for k, v in TASK.items() if k != 'test'} | {'tests': 'x'}
  message = refused('humaneval', write(tmp_path / 'a.jsonl', row))
  assert "line 1 has no field 'test' of HumanEval. Did you mean 'tests'?" in message
  assert "2 problems of HumanEval have the id 'HumanEval/7'" in refused(
    'humaneval', write(tmp_path / 'b.jsonl', TASK, TASK)
  )


# --- What is wrong or strange.


@pytest.mark.parametrize(
  ('rows', 'complaint'),
  [
    (
      [{'problem': 'Q', 'anser': '1'}],
      "line 1 has no field 'answer' of AIME 2024. Did you mean 'anser'? It has anser",
    ),
    (
      [ROW, {'problem': 'Q', 'anwser': '1'}],
      "line 2 has no field 'answer', which the first row has. Did you mean 'anw",
    ),
    ([ROW, ROW | {'answer': None}], "line 2: the field 'answer' is null"),
    ([ROW | {'problem': ' '}], "line 1: the field 'problem' is blank"),
    ([ROW | {'answer': ['1', '2']}], "line 1: the field 'answer' is a list of 2"),
    ([[1]], 'line 1 is a list'),
    ([], 'test.jsonl is empty: there are no rows'),
  ],
)
def test_a_row_that_is_no_problem_is_named(tmp_path, rows, complaint):
  message = refused('aime24', write(tmp_path / 'test.jsonl', *rows))
  assert complaint in message and 'data.fields' not in message


def test_ids_must_be_unique(tmp_path):
  row = {'ID': 'chal-1', 'Body': 'B.', 'Question': 'Q', 'Answer': 1}
  message = refused('svamp', write(tmp_path / 'test.jsonl', row, row))
  assert "2 problems of SVAMP have the id 'svamp/chal-1'" in message


def test_notes_tell_of_another_file_and_another_number(tmp_path):
  path = write(tmp_path / 'test.jsonl', ROW)
  assert load('amc23', path).notes == ('1 problems, not the usual 40', f'not the known file: {path}')
  assert load('aime26', write(tmp_path / 'b.jsonl', *[ROW] * 30)).notes == ()  # no file of it is known


def test_the_digest_is_of_what_is_asked(tmp_path):
  rows = [ROW, {'problem': 'R', 'answer': '3'}]
  digests = {
    load('aime26', write(tmp_path / f'{i}.jsonl', *change)).digest
    for i, change in enumerate([rows, rows[::-1], rows[:1], [ROW | {'answer': '4'}, rows[1]]])
  }
  assert len(digests) == 4
  again = [{'question': r['problem'], 'answer': int(r['answer']), 'url': 'u'} for r in rows]
  assert load('aime26', write(tmp_path / 'other.parquet', *again)).digest in digests


def test_the_self_check_names_answers_that_cannot_be_right(tmp_path):
  rows = [ROW, {'problem': 'Q', 'answer': '\\$36'}, {'problem': 'Q', 'answer': '\\frac{1}{2}'}]
  loaded = load('mine=' + write(tmp_path / 'a.jsonl', *rows))
  assert list(benchmarks.check(loaded, GradeConfig(rules='opsd'))) == ['mine/1']
  assert benchmarks.check(loaded, GradeConfig(rules='strict')) == {}
  choice = load('gpqa', write(tmp_path / 'b.jsonl', gpqa_row()))
  assert benchmarks.check(choice, GradeConfig(rules='strict')) == {}


# --- The catalogue.


def test_names_and_aliases_are_unique():
  names = [n for b in BENCHMARKS.values() for n in (b.name, *b.aliases)]
  assert len(set(names)) == len(names) and {'hmmt25_feb', 'hmmt25', 'livecodebench'} < set(names)
  known = [digest for b in BENCHMARKS.values() for digest in b.known]
  assert len(set(known)) == len(known) and all(len(bytes.fromhex(d)) == 32 for d in known)
  assert all(b.licence and b.schemas and catalogue.find(b.name) is b for b in BENCHMARKS.values())


@pytest.mark.parametrize('name', sorted(BENCHMARKS))
def test_every_schema_can_be_chosen(name):
  """No schema is hidden behind an earlier one that needs no more."""
  schemas = BENCHMARKS[name].schemas
  for i, schema in enumerate(schemas):
    assert schema.reads in benchmark_rows.READERS or BENCHMARKS[name].kind == 'programs'
    assert not any(set(earlier.needs) <= set(schema.needs) for earlier in schemas[:i])


# --- The real files.

REAL = {
  'aime24': (30, ['test.jsonl', 'test_qwen25math.jsonl']),
  'aime25': (30, ['test.jsonl', 'val_test.parquet']),
  'amc23': (40, ['test.jsonl', 'val_test.parquet']),
  'hmmt25': (30, ['test.jsonl', 'val_test.parquet']),
  'math500': (500, ['test_with_solution.jsonl', 'val_test.parquet']),
  'gsm8k': (1319, ['test.jsonl']),
  'svamp': (1000, ['test.jsonl']),
}


@pytest.mark.data
@pytest.mark.parametrize('name', sorted(REAL))
def test_copies_of_a_benchmark_are_the_same_problems(data_root, name):
  count, copies = REAL[name]
  folder = next(data_root / f for f in BENCHMARKS[name].folders if (data_root / f).is_dir())
  found = [load(name, str(data_root)), *(load(name, str(folder / copy)) for copy in copies)]
  for loaded in found:
    assert len(loaded.problems) == count and loaded.notes == ()
    assert all(p.problem.strip() and p.answer.strip() for p in loaded.problems)
  assert len({loaded.digest for loaded in found}) == 1


@pytest.mark.data
@pytest.mark.parametrize(
  ('name', 'count', 'first'),
  [
    ('humaneval', 164, 'HumanEval/0'),
    ('mbpp', 500, '11'),
    pytest.param('humaneval_plus', 164, 'HumanEval/0', marks=pytest.mark.slow),
    pytest.param('mbpp_plus', 378, 'Mbpp/2', marks=pytest.mark.slow),
  ],
)
def test_real_tasks(data_root, name, count, first):
  loaded = load(name, str(data_root))
  assert (len(loaded.problems), loaded.problems[0].id, loaded.notes) == (count, first, ())
  assert list(loaded.tasks) == [p.id for p in loaded.problems]
  assert all((loaded.tasks[p.id].plus is not None) == name.endswith('plus') for p in loaded.problems)


@pytest.mark.data
@pytest.mark.parametrize(
  ('name', 'file', 'notes'),
  [
    ('math500', 'math500/test.parquet', ['every problem ends with an instruction']),
    ('humaneval_plus', 'humaneval_plus/HumanEvalPlus-Mini.jsonl.gz', ['the mini release']),
    ('mbpp', 'mbpp/mbpp.jsonl', ['974 problems, not the usual 500', 'holds the training split as well']),
  ],
)
def test_known_files_that_are_not_the_usual_ones(data_root, name, file, notes):
  found = load(name, str(data_root / file)).notes
  assert len(found) == len(notes) and all(part in note for part, note in zip(notes, found))


@pytest.mark.data
def test_answers_of_real_files(data_root):
  answers = {name: [p.answer for p in load(name, str(data_root)).problems] for name in REAL}
  assert answers['amc23'][:3] == ['27', '36', '45'] and '-1' in answers['amc23']
  assert answers['aime24'][:3] == ['204', '113', '371'] and answers['aime25'][0] == '70'
  assert answers['hmmt25'][2] == '\\frac{1}{576}'
  assert answers['svamp'][0] == '145' and answers['gsm8k'][0] == '18'
  assert answers['math500'][0] == '\\left( 3, \\frac{\\pi}{2} \\right)'


@pytest.mark.data
def test_training_data_and_other_benchmarks_are_noticed(data_root):
  (count, strange) = load('gsm8k', str(data_root / 'gsm8k' / 'train.jsonl')).notes
  assert count == '7473 problems, not the usual 1319' and strange.startswith('not the known file')
  assert 'is AMC 2023, not AIME 2024; ask for amc23' in refused('aime24', str(data_root / 'amc23'))


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(REAL))
def test_known_answers_can_be_graded(data_root, name):
  loaded = load(name, str(data_root))
  assert benchmarks.check(loaded, GradeConfig(rules='strict')) == {}
  found = benchmarks.check(loaded, GradeConfig(rules='opsd'))
  assert len(found) == (3 if name == 'math500' else 0)
  assert set(found.values()) <= {Verdict.GOLD_UNPARSABLE}
