"""An arm's supervised updates before it distils: imitation of the teacher's rollouts, or of solutions."""

import dataclasses
import os

from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.models import model
from opsd_jax.train import distill, loop
from opsd_jax.train.extrapolation import ControllerConfig
from opsd_jax.train.setup import Setup

# Plain cross-entropy, whatever the arm's own loss is.
_IMITATION = dict(
  estimator='nll', correction='none', extrapolation=1.0, token_clip=None, student_temperature=1.0
)


def run(
  setup: Setup, folder: str, initial: model.Params, label: str, external: model.Params | None = None
) -> loop.Finished:
  """Trains `warm_start.updates` updates from `initial`, in `folder`/warm_start; continues an earlier attempt.

  Without updates what it returns are the initial weights.
  """
  config = setup.warm_start
  if not config.updates:
    return loop.Finished(initial, loop.Progress())
  stage = dataclasses.replace(
    setup,
    source=config.source,
    objective=dataclasses.replace(setup.objective, **_IMITATION),
    weigh=WeighConfig(),
    controller=ControllerConfig(),
    optimizer=config.optimizer,
    loop=dataclasses.replace(
      setup.loop, updates=config.updates, budget=None, max_updates=None, evaluate_every=0
    ),
  )
  own = os.path.join(folder, 'warm_start')
  return distill.run(stage, own, initial, f'{label}, warm start', external, 'warm_start.optimizer')
