"""Folders that transformers writes are read, and those that we write are read by it, with equal logits.

As in `transformers_test.py`, the PyTorch side is a program of its own, started outside the repository.
Every parameter is random: norms and biases that are left as they are born would hide wrong names.
"""

import functools
import json
import os
import subprocess

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from opsd_jax.models import families, model
from opsd_jax.models.attention import soft_cap
from opsd_jax.models.folder import read, write
from tests.models.folder import make
from tests.models.transformer_test import count_up, quick_jit
from tests.models.transformers_test import reference_python

pytestmark = pytest.mark.reference

MAKE = """
import json
import numpy as np
import torch
import transformers


def randomise(net):
  torch.manual_seed(0)
  for name, weights in net.named_parameters():
    spread = 0.2 if 'norm' in name else 0.5 if 'bias' in name else 0.25
    weights.normal_(0.0, spread)
    if 'norm' in name and 'gemma' not in net.config.model_type:
      weights.add_(1.0)


def scale(net, tokens):
  # Logits of standard deviation 1 before their cap, by the last norm.
  text = net.config.get_text_config()
  cap, text.final_logit_softcapping = getattr(text, 'final_logit_softcapping', None), None
  norm = next(weights for name, weights in net.named_parameters() if name.endswith('model.norm.weight'))
  shift = float('gemma' in net.config.model_type)
  norm.copy_((norm + shift) / net(tokens).logits.std() - shift)
  text.final_logit_softcapping = cap


cases, tokens, out = json.load(open('cases.json')), torch.tensor(np.load('tokens.npy')), {}
with torch.no_grad():
  for name, (architecture, config_class, config) in cases.items():
    config = getattr(transformers, config_class)(**config)
    net = getattr(transformers, architecture)(config).eval()
    randomise(net)
    scale(net, tokens)
    net.save_pretrained(name + '/float32', max_shard_size='20KB')
    out[name + '/float32'] = net(tokens).logits.numpy()
    net.bfloat16().save_pretrained(name + '/bfloat16')
    # Read anew: rounding the net rounded its rotary frequencies too, which no file holds.
    net = getattr(transformers, architecture).from_pretrained(name + '/bfloat16', dtype=torch.float32)
    out[name + '/bfloat16'] = net.eval()(tokens).logits.numpy()
np.savez('logits.npz', **out)
"""

READ = """
import json
import numpy as np
import torch
import transformers

tokens, out = torch.tensor(np.load('tokens.npy')), {}
with torch.no_grad():
  for folder in json.load(open('folders.json')):
    net, report = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), report
    out[folder] = net.eval()(tokens).logits.numpy()
np.savez('again.npz', **out)
"""

SHAPE = dict(
  vocab_size=40,
  hidden_size=24,
  intermediate_size=36,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  rms_norm_eps=1e-5,
  max_position_embeddings=64,
)


def rope(theta=5000.0, kind='default', **more):
  return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **more))


WINDOWS = dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
YARN = rope(kind='yarn', factor=4.0, original_max_position_embeddings=16)
LLAMA3 = dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
GEMMA = SHAPE | dict(head_dim=8, sliding_window=5, query_pre_attn_scalar=6)
GEMMA3 = GEMMA | dict(
  num_hidden_layers=7,
  rope_parameters=dict(
    full_attention=dict(rope_type='linear', factor=4.0, rope_theta=5000.0),
    sliding_attention=dict(rope_type='default', rope_theta=100.0),
  ),
)
VISION = dict(
  hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
)
SEES = dict(text_config=GEMMA3, vision_config=VISION, mm_tokens_per_image=4)
SEES |= dict(image_token_index=39, boi_token_index=38, eoi_token_index=37)
CASES = {
  'qwen2': ('Qwen2ForCausalLM', 'Qwen2Config', SHAPE | rope() | dict(tie_word_embeddings=True)),
  'qwen2-untied': ('Qwen2ForCausalLM', 'Qwen2Config', SHAPE | rope()),
  'qwen2-windows-yarn': ('Qwen2ForCausalLM', 'Qwen2Config', SHAPE | WINDOWS | YARN),
  'qwen3': ('Qwen3ForCausalLM', 'Qwen3Config', SHAPE | rope() | dict(head_dim=8, tie_word_embeddings=True)),
  'qwen3-untied': ('Qwen3ForCausalLM', 'Qwen3Config', SHAPE | rope() | dict(head_dim=8)),
  'llama': ('LlamaForCausalLM', 'LlamaConfig', SHAPE | rope(kind='llama3', **LLAMA3)),
  'llama-tied': ('LlamaForCausalLM', 'LlamaConfig', SHAPE | rope() | dict(tie_word_embeddings=True)),
  'gemma2': (
    'Gemma2ForCausalLM',
    'Gemma2Config',
    GEMMA | rope() | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
  ),
  'gemma3': ('Gemma3ForCausalLM', 'Gemma3TextConfig', GEMMA3),
  'gemma3-sees': ('Gemma3ForConditionalGeneration', 'Gemma3Config', SEES),
}
TOKENS = np.random.default_rng(0).integers(0, 36, (3, 24))


