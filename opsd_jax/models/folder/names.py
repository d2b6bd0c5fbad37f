"""Which tensor of a Hugging Face folder is which leaf of ours, and how its axes are arranged.

Their matrices are [out, in] with heads and head width as one axis, one tensor a layer; ours are
[L, in, ...] with heads apart. Axis letters: L layers, D width, N/K heads, H head width, F MLP width.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from opsd_jax.models.spec import ModelSpec

Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Entry:
  """A leaf of the parameter tree.

  Attributes:
    path: of the leaf.
    name: of the tensor, behind the prefix; `{}` stands for the layer.
    groups: axes of one layer of the leaf, joined and ordered as the tensor has them.
  """

  path: tuple[str, ...]
  name: str
  groups: Groups

  @property
  def stacked(self) -> bool:
    """Whether the leaf holds all layers, along its first axis."""
    return self.path[0] == 'layers'

  def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor, from that of one layer of the leaf."""
    return tuple(math.prod(shape[axis] for axis in group) for group in self.groups)


def from_file(groups: Groups, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """A tensor as one layer of its leaf, of this shape."""
  order = [axis for group in groups for axis in group]
  x = x.reshape([shape[axis] for axis in order])
  return jnp.transpose(x, [order.index(axis) for axis in range(len(shape))])


def to_file(groups: Groups, x: jax.Array) -> jax.Array:
  """One layer of a leaf as its tensor."""
  order = [axis for group in groups for axis in group]
  return jnp.transpose(x, order).reshape([math.prod(x.shape[axis] for axis in group) for group in groups])


_VECTOR = ((0,),)
_HEADS = ((0, 1),)  # [N, H] -> [N·H]
_KEPT = ((0,), (1,))
_TURNED = ((1,), (0,))  # [D, F] -> [F, D]
_INTO_HEADS = ((1, 2), (0,))  # [D, N, H] -> [N·H, D]
_OUT_OF_HEADS = ((2,), (0, 1))  # [N, H, D] -> [D, N·H]

# Prefix of the decoder's tensors -> name of the head beside them. A model that also sees keeps its
# decoder deeper; hub files and what newer versions of transformers hold in memory differ in where.
PREFIXES = {
  'model.': 'lm_head.weight',
  'language_model.model.': 'language_model.lm_head.weight',
  'model.language_model.': 'lm_head.weight',
}
OTHER_PARTS = ('vision_tower.', 'multi_modal_projector.')
# Buffers that old versions of transformers wrote although they follow from the config.
DERIVED = ('.rotary_emb.inv_freq',)
EMBEDDING = 'embed_tokens.weight'


def entries(spec: ModelSpec) -> list[Entry]:
  """Every leaf of the model, in the order in which transformers writes them."""
  found = [Entry(('embedding',), EMBEDDING, _KEPT)]
  found += [
    Entry(('layers', *path), f'layers.{{}}.{name}.weight', groups) for path, name, groups in _layer(spec)
  ]
  if spec.attention_bias:
    found += [
      Entry(('layers', 'attention', f'{ours}_bias'), f'layers.{{}}.self_attn.{ours[0]}_proj.bias', _HEADS)
      for ours in ('query', 'key', 'value')
    ]
  found.append(Entry(('final_norm', 'scale'), 'norm.weight', _VECTOR))
  return found if spec.tie_embeddings else [*found, Entry(('head',), '', _KEPT)]


def _layer(spec: ModelSpec) -> list[tuple[tuple[str, ...], str, Groups]]:
  """Path below the layer, name and axes of what every layer has."""
  found = [(('attention', n), f'self_attn.{n[0]}_proj', _INTO_HEADS) for n in ('query', 'key', 'value')]
  found.append((('attention', 'out'), 'self_attn.o_proj', _OUT_OF_HEADS))
  if spec.qk_norm:
    found += [
      (('attention', f'{n}_norm', 'scale'), f'self_attn.{n[0]}_norm', _VECTOR) for n in ('query', 'key')
    ]
  found += [(('mlp', n), f'mlp.{n}_proj', _TURNED) for n in ('gate', 'up', 'down')]
  return found + [((ours, 'scale'), theirs, _VECTOR) for ours, theirs in _norms(spec).items()]


def _norms(spec: ModelSpec) -> dict[str, str]:
  """Ours -> theirs: what Gemma calls post-attention is after the attention, in others before the MLP."""
  if not spec.post_norms:
    return {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
  return {
    'attention_norm': 'input_layernorm',
    'attention_post_norm': 'post_attention_layernorm',
    'mlp_norm': 'pre_feedforward_layernorm',
    'mlp_post_norm': 'post_feedforward_layernorm',
  }


def tensor_names(entry: Entry, spec: ModelSpec, prefix: str) -> list[str]:
  """The full names of a leaf's tensors, one a layer."""
  if entry.path == ('head',):
    return [PREFIXES[prefix]]
  layers = range(spec.num_layers) if entry.stacked else [0]
  return [prefix + entry.name.format(layer) for layer in layers]
