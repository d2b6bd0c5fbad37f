"""An update taught by another model: of another width, depth, soft-cap and padding of the vocabulary.

The inputs, and the student's side of the float64 oracle, are those of the test of full updates.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.distill import packing, scoring, teachers
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.train import step as steps
from opsd_jax.train.state import TrainState
from tests.models.oracle import capped, continuation_rows, float64
from tests.models.transformer_test import QUICK, SPEC, flat, make_params, quick_jit
from tests.train.sharded_step_test import (
  LENGTHS,
  MESHES,
  OPTIMIZER,
  PER_QUESTION,
  QUESTIONS,
  SAME,
  VALID,
  WIDTH,
  Outcome,
  assert_same_update,
  differences,
  log_probs,
  log_softmax,
  make_batch,
  placed,
)

WIDER = ModelSpec(
  vocab_size=23,
  num_layers=1,
  embed_dim=24,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  mlp_dim=20,
  tie_embeddings=False,
  final_softcap=2.0,
)
TEACHER = TeacherConfig('external', model=WIDER)


@functools.cache
def update(where, micro_batches=1):
  """An update of student 0, taught by weights of a model of its own."""
  mesh = MESHES[where]()
  prompts, seen, rollout = meshes.shard_rows(mesh, make_batch())
  params = placed(mesh, 0)
  taught_by = jax.tree.map(
    lambda x, like: jax.device_put(np.array(x), like.sharding),
    make_params(WIDER, 1),
    model.abstract_params(WIDER, mesh),
  )
  with jax.set_mesh(mesh):
    plan = packing.everything(QUESTIONS, PER_QUESTION, WIDTH, parts=micro_batches)
    scores = quick_jit(functools.partial(scoring.score_teacher, WIDER))(taught_by, [seen], rollout, plan)
    head = teachers.external_head(TEACHER, taught_by, SPEC.vocab_size)
    state = TrainState(params, OPTIMIZER.init(params), None)
    config = ObjectiveConfig(chunk_tokens=32, implementation='chunked')
    step = steps.make_distill_step(SPEC, config, TEACHER, OPTIMIZER, valid_vocab=VALID)
    arguments = state, prompts, rollout, scores, head, None, plan
    return Outcome(*step.lower(*arguments).compile(QUICK)(*arguments))


@functools.cache
def oracle_teacher():
  """float64 [B, T, VALID]."""
  _, seen, rollout = make_batch()
  params = make_params(WIDER, 1)
  hidden = continuation_rows(WIDER, params, seen.ids, seen.length, rollout.ids)
  return log_softmax(capped(hidden @ float64(params['head'])[:VALID].T, WIDER.final_softcap))


def oracle_token_loss(params):
  """KL(teacher || student) [B, T], 0 on padding."""
  prompts, _, rollout = make_batch()
  teacher, student = oracle_teacher(), log_probs(params, prompts, rollout.ids)
  kl = (np.exp(teacher) * (teacher - student)).sum(-1)
  return np.where(np.arange(WIDTH)[None] < LENGTHS[:, None], kl, 0)


def test_the_loss_is_its_definition():
  report, expected = update('one').report, oracle_token_loss(make_params(SPEC))
  np.testing.assert_allclose(report.token_loss, expected, atol=SAME)
  assert float(report.loss) == pytest.approx(expected.sum() / LENGTHS.sum(), rel=SAME)


def test_the_gradient_matches_differences_of_the_loss():
  direction, expected = differences(lambda p: oracle_token_loss(p).sum() / LENGTHS.sum())
  assert flat(update('one').gradient) @ flat(direction) == pytest.approx(expected, rel=SAME)


def test_eight_devices_and_two_parts_make_the_same_update():
  assert_same_update(update('cube', 2), update('one'))


def test_the_teachers_tree_is_sharded_as_its_own_shape_says():
  shapes = model.abstract_params(WIDER, MESHES['cube']())
  assert shapes['head'].shape == (23, 24)
  assert shapes['layers']['mlp']['up'].sharding.shard_shape((1, 24, 20)) == (1, 12, 10)


@pytest.mark.parametrize('rows', [17, 20, 23, 30])
def test_the_head_has_as_many_rows_as_the_students(rows):
  spec = dataclasses.replace(WIDER, vocab_size=rows)
  config, params = dataclasses.replace(TEACHER, model=spec), make_params(spec, 1)
  head = teachers.external_head(config, params, 20)
  assert head.shape == (20, 24)
  known = min(rows, 20)
  np.testing.assert_array_equal(head[:known], params['head'][:known])
  assert not jnp.any(head[known:])
