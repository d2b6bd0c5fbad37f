"""Shows what an experiment will train on, before anything expensive, and warns of likely mistakes.

  python -m experiments.check --experiment=quickstart
  python -m experiments.check --experiment=quickstart --workdir=runs/quickstart

For a few problems: both prompts as text and ids, the end-of-sequence ids, which positions count in the
loss, what the budget cuts, and what the privilege is worth on the reference solution; then memory. With
a --workdir whose cold start has run, its weights are read; otherwise the initial ones: random, or those
of weights.path. Ends with code 3 if there are warnings.
"""

import os
import sys

import jax
from absl import flags

from experiments import common, study
from opsd_jax.analyze import preflight
from opsd_jax.checkpoint.store import open_store
from opsd_jax.config import require
from opsd_jax.distill import objective
from opsd_jax.experiment import Experiment, build
from opsd_jax.models import lora, model
from opsd_jax.train import cold_start, controller
from opsd_jax.train.setup import Setup

flags.adopt_module_key_flags(common)
_WORKDIR = flags.DEFINE_string('workdir', None, 'A run whose cold-start weights are read, if there are any.')
_SHOWN = flags.DEFINE_integer('problems', 3, 'How many problems to show.', lower_bound=1)
_READ = 64  # problems that the warnings and the mean gain are taken over


def main(experiment: Experiment) -> int:
  """Prints the check; 3 if there are warnings."""
  setup = build(experiment)
  sampler = study.check_sampler(experiment)
  with jax.set_mesh(setup.mesh):
    params, updates = _weights(setup, _WORKDIR.value)
    readings = preflight.read(
      setup.spec,
      params,
      setup.splits.train[:_READ],
      setup.views,
      setup.tokenizer,
      setup.rollout.sampling.max_tokens,
    )
  for reading in readings[: _SHOWN.value]:
    _show(reading, setup)
  _show_problems(setup)
  gain = sum(r.gain for r in readings) / len(readings)
  origin = f'cold-start weights after {updates} updates' if updates else 'random initial weights'
  origin = f'weights of {setup.weights.path}' if setup.weights.path and not updates else origin
  print(
    f"teacher's gain over the student on {len(readings)} reference solutions: {gain:+.3f} nats a token "
    f'({origin})'
  )
  print(f'rollouts: {sampler} (validation and evaluation: our own sampler)')
  taught = setup.teacher.kind == 'external'
  taught_by = setup.teacher.model if taught else None
  served = objective.served_by(setup.objective, setup.spec, setup.exam.valid_vocab, taught_by)
  print(f'divergence: {served}')
  _show_memory(experiment, setup)
  trained = updates > 0 or setup.weights.path is not None
  needless = taught or setup.objective.estimator == 'nll' or setup.method == 'grpo'
  found = preflight.warnings(readings, setup.views, setup.tokenizer, setup.objective, trained, needless)
  return _show_warnings(found + preflight.layout_warnings(setup.mesh, setup.rollout))


def _weights(setup: Setup, workdir: str | None) -> tuple[model.Params, int]:
  """Cold-start weights of the run and their updates, or those before any training and 0."""
  if not workdir:
    return cold_start.initial_params(setup), 0
  folder = os.path.join(workdir, 'cold_start', 'checkpoints')
  require(os.path.isdir(folder), f'--workdir={workdir} has no cold start yet; train first, or leave it out.')
  with open_store(folder, setup.checkpoint, read_only=True) as store:
    found = store.restore(cold_start.layout(setup))
  require(found is not None, f'--workdir={workdir} has no complete checkpoint of its cold start yet.')
  return found[1].params, found[0]


def _show(reading: preflight.Reading, setup: Setup) -> None:
  config, tokenizer = setup.views, setup.tokenizer
  width = setup.rollout.sampling.max_tokens
  print(f'problem {reading.problem.id}')
  for role, text, ids, limit in (
    ('student', reading.student, reading.student_ids, config.student_tokens),
    ('teacher', reading.teacher, reading.teacher_ids, config.teacher_tokens),
  ):
    print(f'  {role} prompt   {text!r}\n    ids ({len(ids)} of {limit}) {ids}')
  shown = ' '.join(tokenizer.token_text(t) for t in reading.tokens[: reading.kept])
  print(f'  solution         {shown}')
  print(
    f'    in the loss    {reading.kept} of {width} positions; the rest is padding by length, whatever its id'
  )
  print(f'    cut            {len(reading.tokens) - reading.kept} tokens')
  ends = ', '.join(f'{i} {tokenizer.token_text(i)}' for i in tokenizer.eos_ids)
  print(f'    ends at        {ends}')
  print(
    f'    log-prob       student {reading.student_logp:.3f}, teacher {reading.teacher_logp:.3f}, '
    f'gain {reading.gain:+.3f} nats a token\n'
  )


def _show_problems(setup: Setup) -> None:
  for name, counts in study.problems(setup).items():
    print(f'{name}: {counts["used"]} problems')
    for reason, count in counts['left_out'].items():
      print(f'  {count} left out: {reason}')


def _show_memory(experiment: Experiment, setup: Setup) -> None:
  abstract = model.abstract_params(setup.spec, setup.mesh)
  print(f'memory over {setup.mesh.size} device(s), by formula, activations left out:')
  adapters = lora.abstract(setup.lora, setup.spec, setup.mesh) if setup.lora.rank else None
  table = preflight.memory(
    setup.spec,
    abstract,
    setup.rollout,
    setup.views,
    setup.objective,
    setup.teacher,
    adapters,
    controller.anchored(setup.controller),
  )
  for name, size in table.items():
    print(f'  {size / 2**20:12,.2f} MiB  {name}')
  for control in experiment.controls:
    print(f'control {control.name}: {" ".join(control.overrides)}')


def _show_warnings(found: list[str]) -> int:
  for warning in found:
    print(f'warning: {warning}', file=sys.stderr)
  if not found:
    print('no warnings')
  return 3 if found else 0


if __name__ == '__main__':
  common.run(main, __doc__)
