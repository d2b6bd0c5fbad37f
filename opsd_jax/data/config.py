"""Which problems a run works on."""

import dataclasses
from typing import Literal

from opsd_jax.config import require, require_choice
from opsd_jax.data import chains as digit_chains
from opsd_jax.data import contamination as contamination_check
from opsd_jax.data import filters as training_filters
from opsd_jax.data.contamination import ContaminationConfig
from opsd_jax.data.filters import FiltersConfig
from opsd_jax.data.schemas import FieldsConfig, validate_fields

SOURCES = ('chains', 'files', 'tfds')


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which problems.

  Attributes:
    source: `chains`: synthetic digit chains; `files`: JSON lines, Parquet or Arrow files; `tfds`: a data
      set that TFDS prepared in a format with random access.
    chains: settings of that source.
    path: files: a file, or a folder with the files of the splits; tfds: the folder of the prepared data
      sets (TFDS's `data_dir`), or the version folder of one.
    tfds: name of a prepared data set, as `opsd_problems/gsm8k` or `name/config:1.0.0`; none: `path` is
      its version folder.
    train: split to train on; with files, a file name or a pattern of one also does.
    test: split of the final table; none: its problems are held out of `train`.
    validation_problems: problems for choosing checkpoints and for curves, held out of `train`.
    test_problems: at most so many of the test split, drawn with `seed`; none: all of it.
    fields: names of a row's fields; data sets of `experiments.data` are read as they were written.
    too_long: what happens to a problem that does not fit its width: `drop` counts it, `error` ends the run.
    seed: which problems are held out; the same for every run, so that runs share their test set.
    filters: which training problems of files or prepared data sets are left out, for length or as copies.
    contamination: the check of those problems against benchmarks and the run's own held-out problems. Equal
      texts in the training and the test split are an error whatever it says.
  """

  source: Literal['chains', 'files', 'tfds'] = 'chains'
  chains: digit_chains.ChainsConfig = digit_chains.ChainsConfig()
  path: str | None = None
  tfds: str | None = None
  train: str = 'train'
  test: str | None = 'test'
  validation_problems: int = 200
  test_problems: int | None = None
  fields: FieldsConfig = FieldsConfig()
  too_long: Literal['drop', 'error'] = 'error'
  seed: int = 0
  filters: FiltersConfig = FiltersConfig()
  contamination: ContaminationConfig = ContaminationConfig()


def validate(config: DataConfig) -> None:
  """Raises `ConfigError` for settings that cannot work; reads no data."""
  require_choice('data.source', config.source, SOURCES)
  require_choice('data.too_long', config.too_long, ('drop', 'error'))
  training_filters.validate(config.filters)
  contamination_check.validate(config.contamination)
  if config.source == 'chains':
    digit_chains.validate(config.chains)
    return
  _validate_place(config)
  _validate_splits(config)
  validate_fields(config.fields)


def _validate_place(config: DataConfig) -> None:
  if config.source == 'files':
    require(
      bool(config.path),
      'data.path is none; name a file, or a folder with files such as train.jsonl and test.jsonl.',
    )
  else:
    require(
      bool(config.path or config.tfds),
      'data.tfds and data.path are none; name a prepared data set, as opsd_problems/gsm8k, and in data.path '
      'the folder it was prepared in; or in data.path alone the version folder of one.',
    )


def _validate_splits(config: DataConfig) -> None:
  require(bool(config.train), 'data.train is empty; name the split to train on.')
  require(
    config.validation_problems > 0,
    f'data.validation_problems is {config.validation_problems}; it must be positive.',
  )
  require(
    config.test_problems is None or config.test_problems > 0,
    f'data.test_problems is {config.test_problems}; it must be positive, or none for all of them.',
  )
  require(
    config.test is not None or config.test_problems is not None,
    'data.test is none, so the test problems are held out of the training split; say how many in '
    'data.test_problems.',
  )
  require(
    config.test != config.train,
    f'data.train and data.test are both {config.train!r}; to hold the test problems out of it, set '
    'data.test=none and data.test_problems.',
  )
