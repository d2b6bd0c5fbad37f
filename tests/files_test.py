"""Files are whole or absent: what fails on the way leaves the old content."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from opsd_jax import files

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def test_writes_and_overwrites_without_leftovers(tmp_path):
  path = tmp_path / 'a.json'
  for value in ({'loss': 0.5, 'text': 'é'}, [1, 2]):
    files.write_json(path, value)
    assert json.loads(path.read_text()) == value
  files.write_json(path, {'a': [1]}, indent=None)
  assert path.read_text() == '{"a": [1]}\n'
  files.write_text(str(path), 'é')
  assert path.read_bytes() == 'é'.encode()
  assert os.listdir(tmp_path) == ['a.json']


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  files.write_text(path, 'old')
  with pytest.raises(TypeError):
    files.write_json(path, {'a': 1, 'b': object()})

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    files.write_text(path, 'new')
  assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.json']


def test_several_processes_write_the_same_file(tmp_path):
  path = tmp_path / 'a.txt'
  program = (
    'import sys; from opsd_jax import files; [files.write_text(sys.argv[1], "x" * 9999) for _ in range(99)]'
  )
  writers = [subprocess.Popen([sys.executable, '-c', program, str(path)], cwd=REPOSITORY) for _ in range(2)]
  assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
  assert path.read_text() == 'x' * 9999 and os.listdir(tmp_path) == ['a.txt']
