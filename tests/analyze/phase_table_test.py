"""Seconds and FLOPs of the phases, from rows whose sums are known."""

import re

from opsd_jax.analyze import phase_table
from opsd_jax.analyze.runs import Arm, Run
from opsd_jax.train import ledger

FLOPS = 10**12


def row(step, rollout, update, seconds, **more):
  """A line of the metrics; `seconds` is how long the run has taken so far."""
  total = {
    'needed_rollout': step * FLOPS,
    'spent_rollout': 2 * step * FLOPS,
    'needed_student': 3 * step * FLOPS,
    'spent_student': 4 * step * FLOPS,
    'needed_teacher': step * FLOPS,
    'spent_teacher': 2 * step * FLOPS,
    'needed_weigh': 0,
    'spent_weigh': 0,
  }
  time = {'rollout': rollout, 'update': update, **more, 'seconds': seconds, 'tokens_per_second': 7.0}
  return {'step': step, 'loss': 0.1, 'time': time} | {f'total/{name}': n for name, n in total.items()}


# The first update compiles; after the second there was a validation.
ROWS = [row(1, 4.0, 20.0, 24.5), row(2, 1.0, 2.0, 28.0), row(3, 2.0, 3.0, 40.0, controller=1.0)]


def run(folder, rows):
  return Run(str(folder), {}, None, {'opsd': Arm('opsd', 'OPSD', rows, {})}, {})


def cells(text):
  """The table of a page, row by row."""
  rows = re.findall('<tr>(.*?)</tr>', text, re.DOTALL)
  return [re.findall('<t[hd][^>]*>(.*?)</t[hd]>', one) for one in rows]


def test_phases_of_every_update_and_what_is_between():
  found = {phase.name: phase for phase in phase_table.measure(ROWS)}
  assert {name: phase.seconds for name, phase in found.items()} == {
    'rollout': [4.0, 1.0, 2.0],
    'update': [20.0, 2.0, 3.0],
    'controller': [0.0, 0.0, 1.0],
    'between updates': [0.5, 0.5, 6.0],
  }
  assert found['update'].spent == {'teacher': [2 * FLOPS] * 3, 'weigh': [0] * 3, 'student': [4 * FLOPS] * 3}
  assert found['rollout'].needed == {'rollout': [FLOPS] * 3}


def test_every_phase_of_the_ledger_is_one_of_the_hosts():
  shown = [name for names in phase_table._LEDGER.values() for name in names]
  assert sorted(shown) == sorted(ledger.PHASES)


def test_the_table(tmp_path):
  shown = cells(phase_table.phases_html(run(tmp_path, ROWS)))
  none = phase_table.table.NONE
  # 7, 25, 1 and 7 seconds of 40; 6 TFLOPs in 20, 2 and 3 seconds.
  assert shown[1:] == [
    ['rollout', '2', '7.0', '17.5', '3.00 T', '6.00 T', '1.00 T'],
    ['update', '3', '25.0', '62.5', '12.0 T', '18.0 T', '2.00 T'],
    ['update: teacher', none, none, none, '3.00 T', '6.00 T', none],
    ['update: student', none, none, none, '9.00 T', '12.0 T', none],
    ['controller', '0', '1.0', '2.5', none, none, none],
    ['between updates', '0.5', '7.0', '17.5', none, none, none],
  ]


def test_a_run_without_times_has_no_table(tmp_path):
  assert phase_table.phases_html(run(tmp_path, [])) == ''
  assert phase_table.phases_html(run(tmp_path, [{'step': 1, 'loss': 0.1}])) == ''
  assert phase_table.phases_html(Run(str(tmp_path), {}, None, {}, {})) == ''


def test_a_profile_is_named_with_the_command_that_opens_it(tmp_path):
  folder = tmp_path / 'a run' / 'profile/plugins/profile/from_update_10'
  folder.mkdir(parents=True)
  for name in ('process_0_a.xplane.pb', 'process_1_b.xplane.pb', 'process_0_a.trace.json.gz'):
    (folder / name).touch()
  text = phase_table.phases_html(run(tmp_path / 'a run', []))
  assert '<code>from_update_10</code> (processes: 2)' in text
  assert f'xprof --logdir=&#x27;{tmp_path}/a run/profile&#x27; --port=8791' in text
