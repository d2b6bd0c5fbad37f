"""The teacher reads what was sampled, and the loss is over what was sampled.

The oracle reads each row as one plain sequence [prompt ; completion]: no shared prefix, no gap
between the two, logits in float64 NumPy; the code is float32, hence 1e-4. Published code re-encodes
text between sampling and loss and masks ids equal to the pad id; a sampled 0, which is the pad id
here, stands inside the completions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opsd_jax.distill import scoring
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Rollout
from opsd_jax.train import state, step

SPEC = ModelSpec(
  vocab_size=12, num_layers=2, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12
)
VALID = 11
TOTAL = 16  # length of the plain sequences, right-padded
STUDENT = [[1, 5, 6], [1, 7]]
VIEWS = ([[1, 5, 6, 9, 9, 3], [1, 7, 9]], [[1, 4], [1, 8, 8, 7]])
COMPLETIONS = [[3, 0, 4, 2], [0, 0, 5, 6, 7], [8, 2], [0, 3, 0]]  # two for each question
WIDTH = 6


def padded(rows, width):
  ids = np.zeros((len(rows), width), np.int32)
  for row, tokens in enumerate(rows):
    ids[row, : len(tokens)] = tokens
  return ids


def make_prompts(rows, width):
  length = np.array([len(row) for row in rows], np.int32)
  return Prompts(ids=padded(rows, width), length=length, problem_id=np.arange(2, dtype=np.uint32))


def make_rollout(completions=COMPLETIONS, width=WIDTH):
  ids = padded(completions, width)
  zeros = np.zeros(ids.shape, np.float32)
  return Rollout(
    ids=ids,
    length=np.array([len(c) for c in completions], np.int32),
    stopped=np.ones(len(ids), bool),
    raw_logp=zeros,
    behaviour_logp=zeros,
    policy_version=np.zeros(len(zeros), np.int32),
    rollout_index=np.array([0, 1, 0, 1], np.int32),
  )


@functools.cache
def teacher_params():
  mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
  return model.init_params(SPEC, jax.random.key(0), mesh)


@functools.cache
def student_params():
  """Other weights: the teacher's, each array backwards along its last axis."""
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[..., ::-1].copy()), teacher_params())


@jax.jit
def read_plain(params, ids):
  positions = jnp.broadcast_to(jnp.arange(TOTAL)[None], ids.shape)
  return model.apply(SPEC, params, ids, positions, keep_kv=False)[0]


def plain_hidden(params, prompts, completions=COMPLETIONS):
  """For every row, the states [length, D] that predict its completion."""
  rows = [prompts[b // 2] + c for b, c in enumerate(completions)]
  hidden = np.asarray(read_plain(params, padded(rows, TOTAL)))
  starts = [len(prompts[b // 2]) - 1 for b in range(len(rows))]
  return [h[s : s + len(c)] for h, s, c in zip(hidden, starts, completions)]


@functools.cache
def scored():
  views = tuple(make_prompts(rows, 7) for rows in VIEWS)
  score = jax.jit(scoring.score_teacher, static_argnums=0)
  return lambda params, rollout: score(SPEC, params, views, rollout)


@pytest.mark.parametrize('view', [0, 1])
def test_teacher_states_are_those_of_the_plain_sequence(view):
  hidden = np.asarray(scored()(teacher_params(), make_rollout()).hidden)
  assert hidden.shape == (2, 1, 4, WIDTH, SPEC.embed_dim)
  for row, wanted in enumerate(plain_hidden(teacher_params(), VIEWS[view])):
    np.testing.assert_allclose(hidden[view, 0, row, : len(wanted)], wanted, rtol=1e-4, atol=2e-5)


def test_the_teacher_reads_a_sampled_pad_id():
  """Another id in place of a sampled 0 changes what comes after it, and nothing before."""
  changed = [list(c) for c in COMPLETIONS]
  changed[1][1] = 9
  before, after = (
    np.asarray(scored()(teacher_params(), make_rollout(c)).hidden)[:, 0] for c in (COMPLETIONS, changed)
  )
  moved = np.abs(before - after).max((0, 3)) > 1e-3
  np.testing.assert_allclose(before[:, 1, :2], after[:, 1, :2], atol=1e-6)
  assert moved[1, 2:5].all() and not moved[[0, 2, 3]].any()


def log_probs(hidden, params):
  head = np.asarray(model.head(SPEC, params), np.float64)[:VALID]
  logits = np.asarray(hidden, np.float64) @ head.T
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@functools.cache
def distill_step():
  optimizer = optax.sgd(0.1)
  compiled = step.make_distill_step(SPEC, ObjectiveConfig(), TeacherConfig(), optimizer, valid_vocab=VALID)

  def run(rollout):
    fresh = state.create(student_params(), optimizer, TeacherConfig())
    both, head = scored()(teacher_params(), rollout), model.head(SPEC, teacher_params())
    scores = both.replace(hidden=both.hidden[:1])
    return compiled(fresh, make_prompts(STUDENT, 4), rollout, scores, head)[1]

  return run


def test_the_loss_is_that_of_the_sampled_ids_under_both_views():
  """From sampled ids to the loss of an update, pad ids and EOS inside the completions included."""
  report = distill_step()(make_rollout())
  students = plain_hidden(student_params(), STUDENT)
  teachers = plain_hidden(teacher_params(), VIEWS[0])
  total, tokens = 0.0, 0
  for row, (mine, theirs) in enumerate(zip(students, teachers)):
    log_q, log_p = log_probs(mine, student_params()), log_probs(theirs, teacher_params())
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    assert kl.min() > 1e-3  # A dropped position would be seen.
    found = np.asarray(report.token_loss[row])
    np.testing.assert_allclose(found[: len(kl)], kl, rtol=1e-4, atol=1e-5)
    assert not found[len(kl) :].any()
    total, tokens = total + kl.sum(), tokens + len(kl)
  assert int(report.tokens) == tokens == 14
  np.testing.assert_allclose(report.loss, total / 14, rtol=1e-4)
  np.testing.assert_allclose(report.sums['forward_kl'], total, rtol=1e-4)


def test_what_stands_in_the_padding_does_not_matter():
  rollout = make_rollout()
  rubbish = np.where(np.asarray(rollout.mask), rollout.ids, 9).astype(np.int32)
  one, other = distill_step()(rollout), distill_step()(rollout.replace(ids=rubbish))
  np.testing.assert_array_equal(one.token_loss, other.token_loss)
  assert float(one.loss) == float(other.loss) and float(one.norms['grad_norm']) == float(
    other.norms['grad_norm']
  )
