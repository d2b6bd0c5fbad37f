"""A run is not continued on other problems or other prompts, although its settings name the same files."""

import json

import pytest

from experiments import common, recipes
from opsd_jax.config import ConfigError
from opsd_jax.experiment import build
from tests.experiments import real_text


@pytest.fixture
def settings(tmp_path):
  return real_text.settings(tmp_path / 'text')


def claim(settings, workdir):
  experiment = common.with_settings(recipes.load('gsm8k_tiny'), list(settings))
  common.claim_workdir(str(workdir), experiment, build(experiment).origin)


def test_nothing_changed(settings, tmp_path):
  for _ in range(2):
    claim(settings, tmp_path / 'run')
  assert set(json.loads((tmp_path / 'run/origin.json').read_text())) == {'problems', 'prompts'}


@pytest.mark.parametrize(
  'change',
  [
    lambda rows: [*rows, *real_text.rows(1, first=99)],
    lambda rows: rows[:-1],
    lambda rows: [{**rows[0], 'answer': 'None left.\n#### 0'}, *rows[1:]],
  ],
)
def test_other_problems(settings, tmp_path, change):
  claim(settings, tmp_path / 'run')
  path = tmp_path / 'text/data/train.jsonl'
  rows = change([json.loads(line) for line in path.read_text().splitlines()])
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  with pytest.raises(ConfigError, match='belongs to another experiment: the problems .*Bring that back'):
    claim(settings, tmp_path / 'run')


def test_another_template(settings, tmp_path):
  mine = tmp_path / 'mine.jinja'
  mine.write_text(real_text.TEMPLATE)
  settings = (*settings, f'tokenizer.chat_template={mine}')
  claim(settings, tmp_path / 'run')
  mine.write_text(real_text.TEMPLATE.replace('assistant', 'model'))
  from opsd_jax.text import tokenizer

  tokenizer.make_tokenizer.cache_clear()  # as a new process would
  with pytest.raises(ConfigError, match='another experiment: the tokenizer, its chat template'):
    claim(settings, tmp_path / 'run')
