"""The folder of an evaluation: one command's at a time, with settings that a continued one must share."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.asking.lock import alone
from opsd_jax import config as configs
from opsd_jax.config import ConfigError, require
from opsd_jax.files import write_json

SETTINGS, LOCK = 'settings.json', '.lock'
GRADING = ('rules', 'grading', 'changed')  # where these differ, samples are marked anew
REMARKED = (
  *GRADING,
  'benchmarks',
)  # what settings then say anew: notes tell of answers that no rule can score

# What may differ when a command goes on, because it changes no token ...
_TOLD = (*GRADING, 'source', 'remarks', 'model.folder', 'model.checkpoint', 'versions.', 'machine.')
_NOTES = ('.licence', '.notes')
# ... but these may change one.
_COMPUTE = ('versions.jax', 'versions.jaxlib', 'machine.platform', 'machine.device_kind', 'machine.devices')


@contextlib.contextmanager
def claimed(folder: str, wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Makes the folder, or checks that it belongs to these settings; yields those that it has.

  No other command gets the folder before the block ends.

  Raises:
    ConfigError: it belongs to others (names what differs), holds something else, is in use, or cannot be
      written.
  """
  path = os.path.join(folder, SETTINGS)
  try:
    os.makedirs(folder, exist_ok=True)
    there = sorted(
      name
      for name in os.listdir(folder)
      if name != LOCK and not (name.startswith(SETTINGS) and name.endswith('.tmp'))
    )
  except OSError as error:
    raise ConfigError(f'--output={folder} cannot be written: {error.strerror or error}.') from error
  require(
    not there or SETTINGS in there,
    f'--output={folder} holds {", ".join(there[:5])} and no {SETTINGS}, so that it is no evaluation; '
    'name another folder.',
  )
  with alone(os.path.join(folder, LOCK), f'--output={folder}'):
    if os.path.exists(path):
      yield _same(folder, path, dict(wanted))
      return
    try:
      write_json(path, wanted)
    except OSError as error:
      raise ConfigError(f'--output={folder} cannot be written: {error.strerror or error}.') from error
    yield dict(wanted)


def _same(folder: str, path: str, wanted: dict[str, Any]) -> dict[str, Any]:
  try:
    with open(path, encoding='utf-8') as file:
      saved = json.load(file)
  except ValueError as error:
    raise ConfigError(f'{path} is not JSON: {error}; remove it, or name another --output.') from error
  require(isinstance(saved, dict), f'{path} holds no settings; name another --output.')
  changed = [line for line in configs.differences(saved, wanted) if _decides(line.partition(': ')[0])]
  require(
    not changed,
    f'--output={folder} was made with other settings. What differs: {"; ".join(changed[:5])}. Name another '
    '--output, or remove that one.',
  )
  return saved


def _decides(name: str) -> bool:
  """Whether a setting decides what is sampled."""
  return name in _COMPUTE or not (name.startswith(_TOLD) or name.endswith(_NOTES))


def replace(folder: str, settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """Saves settings that changed."""
  changed = {**settings, **changes}
  write_json(os.path.join(folder, SETTINGS), changed)
  return changed
