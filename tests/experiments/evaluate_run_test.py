"""The evaluate command on checkpoints of runs: digit chains without a chat template, adapters, and text."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments import export
from opsd_jax import mesh as meshes
from opsd_jax.data import source
from opsd_jax.distill import views
from opsd_jax.grade import grading
from opsd_jax.models import lora
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.text.tokenizer import make_tokenizer
from tests.experiments import model_folder, real_text, tiny
from tests.models.folder import make

pytestmark = pytest.mark.slow

SHORT = (*tiny.ALONE, 'loop.updates=2', 'loop.evaluate_every=1', 'checkpoint.every=1', 'evaluate.batch=12')
ASKED = 12


def train(workdir, *settings, experiment='quickstart'):
  done = tiny.call(tiny.command('train', workdir, settings, experiment=experiment))
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return train(tmp_path_factory.mktemp('run') / 'run', *SHORT, 'cold_start.updates=8')


@pytest.fixture(scope='module')
def adapted(tmp_path_factory):
  """Adapters that change much, beside the weights of a cold start."""
  settings = ('cold_start.updates=8', 'lora.rank=2', 'lora.alpha=64', 'optimizer.learning_rate=0.05')
  return train(tmp_path_factory.mktemp('adapted') / 'run', *SHORT, *settings)


def call(*given):
  return tiny.call([sys.executable, '-m', 'experiments.evaluate', *map(str, given)])


def evaluated(run, output, problems, *more):
  rows = [{'problem': p.problem, 'answer': p.answer} for p in problems]
  asked = model_folder.write_lines(output.parent / 'asked.jsonl', rows)
  named = (f'--checkpoint={run}', f'--benchmarks=mine={asked}', f'--output={output}')
  done = call(*named, '--temperature=0', '--samples=1', '--max_tokens=40', '--batch=12', *more)
  assert done.returncode == 0, done.stderr
  text = (output / 'mine' / 'samples.jsonl').read_text(encoding='utf-8')
  settings = json.loads((output / 'settings.json').read_text())
  return [json.loads(line) for line in text.splitlines()], settings


def expected(run, problems, step=None):
  """Greedy ids and verdicts of a run, with its own views and, under LoRA, without merging its adapters."""
  e, mesh = export.read_experiment(run), make.mesh()
  _, params = export.read_trained(run, e, mesh, step)
  if e.lora.rank:
    _, base = export._restore(
      f'{run}/cold_start', e, export.model.abstract_params(e.model, mesh), e.cold_start.optimizer,
      export.TeacherConfig(),
    )  # fmt: skip
    params = lora.complete(e.lora, base, params)
  tokenizer = make_tokenizer(e.tokenizer)
  with jax.set_mesh(mesh):
    prompts = meshes.shard_rows(mesh, views.student_batch(e.views, problems, tokenizer))
    config = SamplingConfig(temperature=0.0, max_tokens=40)
    rollout = decode.generate(
      e.model, params, prompts, config, eos_ids=tokenizer.eos_ids, valid_vocab=tokenizer.vocab_size
    )
  ids = [row[:n].tolist() for row, n in zip(np.asarray(rollout.ids), np.asarray(rollout.length))]
  texts = [tokenizer.decode(row) for row in ids]
  return ids, grading.grade(texts, [p.answer for p in problems], e.grade).verdicts


def chains(run):
  return source.load(export.read_experiment(run).data).test[:ASKED]


@pytest.mark.parametrize('step', ['latest', '1', 'best'])
def test_a_run_is_asked_and_judged_as_in_training(run, tmp_path, step):
  problems = chains(run)
  found, settings = evaluated(run, tmp_path / 'out', problems, f'--step={step}')
  number = {'latest': 2, '1': 1}.get(step) or settings['model']['step']
  ids, verdicts = expected(run, problems, number)
  assert [row['ids'] for row in found] == ids
  assert [row['verdicts'] for row in found] == [{'text': str(verdict)} for verdict in verdicts]
  assert settings['prompt'] == {'of': 'run', 'maths': '{problem}:'} and settings['rules'] == 'text'
  assert settings['model']['step'] == number and settings['model']['experiment'] == 'quickstart'


def test_adapters_are_merged(run, adapted, tmp_path):
  problems = chains(adapted)
  found, _ = evaluated(adapted, tmp_path / 'out', problems)
  ids, _ = expected(adapted, problems)
  assert [row['ids'] for row in found] == ids != expected(run, problems)[0]


def test_a_run_on_text_is_asked_in_either_way(tmp_path):
  """Its own view, or the protocol's, by the chat template of its tokenizer; the tokenizer may have moved."""
  run = train(
    tmp_path / 'run', *real_text.settings(tmp_path), 'cold_start.updates=0', 'loop.updates=2',
    'controls=()', 'loop.evaluate_every=0', 'rollout.questions=4', experiment='gsm8k_tiny',
  )  # fmt: skip
  asked = model_folder.write_lines(tmp_path / 'asked.jsonl', [{'problem': 'How many?', 'answer': '3'}])
  (tmp_path / 'tokenizer').rename(tmp_path / 'moved')
  named = (f'--checkpoint={run}', f'--benchmarks=mine={asked}', '--samples=2', '--max_tokens=4')
  done = call(*named, f'--output={tmp_path / "out"}')
  assert done.returncode == 2 and '--base=FOLDER names another' in done.stderr
  for whose, rules in (('run', 'text'), ('protocol', 'opsd')):
    more = (f'--output={tmp_path / f"as_{whose}"}', f'--prompt={whose}', f'--base={tmp_path / "moved"}')
    done = call(*named, *more)
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / f'as_{whose}' / 'settings.json').read_text())
    assert (settings['prompt']['of'], settings['rules']) == (whose, rules)


@pytest.mark.parametrize(
  'more, message',
  [
    (('--step=7',), '--step=7: .*checkpoints has no such checkpoint; it has [1, 2]'),
    (('--step=first',), '--step=first is not latest, best or a number'),
    (('--prompt=protocol',), 'has no chat template, which the prompts of a protocol need'),
    (('--benchmarks=mine={letters}',), "problem 'mine/0' cannot be asked: text 'a:' holds"),
  ],
)
def test_mistakes_with_runs(run, tmp_path, more, message):
  letters = model_folder.write_lines(tmp_path / 'letters.jsonl', [{'problem': 'a', 'answer': '1'}])
  digits = model_folder.write_lines(tmp_path / 'digits.jsonl', [{'problem': '3+', 'answer': '4'}])
  named = (f'--checkpoint={run}', f'--benchmarks=mine={digits}', f'--output={tmp_path / "out"}')
  done = call(*named, *(text.format(letters=letters) for text in more))
  assert done.returncode == 2 and done.stderr.count('\n') == 1
  assert all(word in done.stderr for word in message.split('.*')), done.stderr
