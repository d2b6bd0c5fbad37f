"""What the passes of the chunked divergence hand to one another."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels import tiles
from kernels.linear_divergence.spec import DivergenceSpec, TeacherTopK

FLOOR = -1e30  # Below every logit, and finite: differences and products of it are no NaN.


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a call is cut; static.

  Attributes:
    spec: what to compare.
    vocab: valid entries of the whole vocabulary.
    size: entries of this device's head that are looked at.
    tile: of these, how many at a time.
    statistics: whether all results are wanted, or those alone that the loss needs.
    axes: mesh axes that share the vocabulary by hand, or none.
    masked: whether some device's entries lie beyond the valid vocabulary.
    group: time steps that a second look at few positions takes at a time.
    bins: lists of the streaming top-k, at most.
    depth: length of each.
  """

  spec: DivergenceSpec
  vocab: int
  size: int
  tile: int
  statistics: bool = True
  axes: tuple[str, ...] = ()
  masked: bool = False
  group: int = 64
  bins: int = 512
  depth: int = 4

  def first_id(self) -> jax.Array | int:
    """Id of this device's first entry."""
    return jax.lax.axis_index(self.axes) * self.size if self.axes else 0


class Inputs(NamedTuple):
  """Arrays of a call: hidden states [B, T, D], heads [V, D], targets [B, T].

  A teacher head of None is the student's. Of a teacher that is known by its top-k alone, this is in the
  place of the hidden states.
  """

  student: jax.Array
  student_head: jax.Array
  teacher: jax.Array | TeacherTopK
  teacher_head: jax.Array | None
  targets: jax.Array

  def rows(self, places: jax.Array) -> 'Inputs':
    """The same at time steps `places` [B, n] of every row."""
    take = functools.partial(take_rows, places=places)
    return self._replace(student=take(self.student), teacher=take(self.teacher), targets=take(self.targets))


class Norm(NamedTuple):
  """Maximum of the logits, and log of the sum relative to it, [B, T]: their sum would lose digits."""

  maximum: jax.Array
  log_total: jax.Array

  def log(self, logits: jax.Array) -> jax.Array:
    """Log-probabilities [B, T, n] of logits."""
    return logits - self.maximum[..., None] - self.log_total[..., None]


class Sparse(NamedTuple):
  """Derivatives [B, T, n] of the loss to the student's log-probabilities at ids [B, T, n]."""

  values: jax.Array
  ids: jax.Array


class Outcome(NamedTuple):
  """What gradients are made of.

  Attributes:
    norms: both models' normalisers; None for a teacher that the loss meets in `sparse` alone.
    gamma: [B, T], sum of the derivatives to log q; None where it is 0 for every loss.
    sparse: derivatives at the support, None for the full vocabulary.
    pull: gradient [B, T, D] of every loss to its hidden state, in at least float32, where it was asked
      for; of devices that share the vocabulary, each one's share, which add up to it.
  """

  norms: tuple[Norm | None, Norm | None]
  gamma: jax.Array | None
  sparse: Sparse | None
  pull: jax.Array | None


class Tile(NamedTuple):
  """Shaped logits [B, T, n] of both models at `ids` [n]; None of a model that is not looked at.

  Attributes:
    student: logits, FLOOR at ids that do not exist.
    slope: derivative of the student's soft-cap.
    teacher: logits.
    head: the student's head [n, D] there, 0 at ids that do not exist.
    ids: vocabulary ids.
    valid: bool [n], False at ids that do not exist; None: all do.
  """

  student: jax.Array | None
  slope: jax.Array | float
  teacher: jax.Array | None
  head: jax.Array
  ids: jax.Array
  valid: jax.Array | None

  def masked(self, x: jax.Array) -> jax.Array:
    """`x` [B, T, n] with zeros at ids that do not exist."""
    return x if self.valid is None else jnp.where(self.valid[None, None], x, 0.0)


def make_tile(plan: Plan, inputs: Inputs, start, size: int, student: bool, teacher: bool) -> Tile:
  """The tile of `size` entries from `start` on, of the models that are asked for."""
  spec = plan.spec
  ids = start + jnp.arange(size, dtype=jnp.int32) + plan.first_id()
  valid = ids < plan.vocab if plan.masked else None
  floor = lambda x: x if valid is None else jnp.where(valid[None, None], x, FLOOR)  # noqa: E731
  head = tiles.cut(inputs.student_head, start, size, inputs.student.dtype)
  if valid is not None:
    head = jnp.where(valid[:, None], head, jnp.zeros_like(head))  # 0 · NaN is NaN.
  z, slope, u = None, 1.0, None
  if student:
    z, slope = tiles.logits(inputs.student, head, spec.student_temperature, spec.student_softcap)
    z = floor(z)
  if teacher:
    own = inputs.student_head if inputs.teacher_head is None else inputs.teacher_head
    own = tiles.cut(own, start, size, inputs.teacher.dtype)
    u = floor(tiles.logits(inputs.teacher, own, spec.teacher_temperature, spec.teacher_softcap)[0])
  return Tile(z, slope, u, head, ids, valid)


def take_rows(x: jax.Array, places: jax.Array) -> jax.Array:
  """`x` [B, T, ...] at time steps `places` [B, n]; steps beyond the last are the last."""
  index = jnp.minimum(places, x.shape[1] - 1).reshape(*places.shape, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)
