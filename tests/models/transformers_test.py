"""The decoder and the sampler against Hugging Face transformers, run as a program of its own.

The PyTorch side runs outside the repository, whose folder `kernels` would hide an optional package
of the same name that transformers looks for, and exchanges arrays with this side as .npz files. It
runs under the Python that OPSD_REFERENCE_PYTHON names, else under this one.
"""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from tests.models.transformer_test import count_up, quick_jit
from tests.rollout.drawing_test import check_row

pytestmark = pytest.mark.reference

PROGRAM = """
import numpy as np
import torch
import transformers
from transformers.generation import logits_process

SHAPE = dict(
  vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=4,
  num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, attention_bias=False,
  max_position_embeddings=64, rope_parameters=dict(rope_type='default', rope_theta=5000.0))
MODELS = {
  'qwen3': (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, True),
  'untied': (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, False),
  'llama': (transformers.LlamaConfig, transformers.LlamaForCausalLM, False),
}


def make(config, architecture, tied):
  torch.manual_seed(0)
  net = architecture(config(tie_word_embeddings=tied, **SHAPE)).eval()
  with torch.no_grad():
    for name, weights in net.named_parameters():
      middle, spread = (1.0, 0.2) if 'norm' in name else (0.0, 0.25)
      weights.normal_(middle, spread)
  return net


def greedy(net, prompt, eos):
  # With no mask given, transformers takes every id equal to the pad id for padding.
  prompt = torch.tensor(prompt)[None]
  out = net.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                     max_new_tokens=12, eos_token_id=eos, pad_token_id=0)
  return out[0, prompt.shape[1]:].numpy()


def run_models(given, out):
  for name, (config, architecture, tied) in MODELS.items():
    net = make(config, architecture, tied)
    for key, weights in net.state_dict().items():
      out[f'{name}/{key}'] = weights.numpy()
    with torch.no_grad():
      out[f'{name}/logits'] = net(torch.tensor(given['tokens'])).logits.numpy()
      for q, length in enumerate(given['prompt_length']):
        prompt = given['prompts'][q, :length]
        for eos in ([], [int(given['eos'])]):
          out[f'{name}/greedy{q}/{len(eos)}'] = greedy(net, prompt, eos or None)


def run_warpers(given, out):
  for i, (temperature, top_k, top_p, min_p) in enumerate(given['settings']):
    rules = [logits_process.TemperatureLogitsWarper(float(temperature))]
    rules += [logits_process.TopKLogitsWarper(int(top_k))] if top_k else []
    rules += [logits_process.TopPLogitsWarper(float(top_p))] if top_p < 1 else []
    rules += [logits_process.MinPLogitsWarper(float(min_p))] if min_p else []
    scores = torch.tensor(given['rows'])
    for rule in rules:
      scores = rule(None, scores)
    out[f'warped/{i}'] = torch.log_softmax(scores, -1).numpy()


given, out = dict(np.load('given.npz')), {}
run_models(given, out)
run_warpers(given, out)
np.savez('out.npz', **out)
"""

SPEC = ModelSpec(
  vocab_size=40,
  num_layers=3,
  embed_dim=24,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=36,
  rope_theta=5000.0,
  norm_eps=1e-5,
)
SPECS = {
  'qwen3': SPEC,
  'untied': dataclasses.replace(SPEC, tie_embeddings=False),
  'llama': dataclasses.replace(SPEC, tie_embeddings=False, qk_norm=False),
}
# temperature, top_k (0: all), top_p, min_p
SETTINGS = [
  (1, 0, 1, 0),
  (0.6, 0, 1, 0),
  (1, 5, 1, 0),
  (1, 0, 0.8, 0),
  (1, 0, 1, 0.1),
  (1.5, 10, 0.9, 0),
  (0.7, 20, 0.95, 0.05),
  (2, 0, 0.5, 0.3),
]
EOS = 7


def reference_python() -> str:
  """The Python that has PyTorch, else skips."""
  named = os.environ.get('OPSD_REFERENCE_PYTHON')
  if named:
    return named
  for package in ('torch', 'transformers'):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'needs {package}: make test-reference, or set OPSD_REFERENCE_PYTHON')
  return sys.executable


@functools.cache
def given():
  rng = np.random.default_rng(0)
  return dict(
    tokens=rng.integers(0, 40, (3, 11)),
    prompts=rng.integers(0, 40, (4, 6)),
    prompt_length=np.array([1, 6, 3, 4]),
    eos=np.array(EOS),
    settings=np.float64(SETTINGS),
    rows=(rng.normal(size=(6, 40)) * 3).astype(np.float32),
  )


