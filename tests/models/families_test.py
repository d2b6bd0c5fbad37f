"""config.json is read in both spellings, and what we do not compute is refused by name."""

import dataclasses
import json
import math

import pytest

from opsd_jax.config import ConfigError
from opsd_jax.models import families
from opsd_jax.models.folder import describe
from opsd_jax.models.spec import ModelSpec, RopeScaling
from tests.models.folder.make import CONFIGS, SHAPE

# As published, in the spelling of their time; fields that cannot matter are among them.
R1_DISTILL_QWEN_1P5B = """{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02,
  "intermediate_size": 8960, "max_position_embeddings": 131072, "max_window_layers": 21,
  "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
  "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "transformers_version": "4.44.0", "use_cache": true, "use_mrope": false,
  "use_sliding_window": false, "vocab_size": 151936}"""
QWEN3_0P6B = """{
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
  "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
  "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
  "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
  "use_sliding_window": false, "vocab_size": 151936}"""
LLAMA3P2_1B = """{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
  "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
  "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
  "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256}"""
GEMMA2_2B = """{
  "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
  "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
  "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
  "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
  "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
  "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
  "torch_dtype": "float32", "use_cache": true, "vocab_size": 256000}"""
GEMMA3_1B = """{
  "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid",
  "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
  "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
  "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
  "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
  "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
  "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 262144}"""
# What a class has by default was left out of the inner part.
GEMMA3_4B = """{
  "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
  "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02,
  "mm_tokens_per_image": 256, "model_type": "gemma3", "text_config": {"hidden_size": 2560,
  "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
  "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
  "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model",
  "vision_use_head": false}}"""


@pytest.mark.parametrize(
  'size, text',
  [
    ('r1_distill_qwen_1p5b', R1_DISTILL_QWEN_1P5B),
    ('qwen3_0p6b', QWEN3_0P6B),
    ('llama3p2_1b', LLAMA3P2_1B),
    ('gemma2_2b', GEMMA2_2B),
    ('gemma3_1b', GEMMA3_1B),
    ('gemma3_4b', GEMMA3_4B),
  ],
)
def test_published_files(tmp_path, size, text):
  (tmp_path / 'config.json').write_text(text)
  assert families.find(str(tmp_path)) == families.find(size)


# Parameters as the models' cards state them, in billions, the embedding counted once where it is tied.
@pytest.mark.parametrize(
  'size, billions',
  [
    ('qwen2p5_0p5b', 0.494),
    ('qwen2p5_1p5b', 1.544),
    ('qwen2p5_3b', 3.086),
    ('qwen2p5_7b', 7.616),
    ('qwen2p5_math_1p5b', 1.544),
    ('qwen2p5_math_7b', 7.616),
    ('r1_distill_qwen_1p5b', 1.777),
    ('r1_distill_qwen_7b', 7.616),
    ('qwen3_0p6b', 0.596),
    ('qwen3_1p7b', 1.721),
    ('qwen3_4b', 4.022),
    ('qwen3_8b', 8.191),
    ('qwen3_14b', 14.768),
    ('qwen3_32b', 32.762),
    ('llama3p1_8b', 8.030),
    ('llama3p2_1b', 1.236),
    ('llama3p2_3b', 3.213),
    ('gemma2_2b', 2.614),
    ('gemma2_9b', 9.242),
    ('gemma3_1b', 1.000),
    ('gemma3_4b', 3.880),
  ],
)
def test_published_sizes(size, billions):
  s = families.find(size)
  kernels = s.embed_dim * (s.head_dim * 2 * (s.num_heads + s.num_kv_heads) + 3 * s.mlp_dim)
  biases = s.attention_bias * s.head_dim * (s.num_heads + 2 * s.num_kv_heads)
  norms = (4 if s.post_norms else 2) * s.embed_dim + (2 * s.head_dim if s.qk_norm else 0)
  tables = s.vocab_size * s.embed_dim * (1 if s.tie_embeddings else 2)
  total = s.num_layers * (kernels + biases + norms) + tables + s.embed_dim
  assert round(total / 1e9, 3) == billions


