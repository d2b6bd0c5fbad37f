"""Writes docs/notebook.ipynb, for Colab and Kaggle, from the commands that the launcher would start.

  python -m experiments.launching.notebook

The notebook is in the repository; a test compares it with what this file makes.
"""

import json
import os
from typing import Any

from experiments.launching import command, plan, platforms
from opsd_jax.files import write_text

PATH = os.path.join('docs', 'notebook.ipynb')
TRAIN = ('experiments.train', '--experiment=quickstart')


def lines(words: tuple[str, ...], *sweeps: str) -> list[str]:
  """The lines of a cell that run a command here, or a sweep of it."""
  where = platforms.Where('local', python='python')
  return ['!' + line for line in plan.lines(platforms.build(where, command.parse(words), sweeps))]


def cells() -> list[dict[str, Any]]:
  """All cells in order."""
  return [
    _text(
      '# On-policy self-distillation on one machine',
      '',
      'Trains the quickstart of opsd-jax with a GPU, a TPU or none, on Colab or Kaggle. Run the cells in '
      'order. This notebook was generated from the commands of the launcher; it has not been run on Colab or '
      'Kaggle.',
    ),
    _text(
      '## 1. The repository', '', "Write the repository's address; a copy that is there already is used."
    ),
    _code(
      'import os',
      '',
      "REPOSITORY = 'https://github.com/OWNER/opsd-jax'",
      "if not os.path.isdir('opsd-jax'):",
      '  !git clone --depth=1 {REPOSITORY} opsd-jax',
      '%cd opsd-jax',
    ),
    _text(
      '## 2. What it needs',
      '',
      'For the accelerator that is here. Restart the session if it asks to. '
      'With a driver for CUDA 12 (`nvidia-smi` says which), install `jax[cuda12]` after it.',
    ),
    _code(
      'import glob',
      'import shutil',
      '',
      "tpu = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')",
      "accelerator = 'gpu' if shutil.which('nvidia-smi') else 'tpu' if tpu else None",
      "extra = f'-r requirements/{accelerator}.txt' if accelerator else ''",
      '!pip install --quiet -r requirements.txt {extra}',
      "print('accelerator:', accelerator or 'none')",
    ),
    _text('## 3. Look before you train'),
    _code(*lines(('experiments.check', '--experiment=quickstart'))),
    _text('## 4. Train', '', 'Stopped? The same cell continues from the last checkpoint.'),
    _code(*lines((*TRAIN, '--workdir=runs/quickstart'))),
    _text('## 5. What came out'),
    _code('from IPython.display import Image', '', "Image('runs/quickstart/curves.png')"),
    _text('## 6. Two seeds'),
    _code(*lines((*TRAIN, '--workdir=runs/seeds'), 'seed=0,1')),
  ]


def notebook() -> str:
  """The whole file."""
  numbered = [{'id': f'cell-{index}', **cell} for index, cell in enumerate(cells())]
  kernel = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
  content = {
    'cells': numbered,
    'metadata': {'kernelspec': kernel, 'language_info': {'name': 'python'}},
    'nbformat': 4,
    'nbformat_minor': 5,
  }
  return json.dumps(content, indent=1, ensure_ascii=False) + '\n'


def _text(*lines_of_it: str) -> dict[str, Any]:
  return {'cell_type': 'markdown', 'metadata': {}, 'source': _source(lines_of_it)}


def _code(*lines_of_it: str) -> dict[str, Any]:
  more = {'execution_count': None, 'outputs': []}
  return {'cell_type': 'code', 'metadata': {}, 'source': _source(lines_of_it)} | more


def _source(lines_of_it: tuple[str, ...]) -> list[str]:
  """As the format has it: every line but the last ends with a line break."""
  return [line + '\n' for line in lines_of_it[:-1]] + [lines_of_it[-1]]


if __name__ == '__main__':
  write_text(PATH, notebook())
  print(PATH)
