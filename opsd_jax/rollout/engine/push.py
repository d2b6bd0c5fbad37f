"""The student's weights on their way to a server: a folder that both can read, and the word to read it."""

import os
import shutil
from collections.abc import Callable
from typing import Any

from opsd_jax.models import families, lora, model
from opsd_jax.models.folder import adapters, write
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.rollout.engine.flavours import Flavour
from opsd_jax.rollout.engine.http import EngineError, Refused


def save(
  folder: str, kind: str, spec: ModelSpec, config: LoraConfig, params: model.Params, base: str | None
) -> None:
  """Writes what the server is to read; until it is complete the folder is not there.

  Args:
    folder: must be absent.
    kind: `adapter`, in PEFT's format, or `weights`, a Hugging Face folder in the compute dtype with
      adapters merged.
    spec: of the model.
    config: of the adapters.
    params: the student's, `Adapted` where there are adapters.
    base: folder that training began from, for its tokenizer and the names of its parts.
  """
  adapted = isinstance(params, model.Adapted)
  if kind == 'adapter':
    inside = base is not None and families.is_multimodal(families.read_json(base))
    prefix = adapters.PART if inside else adapters.WHOLE
    adapters.save(folder, config, params.lora, base=base or '', prefix=prefix)
  else:
    whole = lora.merge(params.base, params.lora, params.scale) if adapted else params
    write.save(folder, spec, whole, base, dtype=spec.dtype)


def tell(
  flavour: Flavour, kind: str, label: str, folder: str, before: str | None, post: Callable[[str, Any], Any]
) -> None:
  """Makes the server draw with what the folder holds.

  Args:
    flavour: of the server.
    kind: `adapter` or `weights`.
    label: by which the server will know them.
    folder: as the server sees it.
    before: label of the adapter that these replace, if there is one.
    post: `(path, body)`; raises as `http.call` does.

  Raises:
    EngineError: the server refused or could not be reached.
  """
  steps = flavour.adapter(label, folder, before) if kind == 'adapter' else flavour.weights(label, folder)
  for path, body, optional in steps:
    try:
      said = post(path, body)
    except Refused as error:
      if optional or 'already' in str(error):  # a step whose first answer came too late
        continue
      raise EngineError(
        f'{error}. The server did not take the weights in {folder}. It must read that folder under the same '
        f'path, and be started with {flavour.permits[kind]}; or set rollout.engine.push=none, with '
        'objective.correction=token for what then grows stale.'
      ) from error
    if isinstance(said, dict) and said.get('success') is False:
      raise EngineError(f'{path}: the server did not take the weights in {folder}: {said}.')


def forget(folder: str | None) -> None:
  """Removes a pushed folder that the server no longer needs."""
  if folder and os.path.isdir(folder):
    shutil.rmtree(folder, ignore_errors=True)
