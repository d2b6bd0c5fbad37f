"""The report: all of a finished run, what there is of a running one, nothing that loads or runs."""

import html.parser
import json
import math
import struct

import pytest

from opsd_jax.analyze import curves, report
from opsd_jax.analyze.runs import flatten, read_run
from opsd_jax.config import ConfigError

CONTROLS = ('no_privilege', 'sharpened_no_privilege')
NASTY = '<script>alert("1")</script> & "quoted" https://example.com'


def update_row(step, rate, updates):
  """A row whose numbers move the way a run's do."""
  left = math.exp(-3 * step / updates)
  wobble = math.sin(7.3 * step) * 0.02
  share = 0.75 - 0.65 * left * rate - 0.5 * (1 - rate)
  row = {
    'step': step,
    'loss': rate * (0.05 + 0.6 * left) * (1 + 3 * wobble),
    'grad_norm': 0.2 + rate * left + 3 * wobble,
    'forward_kl': rate * (0.05 + 0.6 * left),
    'student_entropy': 0.1 + 0.5 * left + wobble,
    'teacher_entropy': 0.12 + wobble / 2,
    'accuracy': share + 2 * wobble,
    'length_mean': 33 + 4 * left + 20 * wobble,
    'tokens': 2000,
    'logp_gap': 0.004,
    'logp_gap_max': 0.01 * step,
    'staleness': 0.5,
    'parity_alarm': int(step % 50 == 0),
    'total/sampled': 2000 * step,
    'total/scored_student': 2000 * step,
    'total/flops': 10**9 * step,
    'total/skipped_updates': 0,
    'time': {'seconds': 0.5 * step, 'tokens_per_second': 4000.0},
  }
  if step % 20 == 0:
    row['validation_accuracy'] = share - 0.01
  return row


def cold_row(step, updates):
  return {
    'step': step,
    'loss': 0.3 + 2.4 * math.exp(-6 * step / updates),
    'grad_norm': 0.5,
    'total/scored_student': 3000 * step,
    'total/flops': 10**9 * step,
    'time': {'seconds': 0.1 * step},
  }


def shown(problem='3+*-', correct=True):
  return {
    'problem': problem,
    'student_prompt': f'{problem}:',
    'teacher_prompt': f'{problem}|487:',
    'tokens': ['3', '+', '4', '\n', '<eos>'],
    'loss': [0.01, 0.5, -0.25, float('nan'), 1.0],
    'answer': '7',
    'correct': correct,
  }


def accuracy(share):
  return {
    'sampled_accuracy': share,
    'sampled_interval': [share - 0.03, share + 0.03],
    'greedy_accuracy': share + 0.02,
    'greedy_interval': [share - 0.02, share + 0.06],
    'pass_at': {'1': share, '8': min(1.0, share + 0.2)},
    'answered': 0.99,
    'stopped': 0.98,
    'mean_length': 33.4,
    'problems': 500,
    'samples': 8,
  }


def results():
  ledger = {
    'updates': 100,
    'skipped': 0,
    'sampled': 200_000,
    'scored_student': 200_000,
    'scored_teacher': 200_000,
    'prompt_sampler': 64_000,
    'flops': 1.5e12,
    'positions_student': 987_654,
    'needed_student': 0.6e12,
    'spent_student': 1.6e12,
  }
  arms = dict.fromkeys(('cold_start', 'opsd', *CONTROLS), ledger)
  shares = {
    'base': 0.12,
    'teacher_view': 0.93,
    'opsd': 0.74,
    'no_privilege': 0.11,
    'sharpened_no_privilege': 0.2,
  }
  return (
    {'experiment': 'quickstart', 'seed': 3}
    | {n: accuracy(s) for n, s in shares.items()}
    | {
      'tokens': ledger,
      'arms': arms,
      'evaluation': {'opsd': {'sampled': 140_000, 'flops': 2e10}},
      'seconds': {'cold_start': 40.2, 'opsd': 75.0, 'total': 3725.0},
      'versions': {'python': '3.13.1', 'jax': '0.11.0'},
      'machine': {'platform': 'cpu', 'device_kind': 'cpu', 'devices': 1, 'cpu_count': 4},
    }
  )


