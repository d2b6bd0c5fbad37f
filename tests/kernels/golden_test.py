"""Worked numbers of the sampled-token estimator and of entropies, reached through the kernels.

Student logits [2, 1, 0, -1, 0.5] and teacher logits [0.5, 2.5, 0, -0.5, -2], in float64 by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_divergence.api import DivergenceSpec, linear_divergence
from kernels.linear_logprob.api import linear_logprob

STUDENT = np.array([2.0, 1.0, 0.0, -1.0, 0.5], np.float32).reshape(1, 1, 5)
TEACHER = np.array([0.5, 2.5, 0.0, -0.5, -2.0], np.float32).reshape(1, 1, 5)
# Temperature 1, with another teacher: the numbers of the top-k system.
TEACHER_TOPK = np.array([0.5, 2.5, 1.5, -0.5, -2.0], np.float32).reshape(1, 1, 5)
IDENTITY = np.eye(5, dtype=np.float32)  # hidden states that are the logits
TOKEN = np.zeros((1, 1), np.int32)
ROUNDING = 2e-6  # the numbers have six decimals, the kernels float32


def statistics(teacher: np.ndarray, **settings):
  return linear_divergence(STUDENT, IDENTITY, teacher, IDENTITY, TOKEN, DivergenceSpec(**settings))


def test_sampled_token_advantage():
  out = statistics(TEACHER, student_temperature=1.1, teacher_temperature=1.1)
  assert float((out.teacher_logp - out.student_logp)[0, 0]) == pytest.approx(-1.481776, abs=ROUNDING)


def test_sampled_token_policy_gradient():
  out = statistics(TEACHER, student_temperature=1.1, teacher_temperature=1.1)
  advantage = out.teacher_logp - out.student_logp

  def loss(hidden):
    return -jnp.sum(advantage * linear_logprob(hidden, IDENTITY, TOKEN, temperature=1.1).logp)

  expected = [0.632950, -0.287711, -0.115916, -0.046702, -0.182621]
  np.testing.assert_allclose(jax.grad(loss)(STUDENT)[0, 0], expected, atol=ROUNDING)


def test_entropies():
  out = statistics(TEACHER_TOPK)
  assert float(out.student_entropy[0, 0]) == pytest.approx(1.206489, abs=ROUNDING)
  assert float(out.teacher_entropy[0, 0]) == pytest.approx(0.983022, abs=ROUNDING)


@pytest.mark.parametrize('support, ids', [('student_topk', [0, 1]), ('teacher_topk', [1, 2])])
def test_renormalised_topk_reverse_kl_gradient(support, ids):
  """1[j in S] q_j (log q_j / p_j - KL(q || p)), with q and p renormalised on S."""

  def loss(hidden):
    spec = DivergenceSpec(kind='reverse_kl', support=support, k=2)
    return linear_divergence(hidden, IDENTITY, TEACHER_TOPK, IDENTITY, TOKEN, spec).loss[0, 0]

  q, p = (np.exp(np.float64(x[0, 0, ids])) for x in (STUDENT, TEACHER_TOPK))
  q, p = q / q.sum(), p / p.sum()
  expected = np.zeros(5)
  expected[ids] = q * (np.log(q / p) - np.sum(q * np.log(q / p)))
  np.testing.assert_allclose(jax.grad(loss)(STUDENT)[0, 0], expected, atol=ROUNDING)
