"""Unions and the sampled token in the TPU kernels, on a CPU, against float64 NumPy."""

import dataclasses

import numpy as np
import pytest

from kernels.linear_divergence import tpu
from kernels.linear_divergence.api import Divergence, DivergenceSpec, linear_divergence
from tests.kernels import oracle
from tests.kernels.simulated import blocks_of, make_inputs, run


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Blocks of 16 rows by 128 entries, so that small arrays have several."""
  with blocks_of(16, 128):
    yield


def check(spec, arguments, gradients=(0, 1), races=True):
  """Results and gradients of a weighted loss against the definition; the results."""
  targets = arguments[4]
  weights = np.random.default_rng(0).normal(size=targets.shape).astype(np.float32)
  actual = run(arguments, spec, weights, races, gradients)
  expected, pulls = oracle.call(arguments[:4], targets, spec, weights)
  for field in dataclasses.fields(Divergence):
    value = getattr(actual[0], field.name)
    if field.name in expected:
      np.testing.assert_allclose(value, expected[field.name], atol=1e-5, rtol=1e-5, err_msg=field.name)
  for place, gradient in zip(gradients, actual[1], strict=True):
    np.testing.assert_allclose(gradient, pulls[place], atol=2e-5 * np.abs(pulls[place]).max(), rtol=0)
  return actual[0]


CASES = {
  'union-bucket': dict(support='union', k=2, tail='bucket', kind='jsd', beta=0.3, valid_vocab=297),
  'union-renormalised': dict(support='union', k=4, student_softcap=2.0, student_temperature=0.7),
  'union-clipped': dict(support='union', k=5, kind='reverse_kl', tail='bucket', entry_clip_max=0.01),
  'sampled-forward': dict(support='sampled', student_softcap=2.0, student_temperature=0.7, valid_vocab=297),
  'sampled-reverse': dict(support='sampled', kind='reverse_kl', teacher_temperature=1.3),
  'sampled-both': dict(support='sampled', kind='both_kl', beta=0.3, teacher_softcap=15.0),
}
FAST = [('sampled-both', (0,))]
SLOW = [(name, places) for name in CASES for places in ((0, 1), (0,)) if (name, places) not in FAST]


@pytest.mark.parametrize(
  'name, gradients', FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW], ids=str
)
def test_equals_the_definition_in_float64(name, gradients):
  spec = DivergenceSpec(**CASES[name])
  arguments = make_inputs(5, 2, 9, 300, scale=0.6, valid=spec.valid_vocab)
  check(spec, arguments, gradients)


def test_a_union_of_equal_lists_and_of_disjoint_ones():
  rng = np.random.default_rng(7)
  student, teacher = rng.normal(size=(2, 1, 4, 140)).astype(np.float32)
  student[..., :3] += 9
  # At the first two positions both models have one list, which must count once.
  teacher[:, :2, :3] += 9
  teacher[:, 2:, 100:103] += 9
  eye, targets = np.eye(140, dtype=np.float32), np.zeros((1, 4), np.int32)
  spec = DivergenceSpec(support='union', k=3, tail='bucket', entry_clip_max=1e-5)
  result = check(spec, (student, eye, teacher, eye, targets), races=False)
  # Of three entries and a bucket, and of six.
  shares = np.asarray(result.clip_fraction) * [4, 4, 7, 7]
  np.testing.assert_allclose(shares, np.round(shares), atol=1e-5)
  assert np.all(shares > 0)


@pytest.mark.slow
def test_a_union_that_is_the_whole_vocabulary_has_no_bucket():
  arguments = make_inputs(8, 1, 3, 40)
  check(DivergenceSpec(support='union', k=40, tail='bucket'), arguments, races=False)


@pytest.mark.parametrize('support, k, reason', [('union', 65, '64'), ('student_topk', 129, '128')])
def test_lists_that_are_too_long_are_refused(support, k, reason):
  found = tpu.unsupported(DivergenceSpec(support=support, k=k))
  assert f'k = {k}' in found and f'k <= {reason}' in found
  assert tpu.unsupported(DivergenceSpec(support=support, k=int(reason))) is None
  with pytest.raises(ValueError, match=f"'tpu'.*lacks k = {k}.*'chunked'"):
    linear_divergence(
      *make_inputs(0, 1, 2, 140), DivergenceSpec(support=support, k=k), implementation=('tpu',)
    )
