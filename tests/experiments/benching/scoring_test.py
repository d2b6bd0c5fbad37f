"""The benchmark of scoring: its baseline is the same loss, and its tables hold together at tiny sizes."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.benching import scoring
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from tests.models.transformer_test import QUICK, make_params, one_device

TINY = ModelSpec(
  vocab_size=30, num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12
)
LENGTHS = np.int32([3, 1]), np.int32([5, 2]), np.int32([4, 1, 2, 3])


@pytest.mark.slow
def test_the_baseline_is_the_loss_of_the_trainer():
  """To rounding, at uneven lengths; both in float32."""
  seen = scoring.batch(*LENGTHS, TINY.vocab_size)
  params, losses = make_params(TINY), {}
  student, teacher, rollout = seen
  (score, asked), (step, _) = scoring.whole(TINY, *seen, params)
  arguments = params, score(*asked), model.head(TINY, params), student, rollout
  (losses['whole'], _), _ = step.lower(*arguments).compile(QUICK)(*arguments)
  run = scoring._our_run(TINY, seen, jax.tree.map(lambda x: x.copy(), params), 'packed')
  np.testing.assert_allclose(run()[1].loss, losses['whole'], rtol=1e-5)
  assert float(losses['whole']) > 1e-3


def test_sharing_the_prompt_saves_what_it_should():
  """At n = 4 three of four copies of both prompts go, at n = 1 nothing but prompt positions at the head."""
  large = dataclasses.replace(TINY, num_layers=2, vocab_size=64, embed_dim=64, head_dim=32, mlp_dim=256)
  four, one = ({r.variant.split(':')[0]: r for r in scoring.counted(n, large)} for n in (4, 1))
  positions = lambda n, own: 3 * (n * 256 + own * 199) + n * 256 + own * 1999  # noqa: E731
  share = 1 - positions(4, 1) / positions(4, 4)
  assert abs(four['rows'].saved - share) < 0.1
  assert 0.38 < four['packed'].saved < four['rows'].saved
  assert abs(one['rows'].saved) < 0.1 and abs(one['packed'].saved) < 1e-6


def test_packing_saves_padding():
  rng = np.random.default_rng(0)
  lengths = [rng.integers(1, width, 50).astype(np.int32) for width in (40, 90, 60)]
  found = {r.variant.split(':')[0]: r.value for r in scoring.padding('x', *lengths, updates=2, questions=8)}
  assert found['what real tokens need'] < found['packed'] < found['rows'] < found[scoring.WHOLE]


def test_params_are_abstract():
  # Counting allocates nothing: a model of this size would not fit here in float32.
  shapes = model.abstract_params(scoring.BIG, one_device())
  assert sum(x.size for x in jax.tree.leaves(shapes)) > 1.7e9
