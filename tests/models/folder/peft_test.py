"""Adapters against PEFT itself, both ways; it runs as a program of its own, outside the repository.

See tests/models/transformers_test.py for why, and for which Python it runs under.
"""

import functools
import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.models import families, lora, model
from opsd_jax.models.folder import adapters as lib
from opsd_jax.models.folder import read
from opsd_jax.models.folder import write as folders
from opsd_jax.models.lora import LoraConfig
from tests.models.folder import make
from tests.models.folder.reference_test import SEES
from tests.models.transformer_test import count_up, quick_jit
from tests.models.transformers_test import reference_python

pytestmark = pytest.mark.reference

PROGRAM = """
import sys
import numpy as np
import peft
import torch
import transformers

def logits(net):
  with torch.no_grad():
    return net.eval()(torch.tensor(tokens)).logits.numpy()

def base(folder='base'):
  return transformers.AutoModelForCausalLM.from_pretrained(
    f'{name}/{folder}', dtype=torch.float32, attn_implementation='eager')

def fill(net):
  with torch.no_grad():
    for key, weights in net.named_parameters():
      if 'lora_' in key:
        weights.normal_(0.0, 0.2)

def train(net, steps):
  optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
  for _ in range(steps):
    ids = torch.tensor(tokens)
    net.train()(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

tokens, out = np.load('tokens.npy'), {}
for name in sys.argv[1:]:
  torch.manual_seed(0)
  # Theirs: all seven projections, and some of them.
  everything = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
  for kind, targets in (('all', everything), ('some', ['v_proj', 'o_proj', 'up_proj'])):
    net = peft.get_peft_model(base(), peft.LoraConfig(
      task_type='CAUSAL_LM', r=4, lora_alpha=6, target_modules=targets, lora_dropout=0.1))
    fill(net)
    net.save_pretrained(f'{name}/peft_{kind}')
    out[f'{name}/{kind}'] = logits(net)
    out[f'{name}/{kind}_merged'] = logits(net.merge_and_unload())
  # Ours, read by them, trained further and saved again.
  net = peft.PeftModel.from_pretrained(base(), f'{name}/ours', is_trainable=True)
  out[f'{name}/ours'] = logits(net)
  train(net, 2)
  net.save_pretrained(f'{name}/resumed')
  out[f'{name}/resumed'] = logits(net)
  out[f'{name}/merged'] = logits(base('merged'))
  out[f'{name}/base'] = logits(base())
np.savez('out.npz', **out)
"""

NAMES = ('qwen2', 'qwen3', 'llama', 'gemma2', 'gemma3_text')
CONFIG = LoraConfig(rank=3, alpha=4.5)
TOKENS = np.random.default_rng(0).integers(0, 40, (3, 11))
# Both sides are float32 and logits are of size 1 (at most 5).
SAME = dict(atol=1e-5, rtol=0)


@functools.cache
def ours(name):
  rng = np.random.default_rng(1)
  shapes = lora.abstract(CONFIG, make.spec(name), make.mesh())
  return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), shapes)


def gentle(name):
  """Weights of the size of trained ones: three layers of larger ones would magnify roundings."""
  one = 0 if make.spec(name).norm_plus_one else 1
  return {k: 0.2 * v if v.ndim > 1 else one + 0.2 * v for k, v in make.tensors(name).items()}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """Folders of every model: its base and adapters of both sides; and logits of PEFT."""
  reference_python()  # or nothing has to be made
  folder = tmp_path_factory.mktemp('peft')
  for name in NAMES:
    make.write(folder / name / 'base', name, gentle(name))
    lib.save(folder / name / 'ours', CONFIG, ours(name), base=str(folder / name / 'base'))
    merged = lora.merge(base(folder, name), ours(name), lora.scale(CONFIG))
    folders.save(folder / name / 'merged', make.spec(name), merged, folder / name / 'base')
  np.save(folder / 'tokens.npy', TOKENS)
  _call(folder, PROGRAM, *NAMES)
  return folder


def _call(folder: pathlib.Path, program: str, *names: str) -> None:
  (folder / 'program.py').write_text(program)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'HF_HUB_OFFLINE': '1'}
  command = [reference_python(), 'program.py', *names]
  done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=300)
  assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module')
def reference(folder):
  return dict(np.load(folder / 'out.npz'))


def base(folder, name):
  return read.load(folder / name / 'base', families.read(folder / name / 'base'), make.mesh())


def logits(name, params):
  return _logits(make.spec(name), params)


