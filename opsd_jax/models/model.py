"""The model as pure functions of a parameter tree.

Student, frozen teacher, EMA teacher and sampler call the same functions with different trees: plain
ones, or an `Adapted` base.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from opsd_jax import mesh as meshes
from opsd_jax.models.attention import Segments
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.transformer import KV, Context, Transformer

Params = Any


@flax.struct.dataclass
class Adapted:
  """Parameters with low-rank adapters beside them; stands wherever a parameter tree does.

  Attributes:
    base: parameter tree.
    lora: {'a': [L, *in, r], 'b': [L, r, *out]} at the paths of some of the base's kernels.
    scale: multiplies what the adapters add.
  """

  base: Params
  lora: Params
  scale: float = flax.struct.field(pytree_node=False)


def _boxed_init(spec: ModelSpec, key: jax.Array) -> Params:
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Transformer(spec).init(key, tokens, tokens)['params']


def boxed_params(spec: ModelSpec) -> Params:
  """Shapes and dtypes of the parameters in Flax's boxes, which hold the logical names of their axes."""
  return jax.eval_shape(lambda: _boxed_init(spec, jax.random.key(0)))


def abstract_params(spec: ModelSpec, mesh: jax.sharding.Mesh) -> Params:
  """Shapes, dtypes and shardings of the parameters, without allocating any."""
  boxed = boxed_params(spec)
  names = nn.get_partition_spec(boxed)

  def describe(leaf, axes):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=meshes.sharding(mesh, axes, leaf.shape))

  return jax.tree.map(describe, nn.unbox(boxed), names)


def init_params(spec: ModelSpec, key: jax.Array, mesh: jax.sharding.Mesh) -> Params:
  """Random float32 parameters, born with their shardings."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(spec, mesh))
  init = jax.jit(lambda k: nn.unbox(_boxed_init(spec, k)), out_shardings=shardings)
  return init(key)


def apply(
  spec: ModelSpec,
  params: Params,
  tokens: jax.Array,
  positions: jax.Array,
  contexts: tuple[Context, ...] = (),
  *,
  keep_kv: bool = True,
  segments: Segments | None = None,
) -> tuple[jax.Array, KV | None]:
  """Reads new tokens after the contexts.

  Args:
    spec: the model's shape.
    params: parameter tree, plain or `Adapted`.
    tokens: int32 [B, S].
    positions: int32 [B, S], absolute positions for the rotary embedding.
    contexts: what every row has read before; each may be shared by consecutive rows.
    keep_kv: return the new tokens' keys and values.
    segments: which tokens of a row belong together; None where a row is one sequence.

  Returns:
    Hidden states [B, S, D] after the final norm, and KV [L, B, K, S, H] or None.
  """
  if isinstance(params, Adapted):
    variables = {'params': params.base, 'lora': params.lora}
    return Transformer(spec, keep_kv, params.scale).apply(variables, tokens, positions, contexts, segments)
  return Transformer(spec, keep_kv).apply({'params': params}, tokens, positions, contexts, segments)


def in_compute_dtype(spec: ModelSpec, params: Params) -> Params:
  """The tree with every matrix in the compute dtype, for whoever reads weights and adds nothing to them.

  Norm scales stay as they are; they are used in float32.
  """

  def cast(path, leaf):
    is_scale = getattr(path[-1], 'key', None) == 'scale'
    return leaf if is_scale else leaf.astype(spec.dtype)

  return jax.tree_util.tree_map_with_path(cast, params)


def head(spec: ModelSpec, params: Params) -> jax.Array:
  """The LM head [V, D] in its own dtype: row v holds the weights of token v's logit.

  Whoever applies it caps the logits by `spec.final_softcap`.
  """
  params = params.base if isinstance(params, Adapted) else params
  return params['embedding'] if spec.tie_embeddings else params['head']


def read_prompts(spec: ModelSpec, params: Params, ids: jax.Array, length: jax.Array) -> Context:
  """Prefill: every prompt but its last token, which is the first input of each continuation.

  Leaving the last token out means that a prompt position never meets the LM head and that a prompt
  of one token is an empty context.

  Args:
    spec: the model's shape.
    params: parameter tree.
    ids: int32 [Q, P], right-padded.
    length: int32 [Q].
  """
  width = max(ids.shape[1] - 1, 1)
  positions = jnp.broadcast_to(jnp.arange(width)[None, :], (ids.shape[0], width))
  _, kv = apply(spec, params, ids[:, :width], positions)
  return Context(kv, length - 1, jnp.zeros_like(length))


def last_token(ids: jax.Array, length: jax.Array) -> jax.Array:
  """int32 [Q], the final token of each right-padded prompt."""
  return jnp.take_along_axis(ids, (length - 1)[:, None], axis=1)[:, 0]


def continuation_hidden(
  spec: ModelSpec, params: Params, prompt_ids: jax.Array, prompt_length: jax.Array, completion_ids: jax.Array
) -> jax.Array:
  """Hidden states that predict every completion token, with the prompt read once a question.

  Args:
    spec: the model's shape.
    params: parameter tree.
    prompt_ids: int32 [Q, P].
    prompt_length: int32 [Q].
    completion_ids: int32 [B, T] with B = Q·n; row b continues prompt b // n.

  Returns:
    [B, T, D]; entry t is the state from which token t was (or would be) drawn.
  """
  repeats = completion_ids.shape[0] // prompt_ids.shape[0]
  prompt = read_prompts(spec, params, prompt_ids, prompt_length)
  first = jnp.repeat(last_token(prompt_ids, prompt_length), repeats)
  inputs = jnp.concatenate([first[:, None], completion_ids[:, :-1]], axis=1)
  start = jnp.repeat(prompt_length - 1, repeats)
  positions = start[:, None] + jnp.arange(inputs.shape[1])[None, :]
  hidden, _ = apply(spec, params, inputs, positions, (prompt,), keep_kv=False)
  return hidden
