"""Writes problems as a TFDS data set in ArrayRecord files, without TensorFlow.

What is written can be read anywhere with `tfds.data_source('opsd_problems/<name>', data_dir=...)`.
"""

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from opsd_jax.config import ConfigError, require
from opsd_jax.data import prepared
from opsd_jax.records import Problem

NAME = 'opsd_problems'
VERSION = '1.0.0'


def prepare(
  splits: Mapping[str, Sequence[Problem]], name: str, data_dir: str, num_shards: int | None = None
) -> str:
  """Writes the splits under `data_dir` and returns the version folder.

  Args:
    splits: problems by split; they keep their order.
    name: of the data set; it is `opsd_problems/<name>` for TFDS.
    data_dir: folder of prepared data sets.
    num_shards: files of every split; None leaves it to TFDS.

  Raises:
    ConfigError: a name that TFDS does not take, an empty split, more files than problems, or the data set
      exists.
  """
  _check(splits, num_shards)
  target = target_folder(name, data_dir)
  data_dir = os.path.abspath(os.path.expanduser(data_dir))
  os.makedirs(data_dir, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=data_dir, prefix='.preparing-') as folder:
    # Written beside the target, so that an interrupted run leaves no half of a data set.
    written = _write(splits, name, folder, num_shards)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.rename(written, target)
  return target


def target_folder(name: str, data_dir: str) -> str:
  """The version folder that `prepare` writes.

  Raises:
    ConfigError: TFDS does not take the name, or the folder exists.
  """
  _check_name(name)
  target = os.path.join(os.path.abspath(os.path.expanduser(data_dir)), NAME, name, VERSION)
  if os.path.exists(target):
    raise ConfigError(f'{target} exists already; choose another name or folder, or remove it.')
  return target


def _check(splits: Mapping[str, Sequence[Problem]], num_shards: int | None) -> None:
  require(bool(splits), 'there are no splits to write.')
  require(num_shards is None or num_shards > 0, f'the number of files is {num_shards}; it must be positive.')
  for split, problems in splits.items():
    _check_name(split)
    require(
      len(problems) >= (num_shards or 1),
      f'split {split!r} has {len(problems)} problems for {num_shards or 1} files.',
    )


def _check_name(word: str) -> None:
  require(
    re.fullmatch(r'[A-Za-z]\w*', word, re.ASCII) is not None,
    f'{word!r} is no name for TFDS; use letters, digits and _, and begin with a letter.',
  )


def _write(splits: Mapping[str, Sequence[Problem]], name: str, folder: str, num_shards: int | None) -> str:
  import tensorflow_datasets as tfds

  builder = _make_builder(splits, name, folder)
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # it says "Downloading"; nothing is
    builder.download_and_prepare(
      download_dir=os.path.join(folder, 'downloads'),
      download_config=tfds.download.DownloadConfig(num_shards=num_shards),
    )
  return os.fspath(builder.data_dir)


def _make_builder(splits: Mapping[str, Sequence[Problem]], name: str, folder: str) -> Any:
  """A builder of these splits; its class is made here because importing TFDS takes its time."""
  import tensorflow_datasets as tfds

  config = tfds.core.BuilderConfig(name=name, version=VERSION)

  class OpsdProblems(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Problems, every field a text; `meta` is a JSON object of texts."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [config]
    code_path = None  # no checksums of downloads lie beside this file

    def _info(self) -> tfds.core.DatasetInfo:
      features = {field: tfds.features.Text() for field in prepared.FIELDS}
      return tfds.core.DatasetInfo(
        builder=self,
        description='Problems with worked solutions and answers.',
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,  # the order of the rows is theirs
      )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Any]:
      del dl_manager  # nothing is fetched
      return {split: self._generate_examples(problems) for split, problems in splits.items()}

    def _generate_examples(self, problems: Sequence[Problem]) -> Any:
      yield from ((row, prepared.encode(problem)) for row, problem in enumerate(problems))

  return OpsdProblems(config=config, data_dir=folder, file_format='array_record')
