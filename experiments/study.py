"""A study: cold start, the main run, its controls, and one evaluation of them all."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from typing import Any, NamedTuple

import jax

from opsd_jax.data import source
from opsd_jax.evaluate import accuracy, retention, statistics
from opsd_jax.experiment import Control, Experiment, assemble, with_control
from opsd_jax.files import write_json
from opsd_jax.models import lora
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.model import Params
from opsd_jax.records import Role
from opsd_jax.rollout.engine import probe
from opsd_jax.train import cold_start, distill, external, grpo, ledger, loop, warm_start
from opsd_jax.train.setup import Setup

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def check_sampler(experiment: Experiment) -> str:
  """What will draw the rollouts of the main run, in words.

  Raises:
    ConfigError: it is a server, of the main run or of a control, that could not be asked.
  """
  for control in experiment.controls:
    changed = with_control(experiment, control)
    probe.check(changed.rollout, changed.views.student_tokens)
  return probe.check(experiment.rollout, experiment.views.student_tokens)


def run(experiment: Experiment, setup: Setup, workdir: str) -> dict[str, Any]:
  """Runs what is not yet done in `workdir` and returns the content of `results.json`.

  An earlier `results.json` is removed first: while a run goes on it would tell of another.
  """
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(workdir, 'results.json'))
  with jax.set_mesh(setup.mesh):
    runs = {'cold_start': cold_start.run(setup, os.path.join(workdir, 'cold_start'))}
    base = runs['cold_start'].params
    taught = _teachers(experiment, setup, workdir)
    warm = {'opsd': warm_start.run(setup, workdir, base, 'opsd', _params(taught.get('opsd')))}
    runs['opsd'] = _train(setup, workdir, warm['opsd'].params, 'opsd', _params(taught.get('opsd')))
    done = runs['opsd'].progress
    for control in experiment.controls:
      name, folder = control.name, os.path.join(workdir, 'controls', control.name)
      teacher = _params(taught.get(name))
      warm[name] = warm_start.run(_arm_setup(setup, experiment, control), folder, base, name, teacher)
      # Each after a warm start of its own, whose tokens the table adds.
      changed = _arm_setup(setup, experiment, control, done.ledger.completions, done.updates)
      runs[name] = _train(changed, folder, warm[name].params, name, teacher)
    evaluated = _evaluate_all(setup, runs, os.path.join(workdir, 'evaluation'))
    arms = {name: _with(run.progress, warm.get(name)) for name, run in runs.items()}
    for teacher in taught.values():
      arms[teacher.row] = teacher.finished.progress
      evaluated[teacher.row] = _evaluate_teacher(teacher, workdir)
    chosen = distill.best(setup, workdir, base)
    if chosen is not None:
      arms['opsd_best'] = _with(chosen.progress, warm['opsd'])
      evaluated['opsd_best'] = _evaluate_best(setup, base, chosen, arms['opsd'], evaluated['opsd'], workdir)
  _add_recovery(evaluated, taught)
  results = _results(experiment, setup, arms, evaluated, taught)
  write_json(os.path.join(workdir, 'results.json'), results)
  return results


def _train(setup: Setup, folder: str, initial: Params, label: str, teacher: Params | None) -> loop.Finished:
  """An arm, by its method."""
  if setup.method == 'grpo':
    return grpo.run(setup, folder, initial, label)
  return distill.run(setup, folder, initial, label, teacher)


def _arm_setup(setup: Setup, experiment: Experiment, control: Control, *budget: int) -> Setup:
  """The workbench of a control, on the problems of the main run."""
  arm = with_control(experiment, control, *budget)
  return assemble(arm, setup.mesh, setup.splits, setup.dropped, setup.retention)


def _with(progress: loop.Progress, before: loop.Finished | None) -> loop.Progress:
  """What an arm took, its warm start among it; the updates are those after that."""
  if before is None:
    return progress
  first = before.progress
  return dataclasses.replace(
    progress, ledger=first.ledger + progress.ledger, seconds=first.seconds + progress.seconds
  )


class _Teacher(NamedTuple):
  """An external teacher of one or more arms.

  Attributes:
    row: its folder, and its row in the table.
    setup: of the first arm that it teaches, with the teacher's own model in place of the student's.
    finished: its weights, and what training them took.
  """

  row: str
  setup: Setup
  finished: loop.Finished


def _teachers(experiment: Experiment, setup: Setup, workdir: str) -> dict[str, _Teacher]:
  """The external teachers by the arms that they teach; arms that name the same one share it.

  Where they let it see different things, it has a row in the table for each.
  """
  arms = {'opsd': experiment} | {c.name: with_control(experiment, c) for c in experiment.controls}
  trained: dict[Any, loop.Finished] = {}
  known: dict[Any, _Teacher] = {}
  taught = {}
  for name, arm in arms.items():
    if arm.teacher.kind != 'external':
      continue
    model = arm.teacher.model, arm.teacher.weights
    key, row = (*model, arm.views), f'teacher_of_{name}' if known else 'teacher'
    if model not in trained:
      own = dataclasses.replace(setup, teacher=arm.teacher)
      trained[model] = external.prepare(own, os.path.join(workdir, row))
    if key not in known:
      own = dataclasses.replace(setup, spec=arm.teacher.model, lora=LoraConfig(), views=arm.views)
      known[key] = _Teacher(row, own, trained[model])
    taught[name] = known[key]
  return taught


def _params(teacher: _Teacher | None) -> Params | None:
  return None if teacher is None else teacher.finished.params


def _evaluate_teacher(teacher: _Teacher, workdir: str) -> dict[str, Any]:
  """The row of an external teacher, asked under the view that it teaches from."""
  path = os.path.join(workdir, 'evaluation', f'{teacher.row}.json')
  return _evaluate(teacher.setup, teacher.finished.params, 'teacher', teacher.finished, path)


def _add_recovery(evaluated: dict[str, dict[str, Any]], taught: dict[str, _Teacher]) -> None:
  """Adds to every arm with an external teacher how much of the way to it the arm has come."""
  best = {'opsd_best': taught['opsd']} if 'opsd' in taught and 'opsd_best' in evaluated else {}
  for name, teacher in (taught | best).items():
    evaluated[name]['gap_recovery'] = {
      kind: statistics.gap_recovery(
        *(evaluated[row][f'{kind}_accuracy'] for row in ('base', name, teacher.row))
      )
      for kind in ('sampled', 'greedy')
    }


def _evaluate_all(setup: Setup, runs: dict[str, loop.Finished], folder: str) -> dict[str, dict[str, Any]]:
  """Accuracy of every arm on the test problems."""
  os.makedirs(folder, exist_ok=True)
  base = runs['cold_start'].params
  arms: dict[str, tuple[Params, Role]] = {'base': (base, 'student'), 'teacher_view': (base, 'teacher')}
  trained = {name: run.params for name, run in runs.items() if name != 'cold_start'}
  arms |= {name: (lora.complete(setup.lora, base, tree), 'student') for name, tree in trained.items()}
  return {
    name: _evaluate(setup, params, role, runs.get(name), os.path.join(folder, f'{name}.json'))
    for name, (params, role) in arms.items()
  }


def _evaluate_best(
  setup: Setup, base: Params, chosen: loop.Finished, last: loop.Progress, row: dict[str, Any], workdir: str
) -> dict[str, Any]:
  """The row of the best checkpoint; where that is the last one, the last one's `row`, paid for once."""
  if chosen.progress.updates == last.updates:
    return row | {'spent': dataclasses.asdict(ledger.Ledger()), 'seconds': 0.0}
  params = lora.complete(setup.lora, base, chosen.params)
  return _evaluate(setup, params, 'student', chosen, os.path.join(workdir, 'evaluation', 'opsd_best.json'))


