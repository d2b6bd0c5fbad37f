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


def validate(config: WeightsConfig, spec: ModelSpec) -> None:
  """Raises `ConfigError` where the folder is missing, not named, or of another model. Reads no weights."""
  if config.path is None:
    require(
      config.published is None,
      f'weights.path is none, but this run begins with the weights of {config.published}, which are not '
      'downloaded here: get that model from Hugging Face and name its folder by --model=FOLDER. To begin '
      'with random weights, add --set=weights.published=none.',
    )
    return
  require(
    os.path.isdir(config.path),
    f'weights.path is {config.path!r}, which is no folder; name one that has a config.json.',
  )
  # A stretch of the rotary frequencies beyond what config.json says is a choice of the run.
  wrong = families.contradictions(families.read(config.path), spec, ('rope_scaling',))
  require(
    not wrong,
    f'weights.path={config.path} holds another model than `model` describes (in its config.json -> here): '
    f'{"; ".join(wrong)}. Describe that one: --set=model={config.path}',
  )


def initial(
  config: WeightsConfig, spec: ModelSpec, key: jax.Array, mesh: jax.sharding.Mesh, dtype: str = 'float32'
) -> model.Params:
  """The weights that `path` holds, in `dtype`, else random ones of the key, float32."""
  if config.path is None:
    return model.init_params(spec, key, mesh)
  return read.load(config.path, spec, mesh, dtype)
