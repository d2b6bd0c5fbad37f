"""Low-rank adapters beside frozen weights: y = x W + (x a) b · alpha / rank (LoRA, arXiv 2106.09685).

Axis letters: L layers, D width, N/K heads, H head width, F width of the MLP, r rank.
"""

import dataclasses
import fnmatch
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from opsd_jax import mesh as meshes
from opsd_jax.config import nearest, require
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec

Adapters = Any


@dataclasses.dataclass(frozen=True)
class Projection:
  """A matrix that adapters may stand beside.

  Attributes:
    group: the branch of the parameter tree that it is in.
    module: what transformers and PEFT call it.
    inputs: logical axes of what it reads.
    outputs: logical axes of what it writes.
  """

  group: str
  module: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]


PROJECTIONS = {
  'query': Projection('attention', 'q_proj', ('embed',), ('heads', 'head_dim')),
  'key': Projection('attention', 'k_proj', ('embed',), ('kv_heads', 'head_dim')),
  'value': Projection('attention', 'v_proj', ('embed',), ('kv_heads', 'head_dim')),
  'out': Projection('attention', 'o_proj', ('heads', 'head_dim'), ('embed',)),
  'gate': Projection('mlp', 'gate_proj', ('embed',), ('mlp',)),
  'up': Projection('mlp', 'up_proj', ('embed',), ('mlp',)),
  'down': Projection('mlp', 'down_proj', ('mlp',), ('embed',)),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which adapters a distillation trains; the weights that it starts from then stay as they are.

  Attributes:
    rank: of every adapter; 0: none, all weights are trained.
    alpha: the adapters' output is multiplied by alpha / rank; none for 2·rank (OPSD: 128 at rank 64).
    targets: projections that get adapters: ours (query, key, value, out, gate, up, down), those of
      PEFT (q_proj, ...), or patterns of either (`*_proj`).
  """

  rank: int = 0
  alpha: float | None = None
  targets: tuple[str, ...] = tuple(PROJECTIONS)


def scale(config: LoraConfig) -> float:
  """What the adapters' output is multiplied by."""
  return 2.0 if config.alpha is None else config.alpha / config.rank


def projections(config: LoraConfig) -> tuple[str, ...]:
  """The targets by our names, each once, in the order of `PROJECTIONS`."""
  chosen = {name for pattern in config.targets for name in matching(pattern)}
  return tuple(name for name in PROJECTIONS if name in chosen)


def matching(pattern: str) -> list[str]:
  """Our names of the projections that a pattern stands for."""
  named = fnmatch.fnmatchcase
  return [n for n, p in PROJECTIONS.items() if named(n, pattern) or named(p.module, pattern)]


def validate(config: LoraConfig) -> None:
  """Raises `ConfigError` for adapters that cannot be made."""
  require(config.rank >= 0, f'lora.rank is {config.rank}; it must be positive, or 0 to train all weights.')
  require(
    config.alpha is None or config.alpha > 0,
    f'lora.alpha is {config.alpha}; it must be positive, or none for twice the rank.',
  )
  require(bool(config.targets), 'lora.targets is empty; name projections, such as query,value.')
  known = [*PROJECTIONS, *(p.module for p in PROJECTIONS.values())]
  for pattern in config.targets:
    require(bool(matching(pattern)), f'lora.targets has {pattern!r}, no projection.{nearest(pattern, known)}')


def abstract(config: LoraConfig, spec: ModelSpec, mesh: jax.sharding.Mesh) -> Adapters:
  """Shapes and shardings of the adapters, float32.

  A tree like that of the parameters, with `a` [L, in, r] and `b` [L, r, out] for a kernel
  [L, in, out]: `query` has a [L, D, r] and b [L, r, N, H], `out` has a [L, N, H, r] and b [L, r, D].
  They are laid out as the kernel is, with their rank whole.
  """
  sizes = {
    'layers': spec.num_layers,
    'embed': spec.embed_dim,
    'heads': spec.num_heads,
    'kv_heads': spec.num_kv_heads,
    'head_dim': spec.head_dim,
    'mlp': spec.mlp_dim,
    None: config.rank,
  }

  def describe(*axes: str | None) -> jax.ShapeDtypeStruct:
    shape = tuple(sizes[axis] for axis in axes)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=meshes.sharding(mesh, axes, shape))

  groups: dict[str, dict[str, Any]] = {}
  for name in projections(config):
    p = PROJECTIONS[name]
    pair = {'a': describe('layers', *p.inputs, None), 'b': describe('layers', None, *p.outputs)}
    groups.setdefault(p.group, {})[name] = pair
  return {'layers': groups}


