"""Tables against what a person would write by hand."""

import re

from opsd_jax.analyze import table


def arm(sampled, greedy, **more):
  return {
    'sampled_accuracy': sampled,
    'sampled_interval': [sampled - 0.02, sampled + 0.02],
    'greedy_accuracy': greedy,
    'greedy_interval': [greedy - 0.05, greedy + 0.05],
    'pass_at': {'1': sampled, '2': 0.9, '8': 0.955},
    'answered': 1.0,
    'mean_length': 33.44,
    'problems': 500,
    'samples': 8,
  } | more


RESULTS = {
  'experiment': 'quickstart',
  'seed': 0,
  'my_control': arm(0.1, 0.2),
  'opsd': arm(0.725, 0.81),
  'base': arm(0.125, 0.25),
  'tokens': {'sampled': 1},
  'seconds': {'total': 3.0},
  'arms': {
    'cold_start': {'updates': 400, 'sampled': 0, 'flops': 8_000_000_000},
    'opsd': {'updates': 100, 'sampled': 1_234_567, 'flops': 2_500_000_000_000},
    'my_control': {'updates': 99, 'sampled': 1_234_999, 'flops': 1_250_000_000_000},
  },
}

EXPECTED = [
  'arm  sampled % [95 %]  greedy % [95 %]  pass@8 %  answered %  length  updates  '
  'sampled tokens  train TFLOPs',
  'cold start (base)  12.5 [10.5, 14.5]  25.0 [20.0, 30.0]  95.5  100.0  33.4  400  0  0.01',
  'OPSD  72.5 [70.5, 74.5]  81.0 [76.0, 86.0]  95.5  100.0  33.4  100  1,234,567  2.50',
  'my control  10.0 [8.0, 12.0]  20.0 [15.0, 25.0]  95.5  100.0  33.4  99  1,234,999  1.25',
]


def test_text_table_as_written_by_hand():
  header, rule, *rows, note, _ = table.format_table(RESULTS).splitlines()
  shown = [re.sub('  +', '  ', line) for line in (header, *rows)]
  assert shown == EXPECTED
  assert set(rule) == {'-'} and len(rule) == len(header)
  assert note.startswith('500 held-out problems, 8 samples of each;')


def test_columns_are_aligned():
  lines = table.format_table(RESULTS).splitlines()[:-2]
  assert len({len(line) for line in lines}) == 1
  assert [line.index('[') for line in lines if 'base' in line or 'OPSD' in line] == [lines[2].index('[')] * 2


def test_arms_come_in_their_order_under_their_own_labels():
  names = [row[0] for row in table.summary_rows(RESULTS, {'my_control': 'Mine'})[1:]]
  assert names == ['cold start (base)', 'OPSD', 'Mine']


def test_an_arm_that_is_not_trained_has_no_ledger():
  rows = table.summary_rows({'teacher_view': arm(0.9, 0.9), 'arms': RESULTS['arms']})
  assert rows[1][0] == "base, teacher's view" and rows[1][-3:] == ['–', '–', '–']


def test_results_without_arms_fall_back_on_the_tokens():
  rows = table.summary_rows({'opsd': arm(0.9, 0.9), 'tokens': {'sampled': 5000, 'flops': 3e9}})
  assert rows[0][-1] == 'train GFLOPs' and rows[1][-3:] == ['–', '5,000', '3.00']


def test_sparse_results_leave_dashes():
  text = table.format_table({'opsd': {'sampled_accuracy': 0.5}})
  assert text.splitlines()[2].split() == ['OPSD', '50.0', *'–––––––']
  assert table.format_table({}).splitlines()[0].startswith('arm')


def test_html_table_is_escaped():
  text = table.html_table({'a<b': arm(0.5, 0.5)})
  assert '<th scope="row">a&lt;b</th>' in text and text.count('<tr>') == 2


def seed(number, base, opsd, control=None):
  found = {'seed': number, 'base': arm(*base), 'opsd': arm(*opsd)}
  return found | ({'no_privilege': arm(*control)} if control else {})


def test_seeds_table_and_its_smallest_margins():
  text = table.markdown_seeds_table(
    [
      seed(0, (0.10, 0.20), (0.70, 0.80), (0.15, 0.10)),
      seed(1, (0.20, 0.10), (0.75, 0.85), (0.60, 0.90)),
      seed(2, (0.15, 0.15), (0.72, 0.78)),
    ]
  )
  assert text.splitlines() == [
    '| seed | cold start (base) | OPSD | control: no privilege |',
    '|---|---:|---:|---:|',
    '| 0 | 10.0 / 20.0 | 70.0 / 80.0 | 15.0 / 10.0 |',
    '| 1 | 20.0 / 10.0 | 75.0 / 85.0 | 60.0 / 90.0 |',
    '| 2 | 15.0 / 15.0 | 72.0 / 78.0 | – / – |',
    '| **smallest margin of OPSD** | **+55.0 / +60.0** |  | **+15.0 / -5.0** |',
  ]


def test_a_bar_in_a_label_does_not_end_its_cell():
  assert r'a\|b' in table.markdown_seeds_table([{'seed': 0, 'a|b': arm(0.1, 0.1)}])


def test_numbers_for_people():
  assert [table.short(x) for x in (0.5, 3.14159, 31.4159, 314.159, 12345.6)] == [
    '0.50',
    '3.14',
    '31.4',
    '314',
    '12,346',
  ]
  assert [table.flops_unit(x)[1] for x in (0, 1e6, 2.5e9, 9.9e12, 1e15, 1e20)] == [
    'M',
    'M',
    'G',
    'T',
    'P',
    'E',
  ]
