"""Loss and gradient of every recipe of OPSD against a straight transcription in float64, and worked numbers.

The transcription (arXiv 2601.18734, Eq. 7 to 9, and the published code): both logits are divided by the
sampling temperature; entries of the divergence are clipped one by one, from above only, before they are
summed over the vocabulary; a top-k is the teacher's, with both distributions renormalised on it; the mean is
over all sampled tokens. Gradients are the closed forms of each loss with respect to the student's logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import recipes
from opsd_jax.distill import objective
from tests.experiments.recipes_test import TABLES

T = 1.1
ROWS, WIDTH, VOCAB = 3, 4, 64
LENGTHS = np.int32([4, 1, 3])
# float32 against float64, of losses and gradients of size 1.
ROUNDING = 3e-6


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def forward_kl_clipped(zs, zt, _, clip):
  """sum_v min(p_T log(p_T / p_S), clip); U are the entries inside."""
  ps, pt = softmax(zs / T), softmax(zt / T)
  entry = pt * np.log(pt / ps)
  inside = entry <= clip
  gradient = (ps * (pt * inside).sum(-1, keepdims=True) - pt * inside) / T
  return np.minimum(entry, clip).sum(-1), gradient


def jsd(zs, zt, *_):
  """0.5 KL(p_T || m) + 0.5 KL(p_S || m), m their mean."""
  ps, pt = softmax(zs / T), softmax(zt / T)
  m = 0.5 * pt + 0.5 * ps
  value = 0.5 * (pt * np.log(pt / m)).sum(-1) + 0.5 * (ps * np.log(ps / m)).sum(-1)
  own = np.log(ps / m)
  return value, 0.5 * ps * (own - (ps * own).sum(-1, keepdims=True)) / T


def jsd_of_teachers_50(zs, zt, *_):
  """The same on the teacher's 50 most probable ids, both softmaxes over these alone."""
  ids = np.argsort(-zt, axis=-1, kind='stable')[..., :50]
  value, inner = jsd(np.take_along_axis(zs, ids, -1), np.take_along_axis(zt, ids, -1))
  gradient = np.zeros_like(zs)
  np.put_along_axis(gradient, ids, inner, -1)
  return value, gradient


def sampled_token(zs, zt, token, _):
  """A = log p_T(y) - log p_S(y), held; the gradient is that of -A log p_S(y).

  The value that is reported is -A, the estimate of the reverse KL whose gradient that is.
  """
  ps, pt = softmax(zs / T), softmax(zt / T)
  at = lambda p: np.take_along_axis(p, token[..., None], -1)  # noqa: E731
  advantage = np.log(at(pt)) - np.log(at(ps))
  picked = np.zeros_like(zs)
  np.put_along_axis(picked, token[..., None], 1.0, -1)
  return -advantage[..., 0], -advantage * (picked - ps) / T


LOSSES = {  # recipe: its loss, and where its entries are clipped
  'opsd_qwen3_1p7b': (forward_kl_clipped, 0.05),
  'opsd_qwen3_4b': (forward_kl_clipped, 0.05),
  'opsd_qwen3_8b': (forward_kl_clipped, 0.06),
  'opsd_qwen3_1p7b_live': (forward_kl_clipped, 0.05),
  'opsd_qwen3_4b_sampled': (sampled_token, None),
  'opsd_2026_01_qwen3_1p7b': (jsd, None),
  'opsd_2026_01_qwen3_4b': (jsd, None),
  'opsd_2026_01_qwen3_4b_ema': (jsd, None),
  'opsd_2026_01_qwen3_1p7b_topk': (jsd_of_teachers_50, None),
}


def inputs():
  """Logits of two models that mostly agree, as numbers that float32 holds; the tokens that were drawn."""
  rng = np.random.default_rng(11)
  student = rng.normal(0, 2, (ROWS, WIDTH, VOCAB)).astype(np.float32)
  teacher = (student + rng.normal(0, 1.5, student.shape)).astype(np.float32)
  return student, teacher, rng.integers(0, VOCAB, (ROWS, WIDTH)).astype(np.int32)


