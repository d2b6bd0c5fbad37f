"""What an optimiser step changes."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from opsd_jax import mesh as meshes
from opsd_jax.distill import teachers
from opsd_jax.distill.config import TeacherConfig
from opsd_jax.models.model import Params
from opsd_jax.train.config import OptimizerConfig


@flax.struct.dataclass
class TrainState:
  """Float32 master weights, optimiser moments and, for an EMA teacher, its average.

  Under LoRA all three are of the adapters alone.
  """

  params: Params
  optimizer: Any
  teacher: Params | None


@flax.struct.dataclass
class AnchoredState(TrainState):
  """With the weights that a controller measures from (`train/controller.py`).

  A class of its own, so that the checkpoints of other runs have no place for it.
  """

  anchor: Params


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Global-norm clipping, then AdamW under the schedule. Moments are float32 like the weights."""
  clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
  return optax.chain(
    clip,
    optax.adamw(
      schedule(config), config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay
    ),
  )


def schedule(config: OptimizerConfig) -> optax.Schedule:
  """Learning rate as a function of the number of steps taken; the first step of a warm-up is not 0."""
  peak, warm = config.learning_rate, config.warmup_updates
  rest = {
    'constant': lambda: optax.constant_schedule(peak),
    'linear': lambda: optax.linear_schedule(peak, 0.0, config.decay_updates - warm),
    'cosine': lambda: optax.cosine_decay_schedule(peak, config.decay_updates - warm),
  }[config.schedule]()
  return optax.join_schedules([lambda count: peak * (count + 1) / warm, rest], [warm]) if warm else rest


def describe(
  params: Params, optimizer: optax.GradientTransformation, teacher: TeacherConfig, anchored: bool = False
) -> TrainState:
  """Shapes and shardings of a state: what is made, and what a checkpoint is restored into.

  Moments and averages live where their parameters do; without being told, they would be born whole on
  every device.

  Args:
    params: arrays, or `jax.ShapeDtypeStruct`s with shardings.
    optimizer: of the run.
    teacher: of the run.
    anchored: whether it carries the weights that a controller measures from.
  """
  shapes = jax.eval_shape(_build(optimizer, teacher, anchored), params)
  where = jax.tree.map(lambda p: p.sharding, params)
  scalar = _everywhere(jax.tree.leaves(where)[0])
  moments = optax.tree_map_params(
    optimizer, lambda _, s: s, shapes.optimizer, where, transform_non_params=lambda _: scalar
  )
  average = where if shapes.teacher is not None else None
  shardings = shapes.replace(params=where, optimizer=moments, teacher=average)
  shardings = shardings.replace(anchor=where) if anchored else shardings
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def create(
  params: Params, optimizer: optax.GradientTransformation, teacher: TeacherConfig, anchored: bool = False
) -> TrainState:
  """The state before the first step. `params` are copied: steps donate what they are given."""
  layout = shardings(describe(params, optimizer, teacher, anchored))
  return jax.jit(_build(optimizer, teacher, anchored), out_shardings=layout)(params)


def restart(optimizer: optax.GradientTransformation, moments: Any, params: Params) -> Any:
  """The optimiser's state as before its first step, but for the place in the schedule."""

  def is_place(x: Any) -> bool:
    return isinstance(x, optax.ScaleByScheduleState)

  fresh = optimizer.init(params)
  return jax.tree.map(lambda old, new: old if is_place(old) else new, moments, fresh, is_leaf=is_place)


def shardings(state: TrainState) -> TrainState:
  """Where each array of a state, or of its description, lives."""
  return jax.tree.map(lambda x: x.sharding, state)


def _build(
  optimizer: optax.GradientTransformation, teacher: TeacherConfig, anchored: bool
) -> Callable[[Params], TrainState]:
  def build(params: Params) -> TrainState:
    own, anchor = (jax.tree.map(jnp.copy, params) for _ in range(2))
    parts = own, optimizer.init(params), teachers.init(teacher, params)
    return AnchoredState(*parts, anchor) if anchored else TrainState(*parts)

  return build


def _everywhere(like: jax.sharding.Sharding) -> jax.sharding.Sharding:
  """The layout of a scalar beside arrays that live like `like`."""
  return meshes.replicated(like.mesh) if isinstance(like, jax.sharding.NamedSharding) else like


@jax.named_scope('optimizer')
def step(
  state: TrainState,
  grads: Params,
  loss: jax.Array,
  optimizer: optax.GradientTransformation,
  teacher: TeacherConfig,
) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
  """One optimiser step, or none where the loss, the gradient or the step is not finite.

  Returns:
    The new state; `grad_norm` (global, before clipping) and `update_norm` (of the change of the weights);
    and whether the step was taken.
  """
  updates, moments = optimizer.update(grads, state.optimizer, state.params)
  norms = {'grad_norm': optax.tree.norm(grads), 'update_norm': optax.tree.norm(updates)}
  # A finite gradient can still make a step that overflows; its weights must not count as good ones.
  finite = jnp.isfinite(loss) & jnp.isfinite(norms['grad_norm']) & jnp.isfinite(norms['update_norm'])
  params = optax.apply_updates(state.params, updates)
  average = teachers.update(teacher, state.teacher, params)
  stepped = state.replace(params=params, optimizer=moments, teacher=average)
  return jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state), norms, finite
