"""Means over seeds by hand, and costs read off made-up runs."""

import json

import pytest

from opsd_jax.analyze import across, across_curves, across_report, table

# Half the 95 % interval of three values is t(2) = 4.30265 times the standard error.
T2 = 4.302652729911275


def write_run(folder, seed, accuracies, opsd, other, warm=0):
  """A run with validations after updates 1, 2, ... of 100 tokens each, and one control."""
  folder.mkdir()
  controls = [{'name': 'other', 'overrides': []}]
  (folder / 'config.json').write_text(json.dumps({'name': 'made_up', 'seed': seed, 'controls': controls}))
  for name, path in (('opsd', folder), ('other', folder / 'controls' / 'other')):
    path.mkdir(parents=True, exist_ok=True)
    write_metrics(path, accuracies[name])
  if warm:
    (folder / 'controls' / 'other' / 'warm_start').mkdir()
    row = {'step': 1, 'loss': 1.0, 'total/given': warm, 'total/flops': 7e9}
    (folder / 'controls' / 'other' / 'warm_start' / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  arms = {name: arm(share) for name, share in (('base', 0.1), ('opsd', opsd), ('other', other))}
  spent = {'updates': 2, 'skipped': 0, 'sampled': 200, 'given': 0, 'scored_student': 200, 'flops': 10**9}
  results = {'seed': seed, **arms, 'arms': {'opsd': spent, 'other': spent | {'given': warm}}}
  (folder / 'results.json').write_text(json.dumps(results))
  return folder


def write_metrics(folder, accuracies):
  with open(folder / 'metrics.jsonl', 'w') as file:
    for step, accuracy in enumerate(accuracies, start=1):
      row = {'step': step, 'loss': 1.0, 'total/sampled': 100 * step, 'total/given': 0}
      row |= {'total/scored_student': 100 * step, 'total/scored_teacher': 50 * step}
      row |= {'total/flops': 1e9 * step, 'validation_accuracy': accuracy, 'retention/old/accuracy': 0.5}
      file.write(json.dumps(row) + '\n')


def arm(share):
  old = {'accuracy': 1 - share, 'low': 0, 'high': 1, 'problems': 9}
  levels = {'5': share + 0.05, '10': share}
  accuracies = {'sampled_accuracy': share, 'greedy_accuracy': share / 2}
  return accuracies | {'retention': {'old': old}, 'levels': levels, 'problems': 9, 'samples': 2}


@pytest.fixture
def found(tmp_path):
  given = ((0, 0.9, 0.3), (1, 0.8, 0.4), (2, 0.7, 0.2))
  ways = {'opsd': [0.5, 0.85], 'other': [0.1, 0.2]}
  late = {'opsd': [0.5, 0.6], 'other': [0.1, 0.2]}
  for seed, opsd, other in given:
    write_run(tmp_path / str(seed), seed, late if seed == 2 else ways, opsd, other, warm=40)
  (tmp_path / 'unfinished').mkdir()
  return across.read([tmp_path / name for name in ('0', '1', '2', 'unfinished')])


def test_mean_and_interval():
  assert across.mean([0.9, 0.8, 0.7]) == pytest.approx((0.8, T2 * 0.1 / 3**0.5))
  assert across.mean([0.9]) == (0.9, None)


def test_what_stands_in_the_summary(found):
  summary = across.summarise(found, 0.8)
  assert list(summary) == ['base', 'opsd', 'other']
  assert summary['other']['behind'] == pytest.approx(
    (0.5, T2 * 0.1 / 3**0.5)
  )  # 0.6, 0.4, 0.5 of the same seed
  assert summary['other']['kept']['old'].value == pytest.approx(0.7)
  assert summary['other']['tokens'].value == 240
  assert summary['opsd']['levels']['5'].value == pytest.approx(0.85)
  assert (summary['opsd']['reached'], summary['opsd']['seeds']) == (2, 3)
  between = (0.8 - 0.5) / (0.85 - 0.5)  # the first and the second validation
  assert summary['opsd']['tokens_to_target'] == pytest.approx((100 + 100 * between, 0))
  assert summary['opsd']['flops_to_target'].value == pytest.approx(1e9 * (1 + between))
  assert summary['opsd']['old_at_target'] == (0.5, 0)
  assert 'tokens_to_target' not in summary['other']
  assert 'updates' not in summary['base']


def test_a_target_before_the_first_validation_is_on_the_way_from_the_base(found):
  way, base = across.course(found[0], 'opsd'), arm(0.1)
  there = across.reached(way, base, 0.3)
  assert there == pytest.approx(
    {'updates_to_target': 0.5, 'tokens_to_target': 50, 'flops_to_target': 5e8, 'old_at_target': 0.7}
  )
  assert across.reached(way, base, 0.05)['tokens_to_target'] == 0
  assert across.reached(way, base, 0.86) == {}


def test_a_warm_start_is_part_of_the_course(found):
  way = across.course(found[0], 'other')
  assert way.tokens.tolist() == [140, 240]
  assert way.updates.tolist() == [2, 3]
  assert way.scored.tolist() == [150, 300]
  assert way.flops.tolist() == [8e9, 9e9]
  assert way.kept['old'].tolist() == [0.5, 0.5]
  assert across.course(found[0], 'base') is None


def test_the_tables(found):
  summary = across.summarise(found, 0.8)
  rows = across.cells(summary, 0.8)
  assert {len(row) for row in rows} == {len(rows[0])}
  assert rows[0][:5] == ['arm', 'sampled %', 'greedy %', 'points behind OPSD', 'old %']
  assert rows[2][:5] == ['OPSD', '80.0 ± 24.8', '40.0 ± 12.4', table.NONE, '20.0 ± 24.8']
  assert rows[2][-4] == '1.86 (2/3)'
  assert rows[2][-3:] == ['0.19k', '0.00', '50.0 ± 0.0']
  assert across.level_cells(summary)[0] == ['arm', 'level 5 %', 'level 10 %']


def test_averages_end_with_the_shortest_run(found):
  found[0].arms['opsd'].metrics.pop()
  tokens, accuracy, half = across_curves.averaged(found, 'opsd', 'tokens')
  assert (tokens.tolist(), accuracy.tolist(), half.tolist()) == ([100], [0.5], [0])


def test_the_page_has_tables_and_a_picture(found, tmp_path):
  with open(
    across_report.write(tmp_path, found, across.summarise(found, 0.8), 0.8), encoding='utf-8'
  ) as file:
    text = file.read()
  assert 'made_up, seeds 0, 1, 2' in text and 'level 10 %' in text and 'base64,' in text
  assert json.loads(json.dumps(across_report.plain(across.summarise(found, 0.8))))['opsd']['sampled'] == {
    'value': pytest.approx(0.8),
    'half': pytest.approx(T2 * 0.1 / 3**0.5),
  }
