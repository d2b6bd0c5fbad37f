"""adapter_config.json of PEFT: what we write, and what we accept.

PEFT has options that compute something else than y = x W + (x a) b · alpha / rank. One that is set and
that we do not know is refused by name.
"""

import json
import os
from typing import Any

from opsd_jax.config import ConfigError, require
from opsd_jax.models import lora
from opsd_jax.models.lora import PROJECTIONS, LoraConfig

# How an adapter was found, trained or begun, not what it computes. Its targets are those of its tensors.
_HARMLESS = (
  'peft_type r lora_alpha task_type base_model_name_or_path revision auto_mapping peft_version '
  'inference_mode target_modules exclude_modules lora_dropout init_lora_weights megatron_core '
  'qalora_group_size ensure_weight_tying eva_config runtime_config'
).split()
# Other ways to begin (pissa, olora, loftq, ...) change the base's weights too.
_STARTS = (None, True, False, 'gaussian', 'eva', 'orthogonal')


def describe(config: LoraConfig, base: str, inside: bool = False) -> dict[str, Any]:
  """The content of the file.

  Args:
    config: of the adapters.
    base: name or folder of the model that they belong to.
    inside: whether its decoder is a part of a larger model. Names alone would then give adapters to
      the other parts as well.
  """
  modules = [PROJECTIONS[name].module for name in lora.projections(config)]
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': config.rank,
    'lora_alpha': lora.scale(config) * config.rank,
    'target_modules': rf'.*language_model.*\.({"|".join(modules)})' if inside else modules,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    'init_lora_weights': True,
    'lora_dropout': 0.0,
    'modules_to_save': None,
    'use_dora': False,
    'use_rslora': False,
  }


def read(path: str | os.PathLike) -> dict[str, Any]:
  """The content of the file.

  Raises:
    ConfigError: it is missing or broken, or has an option that changes what an adapter computes.
  """
  try:
    with open(path, encoding='utf-8') as file:
      settings = json.load(file)
  except (OSError, ValueError) as error:
    raise ConfigError(f'{path} cannot be read: {error}. It should be as PEFT writes it.') from error
  kind = settings.get('peft_type')
  require(kind == 'LORA', f'{path}: peft_type is {kind!r}; only LORA is read.')
  for name in ('r', 'lora_alpha'):
    value = settings.get(name)
    require(isinstance(value, int | float) and value > 0, f'{path}: {name} is {value!r}, no positive number.')
  for name, value in settings.items():
    _check(path, name, value)
  return settings


def _check(path: str | os.PathLike, name: str, value: Any) -> None:
  unset = not value or (name == 'bias' and value == 'none')
  require(
    unset or name in _HARMLESS,
    f'{path}: {name} is {value!r}, which changes what the adapter computes and is not supported; merge the '
    'adapter into its base with PEFT, and start from that.',
  )
  require(
    name != 'init_lora_weights' or value in _STARTS,
    f'{path}: {name} is {value!r}, which changes the weights of the base as well; let PEFT save the adapter '
    'for the unchanged base (path_initial_model_for_weight_conversion).',
  )
