"""A study with an external teacher: made once, shared by its arms, in the table with the gap to it."""

import json

import pytest

from tests.experiments import tiny

WIDER = ('teacher.kind=external', 'teacher.model.embed_dim=24', 'teacher.model.num_layers=1')
WIDER += ('teacher.model.num_heads=2', 'teacher.model.num_kv_heads=1', 'teacher.model.head_dim=8')
WIDER += ('teacher.model.mlp_dim=40', 'views.teacher={problem}:', 'teacher_start.updates=40')
WIDER += ('teacher_start.batch=32', 'teacher_start.optimizer.learning_rate=0.01')
WIDER += ('loop.evaluate_every=0', 'warm_start.updates=2', 'warm_start.source.kind=teacher')


@pytest.mark.slow
def test_a_study_with_an_external_teacher(tmp_path):
  workdir = tmp_path / 'run'
  command = tiny.command('train', workdir, (*tiny.SETTINGS, *WIDER))
  done = tiny.call(command)
  assert done.returncode == 0, done.stderr
  results = json.loads((workdir / 'results.json').read_text())
  teacher, arms = results['teacher'], results['arms']
  assert arms['teacher']['updates'] == 40 and not (workdir / 'teacher_of_no_privilege').exists()
  assert teacher['answered'] >= 0 and 'teacher' in results['seconds']
  for name in ('opsd', 'no_privilege', 'sharpened_no_privilege'):
    assert set(results[name]['gap_recovery']) == {'sampled', 'greedy'}
    warm = workdir / ('' if name == 'opsd' else f'controls/{name}') / 'warm_start' / 'metrics.jsonl'
    first = json.loads(warm.read_text().splitlines()[-1])
    assert arms[name]['sampled'] > first['total/sampled'] > 0, 'the warm start is among what the arm took'
  assert 'gap recovered' in done.stdout

  again = tiny.call(command)
  assert again.returncode == 0, again.stderr
  assert json.loads((workdir / 'results.json').read_text()) | {'seconds': 0} == results | {'seconds': 0}
  check = tiny.call(tiny.command('check', None, (*tiny.SETTINGS, *WIDER), '--problems=1'))
  assert 'external teacher (float32)' in check.stdout and 'zero signal' not in check.stderr