@pytest.mark.parametrize('size', families.SIZES)
def test_sizes_are_written_and_read_back(size):
  spec = families.find(size)
  assert families.from_config(json.loads(json.dumps(describe.to_config(spec)))) == spec


def test_named_keeps_the_compute():
  spec = ModelSpec(dtype='bfloat16', remat='full').named('llama3p2_1b')
  assert (spec.dtype, spec.remat, spec.num_layers) == ('bfloat16', 'full', 16)


@pytest.mark.parametrize(
  'name, message',
  [('qwen3_06b', "Did you mean 'qwen3_0p6b'"), ('/none/here', 'neither a published size nor')],
)
def test_unknown_names(name, message):
  with pytest.raises(ConfigError, match=message):
    families.find(name)


def test_folder_without_config(tmp_path):
  with pytest.raises(ConfigError, match='has no config.json'):
    families.find(str(tmp_path))
  for text, message in (('{', 'cannot be read'), ('[]', 'holds no JSON object')):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ConfigError, match=message):
      families.find(str(tmp_path))


def read(name='qwen3', **changes):
  return families.from_config(CONFIGS[name] | changes)


def test_scaling_in_both_spellings():
  plain = dict(factor=4.0, original_max_position_embeddings=32)
  yarn = RopeScaling('yarn', 4.0, 32)
  assert read(rope_scaling=plain | dict(type='yarn')).rope_scaling == yarn
  assert read(rope_scaling=plain | dict(rope_type='yarn', type='yarn')).rope_scaling == yarn
  found = read(rope_parameters=plain | dict(rope_type='yarn', rope_theta=7.0, beta_fast=2.0, truncate=True))
  assert found.rope_scaling == dataclasses.replace(yarn, beta_fast=2.0) and found.rope_theta == 7.0
  without = dict(type='yarn', factor=2.0, attention_factor=None)
  assert read(rope_scaling=without).rope_scaling == RopeScaling('yarn', 2.0, 64), 'of max_position_embeddings'


def test_positions_by_layer_type():
  full, local = (
    dict(rope_type='linear', factor=8.0, rope_theta=9e5),
    dict(rope_type='default', rope_theta=77.0),
  )
  both = dict(full_attention=full, sliding_attention=local)
  found = read('gemma3_text', rope_parameters=both)
  assert (found.rope_theta, found.rope_local_theta) == (9e5, 77.0)
  assert found.rope_scaling == RopeScaling('linear', 8.0)
  same = read('qwen3', rope_parameters=dict(full_attention=full, sliding_attention=full))
  assert same.rope_local_theta is None and same.rope_scaling.kind == 'linear'
  assert read('gemma3_text').rope_local_theta == 1e4 and read('gemma3_text').rope_theta == 1e6


def test_windows():
  on = dict(use_sliding_window=True, sliding_window=8)
  found = read(**on, max_window_layers=1)
  assert found.sliding_window == 8 and found.local_layers == (False, True, True)
  for off in (dict(max_window_layers=3), dict(use_sliding_window=False), dict(sliding_window=None)):
    off = read(**on | off)
    assert off.sliding_window is None and off.layer_pattern == ''
  kinds = ['full_attention', 'sliding_attention', 'full_attention']
  assert read(**on, layer_types=kinds).layer_pattern == 'GL'
  assert read('gemma2').layer_pattern == 'LG'
  assert read('gemma3_text', num_hidden_layers=13).layer_pattern == 'LLLLLG'
  assert read('gemma3_text', sliding_window_pattern=2).layer_pattern == 'LG'
  assert read('gemma3_text', _sliding_window_pattern=3).layer_pattern == 'LLG'


def test_a_window_that_is_told_twice():
  assert read('gemma2', sliding_window_size=4) == read('gemma2')


