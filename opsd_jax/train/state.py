"""What an optimiser step changes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from opsd_jax.distill import teachers
from opsd_jax.distill.config import TeacherConfig
from opsd_jax.models.model import Params
from opsd_jax.train.config import OptimizerConfig


@flax.struct.dataclass
class TrainState:
  """Float32 master weights, optimiser moments and, for an EMA teacher, its average."""

  params: Params
  optimizer: Any
  teacher: Params | None


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Global-norm clipping, then AdamW under the schedule. Moments are float32 like the weights."""
  clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
  return optax.chain(clip, optax.adamw(schedule(config), config.beta1, config.beta2, config.epsilon,
                                       weight_decay=config.weight_decay))


def schedule(config: OptimizerConfig) -> optax.Schedule:
  """Learning rate as a function of the number of steps taken."""
  peak, warm = config.learning_rate, config.warmup_updates
  rest = {
      'constant': lambda: optax.constant_schedule(peak),
      'linear': lambda: optax.linear_schedule(peak, 0.0, config.decay_updates - warm),
      'cosine': lambda: optax.cosine_decay_schedule(peak, config.decay_updates - warm),
  }[config.schedule]()
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warm), rest], [warm]) if warm else rest


def create(params: Params, optimizer: optax.GradientTransformation, teacher: TeacherConfig) -> TrainState:
  """The state before the first step. `params` are copied: steps donate what they are given."""
  build = jax.jit(lambda p: TrainState(jax.tree.map(jnp.copy, p), optimizer.init(p), teachers.init(teacher, p)))
  return build(params)


def abstract(state: TrainState) -> TrainState:
  """Shapes and shardings of a state: what a checkpoint is restored into."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def step(state: TrainState, grads: Params, loss: jax.Array, optimizer: optax.GradientTransformation,
         teacher: TeacherConfig) -> tuple[TrainState, jax.Array, jax.Array]:
  """One optimiser step, or none where the loss or the gradient is not finite.

  Returns:
    The new state, the gradient's global norm before clipping, and whether the step was taken.
  """
  norm = optax.global_norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  updates, moments = optimizer.update(grads, state.optimizer, state.params)
  params = optax.apply_updates(state.params, updates)
  stepped = TrainState(params, moments, teachers.update(teacher, state.teacher, params))
  return jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state), norm, finite