def config():
  return {
    'name': 'quickstart',
    'seed': 3,
    'views': {'student': '{problem}:', 'teacher': '{problem}|{r}:'},
    'teacher': {'kind': 'frozen'},
    'cold_start': {'updates': 400},
    'optimizer': {'learning_rate': 0.001},
    'controls': [{'name': n, 'overrides': ['views.teacher={problem}:']} for n in CONTROLS],
  }


def write_arm(folder, rows, rollouts=()):
  (folder / 'rollouts').mkdir(parents=True, exist_ok=True)
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  for number, rows in rollouts:
    (folder / 'rollouts' / f'{number:06d}.json').write_text(json.dumps(rows))


def write_run(folder, updates=100):
  """A finished run."""
  (folder / 'config.json').write_text(json.dumps(config()))
  (folder / 'results.json').write_text(json.dumps(results()))
  write_arm(
    folder,
    [update_row(s, 1.0, updates) for s in range(1, updates + 1)],
    [(1, [shown(NASTY, False)]), (21, [shown('MIDDLE')]), (81, [shown()])],
  )
  write_arm(folder / 'cold_start', [cold_row(s, 4 * updates) for s in range(1, 4 * updates + 1)])
  for name, rate in zip(CONTROLS, (0.02, 0.3)):
    rows = [update_row(s, rate, updates) for s in range(1, updates + 1)]
    write_arm(folder / 'controls' / name, rows, [(1, [shown()])])
  return folder


