"""What a folder holds, checked against what a model needs, before anything big is read."""

import dataclasses
import math
import os

import numpy as np

from opsd_jax.config import ConfigError, require
from opsd_jax.models import families
from opsd_jax.models.folder import names, tensors
from opsd_jax.models.folder.names import Entry
from opsd_jax.models.folder.tensors import Stored
from opsd_jax.models.spec import ModelSpec

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
_COMPARED = 64 * 2**20  # bytes of two tensors that are held at a time, as float32


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where everything is.

  Attributes:
    prefix: of the decoder's tensors.
    leaves: each leaf's tensors, one a layer.
    other: tensors that belong to other parts of a larger model.
  """

  prefix: str
  leaves: list[tuple[Entry, list[Stored]]]
  other: list[Stored]


def has_weights(folder: str | os.PathLike) -> bool:
  """Whether a folder has weights in the format that we read."""
  return any(os.path.isfile(os.path.join(folder, name)) for name in (INDEX, SINGLE))


def stored(folder: str | os.PathLike) -> dict[str, Stored]:
  """Every tensor in the safetensors files of a folder. Reads their headers only.

  Raises:
    ConfigError: there are none, a file that the index names is missing or broken, or the index and
      the files disagree.
  """
  index, single = os.path.join(folder, INDEX), os.path.join(folder, SINGLE)
  require(
    not (os.path.isfile(index) and os.path.isfile(single)),
    f'{folder} has {SINGLE} and {INDEX}; remove the one that is not the model.',
  )
  if os.path.isfile(single):
    return tensors.read_header(single)
  require(os.path.isfile(index), _nothing(folder))
  places = families.read_json(folder, INDEX).get('weight_map')
  require(isinstance(places, dict) and bool(places), f'{index} has no weight_map; get the file again.')
  missing = sorted({f for f in places.values() if not os.path.isfile(os.path.join(folder, str(f)))})
  require(not missing, f'{index} names {_some(missing)}, which {folder} does not have; get the rest of it.')
  found: dict[str, Stored] = {}
  for file in sorted(set(places.values())):
    held = tensors.read_header(os.path.join(folder, file))
    twice = sorted(held.keys() & found.keys())
    require(not twice, f'{os.path.join(folder, file)}: tensor {_some(twice)} is in another file as well.')
    absent = sorted(n for n, f in places.items() if f == file and n not in held)
    require(
      not absent, f'{os.path.join(folder, file)} lacks tensor {_some(absent)}, which {INDEX} says it has.'
    )
    found |= held
  return found


def _nothing(folder: str | os.PathLike) -> str:
  if not os.path.isdir(folder):
    return f'{folder} is no folder; name the folder of a model.'
  held = sorted(os.listdir(folder))
  if any(name.endswith(('.bin', '.pth')) for name in held):
    return f'{folder} has its weights in PyTorch files only; save the model once as safetensors.'
  return f'{folder} has neither {SINGLE} nor {INDEX}; it holds {_some(held) or "nothing"}.'


def plan(folder: str | os.PathLike, spec: ModelSpec, shapes: dict[tuple[str, ...], tuple[int, ...]]) -> Plan:
  """Finds every tensor of the model in a folder.

  Args:
    folder: with the files.
    spec: of the model.
    shapes: of the leaves, by path.

  Raises:
    ConfigError: config.json tells of another model; or a tensor is missing, is of another shape or of
      no floating type, or is not part of the model.
  """
  _require_config(folder, spec)
  found = stored(folder)
  prefix = _prefix(folder, found)
  leaves = []
  for entry in names.entries(spec):
    wanted = names.tensor_names(entry, spec, prefix)
    absent = [name for name in wanted if name not in found]
    require(not absent, f'{folder} lacks tensor {_some(absent)}, which the model described has.')
    leaves.append((entry, [found.pop(name) for name in wanted]))
    for tensor in leaves[-1][1]:
      _require_fit(tensor, entry.file_shape(shapes[entry.path][1 if entry.stacked else 0 :]))
  if spec.tie_embeddings and names.PREFIXES[prefix] in found:
    _require_same(found[names.PREFIXES[prefix]], leaves[0][1][0])
  other = _other(found, prefix)
  surplus = sorted(found.keys() - {t.name for t in other} - _redundant(found, spec, prefix))
  require(
    not surplus,
    f'{folder} has tensor {_some(surplus)}, which the model described does not have; check its config.json.',
  )
  return Plan(prefix, leaves, other)


def _require_config(folder: str | os.PathLike, spec: ModelSpec) -> None:
  if not os.path.isfile(os.path.join(folder, 'config.json')):
    return
  # Positions may be stretched beyond what a model was published with; nothing else may differ.
  wrong = families.contradictions(families.read(folder), spec, allowed=('rope_scaling',))
  require(
    not wrong,
    f'{folder} holds another model than the one described (in its config.json -> here): {"; ".join(wrong)}. '
    f'Describe that one: --set=model={folder}',
  )


def _prefix(folder: str | os.PathLike, found: dict[str, Stored]) -> str:
  for prefix in names.PREFIXES:
    if prefix + names.EMBEDDING in found:
      return prefix
  expected = ', '.join(p + names.EMBEDDING for p in names.PREFIXES)
  raise ConfigError(f'{folder} has none of the tensors {expected}; it has {_some(sorted(found))}.')


def _require_fit(tensor: Stored, shape: tuple[int, ...]) -> None:
  require(
    tensor.shape == shape,
    f'{tensor.path}: tensor {tensor.name} has shape {tensor.shape}, expected {shape}; check config.json.',
  )
  tensor.view()


def _require_same(head: Stored, embedding: Stored) -> None:
  """Refuses a head of its own beside a config that ties it; both are compared a few rows at a time."""
  ours, theirs = embedding.view(), head.view()
  rows = max(1, _COMPARED // (4 * max(1, math.prod(ours.shape[1:]))))
  same = ours.shape == theirs.shape and all(
    np.array_equal(ours[i : i + rows].astype(np.float32), theirs[i : i + rows].astype(np.float32))
    for i in range(0, len(ours), rows)
  )
  require(
    same,
    f'{head.path}: tensor {head.name} is not {embedding.name}, although config.json ties the two '
    '(tie_word_embeddings is true, or left out); set it to false, or remove the tensor.',
  )


def _other(found: dict[str, Stored], prefix: str) -> list[Stored]:
  """Tensors of the parts of a larger model that are no decoder."""
  if prefix == 'model.':
    return []
  return [t for name, t in found.items() if name.removeprefix('model.').startswith(names.OTHER_PARTS)]


def _redundant(found: dict[str, Stored], spec: ModelSpec, prefix: str) -> set[str]:
  """Tensors that say nothing new: the head of a tied model, and tables that follow from the config."""
  head = {names.PREFIXES[prefix]} if spec.tie_embeddings else set()
  return head | {name for name in found if name.endswith(names.DERIVED)}


def _some(items: list[str]) -> str:
  """The first few, and how many there are."""
  return ', '.join(items[:4]) + (f' and {len(items) - 4} more' if len(items) > 4 else '')
