"""The numbers of a benchmark against a count by hand, and a table that hides nothing."""

import dataclasses
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.evaluate import summary
from opsd_jax.evaluate.benchmarks import BENCHMARKS
from opsd_jax.evaluate.grid import grid
from opsd_jax.evaluate.samples import Sample
from opsd_jax.evaluate.statistics import bootstrap, mean_accuracy
from opsd_jax.records import Verdict
from tests.evaluate import marked

SETTINGS = {
  'protocol': 'opsd',
  'model': {'folder': '/models/tiny', 'step': 100},
  'temperature': 1.0,
  'top_p': 0.95,
  'top_k': None,
  'min_p': 0.0,
  'thinking': True,
  'max_tokens': 38912,
  'prompt': '{problem}\n\nPlease answer in \\boxed{}.',
  'system': '',
  'rules': 'opsd',
  'samples': 2,
  'seed': 0,
  'versions': {'jax': '0.10.2'},
  'machine': 'a TPU',
}


def test_the_numbers_of_three_problems():
  samples = [
    marked.sample(0, 0, 'correct', tokens=2),
    marked.sample(0, 1, 'correct', tokens=4),
    marked.sample(1, 0, 'wrong', tokens=10, stopped=False, answer='2'),
    marked.sample(1, 1, 'correct', tokens=3),
    marked.sample(2, 0, 'unformatted', tokens=20, stopped=False, answer=None, prompt=13),
    marked.sample(2, 1, 'timeout', tokens=6, prompt=13, answer='3'),
  ]
  random.Random(0).shuffle(samples)
  found = summary.summarise(marked.loaded(), samples, labels=[[0, 0], [0, 1], [-1, 0]])
  correct = np.array([[1, 1], [0, 1], [0, 0]], bool)
  score = found.scores['strict']
  assert (found.problems, found.samples, found.primary, found.digest) == (3, 2, 'strict', 'digest')
  assert score.average == mean_accuracy(correct)
  assert score.bootstrap == bootstrap(np.array([1, 0.5, 0]))
  assert score.pass_at == {1: 0.5, 2: pytest.approx(2 / 3)}
  assert score.majority == pytest.approx((1 + 0.5 + 0) / 3)
  assert score.answered == pytest.approx(5 / 6)
  assert score.verdicts == {'correct': 3, 'timeout': 1, 'unformatted': 1, 'wrong': 1}
  assert (score.length_right, score.length_wrong) == (3.0, 12.0)
  assert found.truncated == pytest.approx(2 / 6)
  assert (found.mean_length, found.sampled_tokens) == (7.5, 45)
  assert found.mean_prompt_tokens == 9.0


@pytest.mark.parametrize('letters', ['c', 'w'])
def test_where_none_is_right_or_wrong_there_is_no_length(letters):
  score = summary.summarise(marked.loaded(2), marked.table([letters, letters])).scores['strict']
  assert (score.length_right is None, score.length_wrong is None) == (letters == 'w', letters == 'c')
  assert score.majority is None


@pytest.mark.parametrize(
  ('asked', 'primary'), [('opsd', 'opsd'), ('strict', 'strict'), ('text', 'strict'), (None, 'strict')]
)
def test_every_rule_has_its_own_numbers(asked, primary):
  found = summary.summarise(marked.loaded(1), [marked.sample(0, 0, marked.OPSD)], asked)
  assert found.primary == primary
  assert {name: s.average.value for name, s in found.scores.items()} == {'opsd': 0.0, 'strict': 1.0}


def test_programs_have_no_majority_and_known_benchmarks_their_remarks():
  known = dataclasses.replace(marked.loaded(1), benchmark=BENCHMARKS['mbpp_plus'])
  verdicts = {'base': Verdict.CORRECT, 'plus': Verdict.WRONG}
  found = summary.summarise(known, [marked.sample(0, 0, verdicts)], 'opsd', [[0]])
  assert found.primary == 'plus' and found.scores['plus'].majority is None
  assert found.remarks == BENCHMARKS['mbpp_plus'].remarks != ()
  text = summary.table([found], SETTINGS)
  assert f'- MBPP+: {"; ".join(found.remarks)}.' in text and '| base 100.0 |' in text


# --- The grid.


@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_samples_in_any_order_make_the_same_grid(data, problems, n):
  rows = [''.join(data.draw(st.sampled_from('cwut')) for _ in range(n)) for _ in range(problems)]
  samples = marked.table(rows)
  cells = grid(data.draw(st.permutations(samples)), [f'mine/{i}' for i in range(problems)])
  assert cells.correct('strict').tolist() == [[c == 'c' for c in row] for row in rows]
  assert cells.answered('strict').tolist() == [[c != 'u' for c in row] for row in rows]
  assert cells.problems == tuple(f'mine/{i}' for i in range(problems)) and cells.samples == n