@functools.partial(quick_jit, static_argnums=0)
def _logits(spec, params):
  tokens = jnp.asarray(TOKENS, jnp.int32)
  hidden, _ = model.apply(spec, params, tokens, count_up(tokens), keep_kv=False)
  values = hidden @ model.head(spec, params).T
  cap = spec.final_softcap
  return values if cap is None else cap * jnp.tanh(values / cap)


def with_adapters(folder, name, which):
  config, found = lib.load(folder / name / which, make.spec(name), make.mesh())
  return config, lora.complete(config, base(folder, name), found)


@pytest.mark.parametrize('name', NAMES)
def test_ours_in_peft(folder, reference, name):
  student = lora.complete(CONFIG, base(folder, name), ours(name))
  np.testing.assert_allclose(logits(name, student), reference[f'{name}/ours'], **SAME)
  assert np.abs(reference[f'{name}/ours'] - reference[f'{name}/base']).max() > 0.1


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['all', 'some'])
def test_those_of_peft_here(folder, reference, name, kind):
  config, student = with_adapters(folder, name, f'peft_{kind}')
  assert (config.rank, config.alpha) == (4, 6)
  assert config.targets == (lora.LoraConfig().targets if kind == 'all' else ('value', 'out', 'up'))
  np.testing.assert_allclose(logits(name, student), reference[f'{name}/{kind}'], **SAME)


@pytest.mark.parametrize('name', NAMES)
def test_merged_here_and_there(folder, reference, name):
  config, student = with_adapters(folder, name, 'peft_all')
  merged = lora.merge(student.base, student.lora, lora.scale(config))
  np.testing.assert_allclose(logits(name, merged), reference[f'{name}/all_merged'], **SAME)
  # And ours, merged and exported as a whole model.
  np.testing.assert_allclose(reference[f'{name}/merged'], reference[f'{name}/ours'], **SAME)


@pytest.mark.parametrize('name', NAMES)
def test_training_goes_on_in_peft_and_here_again(folder, reference, name):
  config, student = with_adapters(folder, name, 'resumed')
  assert lora.scale(config) == lora.scale(CONFIG) and config.targets == CONFIG.targets
  np.testing.assert_allclose(logits(name, student), reference[f'{name}/resumed'], **SAME)
  assert np.abs(reference[f'{name}/resumed'] - reference[f'{name}/ours']).max() > 0.01


SEEING = """
import json
import numpy as np
import peft
import torch
import transformers

config = transformers.Gemma3Config(**json.load(open('config.json')))
torch.manual_seed(0)
transformers.Gemma3ForConditionalGeneration(config).save_pretrained('base')
tokens, out = torch.tensor(np.load('tokens.npy')), {}

def base():
  return transformers.AutoModelForCausalLM.from_pretrained(
    'base', dtype=torch.float32, attn_implementation='eager')

def logits(net):
  with torch.no_grad():
    return net.eval()(tokens).logits.numpy()

out['base'] = logits(base())
out['ours'] = logits(peft.PeftModel.from_pretrained(base(), 'ours'))
target = peft.PeftConfig.from_pretrained('ours').target_modules
net = peft.get_peft_model(base(), peft.LoraConfig(task_type='CAUSAL_LM', r=4, target_modules=target))
with torch.no_grad():
  for key, weights in net.named_parameters():
    if 'lora_' in key:
      weights.normal_(0.0, 0.2)
net.save_pretrained('theirs')
out['theirs'] = logits(net)
np.savez('out.npz', **out)
"""


def test_beside_a_model_that_also_sees(tmp_path):
  spec = families.from_config({'model_type': 'gemma3'} | SEES)
  shapes, rng = lora.abstract(CONFIG, spec, make.mesh()), np.random.default_rng(1)
  ours = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), shapes)
  lib.save(tmp_path / 'ours', CONFIG, ours, base='base', prefix=lib.PART)
  tokens = jnp.asarray(TOKENS % 37, jnp.int32)  # the last ids stand for images
  np.save(tmp_path / 'tokens.npy', TOKENS % 37)
  (tmp_path / 'config.json').write_text(json.dumps(SEES))
  _call(tmp_path, SEEING)
  wanted = dict(np.load(tmp_path / 'out.npz'))
  assert np.abs(wanted['ours'] - wanted['base']).max() > 0.01, 'PEFT found no place for ours'
  params = read.load(tmp_path / 'base', spec, make.mesh())
  for name in ('ours', 'theirs'):
    config, found = lib.load(tmp_path / name, spec, make.mesh())
    student = lora.complete(config, params, found)
    hidden, _ = model.apply(spec, student, tokens, count_up(tokens), keep_kv=False)
    np.testing.assert_allclose(hidden @ model.head(spec, student).T, wanted[name], **SAME)
