"""Strict JSON lines: what is written comes back, a torn end is forgiven, a broken middle is not."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax import jsonlines

NAMES = {'nan', 'inf', '-inf'}
TEXTS = st.text().filter(lambda text: text not in NAMES)
VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
  max_leaves=8,
)
ROWS = st.dictionaries(st.text(), VALUES, max_size=4)


def refuse(constant):
  raise AssertionError(f'{constant} is not strict JSON')


@given(rows=st.lists(ROWS, max_size=4), torn=st.sampled_from([b'', b'{"step": 6, "', b'{"\xc3']))
def test_rows_come_back_and_a_torn_end_is_left_out(tmp_path_factory, rows, torn):
  path = tmp_path_factory.mktemp('lines') / 'metrics.jsonl'
  lines = [jsonlines.dumps(row) for row in rows]
  path.write_bytes(''.join(line + '\n' for line in lines).encode() + torn)
  for line in lines:
    assert '\n' not in line
    json.loads(line, parse_constant=refuse)
  # Unlike the rows, their texts can be compared where there is a NaN.
  assert repr(jsonlines.read(path)) == repr(rows)


def test_non_finite_numbers_by_hand(tmp_path):
  row = {'loss': math.nan, 'time': {'up': math.inf, 'down': [-math.inf, 1.5]}}
  line = '{"loss": "nan", "time": {"up": "inf", "down": ["-inf", 1.5]}}'
  assert jsonlines.dumps(row) == line
  (tmp_path / 'a.jsonl').write_text(line + '\n')
  assert repr(jsonlines.read(tmp_path / 'a.jsonl')) == repr([row])


def test_what_is_not_json_is_refused():
  with pytest.raises(TypeError):
    jsonlines.dumps({'array': object()})


def test_a_whole_line_without_its_newline_counts_as_torn(tmp_path):
  """A continued file is appended to, so that such a line would swallow the next one."""
  (tmp_path / 'a.jsonl').write_text('{"step": 1}\n{"step": 2}')
  assert jsonlines.read(tmp_path / 'a.jsonl') == [{'step': 1}]


def test_a_broken_last_line_is_left_out_and_a_broken_middle_is_an_error(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"step": 1}\n{"st\n')
  assert jsonlines.read(path) == [{'step': 1}]
  path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
  with pytest.raises(ValueError, match=r'a\.jsonl, line 2 is not JSON'):
    jsonlines.read(path)


def test_no_file_is_the_callers_matter(tmp_path):
  with pytest.raises(FileNotFoundError):
    jsonlines.read(tmp_path / 'absent.jsonl')
  (tmp_path / 'empty.jsonl').touch()
  assert jsonlines.read(tmp_path / 'empty.jsonl') == []