def _evaluate(
  setup: Setup, params: Params, role: Role, run: loop.Finished | None, path: str
) -> dict[str, Any]:
  """Measures one arm, or reads what an earlier call measured after as many updates."""
  updates = run.progress.updates if run else 0
  if os.path.exists(path):
    with open(path) as file:
      saved = json.load(file)
    if saved['updates'] == updates:
      return saved
  began = time.monotonic()
  measured, verdicts = accuracy.measure(setup.exam, params, setup.splits.test, role, setup.evaluate)
  # The teacher's view has no privilege to show of another task's problems.
  others, asked = retention.track(
    setup.exam, params, setup.retention if role == 'student' else (), setup.evaluate
  )
  adapters = lora.size(setup.lora, setup.spec) if run else 0
  spent = ledger.Ledger()
  for v in (*verdicts, *asked):
    spent += ledger.rollout_entry(setup.spec, v.prompt_length, v.length.ravel(), adapters)
  row = _row(measured, setup) | {
    'levels': accuracy.by_level(
      [source.level(setup.data, p) for p in setup.splits.test], verdicts[0].correct
    ),
    'retention': others,
    'updates': updates,
    'spent': dataclasses.asdict(spent),
    'seconds': time.monotonic() - began,
  }
  write_json(path, row)
  return row