def run_reference(folder, program, given):
  """What a PyTorch program computed from `given.npz`, by name; it runs in `folder`."""
  np.savez(folder / 'given.npz', **given)
  (folder / 'program.py').write_text(program)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  done = subprocess.run(
    [reference_python(), 'program.py'],
    cwd=folder,
    env=environment,
    text=True,
    capture_output=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  return dict(np.load(folder / 'out.npz'))


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  return run_reference(tmp_path_factory.mktemp('reference'), PROGRAM, given())


NORMS = {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
POST_NORMS = {
  'attention_norm': 'input_layernorm',
  'attention_post_norm': 'post_attention_layernorm',
  'mlp_norm': 'pre_feedforward_layernorm',
  'mlp_post_norm': 'post_feedforward_layernorm',
}


def load(weights, spec):
  """The parameter tree of a PyTorch model: kernels are transposed there, heads are flat."""

  def layers(key, *shape, part='weight'):
    stacked = [weights[f'model.layers.{i}.{key}.{part}'].T.reshape(shape) for i in range(spec.num_layers)]
    return jnp.asarray(np.stack(stacked))

  width, heads = (
    spec.embed_dim,
    {'query': spec.num_heads, 'key': spec.num_kv_heads, 'value': spec.num_kv_heads},
  )
  attend = {k: layers(f'self_attn.{k[0]}_proj', width, n, spec.head_dim) for k, n in heads.items()}
  attend['out'] = layers('self_attn.o_proj', spec.num_heads, spec.head_dim, width)
  if spec.attention_bias:
    biases = {k: layers(f'self_attn.{k[0]}_proj', n, spec.head_dim, part='bias') for k, n in heads.items()}
    attend |= {f'{k}_bias': bias for k, bias in biases.items()}
  if spec.qk_norm:
    attend |= {f'{k}_norm': {'scale': layers(f'self_attn.{k[0]}_norm', -1)} for k in ('query', 'key')}
  inner = {k: layers(f'mlp.{k}_proj', width, spec.mlp_dim) for k in ('gate', 'up')}
  inner['down'] = layers('mlp.down_proj', spec.mlp_dim, width)
  norms = POST_NORMS if spec.post_norms else NORMS
  params = {
    'embedding': jnp.asarray(weights['model.embed_tokens.weight']),
    'final_norm': {'scale': jnp.asarray(weights['model.norm.weight'])},
    'layers': {'attention': attend, 'mlp': inner} | {k: {'scale': layers(v, -1)} for k, v in norms.items()},
  }
  return params if spec.tie_embeddings else params | {'head': jnp.asarray(weights['lm_head.weight'])}


def weights_of(reference, name):
  """A model's entries without its name."""
  return {k.removeprefix(f'{name}/'): v for k, v in reference.items() if k.startswith(f'{name}/')}


@pytest.mark.parametrize('name', SPECS)
def test_logits_match(reference, name):
  params, tokens = load(weights_of(reference, name), SPECS[name]), jnp.asarray(given()['tokens'], jnp.int32)

  @quick_jit
  def logits(params):
    hidden, _ = model.apply(SPECS[name], params, tokens, count_up(tokens), keep_kv=False)
    return hidden @ model.head(SPECS[name], params).T

  expected = reference[f'{name}/logits']
  # Both sides are float32; logits are of size 5 and come after three layers (measured: 1e-5).
  np.testing.assert_allclose(logits(params), expected, atol=3e-5)
  assert expected.std() > 0.5, 'logits near 0 would match anything'


@pytest.mark.parametrize(
  ('name', 'eos_ids'), [('qwen3', ()), ('qwen3', (EOS,)), ('untied', (EOS,)), ('llama', ())]
)
def test_greedy_generation_matches_token_for_token(reference, name, eos_ids):
  prompts = Prompts(
    ids=np.int32(given()['prompts']),
    length=np.int32(given()['prompt_length']),
    problem_id=np.arange(4, dtype=np.uint32),
  )
  rollout = decode.generate(
    SPECS[name],
    load(weights_of(reference, name), SPECS[name]),
    prompts,
    SamplingConfig(temperature=0.0, max_tokens=12),
    eos_ids=eos_ids,
  )
  for q in range(4):
    expected = reference[f'{name}/greedy{q}/{len(eos_ids)}']
    assert np.asarray(rollout.ids[q, : rollout.length[q]]).tolist() == expected.tolist()


def test_some_greedy_rows_end_early(reference):
  lengths = {len(v) for k, v in reference.items() if '/greedy' in k and k.endswith('/1')}
  assert 12 in lengths and min(lengths) < 12


@pytest.mark.parametrize('which', range(len(SETTINGS)), ids=[str(s) for s in SETTINGS])
def test_truncation_matches(reference, which):
  temperature, top_k, top_p, min_p = SETTINGS[which]
  config = SamplingConfig(temperature=temperature, top_k=top_k or None, top_p=top_p, min_p=min_p)
  for row, expected in zip(given()['rows'], reference[f'warped/{which}']):
    check_row(row, config, expected)
