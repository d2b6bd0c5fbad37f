"""Published models by name.

The numbers are those of the config.json that each model was published with; they are facts about the
weights, so a folder with other weights of the same name is refused when it is read.
"""

import dataclasses

from opsd_jax.models.spec import ModelSpec, RopeScaling


def _sizes(base: ModelSpec, **rows: dict) -> dict[str, ModelSpec]:
  return {name: dataclasses.replace(base, **row) for name, row in rows.items()}


def _shape(layers: int, embed: int, mlp: int, heads: int, kv_heads: int, head: int, **more) -> dict:
  named = dict(num_layers=layers, embed_dim=embed, mlp_dim=mlp, num_heads=heads, num_kv_heads=kv_heads)
  return named | dict(head_dim=head) | more


_QWEN2 = ModelSpec(vocab_size=151936, rope_theta=1e6, qk_norm=False, attention_bias=True)
_QWEN3 = ModelSpec(vocab_size=151936, rope_theta=1e6)
_LLAMA3 = ModelSpec(vocab_size=128256, rope_theta=5e5, qk_norm=False, norm_eps=1e-5)
_GEMMA = ModelSpec(activation='gelu_tanh', norm_plus_one=True, post_norms=True, scale_embedding=True)
_GEMMA2 = dataclasses.replace(
  _GEMMA,
  vocab_size=256000,
  qk_norm=False,
  sliding_window=4096,
  layer_pattern='LG',
  attention_softcap=50.0,
  final_softcap=30.0,
)
_GEMMA3 = dataclasses.replace(_GEMMA, rope_theta=1e6, rope_local_theta=1e4, layer_pattern='LLLLLG')

# The 7B models of Qwen have more padding rows in the vocabulary. Math and R1-Distill models were trained
# with a rotary base of 1e4; the latter's 1.5B is not tied, unlike the model that it was made from.
_SEVEN = _shape(28, 3584, 18944, 28, 4, 128, vocab_size=152064, tie_embeddings=False)
_ONE_AND_A_HALF = _shape(28, 1536, 8960, 12, 2, 128)


def _llama3(factor: float) -> RopeScaling:
  return RopeScaling('llama3', factor, 8192, low_frequency_factor=1.0, high_frequency_factor=4.0)


SIZES: dict[str, ModelSpec] = {
  **_sizes(
    _QWEN2,
    qwen2p5_0p5b=_shape(24, 896, 4864, 14, 2, 64),
    qwen2p5_1p5b=_ONE_AND_A_HALF,
    qwen2p5_3b=_shape(36, 2048, 11008, 16, 2, 128),
    qwen2p5_7b=_SEVEN,
    qwen2p5_math_1p5b=_ONE_AND_A_HALF | dict(rope_theta=1e4),
    qwen2p5_math_7b=_SEVEN | dict(rope_theta=1e4),
    r1_distill_qwen_1p5b=_ONE_AND_A_HALF | dict(rope_theta=1e4, tie_embeddings=False),
    r1_distill_qwen_7b=_SEVEN | dict(rope_theta=1e4),
  ),
  **_sizes(
    _QWEN3,
    qwen3_0p6b=_shape(28, 1024, 3072, 16, 8, 128),
    qwen3_1p7b=_shape(28, 2048, 6144, 16, 8, 128),
    qwen3_4b=_shape(36, 2560, 9728, 32, 8, 128),
    qwen3_8b=_shape(36, 4096, 12288, 32, 8, 128, tie_embeddings=False),
    qwen3_14b=_shape(40, 5120, 17408, 40, 8, 128, tie_embeddings=False),
    qwen3_32b=_shape(64, 5120, 25600, 64, 8, 128, tie_embeddings=False),
  ),
  **_sizes(
    _LLAMA3,
    llama3p1_8b=_shape(32, 4096, 14336, 32, 8, 128, tie_embeddings=False, rope_scaling=_llama3(8.0)),
    llama3p2_1b=_shape(16, 2048, 8192, 32, 8, 64, rope_scaling=_llama3(32.0)),
    llama3p2_3b=_shape(28, 3072, 8192, 24, 8, 128, rope_scaling=_llama3(32.0)),
  ),
  **_sizes(
    _GEMMA2, gemma2_2b=_shape(26, 2304, 9216, 8, 4, 256), gemma2_9b=_shape(42, 3584, 14336, 16, 8, 256)
  ),
  **_sizes(
    _GEMMA3,
    gemma3_1b=_shape(26, 1152, 6912, 4, 1, 256, vocab_size=262144, sliding_window=512),
    # The text part of a model that also sees; 64 more rows of the vocabulary belong to images.
    gemma3_4b=_shape(
      34,
      2560,
      10240,
      8,
      4,
      256,
      vocab_size=262208,
      sliding_window=1024,
      rope_scaling=RopeScaling('linear', 8.0),
    ),
  ),
}
