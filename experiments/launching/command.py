"""The command that is launched, as one would type it after `python -m`, and its runs under a sweep."""

import importlib.util
import posixpath
from collections.abc import Sequence
from typing import NamedTuple

from experiments.launching import sweep
from experiments.launching.plan import Run
from opsd_jax.config import nearest, require

MODULES = tuple(
  f'experiments.{name}' for name in ('train', 'seeds', 'check', 'evaluate', 'generate', 'export')
)


class Command(NamedTuple):
  """A module of `experiments` with its flags; `workdir` is the one among them, None without."""

  module: str
  words: tuple[str, ...]
  workdir: str | None


def parse(given: Sequence[str]) -> Command:
  """The command of the words after `--`.

  Raises:
    ConfigError: no words, no module of ours, a line break in a word, or a bucket as the folder.
  """
  require(
    bool(given),
    'nothing to launch: write the command after --, as -- experiments.train --experiment=quickstart '
    '--workdir=runs/mine.',
  )
  module, words = given[0], tuple(given[1:])
  known = module.startswith('experiments.') and importlib.util.find_spec(module) is not None
  meant = f'experiments.{module.removeprefix("experiments.")}'
  require(known, f'{module!r} is nothing to launch.{nearest(meant, MODULES)}')
  broken = [word for word in words if '\n' in word or '\0' in word]
  require(
    not broken, f'{broken[:1]!r} has a line break, which not every launcher passes on; write it in a file.'
  )
  workdir = _workdir(words)
  require(
    not (workdir or '').startswith('gs://'),
    f'--workdir={workdir} is a bucket; mount it on every host (Cloud Storage FUSE) and name that folder.',
  )
  return Command(module, words, workdir)


def _workdir(words: Sequence[str]) -> str | None:
  """The last --workdir: `--workdir=x` or `--workdir x`."""
  found = None
  for word, following in zip(words, (*words[1:], None)):
    name, equals, value = word.partition('=')
    if name in ('--workdir', '-workdir'):
      found = value if equals else following
  return found


def without_workdir(words: Sequence[str]) -> tuple[str, ...]:
  """The words but for every --workdir."""
  kept, skip = [], False
  for word in words:
    flag = word.partition('=')[0] in ('--workdir', '-workdir')
    if not flag and not skip:
      kept.append(word)
    skip = flag and '=' not in word
  return tuple(kept)


def expand(command: Command, sweeps: Sequence[str]) -> tuple[tuple[str, ...], list[Run]]:
  """The words that all runs share, and the runs: each of a sweep has its settings and a folder of its own.

  Raises:
    ConfigError: the sweep cannot be read, or has no --workdir to put folders in.
  """
  points = sweep.points(sweeps)
  if not sweeps:
    return command.words, [Run('run', {})]
  require(
    bool(command.workdir),
    f'--sweep={sweeps[0]} needs a folder for its runs; name one after --, as --workdir=runs/sweep.',
  )
  folders = [posixpath.join(command.workdir, name) for name in sweep.names(points)]
  runs = [
    Run(name, {'set': settings, 'workdir': folder})
    for name, settings, folder in zip(sweep.names(points), points, folders)
  ]
  return without_workdir(command.words), runs