@pytest.mark.parametrize(
  ('change', 'complaint'),
  [
    (lambda s: s[:-1], "lacks 1 samples, such as 'mine/2' sample 1"),
    (lambda s: s[2:], "lacks 2 samples, such as 'mine/0' sample 0"),
    (lambda s: [*s, s[0]], 'has 1 samples twice'),
    (
      lambda s: [*s, *marked.table(['cc'], name='other')],
      "samples of 'other/0', which is not among its problems",
    ),
    (
      lambda s: [*s[:-1], marked.sample(2, 1, 'correct', rules='opsd')],
      "'mine/2' was marked by opsd, others by strict",
    ),
    (lambda s: [], 'has no samples'),
  ],
)
def test_samples_that_make_no_grid_are_refused(change, complaint):
  with pytest.raises(ConfigError) as caught:
    summary.summarise(marked.loaded(3), change(marked.table(['cw', 'cw', 'cw'])))
  assert complaint in str(caught.value)


def test_rules_that_were_not_applied_are_named():
  with pytest.raises(ConfigError, match="not marked by 'strikt'. Did you mean 'strict'"):
    grid(marked.table(['c'])).correct('strikt')


# --- JSON and Markdown.


def test_results_are_plain_json():
  rows = [summary.summarise(marked.loaded(notes=('1 row',)), marked.table(['cw', 'ut', 'cc']))]
  found = json.loads(json.dumps(summary.results(rows, SETTINGS), allow_nan=False))
  assert found['settings'] == SETTINGS
  one = found['benchmarks']['mine']
  assert (one['digest'], one['primary'], one['notes']) == ('digest', 'strict', ['1 row'])
  assert one['files'] == {'/data/mine.jsonl': 'ab'}
  assert one['scores']['strict']['pass_at'] == {'1': 0.5, '2': pytest.approx(2 / 3)}
  assert one['scores']['strict']['average']['value'] == 0.5


def parsed(text):
  """The table's rows as mappings from header to cell; checks that every line has as many cells."""
  lines = [line for line in text.split('\n') if line.startswith('|')]
  cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
  assert len({len(row) for row in cells}) == 1 and set(''.join(cells[1])) <= set('-:')
  return [dict(zip(cells[0], row)) for row in cells[2:]]


def test_the_table_says_how_its_numbers_were_got():
  first = summary.summarise(
    marked.loaded(2, notes=('2 problems, not the usual 30',)),
    [marked.sample(i, j, marked.OPSD, stopped=j == 0) for i in range(2) for j in range(2)],
    'opsd',
    [[0, 0], [0, 0]],
  )
  second = summary.summarise(marked.loaded(3, name='other'), marked.table(['cw', 'ut', 'cc'], name='other'))
  text = summary.table([first, second], SETTINGS | {'grading': 'math-verify 0.9.0'})
  for said in (
    '- **temperature:** 1.0\n',
    '- **top-p:** 0.95\n',
    '- **top-k:** none\n',
    '- **thinking mode:** on\n',
    '- **token budget:** 38912\n',
    '- **prompt:** `{problem}\\n\\nPlease answer in \\\\boxed{}.`\n',
    '- **system turn:** none\n',
    '- **grader rules:** `opsd`\n',
    '- **seed:** 0\n',
    '- **versions:** jax: `0.10.2`\n',
    '- **model:** folder: `/models/tiny`; step: 100\n',
    '- **protocol:** `opsd`\n',
    '- **grading:** `math-verify 0.9.0`\n',
    '- mine: 2 problems, not the usual 30.',
    'Licence of mine',
  ):
    assert said in text
  one, two = parsed(text)
  assert one['benchmark'] == 'mine' and one['problems × n'] == '2 × 2'
  assert one['avg@2 [95 %]'] == '0.0 [0.0–65.8]' and one['other rules'] == 'strict 100.0'
  assert (one['maj@2'], one['truncated'], one['answered']) == ('0.0', '50.0', '100.0')
  assert one['right / wrong'] == '– / 4' and two['right / wrong'] == '4 / 4'
  assert (two['rules'], two['other rules'], two['maj@2']) == ('strict', '–', '–')
  assert (two['pass@2'], two['no verdict'], two['answered']) == ('66.7', '1 timeout', '83.3')
  assert 'Sampled tokens in all: 40' in text


def test_settings_that_are_missing_are_said_to_be():
  text = summary.table([], {'temperature': 0.0})
  assert '- **temperature:** 0.0\n' in text and '- **thinking mode:** not stated\n' in text


def test_benchmarks_of_unequal_samples_share_a_table():
  rows = [
    summary.summarise(marked.loaded(1), marked.table(['cwcw'])),
    summary.summarise(marked.loaded(1, name='other'), marked.table(['c'], name='other')),
  ]
  one, two = parsed(summary.table(rows, SETTINGS))
  assert one['pass@4'] == '100.0' and two['pass@4'] == '–' and 'avg@n [95 %]' in one


def test_a_sample_of_every_verdict_is_counted_once():
  samples = [marked.sample(0, i, v) for i, v in enumerate(Verdict)]
  score = summary.summarise(marked.loaded(1), samples).scores['strict']
  assert score.verdicts == {str(v): 1 for v in Verdict}
  assert isinstance(samples[0], Sample) and score.average.value == pytest.approx(1 / len(Verdict))