def test_scale_of_scores():
  assert read('gemma2', query_pre_attn_scalar=8).query_scale is None
  assert read('gemma2', query_pre_attn_scalar=144).query_scale == 1 / 12
  for scalar in (144, 168, 256, 3.5):
    spec = read('gemma2', query_pre_attn_scalar=scalar)
    written = describe.to_config(spec)['query_pre_attn_scalar']
    assert written == scalar and isinstance(written, type(scalar))


def test_absent_and_null_are_told_apart():
  assert read('gemma2').attention_softcap == 50.0 and read('gemma2').final_softcap == 30.0
  capless = read('gemma2', attn_logit_softcapping=None, final_logit_softcapping=None)
  assert capless.attention_softcap is None and capless.final_softcap is None
  assert read('llama', num_key_value_heads=None).num_kv_heads == 4


@pytest.mark.parametrize(
  'name, changes, message',
  [
    (
      'qwen3',
      dict(architectures=['MistralForCausalLM']),
      "the model is 'MistralForCausalLM', which we do not",
    ),
    ('qwen3', dict(architectures=['Qwen3MoeForCausalLM']), "Did you mean 'Qwen3ForCausalLM'"),
    ('qwen3', dict(architectures=['Qwen3ForSequenceClassification']), 'Qwen3ForSequenceClassification'),
    ('qwen3', dict(model_type='phi3'), "the model is 'phi3'"),
    ('qwen3', dict(model_type=None), 'the model is None'),
    ('qwen3', dict(architectures=['LlamaForCausalLM']), "model_type is 'qwen3', but architectures"),
    ('qwen3', dict(new_trick=3), 'unknown fields new_trick = 3'),
    ('qwen3', dict(num_experts=8, moe_intermediate_size=3), 'moe_intermediate_size = 3, num_experts = 8'),
    ('qwen3', dict(quantization_config={'bits': 4}), 'quantization_config'),
    ('qwen3', dict(auto_map={'AutoModel': 'x.Y'}), 'auto_map'),
    ('qwen3', dict(hidden_act='gelu'), "hidden_act is 'gelu', which we do not compute .only 'silu'"),
    ('gemma2', dict(hidden_activation='gelu'), 'hidden_activation'),
    ('qwen3', dict(attention_bias=True), 'attention_bias is True'),
    ('llama', dict(attention_bias=True), 'attention_bias is True'),
    ('llama', dict(mlp_bias=True), 'mlp_bias is True'),
    ('llama', dict(sliding_window=8), 'sliding_window = 8'),
    ('qwen2', dict(attention_bias=False), 'attention_bias is False'),
    ('qwen2', dict(use_mrope=True), 'use_mrope is True'),
    ('qwen2', dict(is_decoder=True), 'is_decoder is True'),
    ('qwen2', dict(partial_rotary_factor=0.5), 'partial_rotary_factor is 0.5'),
    ('qwen2', dict(rope_parameters=dict(partial_rotary_factor=0.5)), 'partial_rotary_factor is 0.5'),
    ('qwen2', dict(rope_scaling=dict(type='dynamic', factor=2.0)), "rope_type is 'dynamic'"),
    ('qwen2', dict(rope_scaling=dict(type='linear')), "no field 'factor'"),
    ('qwen2', dict(rope_scaling=dict(type='yarn', factor=2.0, mscale=0.7)), 'mscale = 0.7'),
    ('qwen2', dict(rope_scaling=dict(type='yarn', factor=2.0, truncate=False)), 'truncate is False'),
    ('qwen2', dict(rope_scaling=dict(type='yarn', rope_type='linear', factor=2.0)), 'keep one of them'),
    ('qwen2', dict(rope_scaling=dict(factor=2.0)), 'factor = 2.0'),
    ('qwen2', dict(rope_scaling={'type': 'x'}, rope_parameters={'rope_theta': 1}), 'keep one of them'),
    ('qwen2', dict(rope_theta=5.0, rope_parameters={'rope_theta': 6.0}), 'rope_theta is 5.0, but'),
    ('qwen2', dict(rope_local_base_freq=5.0), 'rope_local_base_freq'),
    ('qwen2', dict(original_max_position_embeddings=5), 'original_max_position_embeddings = 5'),
    ('gemma3_text', dict(rope_parameters=dict(rope_theta=5.0)), 'one entry for each of'),
    (
      'gemma3_text',
      dict(rope_parameters=dict(sliding_attention=dict(rope_type='linear', factor=2.0))),
      'only plain positions are computed there',
    ),
    ('gemma3_text', dict(use_bidirectional_attention=True), 'use_bidirectional_attention is True'),
    ('gemma2', dict(layer_types=['chunked_attention'] * 3), "layer_types has .'chunked_attention'"),
    ('gemma2', dict(layer_types=['full_attention']), 'has 1 entries, but num_hidden_layers is 3'),
    ('gemma2', dict(sliding_window=None), 'has local layers, but no sliding_window'),
    ('qwen3', dict(num_hidden_layers=None), "has no field 'num_hidden_layers'"),
    ('qwen3', dict(num_hidden_layers='three'), "num_hidden_layers is 'three', which is not a number"),
    ('qwen3', dict(num_hidden_layers=2.5), 'which is not a whole number'),
    ('qwen3', dict(tie_word_embeddings='yes'), 'which is not true or false'),
    ('qwen3', dict(rope_scaling=[1]), 'which is not an object'),
    ('qwen3', dict(num_key_value_heads=3), 'not a multiple of model.num_kv_heads'),
    ('gemma3', dict(text_config=None), 'text_config is None, not an object'),
    ('gemma3', dict(text_config=dict(new_trick=3)), 'text_config: unknown fields new_trick'),
    ('gemma3', dict(text_config=dict(model_type='llama')), 'text_config'),
    ('gemma3', dict(text_config=dict(final_logit_softcapping=3.0)), 'which has no effect there'),
    ('gemma3', dict(tie_word_embeddings=False, text_config=dict(tie_word_embeddings=True)), 'contradicts'),
    ('gemma3', dict(audio_config={'x': 1}), 'audio_config'),
    ('gemma2', dict(sliding_window_size=8), 'sliding_window_size is 8, but sliding_window is 4'),
    ('gemma2', dict(layer_types=[['full_attention']] * 3), 'not a list of names'),
    ('gemma2', dict(layer_types='full_attention'), 'not a list of names'),
    ('gemma2', dict(query_pre_attn_scalar=0), 'query_pre_attn_scalar is 0, not positive'),
    ('gemma3_text', dict(rope_parameters={'full_attention': 3}), 'full_attention is 3, not an object'),
    ('qwen3', dict(num_hidden_layers=math.inf), 'num_hidden_layers is inf, which is not a number'),
    ('qwen3', dict(rope_theta=math.nan), 'rope_theta is nan, which is not a number'),
    ('qwen3', dict(architectures='Qwen3ForCausalLM'), "architectures is 'Qwen3ForCausalLM', not a list"),
    ('qwen3', dict(model_type=['qwen3']), 'not a name'),
  ],
)
def test_refused(name, changes, message):
  with pytest.raises(ConfigError, match=message):
    read(name, **changes)


def test_a_model_of_no_family_is_not_written():
  spec = read('llama')
  for changes in (
    dict(norm_plus_one=True),
    dict(activation='gelu_tanh'),
    dict(sliding_window=4, layer_pattern='LG'),
    dict(rope_local_theta=3.0),
    dict(final_softcap=3.0),
  ):
    with pytest.raises(ConfigError, match='no published family computes this model'):
      describe.to_config(dataclasses.replace(spec, **changes))


def test_the_default_model_can_be_written():
  spec = ModelSpec()
  config = describe.to_config(spec, 'bfloat16', longest=128)
  assert config['torch_dtype'] == 'bfloat16' and config['max_position_embeddings'] == 128
  assert families.from_config(config) == spec and SHAPE['vocab_size'] != spec.vocab_size
