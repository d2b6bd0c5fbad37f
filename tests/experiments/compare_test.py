"""The command that compares two evaluations: what it refuses, what it shows, and what it writes."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import compare as command
from experiments import entry
from opsd_jax.config import ConfigError
from opsd_jax.evaluate import samples, summary
from opsd_jax.evaluate.comparison import sign_flip_p
from tests.conftest import REPOSITORY
from tests.evaluate import marked

SETTINGS = {
  'model': 'base',
  'temperature': 1.0,
  'max_tokens': 64,
  'versions': {'jax': '1'},
  'prompt': {'maths': 'P'},
}


def write(folder, benchmarks, **settings):
  """The folder of an evaluation: name -> rows of letters, and a digest where it is given as a pair."""
  rows, settings = [], SETTINGS | settings
  for name, letters in benchmarks.items():
    letters, digest = letters if isinstance(letters, tuple) else (letters, 'digest')
    found = marked.table(letters, name=name, stopped=name != 'cut')
    loaded = marked.loaded(len(letters), name=name)
    rows.append(summary.summarise(dataclasses.replace(loaded, digest=digest), found))
    (folder / name).mkdir(parents=True)
    samples.write(str(folder / name / 'samples.jsonl'), found)
  (folder / 'settings.json').write_text(json.dumps(settings))
  (folder / 'results.json').write_text(json.dumps(summary.results(rows, settings)))
  return str(folder)


def run(*arguments):
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-m', 'experiments.compare', *arguments]
  return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)


def compared(a, b, names=(), rules=None):
  a, b = command.read(a), command.read(b)
  found = {name: command.compared(a, b, name, rules) for name in command.chosen(a, b, names)}
  return found, command.report(a, b, found)


def refused(*arguments):
  with pytest.raises(ConfigError) as caught:
    compared(*arguments)
  return str(caught.value)


def test_a_comparison_is_printed_and_written(tmp_path):
  a = write(tmp_path / 'a', {'aime': ['ww', 'cw', 'cc', 'ww'], 'cut': ['cw']})
  b = write(
    tmp_path / 'b', {'aime': ['cc', 'cc', 'cw', 'cw'], 'more': ['cw']}, model='trained', temperature=0.6
  )
  done = run(a, b, f'--output={tmp_path / "out.json"}')
  assert done.returncode == 0, done.stderr
  lines = done.stdout.split('\n')
  assert lines[0] == f'A: {a} (model base)' and lines[1] == f'B: {b} (model trained)'
  assert '- temperature: 1.0 -> 0.6' in lines and 'Not compared: cut (only A), more (only B).' in lines
  row = next(line for line in lines if line.startswith('| aime'))
  cells = [cell.strip() for cell in row.strip('|').split('|')]
  assert cells[:6] == ['aime', '4', '2', 'strict', '37.5', '75.0']
  assert cells[6].startswith('+37.5 [') and cells[7] == f'{sign_flip_p([2, 1, -1, 1]):.3f}'
  assert cells[8:11] == ['3 (2)', '1 (1)', '50.0 → 100.0']
  found = json.loads((tmp_path / 'out.json').read_text())
  assert found['settings_that_differ'] == ['temperature: 1.0 -> 0.6'] and list(found['benchmarks']) == [
    'aime'
  ]
  aime = found['benchmarks']['aime']
  assert (aime['gained'], aime['lost']) == (['aime/0', 'aime/1', 'aime/3'], ['aime/2'])
  assert (aime['gained_majority'], aime['lost_majority']) == (['aime/0', 'aime/1'], ['aime/2'])
  assert aime['difference']['value'] == pytest.approx(0.375) and aime['pass_at']['2'] == [0.5, 1.0]
  assert np.isclose(aime['p_value'], sign_flip_p([2, 1, -1, 1]))


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
  path = tmp_path / 'new' / 'out.json'
  command._write(str(path), {'a': 1})
  assert json.loads(path.read_text()) == {'a': 1}
  with pytest.raises(ConfigError, match='--output=.*/new cannot be written: Is a directory'):
    command._write(str(path.parent), {'a': 1})


def test_a_folder_that_is_missing_is_one_line(tmp_path):
  done = run('/nowhere', str(tmp_path))
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == 'error: /nowhere is no folder; name one that experiments.evaluate wrote.\n'


@pytest.mark.parametrize(
  ('given', 'complaint'),
  [
    ([], 'A B is missing; two folders'),
    (['one'], 'B is missing; two folders'),
    (['one', 'two', 'three'], "'three' is not a flag; two folders"),
  ],
)
def test_words_that_are_missing_or_too_many(given, complaint):
  with pytest.raises(ConfigError) as caught:
    entry.taken(given, ('A', 'B'), 'two folders')
  assert str(caught.value) == complaint + '.'


def test_other_commands_still_take_no_words():
  assert entry.taken([], (), 'see --help') == []
  with pytest.raises(ConfigError, match="'data.seed=1' is not a flag; write --set"):
    entry.taken(['data.seed=1'], (), 'write --set')


def test_problems_that_differ_are_refused(tmp_path):
  a = write(tmp_path / 'a', {'aime': ['c'], 'amc': (['c'], 'one')})
  b = write(tmp_path / 'b', {'aime': ['c'], 'amc': (['c'], 'another')})
  message = refused(a, b)
  assert message.startswith('the problems of amc differ') and '--benchmarks=aime.' in message
  assert list(compared(a, b, ['aime'])[0]) == ['aime']
  c = write(tmp_path / 'c', {'amc': (['c', 'c'], 'one')})  # of the same file, but more of it
  assert 'not of the same problems' in refused(a, c)


@pytest.mark.parametrize(
  ('names', 'complaint'),
  [(['aimee'], "a has no benchmark 'aimee'. Did you mean 'aime'?"), (['cut'], "b has no benchmark 'cut'")],
)
def test_benchmarks_that_are_not_in_both(tmp_path, names, complaint):
  a = write(tmp_path / 'a', {'aime': ['c'], 'cut': ['c']})
  b = write(tmp_path / 'b', {'aime': ['c']})
  assert complaint in refused(a, b, names)
  c = write(tmp_path / 'c', {'other': ['c']})
  assert 'share no benchmark' in refused(b, c) and 'other' in refused(b, c)


def test_rules_that_one_lacks_are_refused(tmp_path):
  a, b = (write(tmp_path / x, {'aime': ['c']}) for x in 'ab')
  assert 'aime was not marked by --rules=opsd' in refused(a, b, [], 'opsd')


def test_settings_are_told_apart_by_what_they_can_change(tmp_path):
  a = write(tmp_path / 'a', {'aime': ['c']})
  other = {
    'prompt': {'maths': 'Q\nR'},
    'versions': {'jax': '2'},
    'remarks': 'x',
    'changed': ['top_p: 1 -> 2'],
    'model': 'new',
    'thinking': True,
  }
  b = write(tmp_path / 'b', {'aime': ['c']}, **other)
  matter, harmless = command.differing(command.read(a), command.read(b))
  assert matter == ['prompt.maths: P -> Q\nR', 'thinking: (absent) -> True']
  assert harmless == ['versions.jax: 1 -> 2']
  _, report = compared(a, b)
  assert '- prompt.maths: P -> Q\\nR\n' in report and 'Settings that differ' in report
  assert 'differ' not in compared(a, a)[1].split('| benchmark')[0]
  c = write(tmp_path / 'c', {'aime': ['c']}, model={'folder': '/m', 'step': 10})
  assert compared(a, c)[1].split('\n')[1] == f'B: {c} (model folder /m, step 10)'


@pytest.mark.parametrize(
  ('content', 'complaint'),
  [
    (None, 'results.json does not exist; let experiments.evaluate come to its end'),
    ('{', 'cannot be read'),
    ('[]', 'holds no settings'),
    ('{"arms": 1}', 'is not what experiments.evaluate writes'),
  ],
)
def test_folders_of_something_else_are_refused(tmp_path, content, complaint):
  if content is not None:
    (tmp_path / 'results.json').write_text(content)
  assert complaint in refused(str(tmp_path), str(tmp_path))


def test_an_evaluation_compared_with_itself_is_even(tmp_path):
  a = write(tmp_path / 'a', {'aime': ['cw', 'ww', 'cc']})
  found, _ = compared(a, a)
  assert (found['aime'].p_value, found['aime'].difference.value) == (1.0, 0.0)
  assert found['aime'].gained == found['aime'].lost == ()
