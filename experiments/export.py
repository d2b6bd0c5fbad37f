"""Writes the weights of a run as a Hugging Face folder, for transformers, vLLM and others.

  python -m experiments.export --checkpoint=runs/quickstart --output=exported
  python -m experiments.export --checkpoint=runs/qwen --output=exported --base=models/Qwen3-0.6B

Reads the run's newest complete checkpoint, or the one of --step. config.json and the tokenizer come from the
folder that training began from (weights.path), or from --base; without either, config.json is written
from the settings, and there is no tokenizer. Weights are saved in the dtype that the run computed in,
unless --dtype says otherwise. A run with LoRA is saved as a PEFT adapter, or, with --merge_lora, as a
whole model. The folder appears under its name when it is complete.
"""

import dataclasses
import json
import os

import jax
from absl import flags

from experiments import entry
from experiments.options import BASE, CHECKPOINT, DTYPE, OUTPUT, STEP
from opsd_jax import config as configs
from opsd_jax.checkpoint.store import open_store
from opsd_jax.config import ConfigError, require
from opsd_jax.distill.config import TeacherConfig
from opsd_jax.experiment import Experiment
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import families, lora, model, weights
from opsd_jax.models.folder import adapters, inventory, read, write
from opsd_jax.models.spec import ModelSpec
from opsd_jax.train import controller, state
from opsd_jax.train.config import OptimizerConfig

for shared in ('checkpoint', 'base', 'step', 'output', 'dtype'):
  flags.declare_key_flag(shared)
_MERGE = flags.DEFINE_bool('merge_lora', False, 'Add the adapters of a run with LoRA into the weights.')


def main() -> None:
  """Reads, writes and says what was written."""
  require(bool(CHECKPOINT.value), '--checkpoint is missing; name the folder of a run.')
  require(bool(OUTPUT.value), '--output is missing; name a folder to write.')
  workdir, output = CHECKPOINT.value, OUTPUT.value
  experiment = read_experiment(workdir)
  adapted = experiment.lora.rank > 0
  require(
    adapted or not _MERGE.value,
    f'--merge_lora: the run in {workdir} has no LoRA (lora.rank is 0), so there is nothing to merge; leave '
    'the flag out.',
  )
  alone = adapted and not _MERGE.value
  require(
    not (alone and DTYPE.value), '--dtype: adapters are saved in float32; leave it out, or add --merge_lora.'
  )
  require(
    not (alone and experiment.cold_start.updates),
    f'the run in {workdir} began with a cold start, which changed the weights that its adapters belong to, '
    'so that they fit no other folder; add --merge_lora.',
  )
  base, step = base_folder(experiment, BASE.value), read_step(STEP.value)
  if alone and base is not None:
    _require_same_model(base, experiment.model)
  mesh = make_mesh(MeshConfig())
  write.require_new(output)
  if not alone:
    write.check(output, experiment.model, _shapes(experiment.model, mesh), base)
  with jax.set_mesh(mesh):
    step, trained = read_trained(workdir, experiment, mesh, step)
    if alone:
      adapters.save(output, experiment.lora, trained, base=base or '', prefix=_prefix(base))
    else:
      params = merged(workdir, experiment, mesh, trained, base) if adapted else trained
      dtype = DTYPE.value or experiment.model.dtype
      write.save(output, experiment.model, params, base, dtype=dtype)
  if jax.process_index() == 0:
    print(f'{output}: {_what(output)} after {step} updates of {workdir}')
    if base is None:
      print('There was no --base: the folder has no tokenizer.')


def read_experiment(workdir: str) -> Experiment:
  """The settings that a run was started with, from its config.json.

  Raises:
    ConfigError: the folder is no run's, or one of a version with other settings.
  """
  path = os.path.join(workdir, 'config.json')
  require(os.path.isfile(path), f'--checkpoint={workdir} has no config.json; name the folder of a run.')
  try:
    with open(path, encoding='utf-8') as file:
      saved = json.load(file)
  except ValueError as error:
    raise ConfigError(f'{path} is not JSON: {error}.') from error
  require(
    isinstance(saved, dict) and 'model_type' not in saved and 'model' in saved,
    f'--checkpoint={workdir} is no run of experiments.train; its config.json holds something else.',
  )
  return configs.from_dict(Experiment, saved, path)


