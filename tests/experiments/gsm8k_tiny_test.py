"""Real text through every room: what users bring, and what is wrong with it.

The same tests run on small files made here and, where they are present, on GSM8K and a Qwen3 tokenizer.
"""

import json
import pathlib

import pytest

from experiments import common, recipes
from opsd_jax import jsonlines
from opsd_jax.config import ConfigError
from opsd_jax.distill import views
from opsd_jax.experiment import build
from tests.experiments import real_text, tiny
from tests.experiments.resume_test import lines, start_and_kill, without_times

REAL = ('metrics.tensorboard=false', 'metrics.progress=none')


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
  return real_text.settings(tmp_path_factory.mktemp('text'))


def command(workdir: pathlib.Path, settings: tuple[str, ...]) -> list[str]:
  return tiny.command('train', workdir, settings, experiment='gsm8k_tiny')


@pytest.fixture(scope='module')
def whole(settings, tmp_path_factory):
  """A run that nothing interrupted."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  done = tiny.call(command(folder, settings))
  assert done.returncode == 0, done.stderr
  return folder


def killed_equals(whole: pathlib.Path, killed: pathlib.Path, settings: tuple[str, ...]) -> None:
  """Runs into `killed` with two kills, and compares."""
  for moment in (lambda: lines(killed) >= 3, lambda: lines(killed) >= 13):
    assert start_and_kill(killed, moment, command(killed, settings))
  done = tiny.call(command(killed, settings))
  assert done.returncode == 0, done.stderr
  assert without_times(killed / 'metrics.jsonl') == without_times(whole / 'metrics.jsonl')
  assert len(without_times(whole / 'metrics.jsonl')) == 20
  for path in sorted((whole / 'rollouts').iterdir()):
    assert (killed / 'rollouts' / path.name).read_text() == path.read_text()
  ours, theirs = (json.loads((f / 'results.json').read_text()) for f in (killed, whole))
  assert ours | {'seconds': 0} == theirs | {'seconds': 0}


@pytest.mark.slow  # what a kill may break is in `resume_test`, on a smaller model
def test_a_killed_run_equals_the_uninterrupted_one(whole, settings, tmp_path):
  killed_equals(whole, tmp_path / 'killed', settings)


@pytest.mark.slow
def test_a_run_has_a_report(whole):
  assert (whole / 'report.html').exists()


@pytest.mark.slow
def test_every_metric_is_there(whole):
  rows = jsonlines.read(whole / 'metrics.jsonl')
  expected = {'loss', 'forward_kl', 'reverse_kl', 'student_entropy', 'entry_clip_fraction', 'agreement'}
  assert all(expected <= row.keys() for row in rows)
  assert all(row['logp_gap'] < 1e-4 for row in rows), 'sampler and scorer read the same tokens alike'
  assert rows[-1]['total/sampled'] == rows[-1]['total/scored_teacher'] > 0
  assert rows[-1]['total/prompt_teacher'] > rows[-1]['total/prompt_student'] > 0


@pytest.mark.slow
def test_the_viewer_shows_both_views(whole):
  page = (whole / 'report.html').read_text()
  shown = json.loads(sorted((whole / 'rollouts').iterdir())[0].read_text())[0]
  assert shown['student_prompt'].endswith('<think>\n\n</think>\n\n')
  assert shown['teacher_prompt'].endswith('<|im_start|>assistant\n')
  assert 'plums.\n' in shown['teacher_prompt'] and 'plums.\n' not in shown['student_prompt']
  for part in ('the student sees', 'the teacher sees', 'Begin of the reference solution', '&lt;think&gt;'):
    assert part in page


def test_the_results_count_what_was_left_out(settings):
  whole = build(experiment(settings))
  prompts = views.teacher_batch(whole.views, whole.splits.train, whole.tokenizer)[0]
  width = int(prompts.length.max()) - 1
  setup = build(experiment(settings, f'views.teacher_tokens={width}'))
  fitting = int((prompts.length <= width).sum())
  assert 0 < fitting < 20 == len(whole.splits.train)
  reason = f"its teacher's prompt is longer than views.teacher_tokens ({width})"
  assert len(setup.splits.train) == fitting and setup.dropped['train'] == {reason: 20 - fitting}


def experiment(settings, *more):
  return common.with_settings(recipes.load('gsm8k_tiny'), [*settings, *more])


# --- On real files, where they are.


def real_settings(data_root: pathlib.Path, *more: str) -> tuple[str, ...]:
  tokenizer = data_root / 'tokenizers' / 'qwen3_built'
  return (f'data.path={data_root / "gsm8k"}', f'tokenizer.path={tokenizer}', *REAL, *more)


@pytest.mark.data
@pytest.mark.slow
def test_real_questions_and_a_real_tokenizer(data_root, tmp_path):
  settings = real_settings(
    data_root,
    'loop.updates=2',
    'rollout.questions=2',
    'rollout.sampling.max_tokens=8',
    'loop.evaluate_every=0',
    'evaluate.sampling.max_tokens=8',
    'data.test_problems=2',
    'evaluate.samples=1',
    'evaluate.batch=2',
  )
  done = tiny.call(command(tmp_path / 'run', settings))
  assert done.returncode == 0, done.stderr
  shown = json.loads((tmp_path / 'run/rollouts/000001.json').read_text())[0]
  assert shown['student_prompt'].startswith('<|im_start|>user\nProblem: ')
  assert shown['student_prompt'].endswith('<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n')
  results = json.loads((tmp_path / 'run/results.json').read_text())
  assert (
    results['problems']['train']['used'] + sum(results['problems']['train']['left_out'].values()) == 7473 - 8
  ), 'every training problem is used, held out or counted'


@pytest.mark.data
@pytest.mark.slow
def test_a_killed_run_on_real_files_equals_the_uninterrupted_one(data_root, tmp_path):
  whole, settings = tmp_path / 'whole', real_settings(data_root)
  done = tiny.call(command(whole, settings))
  assert done.returncode == 0, done.stderr
  killed_equals(whole, tmp_path / 'killed', settings)


# --- Bad input: one clear line before anything is compiled.


def refused(settings, *more):
  with pytest.raises(ConfigError) as caught:
    build(experiment(settings, *more))
  return str(caught.value)


def test_a_tokenizer_larger_than_the_models_vocabulary(settings):
  message = refused(settings, 'model.vocab_size=256')
  assert 'model.vocab_size is 256' in message and 'raise model.vocab_size' in message


def test_no_problem_within_the_budget(settings):
  message = refused(settings, 'views.student_tokens=20')
  assert 'none of the' in message and 'views.student_tokens (20)' in message


def test_a_problem_that_is_too_long_ends_the_run_where_asked_for(settings):
  message = refused(settings, 'views.student_tokens=20', 'data.too_long=error')
  assert "'train/" in message or "'test/" in message
  assert 'views.student_tokens (20)' in message and 'data.too_long=drop' in message


def test_a_tokenizer_without_a_chat_template(settings, tmp_path):
  folder = real_text.write_tokenizer(tmp_path)
  (folder / 'tokenizer_config.json').write_text('{"eos_token": "<|im_end|>"}')
  message = refused(settings, f'tokenizer.path={folder}')
  assert 'chat template' in message and 'tokenizer.chat_template' in message


def test_a_chat_template_that_raises(settings, tmp_path):
  (tmp_path / 'mine.jinja').write_text("{{ raise_exception('users only') }}")
  message = refused(settings, f'tokenizer.chat_template={tmp_path / "mine.jinja"}')
  assert 'users only' in message


def test_a_folder_that_is_neither(settings, tmp_path):
  message = refused(settings, f'tokenizer.path={tmp_path}')
  assert str(tmp_path) in message and 'tokenizer.json' in message
  message = refused(settings, f'data.path={tmp_path}')
  assert str(tmp_path) in message and '.jsonl' in message


def test_a_line_that_is_not_json(settings, tmp_path):
  folder = real_text.write_data(tmp_path)
  path = folder / 'train.jsonl'
  path.write_text(path.read_text() + '{"question": \n')
  message = refused(settings, f'data.path={folder}')
  assert 'train.jsonl' in message and '25' in message


def test_a_line_without_a_field(settings, tmp_path):
  folder = real_text.write_data(tmp_path)
  path = folder / 'train.jsonl'
  path.write_text(path.read_text().replace('"question"', '"questoin"', 1))
  message = refused(settings, f'data.path={folder}')
  assert 'train.jsonl' in message and "'question'" in message and "'questoin'" in message


def test_empty_data(settings, tmp_path):
  folder = real_text.write_data(tmp_path)
  (folder / 'train.jsonl').write_text('')
  message = refused(settings, f'data.path={folder}')
  assert "'train'" in message and str(folder) in message and 'empty' in message


def test_unreadable_parquet(settings, tmp_path):
  (tmp_path / 'train.parquet').write_bytes(b'PAR1 no')
  assert 'train.parquet' in refused(settings, f'data.path={tmp_path}')


def test_the_command_line_ends_with_one_line(settings, tmp_path):
  done = tiny.call(command(tmp_path / 'run', (*settings, f'data.path={tmp_path / "absent"}')))
  assert done.returncode == 2
  assert done.stderr.startswith('error: ') and 'absent' in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists(), 'nothing is claimed by a run that cannot begin'
