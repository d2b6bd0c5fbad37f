"""The divergence over tiles of the vocabulary with all positions, computed again backward.

How often the vocabulary is gone through: for the loss / with the hidden states' gradient alone /
with the head's too.

- KLs: once (with all statistics) / once / twice.
- JSD and entry clips: twice, since an entry needs both normalisers / twice / three times.
- forward KL with an upper clip: as the KL, at positions with a certificate (`full`).
- supports with a bucket and the sampled token: once / once / twice, then without the teacher.
- renormalised supports: once, for what ranks their entries / once / once.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import AxisType, PartitionSpec

from kernels import tiles
from kernels.linear_divergence import columns, full, passes, supports
from kernels.linear_divergence.parts import Inputs, Outcome, Plan, Sparse
from kernels.linear_divergence.spec import Divergence, DivergenceSpec


class Residuals(NamedTuple):
  """What the backward pass needs; None where nobody asks.

  Attributes:
    pull: gradient [B, T, D] of every loss to its hidden state, made ahead where the head needs none.
    inputs: arrays of the call, where the head needs one.
    outcome: what the gradients are made of then.
    hidden: () where the hidden states need one then.
  """

  pull: jax.Array | None
  inputs: Inputs | None
  outcome: Outcome | None
  hidden: tuple[()] | None


def forward(
  spec: DivergenceSpec,
  inputs: Inputs,
  *,
  hidden: bool,
  head: bool,
  weights: jax.Array | None,
  chunk_tokens: int,
  statistics: bool,
  axes: tuple[str, ...],
) -> tuple[Divergence, Residuals]:
  """Results [B, T], and what the gradients asked for are made of."""
  del weights  # The backward pass knows the loss's derivative.
  axes = shared_axes(axes, inputs.student_head.shape[0])

  def run(inputs: Inputs):
    plan = make_plan(spec, inputs, chunk_tokens, axes, statistics)
    compare = full.compare if spec.support == 'full' else supports.compare
    result, outcome = compare(plan, inputs, hidden and not head)
    if not statistics:
      result = Divergence(result.loss, result.clip_fraction, clip_fallback=result.clip_fallback)
    # Shares of the vocabulary add up last, once.
    pull = None if outcome.pull is None else tiles.total(outcome.pull, axes).astype(inputs.student.dtype)
    return result, outcome._replace(pull=None) if head else None, pull

  result, outcome, pull = over_vocab(run, axes, (_layout(inputs, axes),), PartitionSpec())(inputs)
  return result, Residuals(pull, inputs if head else None, outcome, () if hidden else None)


def backward(
  spec: DivergenceSpec,
  residuals: Residuals,
  cotangent: jax.Array,
  *,
  chunk_tokens: int,
  axes: tuple[str, ...],
) -> tuple[jax.Array | None, jax.Array | None]:
  """Gradients of the student's hidden states and head."""
  pull, inputs, outcome, hidden = residuals
  if inputs is None:
    return None if pull is None else (pull * cotangent[..., None]).astype(pull.dtype), None
  axes = shared_axes(axes, inputs.student_head.shape[0])

  def run(inputs: Inputs, outcome: Outcome, weight: jax.Array):
    plan = make_plan(spec, inputs, chunk_tokens, axes, False)
    if outcome.gamma is None:
      return _at_support(plan, inputs, outcome.sparse, weight, hidden is not None)
    return passes.gradients(plan, inputs, outcome, weight, hidden is not None)

  whole = PartitionSpec()
  call = over_vocab(run, axes, (_layout(inputs, axes), whole, whole), (whole, PartitionSpec(axes)))
  return call(inputs, outcome, cotangent)


def _at_support(plan: Plan, inputs: Inputs, sparse: Sparse, weight: jax.Array, hidden: bool):
  """Gradients that are 0 but at the support."""
  values = sparse.values * (weight / plan.spec.student_temperature)[..., None]
  own, dtype = None, inputs.student.dtype
  if hidden:
    own = tiles.total(columns.pull(plan, values, inputs.student_head, sparse.ids, dtype), plan.axes)
    own = own.astype(dtype)
  return own, columns.push(plan, values, inputs.student, sparse.ids, inputs.student_head)


def make_plan(
  spec: DivergenceSpec, inputs: Inputs, chunk_tokens: int, axes: tuple[str, ...], statistics: bool
) -> Plan:
  """How a call is cut, on a device that has `inputs`."""
  batch, time = inputs.targets.shape
  here = inputs.student_head.shape[0]
  whole = here * math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
  vocab = spec.valid_vocab or whole
  # Padding is not gone through at all, where all devices' entries end at the same place.
  size = here if axes else vocab
  return Plan(
    spec=spec,
    vocab=vocab,
    size=size,
    tile=tiles.width(batch * time, size, chunk_tokens),
    statistics=statistics,
    axes=axes,
    masked=vocab < whole and bool(axes),
    group=max(1, -(-time // 16)),
  )


def shared_axes(axes: Sequence[str], vocab: int) -> tuple[str, ...]:
  """Those of `axes` over which the heads' rows can be cut by hand: parts must be equal."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = dict(zip(mesh.axis_names, mesh.axis_types or (), strict=True))
  taken = tuple(a for a in axes if kinds.get(a) is AxisType.Auto and mesh.shape[a] > 1)
  return taken if vocab % math.prod(mesh.shape[a] for a in taken) == 0 else ()


def over_vocab(run, axes: tuple[str, ...], in_specs, out_specs):
  """`run` with heads cut over mesh axes by hand; other axes stay XLA's."""
  if not axes:
    return run
  return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, axis_names=set(axes), check_vma=False)


def _layout(inputs: Inputs, axes: tuple[str, ...]) -> Inputs:
  rows, heads = PartitionSpec(), PartitionSpec(axes)
  return Inputs(rows, heads, rows, inputs.teacher_head is not None and heads or None, rows)
