"""The weights that a run starts from: random ones, or those of a model's folder."""

import dataclasses
import os

import jax

from opsd_jax.config import require
from opsd_jax.models import families, model
from opsd_jax.models.folder import read
from opsd_jax.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
  """Where the first weights of a run come from.

  Attributes:
    path: a folder in Hugging Face's format (config.json and safetensors), whose model `model` must
      describe: set both, and `tokenizer.path`, by `--model=FOLDER`. None: random weights of the seed.
    published: name at Hugging Face of the model that a recipe is about: `path` must then be set; none: any.
  """

  path: str | None = None
  published: str | None = None


def validate(config: WeightsConfig, spec: ModelSpec, prefix: str = '') -> None:
  """Raises `ConfigError` where the folder is missing, not named, or of another model. Reads no weights.

  `prefix` stands before the names of the settings, such as `teacher.`.
  """
  if config.path is None:
    flags = f'--set={prefix}model=FOLDER --set={prefix}weights.path=FOLDER' if prefix else '--model=FOLDER'
    require(
      config.published is None,
      f'{prefix}weights.path is none, but this run begins with the weights of {config.published}, which are '
      f'not downloaded here: get that model from Hugging Face and name its folder by {flags}. To begin '
      f'without them, add --set={prefix}weights.published=none.',
    )
    return
  require(
    os.path.isdir(config.path),
    f'{prefix}weights.path is {config.path!r}, which is no folder; name one that has a config.json.',
  )
  # A stretch of the rotary frequencies beyond what config.json says is a choice of the run.
  wrong = families.contradictions(families.read(config.path), spec, ('rope_scaling',))
  require(
    not wrong,
    f'{prefix}weights.path={config.path} holds another model than `{prefix}model` describes (in its '
    f'config.json -> here): {"; ".join(wrong)}. Describe that one: --set={prefix}model={config.path}',
  )


def initial(
  config: WeightsConfig, spec: ModelSpec, key: jax.Array, mesh: jax.sharding.Mesh, dtype: str = 'float32'
) -> model.Params:
  """The weights that `path` holds, in `dtype`, else random ones of the key, float32."""
  if config.path is None:
    return model.init_params(spec, key, mesh)
  return read.load(config.path, spec, mesh, dtype)
