"""Reports of finished samples: majorities by the rules that count."""

import json

import pytest

from experiments.sitting import book as books
from experiments.sitting import reports
from experiments.sitting.papers import Paper
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.grade.config import GradeConfig
from tests.evaluate import marked


def reported(tmp_path, rules, answers, verdicts):
  """Numbers of one problem, whose samples gave these answers."""
  paper = Paper(marked.loaded(1), [[1]], ViewsConfig())
  book = books.open_book(str(tmp_path / 'mine' / 'samples.jsonl'), ['mine/0'], len(answers))
  found = [
    marked.sample(0, i, {r: v for r in rules}, answer=a) for i, (a, v) in enumerate(zip(answers, verdicts))
  ]
  books.add(book, found[::-1])
  table = reports.write(str(tmp_path), [paper], [book], GradeConfig(rules=rules[-1]), {'seed': 3})
  assert (tmp_path / 'table.md').read_text() == table and '**seed:** 3' in table
  return json.loads((tmp_path / 'results.json').read_text())['benchmarks']['mine']


@pytest.mark.parametrize(
  ('rules', 'majority'),
  [
    (['text'], 1 / 3),  # three answers once each, one of them right
    (['opsd', 'strict'], 0.0),  # 1/2 and 0.5 are the same, and the most common
  ],
)
def test_majorities(tmp_path, rules, majority):
  found = reported(tmp_path, rules, ['1/2', '0.5', '7', None], ['wrong', 'wrong', 'correct', 'unformatted'])
  assert found['primary'] == rules[-1]
  assert found['scores'][rules[-1]]['majority'] == pytest.approx(majority)