class Reader(html.parser.HTMLParser):
  """Collects the tags, what they point to, and the text that is seen."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.sources, self.seen, self.open = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.sources += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'action')]
    if tag not in ('meta', 'img', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.seen.append(data)


def read_report(folder):
  with open(report.write_report(folder), encoding='utf-8') as file:
    text = file.read()
  return text, Reader(text)


def png_size(data):
  assert data[:8] == b'\x89PNG\r\n\x1a\n'
  return struct.unpack('>II', data[16:24])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = write_run(tmp_path_factory.mktemp('finished'))
  return folder, *read_report(folder)


def test_a_finished_run_shows_everything(finished):
  folder, text, page = finished
  assert page.open == []
  seen = ''.join(page.seen)
  for part in (
    'quickstart, seed 3',
    "base, teacher's view",
    'control: no privilege, sharpened',
    '74.0 [71.0, 77.0]',
    '200,000',
    '1.50 TFLOPs',
    'student utilisation %',
    '37.5',
    'evaluation: OPSD',
    '1 min 15 s',
    '1 h 02 min',
    'optimizer.learning_rate',
    'controls.no_privilege.overrides',
    '0.11.0',
    'device_kind',
    'views.teacher={problem}:',
    'its frozen initial weights',
    'Sampler and scorer',
    '2 of 100 updates',
    '0.5 updates',
  ):
    assert part in seen, part
  assert 'Not everything is here' not in seen
  assert 'teacher utilisation' not in seen and '987,654' not in seen
  assert not list(folder.glob('*.tmp'))


def test_curves_are_a_png_of_sensible_size(finished):
  data = (finished[0] / 'curves.png').read_bytes()
  width, height = png_size(data)
  assert 1200 <= width <= 2400 and 700 <= height <= 1400
  assert 20_000 < len(data) < 500_000


def test_nothing_is_loaded_and_nothing_runs(finished):
  _, text, page = finished
  assert {'script', 'link', 'iframe', 'object'}.isdisjoint(page.tags)
  assert [source[:22] for source in page.sources] == ['data:image/png;base64,']
  assert 'url(' not in text and '@import' not in text


def test_text_of_a_problem_is_inert(finished):
  _, text, page = finished
  assert '<script' not in text
  assert '&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &quot;quoted&quot;' in text
  assert f'{NASTY}|487:' in page.seen  # the teacher's prompt, as it was


def test_first_and_last_shown_updates_with_coloured_tokens(finished):
  _, text, page = finished
  assert 'MIDDLE' not in text
  assert [s for s in page.seen if s.startswith('update ')] == [
    'update 1',
    'update 81',
    'update 1',
    'update 1',
  ]
  assert '✗ wrong' in page.seen and '✓ right' in page.seen
  # Sizes are 0.01, 0.25, 0.5, 1 four times over: the 95th percentile is 1, full strength is 0.7.
  assert '<span style="background: rgba(213, 94, 0, 0.35)" title="0.5 nats">+</span>' in text
  assert '<span style="background: rgba(0, 114, 178, 0.17)" title="-0.25 nats">4</span>' in text
  assert 'class="broken"' in text and 'title="nan nats">⏎\n</span>' in text
  assert '>&lt;eos&gt;</span>' in text


def test_a_running_run_says_what_is_missing(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(config()))
  write_arm(tmp_path, [update_row(s, 1.0, 100) for s in range(1, 3)], [(1, [shown()])])
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 3, "loss": 0.1, "gra')
  (tmp_path / 'rollouts' / '000002.json').write_text('[{"problem": "3+')
  text, page = read_report(tmp_path)
  seen = ''.join(page.seen)
  assert 'results.json is missing' in seen
  assert 'control: no privilege: no updates recorded' in seen
  assert 'cold start: no updates recorded' in seen
  assert 'the newest update of each arm so far' in seen and 'update 1' in seen
  assert page.open == []


def test_an_empty_folder_still_gets_a_report(tmp_path):
  _, page = read_report(tmp_path)
  seen = ''.join(page.seen)
  assert 'config.json is missing' in seen and 'OPSD: no updates recorded' in seen


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
  with pytest.raises(ConfigError, match='not a folder'):
    report.write_report(tmp_path / 'typo')


def test_a_stopped_run_says_so_until_it_got_past_it(tmp_path):
  (tmp_path / 'failure.json').write_text(json.dumps({'update': 2}))
  write_arm(tmp_path, [update_row(s, 1.0, 100) for s in (1, 2)])
  assert any('stopped at update 2' in note for note in read_run(tmp_path).missing)
  write_arm(tmp_path, [update_row(s, 1.0, 100) for s in (1, 2, 3)])
  assert not any('stopped' in note for note in read_run(tmp_path).missing)


def test_controls_come_in_their_order_with_their_labels(tmp_path):
  named = [{'name': 'b', 'overrides': []}, {'name': 'a', 'overrides': [], 'label': 'other teacher'}]
  (tmp_path / 'config.json').write_text(json.dumps({'controls': named}))
  write_arm(tmp_path / 'controls' / 'left_over', [])
  labels = [arm.label for arm in read_run(tmp_path).arms.values()]
  assert labels == ['OPSD', 'b', 'other teacher', 'left over']


def test_numbers_that_are_not_finite_or_not_positive_draw(tmp_path):
  rows = [update_row(s, 1.0, 60) | {'grad_norm': 0.0} for s in range(1, 61)]
  rows[3]['loss'], rows[4]['loss'] = 'nan', 'inf'
  write_arm(tmp_path, rows)
  (tmp_path / 'config.json').write_text(json.dumps({'name': 'a $b$ {', 'seed': 0}))
  curves.write_curves(read_run(tmp_path), tmp_path / 'curves.png')
  assert png_size((tmp_path / 'curves.png').read_bytes())[0] > 1000


def test_running_mean_by_hand():
  mean = curves._running_mean(curves.np.array([1.0, 2.0, math.nan, 6.0]), 3)
  assert mean.tolist() == [1.5, 1.5, 4.0, 6.0]


def test_flatten_goes_by_names():
  nested = {'a': {'b': 1, 'c': []}, 'd': [{'name': 'x', 'e': [1, 2]}], 'f': {}}
  assert flatten(nested) == {'a.b': 1, 'a.c': [], 'd.x.name': 'x', 'd.x.e': [1, 2], 'f': {}}