def ours(name, student, teacher, token, lengths):
  """Loss of every token, of the batch, and the latter's gradient, from logits through the kernel."""
  config = recipes.load(name).objective
  vocab = student.shape[-1]
  head = np.eye(vocab, dtype=np.float32)  # hidden states that are the logits

  @jax.jit
  def loss(student):
    weights = objective.token_weights(jnp.asarray(lengths), token.shape[1], config.reduction)
    each, _ = objective.compare(student, head, teacher, head, token, config, vocab, weights=weights)
    return jnp.sum(weights * each), each

  (batch, each), gradient = jax.value_and_grad(loss, has_aux=True)(student)
  return np.asarray(each), float(batch), np.asarray(gradient)


def test_every_recipe_is_transcribed():
  assert LOSSES.keys() == TABLES.keys()


@pytest.mark.parametrize('name', LOSSES)
def test_loss_and_gradient_are_the_formula(name):
  student, teacher, token = inputs()
  transcribed, clip = LOSSES[name]
  each, gradient = transcribed(np.float64(student), np.float64(teacher), token, clip)
  mask = np.arange(WIDTH)[None] < LENGTHS[:, None]
  found, batch, slope = ours(name, student, teacher, token, LENGTHS)
  np.testing.assert_allclose(found, each, atol=ROUNDING)
  assert batch == pytest.approx(each[mask].sum() / LENGTHS.sum(), abs=ROUNDING)
  np.testing.assert_allclose(slope, np.where(mask[..., None], gradient, 0) / LENGTHS.sum(), atol=ROUNDING)


def test_the_clip_bites_on_these_inputs():
  """Else a recipe without its clip, or with another's, would pass."""
  student, teacher, token = (np.float64(x) for x in inputs())
  losses = [forward_kl_clipped(student, teacher, token, clip)[0] for clip in (0.05, 0.06, np.inf)]
  assert np.abs(losses[0] - losses[1]).min() > 100 * ROUNDING
  assert np.abs(losses[1] - losses[2]).min() > 100 * ROUNDING


def test_the_transcribed_gradients_are_those_of_the_transcribed_losses():
  student, teacher, token = inputs()
  student, teacher = np.float64(student), np.float64(teacher)
  direction = np.random.default_rng(3).normal(size=student.shape)
  for transcribed, clip in set(LOSSES.values()) - {(sampled_token, None)}:
    ahead, behind = (transcribed(student + s * direction, teacher, token, clip)[0] for s in (1e-6, -1e-6))
    _, gradient = transcribed(student, teacher, token, clip)
    np.testing.assert_allclose((gradient * direction).sum(-1), (ahead - behind) / 2e-6, atol=1e-7)


# Worked numbers: student logits [2, 1, 0, -1, 0.5], teacher logits [0.5, 2.5, 0, -0.5, -2], token 0.

GOLDEN = {
  'opsd_qwen3_1p7b': (-0.150879, [0.014765, 0.050070, -0.049339, -0.035994, 0.020498]),
  'opsd_2026_01_qwen3_1p7b': (0.177659, None),
  'opsd_qwen3_4b_sampled': (1.481776, [0.632950, -0.287711, -0.115916, -0.046702, -0.182621]),
}


@pytest.mark.parametrize('name', GOLDEN)
def test_worked_numbers(name):
  student = np.float32([[[2, 1, 0, -1, 0.5]]])
  teacher = np.float32([[[0.5, 2.5, 0, -0.5, -2]]])
  each, _, gradient = ours(name, student, teacher, np.zeros((1, 1), np.int32), np.int32([1]))
  loss, slope = GOLDEN[name]
  assert float(each[0, 0]) == pytest.approx(loss, abs=2e-6)  # the numbers have six decimals
  if slope:
    np.testing.assert_allclose(gradient[0, 0], slope, atol=2e-6)