def size(config: LoraConfig, spec: ModelSpec) -> int:
  """How many weights the adapters have; every token meets each of them once."""
  if not config.rank:
    return 0
  one = jax.sharding.AbstractMesh((1,) * len(meshes.AXES), meshes.AXES)
  return sum(leaf.size for leaf in jax.tree.leaves(abstract(config, spec, one)))


def init(config: LoraConfig, spec: ModelSpec, key: jax.Array, mesh: jax.sharding.Mesh) -> Adapters:
  """The adapters before training, born with their shardings; they change nothing yet.

  As in PEFT: `a` is uniform within ±1 / sqrt(inputs) and `b` is 0. What a projection gets does not
  depend on the other targets.
  """
  shapes = abstract(config, spec, mesh)
  make = jax.jit(functools.partial(_draw, shapes), out_shardings=jax.tree.map(lambda x: x.sharding, shapes))
  return make(key)


def _draw(shapes: Adapters, key: jax.Array) -> Adapters:
  def one(name: str, shape: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    a, b = shape['a'].shape, shape['b'].shape
    bound = 1 / math.sqrt(math.prod(a[1:-1]))
    own = jax.random.fold_in(key, list(PROJECTIONS).index(name))
    return {'a': jax.random.uniform(own, a, jnp.float32, -bound, bound), 'b': jnp.zeros(b, jnp.float32)}

  return {
    'layers': {
      group: {name: one(name, shape) for name, shape in pairs.items()}
      for group, pairs in shapes['layers'].items()
    }
  }


def complete(config: LoraConfig, base: model.Params, trained: model.Params | Adapters | None) -> model.Params:
  """The model's parameters from what is kept and what is trained; the base itself where that is None.

  Without LoRA what is trained is the whole tree. Nothing is copied or merged: a gradient with respect
  to `trained` has the adapters' size, and the base is the same arrays in every model made of it.
  """
  if trained is None:
    return base
  return model.Adapted(base, trained, scale(config)) if config.rank else trained


def freeze(config: LoraConfig, spec: ModelSpec, params: model.Params) -> model.Params:
  """Weights as a run keeps them: under LoRA in the compute dtype, since no small step is added to them."""
  return model.in_compute_dtype(spec, params) if config.rank else params


def merge(base: model.Params, adapters: Adapters, factor: float) -> model.Params:
  """The tree of a model without adapters that computes the same, up to rounding to the base's dtype.

  `factor` is `scale` of the adapters' config.
  """
  layers = dict(base['layers'])
  for group, pairs in adapters['layers'].items():
    merged = {name: _merged(layers[group][name], pair, factor) for name, pair in pairs.items()}
    layers[group] = {**layers[group], **merged}
  return {**base, 'layers': layers}


@jax.jit
def _merged(kernel: jax.Array, pair: dict[str, jax.Array], factor: float) -> jax.Array:
  """kernel [L, in, out] + factor · a [L, in, r] b [L, r, out], summed in float32, one layer at a time."""

  def one(layer: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    kernel, a, b = layer
    change = jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + factor * change).astype(kernel.dtype)

  return jax.lax.map(one, (kernel, pair['a'], pair['b']))
