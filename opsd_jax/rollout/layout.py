"""Where parameters live while tokens are drawn: gathered over fsdp once an update, not once a token.

A decode step reads every weight for a few rows, so what counts is the bytes that it reads. Training keeps
float32 masters in shards; here stands a copy in the compute dtype whose `embed` axes are whole and whose
wide axes stay on the tensor axis (`mesh.DECODING`). Inside the loop no weight crosses devices then.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding

from opsd_jax import mesh as meshes
from opsd_jax.models import lora, model
from opsd_jax.models.spec import ModelSpec


class Cost(NamedTuple):
  """Bytes on one device.

  Attributes:
    held: by all the parameters while tokens are drawn.
    copied: by those among them that exist beside the training ones.
    read: by a decode step; an embedding that is no head is looked up alone.
  """

  held: int
  copied: int
  read: int


def for_decoding(spec: ModelSpec, params: model.Params, mesh: Mesh | None = None) -> model.Params:
  """The parameters in the compute dtype (norm scales excepted) and laid out for decoding.

  A leaf that is there already is handed on without a copy, so that a second call costs nothing. Adapters
  stay beside their base and are not merged into it: the scorer computes with both apart, a small change
  added to a bfloat16 weight is mostly rounded away, and the frozen base of a run is in the compute dtype
  already, so that without fsdp no copy of it is made. What that costs a step is the adapters' own bytes,
  r·(in + out) to in·out of a matrix.

  Call it outside the jitted loop: inside, the compiler may move a gather into the loop again.

  Args:
    spec: the model's shape.
    params: parameter tree, plain or `Adapted`, of arrays.
    mesh: where to; None for the one that `jax.set_mesh` set. Without any, nothing is moved.
  """
  mesh = jax.sharding.get_mesh() if mesh is None else mesh
  # One array at a time: a program of them all would, on a TPU, hold each twice when it ends.
  return jax.tree.map(
    lambda leaf, to: leaf if _there(leaf, to) else _move(to.dtype, to.sharding, leaf),
    params,
    describe(spec, params, mesh),
  )


def describe(spec: ModelSpec, params: model.Params, mesh: Mesh) -> model.Params:
  """Shapes, dtypes and shardings that `for_decoding` makes of arrays or of their descriptions.

  With an empty mesh the shardings are None.
  """
  narrow = jax.eval_shape(functools.partial(model.in_compute_dtype, spec), params)

  def one(path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if mesh.empty:
      return leaf
    where = meshes.partition(mesh, _axes(spec, path), leaf.shape, meshes.DECODING)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, where))

  return jax.tree_util.tree_map_with_path(one, narrow)


def cost(spec: ModelSpec, params: model.Params, mesh: Mesh) -> Cost:
  """What `for_decoding` holds on each device, from arrays or from their descriptions."""
  targets = describe(spec, params, mesh)
  pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(targets), strict=True))
  sizes, new = [_bytes(to) for _, to in pairs], [not _there(x, to) for x, to in pairs]
  base = targets.base if isinstance(targets, model.Adapted) else targets
  copied = sum(size for size, is_new in zip(sizes, new, strict=True) if is_new)
  return Cost(sum(sizes), copied, sum(sizes) - (0 if spec.tie_embeddings else _bytes(base['embedding'])))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _move(dtype, sharding, leaf):
  # Cast where it is and only then gathered: half the bytes travel.
  return _constrained(jax.lax.optimization_barrier(leaf.astype(dtype)), sharding)


def _constrained(leaf: jax.Array, sharding: NamedSharding | None) -> jax.Array:
  return leaf if sharding is None else jax.lax.with_sharding_constraint(leaf, sharding)


def _there(leaf: Any, target: jax.ShapeDtypeStruct) -> bool:
  """Whether a leaf has the target's dtype and layout."""
  if leaf.dtype != target.dtype:
    return False
  here = getattr(leaf, 'sharding', None)
  return target.sharding is None or (
    here is not None and here.is_equivalent_to(target.sharding, len(target.shape))
  )


def _bytes(target: jax.ShapeDtypeStruct) -> int:
  shape = target.shape if target.sharding is None else target.sharding.shard_shape(target.shape)
  return math.prod(shape) * target.dtype.itemsize


def _axes(spec: ModelSpec, path: Sequence[Any]) -> tuple[str | None, ...]:
  """Logical axes of the leaf at a path of a parameter tree, or of an `Adapted`'s base or adapters."""
  keys = [getattr(key, 'key', getattr(key, 'name', None)) for key in path]
  if keys[0] == 'lora':
    projection = lora.PROJECTIONS[keys[-2]]
    pair = {'a': (*projection.inputs, None), 'b': (None, *projection.outputs)}
    return ('layers', *pair[keys[-1]])
  found = _names(spec)
  for key in keys[1:] if keys[0] == 'base' else keys:
    found = found[key]
  return tuple(found)


@functools.lru_cache(maxsize=8)
def _names(spec: ModelSpec) -> Any:
  """The logical axes of every parameter."""
  return nn.get_partition_spec(model.boxed_params(spec))
