"""The table of estimates: what it asks for, keeps and refuses; the estimates have tests of their own."""

import json

import pytest

from kernels.linear_divergence import tpu_table
from kernels.linear_divergence.api import DivergenceSpec, choose
from kernels.linear_divergence.tpu import unsupported

JSD = r'^JSD \| both \| memory \| v5e'


@pytest.fixture
def measured(monkeypatch):
  """Titles that were measured, none of them by a compiler."""
  titles = []

  def measure(case):
    titles.append(tpu_table.title(case))
    return case | dict(R=1.5 + len(titles), temporaries=2**21, share=0.01)

  monkeypatch.setattr(tpu_table, 'measure', measure)
  return titles


def test_cases_have_names_of_their_own_and_losses_that_the_kernels_serve():
  cases = list(tpu_table.cases())
  assert len({tpu_table.title(case) for case in cases}) == len(cases)
  for case in cases:
    spec = DivergenceSpec(**case['spec'])
    assert unsupported(spec) is None and choose(spec)


def test_rows_are_kept_in_order_and_made_anew(tmp_path, measured, capsys):
  out = tmp_path / 'deep' / 'results.json'
  for only in (JSD, r'^forward KL \| both \| memory \| v5e .*=8192', JSD):
    tpu_table.main(['--only', only, '--out', str(out)])
  records = json.loads(out.read_text())['records']
  assert [record['loss'] for record in records] == ['forward KL', 'JSD']
  assert [record['R'] for record in records] == [3.5, 4.5] and len(measured) == 3
  assert '| JSD | both | memory | v5e | 8192 | 2048 | 4.50 | 2 | 1.0 % |' in capsys.readouterr().out


def test_a_choice_of_nothing_is_refused(tmp_path, measured):
  with pytest.raises(SystemExit, match='--only=v9z matches no case'):
    tpu_table.main(['--only', 'v9z', '--out', str(tmp_path / 'results.json')])
  assert not measured
