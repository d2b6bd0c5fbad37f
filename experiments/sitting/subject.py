"""Who sits an exam: a model's folder, or a checkpoint of a run, known before its weights are loaded."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from experiments import export
from experiments.asking import folder as folders_asked
from opsd_jax.checkpoint.store import open_store
from opsd_jax.config import ConfigError, require
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.experiment import Experiment
from opsd_jax.grade.config import GradeConfig
from opsd_jax.models import families, model
from opsd_jax.models.folder import read as folders
from opsd_jax.models.model import Params
from opsd_jax.models.spec import ModelSpec
from opsd_jax.text import tokenizer as tokenizers
from opsd_jax.text.config import TokenizerConfig
from opsd_jax.text.tokenizer import Tokenizer

_WHOLE, _BLOCKS, _BLOCK = 1 << 20, 64, 1 << 12  # bytes of a file that is read whole; else so many blocks


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model that is asked.

  Attributes:
    where: what messages call it.
    told: what settings say of it; `weights` is a fingerprint of its files.
    spec: its shape.
    tokenizer: its tokenizer.
    vocab: how many ids can be drawn.
    views: of a run: how its student is asked; None of a folder.
    grade: of a run: how its answers are read; None of a folder.
    positions: that it was made for, prompt and completion; None if unknown.
    load: its weights, on a mesh.
  """

  where: str
  told: Mapping[str, Any]
  spec: ModelSpec
  tokenizer: Tokenizer
  vocab: int
  views: ViewsConfig | None
  grade: GradeConfig | None
  positions: int | None
  load: Callable[[jax.sharding.Mesh], Params]

  @property
  def converses(self) -> bool:
    """Whether its tokenizer has a chat template."""
    return getattr(self.tokenizer, 'template', None) is not None


def of_folder(named: str, texts: Mapping[str, Any], dtype: str | None) -> Subject:
  """A folder in Hugging Face's format.

  Args:
    named: the folder.
    texts: fields of `TokenizerConfig` that were set.
    dtype: to compute in; None for `folders_asked.dtype`'s choice.

  Raises:
    ConfigError: a file is missing, or the files are not of one model.
  """
  folder = folders_asked.find(named)
  with folders_asked.flags_named():
    tokenizer = tokenizers.make_tokenizer(TokenizerConfig(path=folder, **texts))
  spec = dataclasses.replace(families.find(folder), dtype=folders_asked.dtype(dtype))
  where = f'--model={named}'
  return Subject(
    where=where,
    told={'folder': folder, 'weights': fingerprint(_weights(folder)), 'dtype': spec.dtype},
    spec=spec,
    tokenizer=tokenizer,
    vocab=folders_asked.vocab(where, tokenizer, spec),
    views=None,
    grade=None,
    positions=_positions(folder),
    load=lambda mesh: folders.load(folder, spec, mesh, spec.dtype),
  )


def of_run(workdir: str, step: str, base: str | None, texts: Mapping[str, Any], dtype: str | None) -> Subject:
  """A checkpoint of a run.

  Args:
    workdir: of the run.
    step: latest, best or a number of updates.
    base: where the model is that training began from; None for where it was.
    texts: fields of `TokenizerConfig` that were set, in place of the run's.
    dtype: to compute in; None for the run's.

  Raises:
    ConfigError: there is no such run or checkpoint, or the tokenizer is missing.
    CheckpointError: it has no folder of checkpoints.
  """
  experiment = export.read_experiment(workdir)
  moved, base = base, export.base_folder(experiment, base)
  spec = dataclasses.replace(experiment.model, dtype=dtype or experiment.model.dtype)
  experiment = dataclasses.replace(experiment, model=spec)
  elsewhere = {'path': moved} if moved and experiment.tokenizer.path else {}
  tokenizer = _tokenizer(experiment, elsewhere | dict(texts))
  found, where = _step(workdir, experiment, export.read_step(step)), f'--checkpoint={workdir}'
  told = {'checkpoint': os.path.abspath(workdir), 'experiment': experiment.name, 'step': found}
  return Subject(
    where=where,
    told=told | {'weights': fingerprint(_saved(workdir, experiment, found, base)), 'dtype': spec.dtype},
    spec=spec,
    tokenizer=tokenizer,
    vocab=folders_asked.vocab(where, tokenizer, spec),
    views=experiment.views,
    grade=experiment.grade,
    positions=None if base is None else _positions(base),
    load=lambda mesh: _load_run(workdir, experiment, mesh, found, base),
  )


def _tokenizer(experiment: Experiment, changes: Mapping[str, Any]) -> Tokenizer:
  try:
    return tokenizers.make_tokenizer(dataclasses.replace(experiment.tokenizer, **changes))
  except ConfigError as error:
    raise ConfigError(f"the run's tokenizer cannot be made: {error} --base=FOLDER names another.") from error


def _step(workdir: str, experiment: Experiment, step: int | str | None) -> int:
  """The number of updates of the checkpoint that `step` means."""
  folder = os.path.join(workdir, 'checkpoints')
  with open_store(folder, experiment.checkpoint, read_only=True) as store:
    found = store.best if step == 'best' else store.latest if step is None else step
  require(found is not None, f'{folder} has no complete checkpoint yet (asked for: {step or "latest"}).')
  there = sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
  require(found in there, f'--step={found}: {folder} has no such checkpoint; it has {there}.')
  return found


def _load_run(
  workdir: str, experiment: Experiment, mesh: jax.sharding.Mesh, step: int, base: str | None
) -> Params:
  _, trained = export.read_trained(workdir, experiment, mesh, step)
  if experiment.lora.rank:
    trained = export.merged(workdir, experiment, mesh, trained, base)
  return jax.jit(model.in_compute_dtype, static_argnums=0)(experiment.model, trained)


def _positions(folder: str) -> int | None:
  if not os.path.exists(os.path.join(folder, 'config.json')):
    return None  # a tokenizer alone
  config = families.read_json(folder)
  found = config.get('text_config', config).get('max_position_embeddings')
  return found if isinstance(found, int) else None


def _weights(folder: str) -> Iterator[tuple[str, str]]:
  """The files that decide what a folder's model computes, by name."""
  for name in sorted(os.listdir(folder)):
    if name.endswith('.safetensors') or name == 'config.json':
      yield name, os.path.join(folder, name)


def _saved(workdir: str, experiment: Experiment, step: int, base: str | None) -> Iterator[tuple[str, str]]:
  """The files of a checkpoint, and of the weights that adapters stand beside."""
  parts = [os.path.join(workdir, 'checkpoints', str(step))]
  if experiment.lora.rank and experiment.cold_start.updates:
    parts.append(os.path.join(workdir, 'cold_start', 'checkpoints'))
  for part in parts:
    for folder, _, names in sorted(os.walk(part)):
      for path in (os.path.join(folder, name) for name in sorted(names)):
        yield os.path.relpath(path, workdir), path
  if experiment.lora.rank and base is not None:
    yield from _weights(base)


def fingerprint(files: Iterator[tuple[str, str]]) -> str:
  """A digest of files by (name, path): of large ones, their size and blocks spread over them.

  Weights of many gigabytes are told apart without reading them all: training changes every block.
  """
  found = hashlib.sha256()
  for name, path in files:
    size = os.path.getsize(path)
    found.update(json.dumps([name, size]).encode())
    with open(path, 'rb') as file:
      if size <= _WHOLE:
        found.update(file.read())
        continue
      for i in range(_BLOCKS):
        file.seek((size - _BLOCK) * i // (_BLOCKS - 1))
        found.update(file.read(_BLOCK))
  return found.hexdigest()[:16]
