"""No buffer of a compiled update is as large as tokens times vocabulary: logits never exist whole."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernels import tiles
from kernels.linear_divergence import tpu_backward
from opsd_jax.distill import packing, scoring, weighing
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.distill.weigh_config import WeighConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Rollout
from opsd_jax.train import state as states
from opsd_jax.train import step as steps
from tests.models.transformer_test import QUICK

QUESTIONS, WIDTH, PROMPT = 8, 64, 12
VOCAB = 4_099  # a prime, so that no other size is a multiple of it by chance
WHOLE = QUESTIONS * WIDTH * VOCAB  # elements of one tensor of logits
SPEC = ModelSpec(VOCAB, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32)
# The TPU kernels' backward pass goes over a fixed number of entries at a time: many times as many here.
WIDE = dataclasses.replace(SPEC, vocab_size=16 * tpu_backward.VOCAB_TILE + 3)
OPTIMIZER = optax.adam(1e-3)
TEACHERS = {'frozen': TeacherConfig('frozen'), 'ema': TeacherConfig('ema'), 'live': TeacherConfig('live')}


def batch():
  prompts = Prompts(
    ids=np.ones((QUESTIONS, PROMPT), np.int32),
    length=np.full(QUESTIONS, PROMPT, np.int32),
    problem_id=np.arange(QUESTIONS, dtype=np.uint32),
  )
  zeros = np.zeros((QUESTIONS, WIDTH), np.float32)
  rollout = Rollout(
    ids=zeros.astype(np.int32),
    length=np.full(QUESTIONS, WIDTH, np.int32),
    stopped=np.zeros(QUESTIONS, bool),
    raw_logp=zeros,
    behaviour_logp=zeros,
    policy_version=np.zeros(len(zeros), np.int32),
    rollout_index=np.zeros(QUESTIONS, np.int32),
  )
  return prompts, rollout


def traced(objective, kind='frozen', micro_batches=1, spec=SPEC):
  """The update as JAX sees it, of shapes alone: nothing is computed."""
  teacher, (prompts, rollout) = TEACHERS[kind], batch()
  params = model.abstract_params(spec, one_device())
  state = states.describe(params, OPTIMIZER, teacher)
  plan = packing.everything(QUESTIONS, 1, WIDTH, parts=micro_batches)
  scores = jax.eval_shape(functools.partial(scoring.score_teacher, spec), params, (prompts,), rollout, plan)
  head = jax.ShapeDtypeStruct((spec.vocab_size, spec.embed_dim), jnp.float32) if kind == 'frozen' else None
  step = steps.make_distill_step(spec, objective, teacher, OPTIMIZER, valid_vocab=spec.vocab_size - 7)
  return step.trace(state, prompts, rollout, scores, head, None, plan)


def one_device():
  return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def sizes(text):
  """Elements of every array that a program names, in HLO (`f32[8,64]`) and StableHLO (`tensor<8x64xf32>`)."""
  shapes = [s.split(',') for s in re.findall(r'\b[a-z]+\d+\[([\d,]+)\]', text)]
  shapes += [s.rstrip('x').split('x') for s in re.findall(r'tensor<((?:\d+x)+)', text)]
  return [math.prod(map(int, shape)) for shape in shapes]


@pytest.mark.parametrize(
  ('kind', 'choices'),
  [
    ('frozen', dict(entry_clip_max=0.05)),
    pytest.param('ema', dict(divergence='jsd'), marks=pytest.mark.slow),
    ('live', dict(divergence='reverse_kl', support='student_topk', k=8)),
    pytest.param(
      'frozen', dict(divergence='jsd', support='teacher_topk', k=8, tail='bucket'), marks=pytest.mark.slow
    ),
  ],
)
def test_the_compiled_update_holds_a_tile_of_logits(kind, choices):
  objective = ObjectiveConfig(chunk_tokens=64, implementation='chunked', **choices)
  found = sizes(traced(objective, kind).lower().compile(QUICK).as_text())
  tile = QUESTIONS * WIDTH * tiles.width(QUESTIONS * WIDTH, VOCAB - 7, 64)
  assert tile in found, 'a tile of logits should be seen'
  assert max(found) <= 64 * VOCAB


REWARDS = dict(estimator='reward_topk', divergence='reverse_kl', support='union', k=8)


@pytest.mark.parametrize('choices', [dict(implementation='chunked', mode='speed'), REWARDS])
def test_the_fast_update_and_that_of_rewards_hold_one_chunk_of_logits(choices):
  objective = ObjectiveConfig(chunk_tokens=64, **choices)
  found = sizes(traced(objective).lower().compile(QUICK).as_text())
  assert 64 * VOCAB in found, 'the chunk of logits should be seen'
  assert max(found) <= 64 * VOCAB


def test_micro_batches_hold_no_more():
  objective = ObjectiveConfig(chunk_tokens=64, implementation='chunked')
  assert max(sizes(traced(objective, micro_batches=2).lower().compile(QUICK).as_text())) <= 64 * VOCAB


def test_sample_weights_hold_one_chunk_of_logits():
  prompts, rollout = batch()
  params = model.abstract_params(SPEC, one_device())
  plan = packing.everything(QUESTIONS, 1, WIDTH)
  scores = jax.eval_shape(functools.partial(scoring.score_teacher, SPEC), params, (prompts,), rollout, plan)
  hidden = jax.ShapeDtypeStruct(scores.hidden.shape[1:], scores.hidden.dtype)
  both = (hidden, model.head(SPEC, params))
  settings = dict(temperatures=(1, 1), softcaps=(None, None), valid_vocab=VOCAB - 7, chunk_tokens=64)
  weigh = functools.partial(weighing.from_states, WeighConfig(kind='renio', source='pass'), **settings)
  found = sizes(jax.jit(weigh).lower(rollout, plan, both, both).compile(QUICK).as_text())
  assert 64 * VOCAB in found and max(found) <= 64 * VOCAB


def test_whole_logits_would_be_seen():
  found = sizes(traced(ObjectiveConfig(implementation='reference')).lower().compile(QUICK).as_text())
  assert max(found) >= WHOLE


@pytest.mark.parametrize(
  'choices', [dict(), dict(divergence='jsd', support='teacher_topk', k=8, tail='bucket')]
)
def test_the_update_lowered_for_a_tpu_holds_one_step_of_the_vocabulary(choices):
  update = traced(ObjectiveConfig(implementation='tpu', **choices), spec=WIDE)
  text = update.lower(lowering_platforms=('tpu',)).as_text()
  assert 'tpu_custom_call' in text
  # Of logits' derivatives there is one step, with so few positions half a tile: a 32nd of all, and no more
  # with more of the vocabulary. The head itself is as long as the vocabulary, but only 16 wide.
  step, head = QUESTIONS * WIDTH * tpu_backward.VOCAB_TILE // 2, WIDE.vocab_size * WIDE.embed_dim
  found = sizes(text)
  assert step in found and head in found and max(found) == max(step, head)


def test_whole_logits_lowered_for_a_tpu_would_be_seen():
  update = traced(ObjectiveConfig(implementation='reference'), spec=WIDE)
  text = update.lower(lowering_platforms=('tpu',)).as_text()
  assert max(sizes(text)) >= QUESTIONS * WIDTH * WIDE.vocab_size
