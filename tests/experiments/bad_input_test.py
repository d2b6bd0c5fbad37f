"""Bad input gets one clear line that names the thing, the value and the remedy, before any compilation."""

import json
import os

import pytest

from experiments import common, recipes
from opsd_jax.config import ConfigError, to_dict
from tests.experiments import tiny


def shrunk(*settings):
  return common.with_settings(recipes.load('quickstart'), [*tiny.ALONE, *settings])


def test_unknown_experiment_names_the_nearest():
  with pytest.raises(ConfigError, match="quickstar is unknown. Did you mean 'quickstart'"):
    recipes.load('quickstar')


@pytest.mark.parametrize(
  'setting, message',
  [
    ('optimizer.learning_rat=1', "no field 'learning_rat'. Did you mean 'learning_rate'"),
    ('optimiser.learning_rate=1', "no field 'optimiser'. Did you mean 'optimizer'"),
    ('loop.updates=many', "loop.updates is 'many', which is not a value of type int"),
    ('loop.updates', 'has no "="'),
    ('objective.divergence=kl', "objective.divergence is 'kl'"),
    ('loop.budget=hours:3', 'tokens:N, updates:N or minutes:X'),
    ('rollout.sampling.top_p=0', r'rollout.sampling.top_p is 0.0; it must lie in \(0, 1\]'),
    ('loop.micro_tokens=3', 'loop.micro_tokens is 3, but a question may take .* positions'),
    ('model.vocab_size=10', 'model.vocab_size is 10, but the tokenizer has'),
    ('data.chains.steps=1', 'only 30 exist'),
  ],
)
def test_settings(setting, message):
  with pytest.raises(ConfigError, match=message):
    shrunk(setting)


@pytest.mark.parametrize('beta, instead', [('0', 'forward_kl'), ('1', 'reverse_kl')])
def test_jsd_at_its_ends_names_the_kl(beta, instead):
  with pytest.raises(ConfigError, match=f'beta is {float(beta)}.*{instead}'):
    shrunk('objective.divergence=jsd', f'objective.beta={beta}')


def test_k_above_the_vocabulary():
  with pytest.raises(ConfigError, match='k is 1000, above the 20 valid vocabulary entries'):
    shrunk('objective.support=teacher_topk', 'objective.k=1000')


def test_workdir_of_another_experiment(tmp_path):
  first = shrunk()
  common.claim_workdir(str(tmp_path), first)
  with pytest.raises(
    ConfigError, match='belongs to another experiment.*learning_rate: 0.001 -> 0.5'
  ) as caught:
    common.claim_workdir(str(tmp_path), shrunk('optimizer.learning_rate=0.5'))
  assert 'Choose another --workdir' in str(caught.value)
  assert json.loads((tmp_path / 'config.json').read_text()) == to_dict(first), 'the owner is untouched'
  common.claim_workdir(
    str(tmp_path), shrunk('loop.budget=updates:9')
  )  # going on for longer is no other experiment


def test_workdir_missing():
  with pytest.raises(ConfigError, match='--workdir is missing'):
    common.claim_workdir(None, shrunk())


def test_workdir_below_a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ConfigError, match='file/run cannot be written: Not a directory. Choose another'):
    common.claim_workdir(str(tmp_path / 'file' / 'run'), shrunk())


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_workdir_without_permission(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(ConfigError, match='cannot be written: Permission denied'):
    common.claim_workdir(str(tmp_path / 'run'), shrunk())


def test_workdir_with_broken_config(tmp_path):
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ConfigError, match='config.json is not JSON.*Remove it'):
    common.claim_workdir(str(tmp_path), shrunk())


def test_command_line_ends_with_one_line():
  done = tiny.call(tiny.command('train', None, ['optimizer.lr=1']))
  assert done.returncode == 2
  assert done.stderr.startswith("error: 'optimizer.lr' is unknown") and 'Traceback' not in done.stderr


def test_list_and_help_teach():
  listed = tiny.call(tiny.command('train', None, (), '--list'))
  assert listed.returncode == 0 and 'quickstart' in listed.stdout
  helped = tiny.call(tiny.command('train', None, (), '--help'))
  for word in ('--workdir', '--set', '--budget', '--experiment', 'runs/quickstart', 'continues a run'):
    assert word in helped.stdout, word


@pytest.mark.slow
def test_full_disk_stops_with_a_remedy_and_loses_nothing(tmp_path):
  """The first save of the main run meets a limit on file sizes, as a full disk would end it."""
  settings = (*tiny.ALONE, 'cold_start.updates=0', 'loop.updates=4', 'checkpoint.asynchronous=true')
  limited = tiny.call(tiny.with_full_disk(tiny.command('train', tmp_path, settings)), cached=False)
  assert limited.returncode == 1, limited.stderr
  assert 'Saving step 2 in' in limited.stderr and 'free space or choose another --workdir' in limited.stderr
  # The array writer's own threads may still complain; the run itself ends with the line above.
  assert 'experiments/train.py' not in limited.stderr, limited.stderr
  done = tiny.call(tiny.command('train', tmp_path, settings))
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'results.json').exists()


def test_nan_is_skipped_counted_and_stops_the_run(tmp_path):
  settings = (
    *tiny.ALONE,
    'cold_start.updates=0',
    'optimizer.learning_rate=1e38',
    'optimizer.warmup_updates=0',
  )
  done = tiny.call(tiny.command('train', tmp_path, settings))
  assert done.returncode == 1, done.stderr
  assert '3 updates in a row were not finite' in done.stderr and 'optimizer.learning_rate' in done.stderr
  report = json.loads((tmp_path / 'failure.json').read_text())
  assert report['bad_updates_in_a_row'] == 3 and 'update_norm' in report['not_finite']
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert rows[-1]['total/skipped_updates'] == 3
