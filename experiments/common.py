"""From command-line flags to a checked experiment and a working folder that belongs to it."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping

from absl import flags

from experiments import entry, processes, recipes
from experiments.options import MODEL
from opsd_jax import config as configs
from opsd_jax import experiment as experiments
from opsd_jax.config import ConfigError, require
from opsd_jax.experiment import Experiment
from opsd_jax.files import write_json
from opsd_jax.models import families

flags.declare_key_flag('model')
_EXPERIMENT = flags.DEFINE_string('experiment', None, 'Recipe to run, by the name that --list shows.')
_SET = flags.DEFINE_multi_string(
  'set',
  [],
  'A setting to change, as --set=optimizer.learning_rate=1e-4. May be repeated; '
  "every setting is in the run's config.json.",
)
_BUDGET = flags.DEFINE_string(
  'budget', None, 'Stop after tokens:N (sampled), updates:N or minutes:X. Short for --set=loop.budget=...'
)
_LIST = flags.DEFINE_bool('list', False, 'List the recipes and end.')


def experiment_from_flags(check: Callable[[Experiment], None] = experiments.validate) -> Experiment:
  """The recipe with its overrides, checked.

  Raises:
    ConfigError: unknown recipe or field, wrong type, or settings that cannot work together.
  """
  if _EXPERIMENT.value is None:
    raise ConfigError(f'--experiment is missing. Recipes: {", ".join(recipes.names())}.')
  budget = [] if _BUDGET.value is None else [f'loop.budget={_BUDGET.value}']
  model = [] if MODEL.value is None else model_settings(MODEL.value)
  return with_settings(recipes.load(_EXPERIMENT.value), [*model, *_SET.value, *budget], check)


def model_settings(name: str) -> list[str]:
  """Settings for a model's folder, or for the name of a published size, which has no weights here."""
  name = os.path.expanduser(name)
  folder = [f'weights.path={name}', f'tokenizer.path={name}'] if os.path.isdir(name) else []
  return [f'model={name}', *folder]


def with_settings(
  experiment: Experiment, assignments: list[str], check: Callable[[Experiment], None] = experiments.validate
) -> Experiment:
  """The experiment with settings changed, checked."""
  changed = configs.override(experiment, assignments)
  _require_published(experiment, changed)
  check(changed)
  return changed


def _require_published(experiment: Experiment, changed: Experiment) -> None:
  """A recipe for published models keeps their shapes, or gives up their names."""
  for prefix, old, new in (('', experiment, changed), ('teacher.', experiment.teacher, changed.teacher)):
    name = new.weights.published
    other = families.contradictions(old.model, new.model, ('rope_scaling',)) if name else []
    require(
      not other,
      f'--experiment={experiment.name} is for {name}, but `{prefix}model` describes another (there -> here): '
      f'{"; ".join(other)}. Name the folder of {name}; for a model of your own, add '
      f'--set={prefix}weights.published=none.',
    )


def run(
  main: Callable[[Experiment], int | None],
  documentation: str | None,
  check: Callable[[Experiment], None] = experiments.validate,
  *,
  alone: bool = False,
) -> None:
  """Runs an entry point on the experiment of the flags; `--help` and `--list` show the recipes.

  Where the environment says that there are several processes, it joins them first (`experiments.processes`),
  unless it is to run `alone`. `check` raises `ConfigError` for an experiment that cannot work.
  """

  def with_experiment() -> int | None:
    if _LIST.value:
      print(listing())
      return 0
    if not alone:
      processes.join(os.environ)
    return main(experiment_from_flags(check))

  advice = 'write --set=field=value for a setting'
  entry.run(with_experiment, f'{documentation}\nRecipes:\n{listing()}\n', advice)


def listing() -> str:
  """Two lines a recipe: what it is, and where its numbers are from."""
  lines = []
  for name in recipes.names():
    lines.append(f'  {name}: {recipes.summary(name)}')
    if source := recipes.source(name):
      lines.append(f'      from {source}')
  return '\n'.join(lines)


def claim_workdir(
  workdir: str | None, experiment: Experiment, origin: Mapping[str, str] | None = None
) -> str:
  """Makes the folder, or checks that it belongs to this experiment; saves the config in it.

  `origin` (`Setup.origin`) tells files that a setting names, but that hold something else than before.

  Raises:
    ConfigError: no folder was named, it cannot be written, or another experiment owns it.
  """
  if not workdir:
    raise ConfigError('--workdir is missing; name a folder for the run, such as runs/quickstart.')
  workdir = os.path.abspath(workdir)
  _require_writable(workdir)
  path, wanted = os.path.join(workdir, 'config.json'), configs.to_dict(experiment)
  if os.path.exists(path):
    _require_same(path, wanted)
  if origin:
    _claim_origin(os.path.join(workdir, 'origin.json'), dict(origin))
  write_json(path, wanted)
  return workdir


def _claim_origin(path: str, origin: dict[str, str]) -> None:
  """Saves the digests of what a run reads, or checks that they are those that it began with."""
  if not os.path.exists(path):
    write_json(path, origin)
    return
  with open(path, encoding='utf-8') as file:
    began = json.load(file)
  causes = {
    'problems': 'the problems (data.path)',
    'retention': 'the problems of other tasks (evaluate.retention)',
    'prompts': 'the tokenizer, its chat template or the wording (tokenizer.path)',
  }
  changed = [causes[name] for name in causes if began.get(name) != origin.get(name)]
  if changed:
    raise ConfigError(
      f'--workdir={os.path.dirname(path)} belongs to another experiment: {" and ".join(changed)} hold '
      'something else than when it began. Bring that back, or choose another --workdir.'
    )


def _require_writable(workdir: str) -> None:
  try:
    os.makedirs(workdir, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise ConfigError(
      f'--workdir={workdir} cannot be written: {error.strerror or error}. Choose '
      'another folder, or change its permissions.'
    ) from error


def _require_same(path: str, wanted: dict) -> None:
  try:
    with open(path) as file:
      saved = json.load(file)
  except ValueError as error:
    raise ConfigError(f'{path} is not JSON: {error}. Remove it, or choose another --workdir.') from error
  changed = [
    line for line in configs.differences(saved, wanted) if not line.startswith(experiments.CONTINUABLE)
  ]
  if changed:
    raise ConfigError(
      f'--workdir={os.path.dirname(path)} belongs to another experiment. What '
      f'differs: {"; ".join(changed[:5])}. Choose another --workdir, or remove '
      'that one.'
    )
