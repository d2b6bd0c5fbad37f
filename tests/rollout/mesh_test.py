"""Rollouts on every kind of mesh beside those of one device: greedy ones are the same, sampled ones nearly.

Devices add partial sums in another order, which moves the edges of a token's slice of the distribution by a
rounding. A token is another one where its uniform falls between the two edges; what follows it then differs,
too, so that the first difference of a row is what is counted. `docs/sharding.md` has the table that
`python -m tests.rollout.mesh_test` prints.
"""

import dataclasses
import functools
import itertools
import math
import os
from typing import NamedTuple

import jax
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig

slow = pytest.mark.slow
SPEC = ModelSpec(
  vocab_size=64, num_layers=2, embed_dim=64, num_heads=8, num_kv_heads=8, head_dim=8, mlp_dim=96
)
ODD = dataclasses.replace(SPEC, vocab_size=61, num_heads=3, num_kv_heads=1, mlp_dim=99)
MESHES = {'one': None, 'data': (8, 1, 1), 'fsdp': (1, 8, 1), 'tensor': (1, 1, 8), 'cube': (2, 2, 2)}
EOS, TOKENS = 3, 32
# Of the table: none of 11,769 is at most 2.6e-4 (95 %); 339 of 6,111 are 5.5e-2, and three deviations of such
# a count more are 6.5e-2.
PER_TOKEN = {'float32': 2.6e-4, 'bfloat16': 6.5e-2}


def make_mesh(name):
  if MESHES[name] is None:
    return meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1])
  return meshes.make_mesh(meshes.MeshConfig(*MESHES[name]))


def make_params(spec, mesh):
  """The same on every mesh; logits are spread so that some two nats are left to chance."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    fan_in = math.prod(leaf.shape[1:-1]) if len(leaf.shape) > 2 else leaf.shape[-1] / 3
    values = np.ones(leaf.shape) if path[-1].key == 'scale' else rng.normal(0, fan_in**-0.5, leaf.shape)
    return jax.device_put(values.astype(np.float32), leaf.sharding)

  return jax.tree_util.tree_map_with_path(fill, model.abstract_params(spec, mesh))


def make_prompts(questions):
  rng = np.random.default_rng(1)
  return Prompts(
    ids=rng.integers(0, 61, (questions, 8)).astype(np.int32),
    length=rng.integers(1, 9, questions).astype(np.int32),
    problem_id=np.arange(questions, dtype=np.uint32),
  )


@functools.cache
def drawn(name, spec, questions, per_question, temperature, slots=None):
  mesh = make_mesh(name)
  config = SamplingConfig(temperature=temperature, max_tokens=TOKENS)
  with jax.set_mesh(mesh):
    prompts = meshes.shard_rows(mesh, make_prompts(questions))
    return meshes.host(
      decode.generate(
        spec,
        make_params(spec, mesh),
        prompts,
        config,
        eos_ids=(EOS,),
        per_question=per_question,
        decode=DecodeConfig(slots),
      )
    )


class Flips(NamedTuple):
  """Rows, those that ever differ, tokens up to a row's first difference, mean surprise of a token in nats,
  and the mean absolute difference of the log-probs of tokens before any difference."""

  rows: int
  differing: int
  tokens: int
  surprise: float
  gap: float

  @property
  def per_token(self):
    return self.differing / self.tokens


def compared(actual, expected):
  at = np.arange(TOKENS)[None]
  real = at < expected.length[:, None]
  differs = (actual.ids != expected.ids) & real | (actual.length != expected.length)[:, None] & (
    at == np.minimum(actual.length, expected.length)[:, None]
  )
  first = np.where(differs.any(1), differs.argmax(1), TOKENS)
  same = real & (at < first[:, None])
  gap = np.abs(actual.raw_logp - expected.raw_logp)[same].mean()
  tokens = int((real & (at <= first[:, None])).sum())
  surprise = -float(expected.raw_logp[real].mean())
  return Flips(len(first), int(differs.any(1).sum()), tokens, surprise, float(gap))


def many():
  return [name for name in MESHES if name != 'one']


@slow
@pytest.mark.parametrize('slots', [None, 4, 8])
@pytest.mark.parametrize('questions', [5, 8])
@pytest.mark.parametrize('name', many())
def test_greedy_tokens_are_those_of_one_device(name, questions, slots):
  """10 or 16 rows, of which 10 divide by no mesh's rows; a slot for each, or fewer."""
  spec = ODD if questions == 5 else SPEC
  actual, expected = drawn(name, spec, questions, 2, 0.0, slots), drawn('one', spec, questions, 2, 0.0)
  np.testing.assert_array_equal(actual.length, expected.length)
  np.testing.assert_array_equal(actual.ids, expected.ids)
  np.testing.assert_array_equal(actual.stopped, expected.stopped)
  np.testing.assert_allclose(actual.raw_logp, expected.raw_logp, atol=1e-5, rtol=0)


@pytest.mark.parametrize('slots', [None, 8])
@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=() if name == 'cube' else slow) for name in many()]
)
def test_prompts_and_cache_are_split_into_eight(name, slots):
  """Rows over both data axes, heads over tensor: nothing of them is on two devices."""
  mesh, config = make_mesh(name), SamplingConfig(max_tokens=TOKENS)
  setting = decode.setting_of(SPEC, config, (EOS,), 2, None, DecodeConfig(slots))
  prompts = meshes.shard_rows(mesh, make_prompts(8))
  counters = decode.Counters(np.uint32(0), np.uint32(0))
  arguments = make_params(SPEC, mesh), prompts, decode.budgets(prompts, 2, config, None), counters
  with jax.set_mesh(mesh):
    requests, state = jax.jit(decode.begin, static_argnums=0)(setting, *arguments)
  for kv in (requests.prompt.kv, state.slots.cache):
    for array in (kv.key, kv.value):
      assert array.size == 8 * np.prod(array.sharding.shard_shape(array.shape))


@slow
@pytest.mark.parametrize('slots', [None, 64])
@pytest.mark.parametrize('dtype', PER_TOKEN)
@pytest.mark.parametrize('name', many())
def test_sampled_tokens_differ_as_seldom_as_was_measured(name, dtype, slots):
  spec = dataclasses.replace(SPEC, dtype=dtype)
  found = compared(drawn(name, spec, 128, 4, 1.0, slots), drawn('one', spec, 128, 4, 1.0))
  assert 1 < found.surprise < 3 and found.tokens > 5000
  assert found.per_token < PER_TOKEN[dtype]


def main():
  print('| dtype | mesh | slots | rows that differ | a token | mean gap of log-probs |')
  print('|---|---|---|---:|---:|---:|')
  for dtype, name, slots in itertools.product(PER_TOKEN, [*many(), 'one'], (None, 64)):
    if (name, slots) == ('one', None):  # what the others are compared with
      continue
    spec = dataclasses.replace(SPEC, dtype=dtype)
    f = compared(drawn(name, spec, 128, 4, 1.0, slots), drawn('one', spec, 128, 4, 1.0))
    sizes = 'x'.join(map(str, MESHES[name] or (1, 1, 1)))
    print(
      f'| {dtype} | {sizes} | {slots or "all"} | {f.differing} of {f.rows} | {f.differing} / {f.tokens:,} = '
      f'{f.per_token:.1e} | {f.gap:.1e} |',
      flush=True,
    )


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  jax.config.update('jax_num_cpu_devices', 8)
  main()
