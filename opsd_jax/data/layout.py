"""What is in a folder of data: files and the splits they belong to, plain or in Hugging Face's cache."""

import dataclasses
import json
import os
import re

from opsd_jax.config import require

ENDINGS = ('.jsonl.gz', '.json.gz', '.jsonl', '.json', '.parquet', '.arrow')
USUAL = ('train', 'test', 'validation', 'valid', 'val', 'dev', 'eval')  # names of splits
_NOT_DATA = re.compile(
  r'(dataset_infos?|dataset_dict|state|features|config|metadata|package(-lock)?)\.json|(cache|tmp)-.*|\..*'
)
_SHARD = re.compile(r'(?P<name>.+?)-\d{5}-of-(?P<total>\d{5})(-[0-9a-f]+)?')
_DEPTH = 4  # `datasets` keeps its files under <config>/<version>/<hash>


@dataclasses.dataclass(frozen=True)
class Found:
  """A data file.

  Attributes:
    path: relative to the folder that was searched.
    split: the name that its own name, or that of its folder, gives.
    total: how many files of this name there should be, where its name says so.
  """

  path: str
  split: str
  total: int | None

  @property
  def folder(self) -> str:
    """The folder it lies in, relative as well; empty at the top."""
    return os.path.dirname(self.path)

  @property
  def group(self) -> tuple[str, str, int | None]:
    """Equal for files that are parts of one split."""
    return self.folder, ending(self.path), self.total


def resolve(path: str) -> str:
  """The path with `~` expanded, and the snapshot of a Hugging Face cache folder (`datasets--org--name`).

  Raises:
    ConfigError: the path does not exist, or it is not clear which snapshot is meant.
  """
  path = os.path.abspath(os.path.expanduser(path))
  require(os.path.exists(path), f'data.path={path} does not exist.')
  snapshots, main = os.path.join(path, 'snapshots'), os.path.join(path, 'refs', 'main')
  if not os.path.isdir(snapshots):
    return path
  present = sorted(os.listdir(snapshots))
  if os.path.isfile(main):
    with open(main, encoding='utf-8') as file:
      revision = file.read().strip()
    require(revision in present, f'{path} lacks its snapshot {revision}; fetch the data set again.')
    return os.path.join(snapshots, revision)
  require(
    len(present) == 1,
    f'{path} has {len(present)} snapshots and no refs/main: {", ".join(present)}. Name one in data.path, as '
    f'{os.path.join(snapshots, "<revision>")}.',
  )
  return os.path.join(snapshots, present[0])


def source_name(path: str) -> str:
  """What the data set is called: `org/name` of a Hugging Face cache folder, else the last part's stem."""
  path = os.path.abspath(os.path.expanduser(path))
  for part in reversed(path.split(os.sep)):
    if part.startswith('datasets--'):
      return part.removeprefix('datasets--').replace('--', '/')
  name = os.path.basename(path)
  return name.removesuffix(ending(name))


def scan(root: str) -> list[Found]:
  """Every data file under a folder, sorted."""
  found = []
  for folder, folders, names in os.walk(root):
    inside = os.path.relpath(folder, root)
    depth = 0 if inside == '.' else inside.count(os.sep) + 1
    folders[:] = [f for f in folders if depth < _DEPTH and not f.startswith('.') and f != 'snapshots']
    for name in names:
      if is_data(os.path.join(folder, name)):
        path = os.path.normpath(os.path.join(inside, name))
        shard = _SHARD.fullmatch(name.removesuffix(ending(name)))
        found.append(Found(path, split_name(path, root), int(shard['total']) if shard else None))
  return sorted(found, key=lambda f: f.path)


def split_name(path: str, root: str = '') -> str:
  """The split of a file by its name, or by its folder's where that says more; `path` is inside `root`."""
  folder, name = os.path.split(path)
  parent, stem = os.path.basename(folder), name.removesuffix(ending(name))
  shard = _SHARD.fullmatch(stem)
  stem = shard['name'] if shard else stem
  if parent in USUAL or (parent and (stem == 'data' or stem.isdecimal())):
    return parent
  if name.endswith('.arrow'):
    return _saved_split(root) if stem == 'data' else stem.rsplit('-', 1)[-1]  # gsm8k-train.arrow
  return stem


def _saved_split(root: str) -> str:
  """The split that a folder of `Dataset.save_to_disk` says it holds, else `data`."""
  try:
    with open(os.path.join(root, 'state.json'), encoding='utf-8') as file:
      return json.load(file).get('_split') or 'data'
  except (OSError, ValueError, AttributeError):
    return 'data'


def is_data(path: str) -> bool:
  """Whether a file holds rows; what describes a data set does not."""
  name = os.path.basename(path)
  return bool(ending(name)) and not _NOT_DATA.fullmatch(name) and os.path.isfile(path)


def ending(name: str) -> str:
  """The ending that names the kind of a data file, with its dot; empty for other files."""
  return next((e for e in ENDINGS if name.endswith(e)), '')
