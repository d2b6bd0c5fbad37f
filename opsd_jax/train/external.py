"""An external teacher's weights: those of a folder, or made here by supervised training."""

import dataclasses

import jax

from opsd_jax.models import model, weights
from opsd_jax.models.lora import LoraConfig
from opsd_jax.train import cold_start, loop
from opsd_jax.train.setup import Setup

_APART = 0x7EAC4E5  # folded into the seed: a teacher of the student's shape must not begin as the student


def prepare(setup: Setup, folder: str) -> loop.Finished:
  """The teacher in its compute dtype, on its own shardings, after `teacher_start.updates`.

  Its training is a cold start of its own in `folder`, and goes on from an earlier attempt there.
  """
  spec = setup.teacher.model
  own = dataclasses.replace(
    setup,
    seed=setup.seed ^ _APART,
    spec=spec,
    weights=setup.teacher.weights,
    cold_start=setup.teacher_start,
    lora=LoraConfig(),
  )
  if not setup.teacher_start.updates:
    key = jax.random.key(own.seed)
    return loop.Finished(weights.initial(own.weights, spec, key, setup.mesh, spec.dtype), loop.Progress())
  finished = cold_start.run(own, folder, 'teacher', 'teacher_start')
  return dataclasses.replace(finished, params=model.in_compute_dtype(spec, finished.params))