def _row(measured: accuracy.Accuracy, setup: Setup) -> dict[str, Any]:
  """An arm's row of the table, accuracies in 0..1."""
  return {
    'sampled_accuracy': measured.sampled.value,
    'sampled_interval': [measured.sampled.low, measured.sampled.high],
    'greedy_accuracy': measured.greedy.value,
    'greedy_interval': [measured.greedy.low, measured.greedy.high],
    'pass_at': {str(k): v for k, v in measured.pass_at.items()},
    'answered': measured.answered,
    'stopped': measured.stopped,
    'mean_length': measured.mean_length,
    'problems': len(setup.splits.test),
    'samples': setup.evaluate.samples,
  }


def _results(
  experiment: Experiment,
  setup: Setup,
  arms: dict[str, loop.Progress],
  evaluated: dict[str, dict[str, Any]],
  taught: dict[str, _Teacher],
) -> dict[str, Any]:
  """`arms` are what was trained, by name."""
  seconds = {name: progress.seconds for name, progress in arms.items()}
  shared = {id(teacher.finished): teacher.finished for teacher in taught.values()}  # each trained once
  phases = {
    'cold_start': seconds['cold_start'],
    'opsd': seconds['opsd'],
    'controls': sum(seconds[c.name] for c in experiment.controls),
    **({'teacher': sum(run.progress.seconds for run in shared.values())} if taught else {}),
    'evaluation': sum(row['seconds'] for row in evaluated.values()),
  }
  table = {
    name: {k: v for k, v in row.items() if k not in ('spent', 'seconds', 'updates')}
    for name, row in evaluated.items()
  }
  return {
    'experiment': experiment.name,
    'seed': experiment.seed,
    **table,
    'problems': problems(setup),
    'cleaning': setup.cleaning,
    'tokens': dataclasses.asdict(arms['opsd'].ledger),
    'arms': {name: _arm(progress) for name, progress in arms.items()},
    'evaluation': {name: row['spent'] for name, row in evaluated.items()},
    'validation': {name: dataclasses.asdict(progress.validation) for name, progress in arms.items()},
    'seconds': phases | {'total': sum(phases.values())},
    'versions': versions(),
    'machine': machine(),
  }


def problems(setup: Setup) -> dict[str, dict[str, Any]]:
  """Of each split: how many problems are used, and how many were left out for which reason."""
  return {
    name: {'used': len(getattr(setup.splits, name)), 'left_out': dict(setup.dropped.get(name, {}))}
    for name in ('train', 'validation', 'test')
  }


def _arm(progress: loop.Progress) -> dict[str, Any]:
  return {'updates': progress.updates, 'skipped': progress.skipped, **dataclasses.asdict(progress.ledger)}


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that decide the numbers."""
  return {'python': platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES}


def machine() -> dict[str, Any]:
  """What the run ran on."""
  device = jax.devices()[0]
  return {
    'platform': device.platform,
    'device_kind': device.device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
    'cpu_count': os.cpu_count(),
    'system': platform.system(),
  }
