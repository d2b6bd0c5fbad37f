"""Times our own sampler and our own step, in a process of their own: its peak of memory is theirs.

python -m experiments.benching.own rollouts runs/bench/workload.json out.json
python -m experiments.benching.own step runs/bench/workload.json out.json
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from experiments.benching import clock, workload
from experiments.benching.workload import Case
from opsd_jax.distill import packing, scoring
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.folder import read
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig
from opsd_jax.train import state as states
from opsd_jax.train import step as steps

REPEATS = 3
Run = Callable[[int], decode.Sampled]


def main(what: str, path: str, out: str) -> None:
  """Loads the weights and times what is asked for."""
  folder, spec, cases = workload.read(path)
  mesh = make_mesh(MeshConfig())
  with jax.set_mesh(mesh):
    params = read.load(folder, spec, mesh)
    result = {'rollouts': rollouts, 'step': step}[what](spec, params, cases)
  clock.report(out, result)


# Rollouts.


def rollouts(spec: ModelSpec, params: model.Params, cases: dict[str, Case]) -> dict[str, Any]:
  """Tokens, seconds and positions of every way to sample a case; each is run once before it is timed."""
  found: dict[str, Any] = {}
  for name in (workload.EQUAL, workload.GEOMETRIC):
    case = cases[name]
    ways = _ways(spec, params, case) if case.mean else {'all rows at once': _at_once(spec, params, case)}
    found[name] = {way: _timed(run) for way, run in ways.items()}
  # What is left of a token when the head has 128 rows.
  narrow = dataclasses.replace(spec, vocab_size=128)
  few = params | {'embedding': params['embedding'][:128]}
  run = _at_once(narrow, few, cases[workload.EQUAL])
  found[workload.EQUAL]['vocabulary of 128, for orientation'] = _timed(run)
  return {'cases': found}


def _at_once(spec: ModelSpec, params: model.Params, case: Case) -> Run:
  prompts = workload.student_prompts(spec, case)
  return functools.partial(_sample, spec, params, case, prompts, DecodeConfig())


def _ways(spec: ModelSpec, params: model.Params, case: Case) -> dict[str, Run]:
  prompts = workload.student_prompts(spec, case)
  each = case.slots // case.per_question
  parts = [jax.tree.map(lambda x: x[i : i + each], prompts) for i in range(0, case.questions, each)]  # noqa: B023

  def batches(seed: int) -> decode.Sampled:
    drawn = [_sample(spec, params, case, part, DecodeConfig(), seed) for part in parts]
    return jax.tree.map(lambda *x: np.concatenate([np.atleast_1d(i) for i in x]), *drawn)

  slots = {
    'refill': DecodeConfig(slots=case.slots),
    'refill, then fewer slots': DecodeConfig(slots=case.slots, compact=True),
  }
  refilled = {
    name: functools.partial(_sample, spec, params, case, prompts, config) for name, config in slots.items()
  }
  return refilled | {'without refill, in batches': batches}


def _sample(
  spec: ModelSpec, params: model.Params, case: Case, prompts: Prompts, config: DecodeConfig, seed: int
) -> decode.Sampled:
  drawn = decode.sample(
    spec,
    params,
    prompts,
    SamplingConfig(max_tokens=case.budget),
    eos_ids=workload.eos_ids(spec, case),
    per_question=case.per_question,
    seed=seed,
    decode=config,
  )
  return jax.tree.map(np.asarray, drawn)


def _timed(run: Run) -> dict[str, Any]:
  run(0)
  found = [clock.timed(functools.partial(run, seed)) for seed in range(1, REPEATS + 1)]
  drawn, seconds = sorted(found, key=lambda x: x[1]['seconds'] / x[0].rollout.length.sum())[REPEATS // 2]
  tokens = int(drawn.rollout.length.sum())
  idle = 1 - tokens / int(np.sum(drawn.token_positions))
  return {'tokens': tokens, 'requests': len(drawn.rollout.length), 'idle': idle} | seconds


# A whole step.


def step(spec: ModelSpec, params: model.Params, cases: dict[str, Case]) -> dict[str, Any]:
  """Sampling, scoring and the update, once before the clock starts."""
  case = cases[workload.STEP]
  student, seen = workload.student_prompts(spec, case), workload.teacher_prompts(spec, case)
  optimizer, teacher = optax.adamw(1e-6, weight_decay=1e-2), TeacherConfig()
  score = jax.jit(functools.partial(scoring.score_teacher, spec))
  update = steps.make_distill_step(
    spec, ObjectiveConfig(statistics=False), teacher, optimizer, valid_vocab=spec.vocab_size
  )
  holder = [states.create(params, optimizer, teacher)]
  head = model.head(spec, params)

  def run(seed: int) -> float:
    rollout = _sample(spec, holder[0].params, case, student, DecodeConfig(), seed).rollout
    plan = packing.plan(student, [seen], rollout)
    scores = score(params, (seen,), rollout, plan)
    holder[0], report = update(holder[0], student, rollout, scores, head, None, plan)
    return float(report.loss)

  run(0)
  found = [clock.timed(functools.partial(run, seed)) for seed in range(1, REPEATS + 1)]
  return {'loss': [loss for loss, _ in found], 'steps': [seconds for _, seconds in found]}


if __name__ == '__main__':
  main(*sys.argv[1:])