def call(folder, program, result):
  (folder / 'program.py').write_text(program)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'HF_HUB_OFFLINE': '1'}
  done = subprocess.run(
    [reference_python(), 'program.py'],
    cwd=folder,
    env=environment,
    text=True,
    capture_output=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  return dict(np.load(folder / result))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Folders that transformers wrote, <case>/<dtype>, and `logits.npz`."""
  made = tmp_path_factory.mktemp('folders')
  (made / 'cases.json').write_text(json.dumps(CASES))
  np.save(made / 'tokens.npy', TOKENS)
  call(made, MAKE, 'logits.npz')
  return made


@functools.cache
def theirs(folder):
  return dict(np.load(folder / 'logits.npz'))


@functools.partial(quick_jit, static_argnums=0)
def logits(spec, params, tokens):
  hidden, _ = model.apply(spec, params, tokens, count_up(tokens), keep_kv=False)
  return soft_cap(hidden @ model.head(spec, params).T, spec.final_softcap)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', CASES)
def test_logits_of_a_folder_that_transformers_wrote(folder, name, dtype):
  path, expected = folder / name / dtype, theirs(folder)[f'{name}/{dtype}']
  assert (path / 'model.safetensors.index.json').exists() == (dtype == 'float32')
  spec = families.find(str(path))
  params = read.load(path, spec, make.mesh(1, 2, 2))
  actual = np.asarray(logits(spec, params, jnp.int32(TOKENS)))
  assert 0.5 < expected.std() < 1.5
  np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=0)


def old_spelling(config):
  """The config as transformers 4 wrote it, where positions were fields of their own."""
  config = {k: v for k, v in config.items() if k != 'dtype'} | {'torch_dtype': config.get('dtype')}
  if 'text_config' in config:
    return config | {'text_config': old_spelling(config['text_config'])}
  parameters = config.pop('rope_parameters')
  local = parameters.get('sliding_attention')
  parameters = dict(parameters.get('full_attention', parameters))
  config['rope_theta'] = parameters.pop('rope_theta')
  if local:
    config['rope_local_base_freq'] = local['rope_theta']
  config['rope_scaling'] = None if parameters == {'rope_type': 'default'} else parameters
  return config


@pytest.mark.parametrize('name', CASES)
def test_both_spellings_say_the_same(folder, name):
  config = families.read_json(folder / name / 'float32')
  old = old_spelling(config)
  assert 'rope_parameters' not in json.dumps(old) and 'rope_parameters' in json.dumps(config)
  assert families.from_config(old) == families.from_config(config)


@pytest.fixture(scope='module')
def written(folder):
  """Folders that we wrote from those, with and without the base, and their logits by transformers."""
  names = []
  for name in CASES:
    base = folder / name / 'float32'
    spec = families.read(base)
    params = read.load(base, spec, make.mesh(1, 2, 1))
    bases = {'based': base} if name == 'gemma3-sees' else {'based': base, 'alone': None}
    for kind, of in bases.items():
      names.append(f'{name}/{kind}')
      write.save(folder / name / kind, spec, params, of, max_shard_bytes=20_000)
    names.append(f'{name}/narrow')
    write.save(folder / name / 'narrow', spec, params, base, dtype='bfloat16')
  (folder / 'folders.json').write_text(json.dumps(names))
  return call(folder, READ, 'again.npz')


@pytest.mark.parametrize('name', CASES)
def test_logits_of_a_folder_that_we_wrote(folder, written, name):
  for kind in ('based', 'alone'):
    if f'{name}/{kind}' in written:
      difference = np.abs(written[f'{name}/{kind}'] - theirs(folder)[f'{name}/float32']).max()
      assert difference <= 1e-6, (kind, difference)
  np.testing.assert_array_equal(written[f'{name}/narrow'], theirs(folder)[f'{name}/bfloat16'])


@pytest.mark.parametrize('name', CASES)
def test_tensors_are_those_of_transformers(folder, written, name):
  """Names, shapes, types and bits."""
  del written
  for ours, wanted in (('based', 'float32'), ('narrow', 'bfloat16')):
    ours, wanted = make.read_all(folder / name / ours), make.read_all(folder / name / wanted)
    assert ours.keys() == wanted.keys()
    for key in ours:
      if not key.startswith(('vision_tower', 'multi_modal_projector')):  # those stay as the base has them
        assert ours[key].dtype == wanted[key].dtype in (np.float32, ml_dtypes.bfloat16)
      np.testing.assert_array_equal(ours[key].astype(wanted[key].dtype), wanted[key], err_msg=key)
