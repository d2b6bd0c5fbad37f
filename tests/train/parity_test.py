"""The parity meter: what it measures, of which rows, and when it goes off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.linear_logprob.api import linear_logprob
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Rollout
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.train import parity

NUMBER = 7


def rollout(length, version):
  length, zeros = np.asarray(length, np.int32), np.zeros((len(length), 4), np.float32)
  return Rollout(
    ids=zeros.astype(np.int32),
    length=length,
    stopped=length < 4,
    raw_logp=zeros,
    behaviour_logp=zeros,
    rollout_index=np.zeros_like(length),
    policy_version=np.asarray(version, np.int32),
  )


def test_by_hand():
  gap = np.array([[0.1, -0.3, 9, 9], [0.2, 0.2, 0.2, 0.2], [-1, 9, 9, 9]], np.float32)
  found = parity.measure(gap, rollout([2, 4, 1], [7, 7, 5]), NUMBER)
  assert found['logp_difference'] == pytest.approx((0.1 - 0.3 + 0.8 - 1) / 7, abs=1e-7)
  assert found['logp_gap_max'] == 1
  assert found['parity_gap'] == pytest.approx((0.1 + 0.3 + 0.8) / 6, abs=1e-7)  # the stale row is left out
  assert found['staleness'] == pytest.approx(2 / 3)


@given(st.data())
def test_padding_and_the_order_of_rows_do_not_matter(data):
  rows = data.draw(st.integers(1, 6))
  length = data.draw(st.lists(st.integers(1, 4), min_size=rows, max_size=rows))
  version = data.draw(st.lists(st.integers(5, NUMBER), min_size=rows, max_size=rows))
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  gap, order = rng.normal(size=(rows, 4)).astype(np.float32), rng.permutation(rows)
  padding = np.arange(4)[None, :] >= np.array(length)[:, None]
  other = np.where(padding, np.float32(np.nan), gap)[order]
  first = parity.measure(gap, rollout(length, version), NUMBER)
  second = parity.measure(other, rollout(np.array(length)[order], np.array(version)[order]), NUMBER)
  assert first == pytest.approx(second, rel=1e-6)


def test_stale_rows_alone_raise_no_alarm():
  found = parity.measure(np.ones((2, 4), np.float32), rollout([4, 4], [6, 0]), NUMBER)
  assert found['parity_gap'] == 0 and found['logp_gap_max'] == 1 and found['staleness'] == 4
  assert parity.alarm(found, None, 'float32') is None


@pytest.mark.parametrize(
  ('gap', 'threshold', 'dtype', 'rings'),
  [
    (9e-4, None, 'float32', False),
    (2e-3, None, 'float32', True),
    (2e-3, None, 'bfloat16', False),
    (0.12, None, 'bfloat16', True),
    (0.12, 0.2, 'bfloat16', False),
    (2e-4, 1e-4, 'float32', True),
    (np.nan, None, 'float32', True),
    (np.inf, 1e9, 'float32', True),
  ],
)
def test_the_alarm(gap, threshold, dtype, rings):
  found = parity.measure(np.full((1, 4), gap, np.float32), rollout([3], [NUMBER]), NUMBER)
  message = parity.alarm(found, threshold, dtype)
  assert (message is not None) == rings
  if rings:
    limit = parity.ALARM[dtype] if threshold is None else threshold
    assert f'loop.parity_alarm = {limit:g}' in message and f'{gap:.2g} nats' in message


def test_the_warning_names_run_and_update(capsys):
  parity.warn('opsd', 3, 'too far apart')
  assert capsys.readouterr().err == '[opsd] warning: update 3: too far apart\n'


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rounding_is_well_below_the_alarm(dtype):
  """Our own sampler and scorer, on random weights whose head is large enough for tokens to be likely."""
  spec = ModelSpec(
    vocab_size=8192,
    embed_dim=256,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    mlp_dim=768,
    dtype=dtype,
    tie_embeddings=False,
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    scale = 16 if path[-1].key == 'head' else 1
    norm = path[-1].key == 'scale'
    return jnp.ones(leaf.shape) if norm else jnp.asarray(rng.normal(0, 0.03 * scale, leaf.shape), leaf.dtype)

  shapes = model.abstract_params(spec, make_mesh(MeshConfig(), jax.devices()[:1]))
  params = jax.tree_util.tree_map_with_path(draw, shapes)
  ids = rng.integers(0, spec.vocab_size, (16, 64), np.int32)
  prompts = Prompts(ids, np.full(16, 64, np.int32), np.arange(16, dtype=np.uint32))
  drawn = decode.generate(
    spec, params, prompts, SamplingConfig(max_tokens=64), eos_ids=(0,), per_question=4, step=NUMBER
  )
  hidden = jax.jit(functools.partial(model.continuation_hidden, spec))
  scored = jax.jit(linear_logprob)(
    hidden(params, prompts.ids, prompts.length, drawn.ids), params['head'], drawn.ids
  )
  mask = np.asarray(drawn.mask)
  assert 0.5 < np.asarray(scored.entropy)[mask].mean() < 3
  found = parity.measure(np.asarray(drawn.raw_logp - scored.logp), jax.tree.map(np.asarray, drawn), NUMBER)
  print(dtype, found)
  assert 0 < found['parity_gap'] < parity.ALARM[dtype] / 2 and found['staleness'] == 0
  assert abs(found['logp_difference']) < found['parity_gap'] / 3, 'rounding has no side'