def base_folder(experiment: Experiment, named: str | None) -> str | None:
  """The folder that config.json and the tokenizer come from, or None."""
  folder = named or experiment.weights.path
  origin = 'is named' if named else 'the run began from'
  require(
    folder is None or os.path.isdir(folder),
    f'--base: {folder!r}, which {origin}, is no folder; say where that model is.',
  )
  return folder


def _require_same_model(base: str, spec: ModelSpec) -> None:
  """Adapters alone say nothing of the model that they stand beside: it has to be the base as it is."""
  wrong = families.contradictions(families.read(base), spec)
  require(
    not wrong,
    f'the base {base} computes something else than the model of the run, so that its adapters alone do not '
    f'fit it (in its config.json -> here): {"; ".join(wrong)}. Add --merge_lora, or name another --base.',
  )


def _prefix(base: str | None) -> str:
  """Where transformers has the decoder of the base."""
  inside = base is not None and families.is_multimodal(families.read_json(base))
  return adapters.PART if inside else adapters.WHOLE


def read_trained(
  workdir: str, experiment: Experiment, mesh: jax.sharding.Mesh, step: int | str | None = None
) -> tuple[int, model.Params]:
  """The number of updates and what they trained: all parameters or, with LoRA, the adapters.

  Args:
    workdir: of the run.
    experiment: its settings.
    mesh: where the arrays go.
    step: None for the newest checkpoint, 'best', or a number of updates.

  Raises:
    ConfigError: there is no such checkpoint.
    CheckpointError: it cannot be read.
  """
  spec = experiment.model
  adapted = experiment.lora.rank > 0
  shapes = lora.abstract(experiment.lora, spec, mesh) if adapted else model.abstract_params(spec, mesh)
  e, anchored = experiment, controller.anchored(experiment.controller)
  return _restore(workdir, e, shapes, e.optimizer, e.teacher, step, anchored)


def merged(
  workdir: str,
  experiment: Experiment,
  mesh: jax.sharding.Mesh,
  trained: lora.Adapters,
  moved: str | None = None,
) -> model.Params:
  """The parameters with the adapters of a run added to the weights that they stand beside.

  Args:
    workdir: of the run.
    experiment: its settings.
    mesh: where the arrays go.
    trained: the adapters.
    moved: where the folder that a run began from is now; counts where it holds weights.
  """
  e = experiment
  if e.weights.path is not None and moved is not None and inventory.has_weights(moved):
    e = dataclasses.replace(e, weights=dataclasses.replace(e.weights, path=moved))
  if e.cold_start.updates:
    folder, shapes = os.path.join(workdir, 'cold_start'), model.abstract_params(e.model, mesh)
    _, base = _restore(folder, e, shapes, e.cold_start.optimizer, TeacherConfig())
  else:
    base = weights.initial(e.weights, e.model, jax.random.key(e.seed), mesh, e.model.dtype)
  return lora.merge(lora.freeze(e.lora, e.model, base), trained, lora.scale(e.lora))


def _restore(
  workdir: str,
  experiment: Experiment,
  shapes: model.Params,
  optimizer: OptimizerConfig,
  teacher: TeacherConfig,
  step: int | str | None = None,
  anchored: bool = False,
) -> tuple[int, model.Params]:
  folder = os.path.join(workdir, 'checkpoints')
  layout = state.describe(shapes, state.make_optimizer(optimizer), teacher, anchored)
  with open_store(folder, experiment.checkpoint, read_only=True) as store:
    found = store.restore(layout, step)
  require(found is not None, f'{folder} has no complete checkpoint yet (asked for: {step or "latest"}).')
  return found[0], found[1].params


def _shapes(spec: ModelSpec, mesh: jax.sharding.Mesh) -> dict[tuple[str, ...], tuple[int, ...]]:
  described = read.leaves(model.abstract_params(spec, mesh))
  return {path: leaf.shape for path, leaf in described.items()}


def read_step(text: str) -> int | str | None:
  """What --step means to `read_trained`.

  Raises:
    ConfigError: it is something else than latest, best or a number.
  """
  require(
    text in ('latest', 'best') or text.isdecimal(),
    f'--step={text} is not latest, best or a number of updates.',
  )
  return int(text) if text.isdecimal() else None if text == 'latest' else text


def _what(folder: str) -> str:
  sizes = [os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder) if f.endswith('.safetensors')]
  return f'{sum(sizes) / 1e9:,.3f} GB in {len(sizes)} file(s)'


if __name__ == '__main__':
  entry.run(main, __doc__)
