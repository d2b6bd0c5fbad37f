"""The measurement of grading: it runs, counts what it says, and knows bad input."""

import json

import pytest
from absl import flags

from experiments import bench_answers, bench_grading
from opsd_jax.config import ConfigError
from opsd_jax.grade import guard, plain


@pytest.fixture
def run(tmp_path, capsys):
  def run_with(*arguments):
    saved = flags.FLAGS.flag_values_dict()
    flags.FLAGS(['bench_grading', f'--workdir={tmp_path / "bench"}', *arguments])
    try:
      bench_grading.main()
    finally:
      for name in ('golds', 'gradings', 'rules', 'seconds', 'workers', 'workdir'):
        flags.FLAGS[name].value = saved[name]
    return json.loads((tmp_path / 'bench' / 'results.json').read_text()), capsys.readouterr().out

  return run_with


def test_made_up_answers_need_math_verify():
  golds = bench_answers.made_up()
  assert len(set(golds)) == 400
  assert all(plain.number(plain.tidy(gold)) is None and not guard.absurd(gold) for gold in golds)


@pytest.mark.parametrize(('hostile', 'guarded'), [('none', 0), ('guarded', 4), ('one hangs', 3)])
def test_four_of_every_hundred_are_hostile(hostile, guarded):
  golds = bench_answers.made_up()
  batches = list(bench_answers.batches(golds, hostile, 300))
  assert [len(batch) for batch in batches] == [100] * 3 and batches[0] != batches[1]
  assert [sum(guard.absurd(answer) for _, answer in batch) for batch in batches] == [guarded] * 3
  hanging = [pair for batch in batches for pair in batch if pair[0].startswith('(x+y+z)')]
  assert len(set(hanging)) == len(hanging) == 3 * (hostile == 'one hangs')


@pytest.mark.slow
def test_it_measures_and_writes_what_it_measured(run):
  results, printed = run('--gradings=100', '--rules=opsd', '--seconds=2')
  assert [row['hostile'] for row in results['rows']] == ['none', 'guarded', 'one hangs']
  for row in results['rows']:
    assert row['gradings'] == sum(row['verdicts'].values()) == 100
    assert row['verdicts']['correct'] > 5 and row['verdicts']['wrong'] > 5
    assert row['per_minute'] == pytest.approx(6000 / row['seconds'])
    assert row['after']['files'] <= row['before']['files'] and row['cpu_seconds'] > 0
    assert row['after']['processes'] <= row['before']['processes']
  assert results['rows'][2]['verdicts']['timeout'] >= 1 and results['rows'][2]['seconds'] >= 2
  assert results['versions']['sympy'] and results['machine']['cpu_count']
  assert printed.count('| opsd | guarded | 100 |') == 2  # as it goes, and in the table


def test_files_that_hold_no_answers(run, tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"problem": "x"}\n')
  with pytest.raises(ConfigError, match='a.jsonl is no file of JSON lines with a field answer'):
    run(f'--golds={tmp_path / "a.jsonl"}')
  (tmp_path / 'b.jsonl').write_text('{"answer": 5}\n{"answer": "x"}\n')
  with pytest.raises(ConfigError, match='holds 1 answers that are no plain numbers'):
    run(f'--golds={tmp_path / "b.jsonl"}')
  with pytest.raises(ConfigError, match="grade.rules is 'strikt'"):
    run('--rules=strikt')


def test_a_file_of_answers(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"answer": 5}\n{"answer": "x"}\n')
  assert bench_grading._read(str(tmp_path / 'a.jsonl')) == ['5', 'x']
