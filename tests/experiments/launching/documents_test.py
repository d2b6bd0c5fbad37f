"""What the documents say of launching is what the launcher does; the notebook is what its program writes."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from experiments.launching import notebook
from tests.experiments import tiny

BLOCKS = re.findall(r'```console\n(.*?)```', (tiny.REPOSITORY / 'docs/launching.md').read_text(), re.DOTALL)


def examples() -> list[tuple[str, list[str]]]:
  """Each command of the launcher, with the lines that the document shows below it."""
  found = []
  for line in (line for block in BLOCKS for line in block.splitlines()):
    if line.startswith('$ '):
      found.append((line.removeprefix('$ '), []))
    else:
      found[-1][1].append(line)
  return [one for one in found if 'experiments.launch_xm' in one[0]]


def test_there_are_examples():
  assert len(examples()) == 5 and sum(len(shown) for _, shown in examples()) == 7


@pytest.mark.parametrize(('line', 'shown'), examples())
def test_examples(line, shown):
  words = shlex.split(line)
  assert words[:3] == ['python', '-m', 'experiments.launch_xm']
  done = subprocess.run(
    [sys.executable, '-m', words[2], '--print', '--nocheck', *words[3:]],
    cwd=tiny.REPOSITORY,
    text=True,
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  assert not shown or done.stdout.splitlines() == shown


def test_the_notebook_is_what_its_program_writes():
  kept = (tiny.REPOSITORY / notebook.PATH).read_text(encoding='utf-8')
  assert kept == notebook.notebook(), 'run python -m experiments.launching.notebook'


def test_the_notebook_is_one():
  """The fields that format 4.5 asks of a notebook and its cells, and cells that are Python or a command."""
  read = json.loads(notebook.notebook())
  assert {'cells', 'metadata', 'nbformat', 'nbformat_minor'} == read.keys() and read['nbformat'] == 4
  assert len({cell['id'] for cell in read['cells']}) == len(read['cells'])
  for cell in read['cells']:
    fields = {'id', 'cell_type', 'metadata', 'source'}
    code = cell['cell_type'] == 'code'
    assert cell.keys() == fields | ({'execution_count', 'outputs'} if code else set())
    if code:  # a line for the shell or for IPython, in place of which Python reads `pass`
      compile(re.sub(r'(?m)^(\s*)[!%].*$', r'\1pass', ''.join(cell['source'])), cell['id'], 'exec')


@pytest.mark.parametrize('list_name', ['tpu', 'gpu'])
def test_the_image_has_what_it_copies(list_name):
  copied = re.findall(r'^COPY (\S+) \S+$', (tiny.REPOSITORY / 'Dockerfile').read_text(), re.MULTILINE)
  kept = (tiny.REPOSITORY / '.dockerignore').read_text().splitlines()
  assert len(copied) == 5
  for path in copied:
    path = path.replace('${ACCELERATOR}', list_name)
    assert (tiny.REPOSITORY / path).exists() and f'!{path.split("/")[0]}' in kept
