"""What happens after an update: weights are extrapolated, if they are due and if that helps.

The order is that of EffOPD: update, Δ from the anchor, questions to W and to one candidate after another,
the accepted weights are W and the anchor from then on; the optimiser and its schedule do not hear of it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opsd_jax.config import require
from opsd_jax.evaluate import accuracy
from opsd_jax.models import lora, model
from opsd_jax.records import Problem
from opsd_jax.train import extrapolation, ledger, loop, state
from opsd_jax.train.extrapolation import ControllerConfig
from opsd_jax.train.ledger import Ledger
from opsd_jax.train.profiling import measured
from opsd_jax.train.setup import Setup
from opsd_jax.train.state import AnchoredState, TrainState

_CHOICE = 50  # beside the seed: which problems are asked

Update = Callable[[TrainState, int], tuple[TrainState, loop.Outcome]]
Measure = Callable[[model.Params], tuple[float, Ledger]]


class Found(NamedTuple):
  """What a controller did: metrics, empty where nothing was due, and what asking took."""

  metrics: dict[str, float]
  spent: Ledger


def anchored(config: ControllerConfig) -> bool:
  """Whether the train state carries an anchor."""
  return config.kind != 'none'


def around(
  setup: Setup,
  initial: model.Params,
  optimizer: optax.GradientTransformation,
  layout: TrainState,
  update: Update,
) -> Update:
  """An update with the controller of the run after it; the update itself where there is none.

  What its questions take is counted in the run's ledger, and once more apart from the rest.

  Args:
    setup: of the run.
    initial: what adapters stand beside.
    optimizer: whose moments may begin anew.
    layout: shapes and shardings of the state.
    update: `(state, number of updates done) -> (state, outcome)`.

  Raises:
    ConfigError: there are fewer training problems than are to be asked.
  """
  if not anchored(setup.controller):
    return update
  measure = functools.partial(ask, setup, initial, asked(setup))
  control = make(setup.controller, setup.lora, optimizer, layout, measure)

  def both(weights: TrainState, number: int) -> tuple[TrainState, loop.Outcome]:
    weights, outcome = update(weights, number)
    seconds = {}
    with measured(seconds, 'controller'):
      weights, found = control(weights, number + 1)
    return weights, dataclasses.replace(
      outcome,
      metrics=outcome.metrics | found.metrics,
      spent=outcome.spent + found.spent,
      asked=found.spent,
      time=outcome.time | seconds,
    )

  return both


def make(
  config: ControllerConfig,
  adapters: lora.LoraConfig,
  optimizer: optax.GradientTransformation,
  layout: AnchoredState,
  measure: Measure,
) -> Callable[[AnchoredState, int], tuple[AnchoredState, Found]]:
  """`(state, updates done) -> (state, what was found)`.

  Candidates are made one at a time from W and the anchor, so that beside these two there is at most one
  more tree; the accepted one is made once more.

  Args:
    config: when, how far, and what is accepted.
    adapters: of the run; without a rank the state's parameters are all weights.
    optimizer: whose moments may begin anew.
    layout: shapes and shardings of the state.
    measure: accuracy of trained parameters, and what asking for it took; not called by `fixed`.
  """
  where = state.shardings(layout)
  if adapters.rank:
    move = jax.jit(extrapolation.extrapolate_adapters, out_shardings=(where.params, None))
  else:
    plain = functools.partial(extrapolation.extrapolate, config)
    move = jax.jit(lambda p, a, f: (plain(p, a, f), jnp.float32(0)), out_shardings=(where.params, None))
  copy = jax.jit(lambda p: jax.tree.map(jnp.copy, p), out_shardings=where.params)
  restart = jax.jit(
    functools.partial(state.restart, optimizer), donate_argnums=0, out_shardings=where.optimizer
  )
  fresh_moments = bool(adapters.rank) or config.moments == 'reset'

  def beyond(weights: AnchoredState, factor: float) -> tuple[model.Params, float]:
    """The parameters, and what their rank lacks; the state's own for factor 0."""
    if not factor:
      return weights.params, 0.0
    params, lost = move(weights.params, weights.anchor, np.float32(factor))
    return params, float(lost)

  def control(weights: AnchoredState, updates: int) -> tuple[AnchoredState, Found]:
    if not extrapolation.due(config, updates):
      return weights, Found({}, Ledger())
    factor, metrics, spent = _choose(config, lambda f: measure(beyond(weights, f)[0]))
    params, lost = beyond(weights, factor)
    metrics |= {'controller/factor': factor} | ({'controller/rank_error': lost} if adapters.rank else {})
    moments = restart(weights.optimizer, params) if factor and fresh_moments else weights.optimizer
    return weights.replace(params=params, anchor=copy(params), optimizer=moments), Found(metrics, spent)

  return control


def _choose(
  config: ControllerConfig, measure: Callable[[float], tuple[float, Ledger]]
) -> tuple[float, dict[str, float], Ledger]:
  """How far to go, what is to be recorded of the choice, and what it took."""
  if config.kind == 'fixed':
    return config.factor, {}, Ledger()
  spent = []

  def score(factor: float) -> float:
    value, took = measure(factor)
    spent.append(took)
    return value

  found = extrapolation.search(config, score)
  metrics = {
    'controller/tried': len(found.scores) - 1,
    'controller/accuracy_before': found.scores[0],
    'controller/accuracy': found.score,
  }
  return found.factor, metrics, sum(spent, Ledger())


def asked(setup: Setup) -> list[Problem]:
  """The training problems that every candidate is asked; which depends on `evaluate.seed` alone."""
  count, train = setup.controller.problems, setup.splits.train
  if setup.controller.kind != 'effopd':
    return []
  require(
    len(train) >= count,
    f'controller.problems is {count}, but there are only {len(train)} training problems; ask fewer.',
  )
  rng = np.random.default_rng([setup.evaluate.seed, _CHOICE])
  return [train[i] for i in sorted(rng.choice(len(train), count, replace=False).tolist())]


def ask(
  setup: Setup, initial: model.Params, problems: list[Problem], trained: model.Params
) -> tuple[float, Ledger]:
  """Share of right answers under the student's view, and what they took."""
  config, test = setup.controller, setup.evaluate
  heat = test.sampling.temperature if config.temperature is None else config.temperature
  verdicts = accuracy.answer_problems(
    setup.exam,
    lora.complete(setup.lora, initial, trained),
    problems,
    'student',
    dataclasses.replace(test.sampling, temperature=heat),
    samples=config.samples,
    batch=min(test.batch, len(problems)),
    decode=test.decode,
    seed=test.seed,
  )
  adapters = lora.size(setup.lora, setup.spec)
  spent = ledger.rollout_entry(setup.spec, verdicts.prompt_length, verdicts.length.ravel(), adapters)
  return float(verdicts.correct.mean()), spent
