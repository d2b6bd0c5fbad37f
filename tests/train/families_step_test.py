"""One whole OPSD step on each family of models: sample, score with LoRA off, compare, change the adapters.

What the sampler said of a token and what the student's loss says of it agree, so that windows,
soft-caps, scales and positions are the same in cached decoding and in scoring.
"""

import functools

import jax
import numpy as np
import pytest

from opsd_jax import mesh as meshes
from opsd_jax.distill import scoring
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import lora, model
from opsd_jax.models.lora import LoraConfig
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.train import state as states
from opsd_jax.train import step as steps
from opsd_jax.train.config import OptimizerConfig
from tests.models.folder import make
from tests.models.transformer_test import QUICK, quick_jit

LORA = LoraConfig(rank=64, alpha=128)  # on the seven projections
FROZEN = TeacherConfig('frozen')
ADAM = states.make_optimizer(OptimizerConfig(learning_rate=1e-2))
QUESTIONS, PER_QUESTION, TOKENS = 2, 2, 9  # longer than the windows of 4
VALID = 37  # of 40 rows


def prompts(width, seed):
  rng = np.random.default_rng(seed)
  return Prompts(
    ids=rng.integers(0, VALID, (QUESTIONS, width), np.int32),
    length=np.int32([width, width - 3]),
    problem_id=np.arange(QUESTIONS, dtype=np.uint32),
  )


QUICKLY = ('qwen2',)  # the rest is in the other tests of gradients, and slow here


@pytest.mark.parametrize(
  'family', [name if name in QUICKLY else pytest.param(name, marks=pytest.mark.slow) for name in make.CONFIGS]
)
def test_one_step(family):
  spec, mesh = make.spec(family), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
  base = model.init_params(spec, jax.random.key(0), mesh)
  adapters = lora.init(LORA, spec, jax.random.key(1), mesh)
  adapters = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape), adapters)
  before = jax.tree.map(np.array, (base, adapters))
  with jax.set_mesh(mesh):
    asked, told = meshes.shard_rows(mesh, (prompts(8, 0), prompts(14, 1)))
    student = lora.complete(LORA, base, adapters)
    sampling = SamplingConfig(max_tokens=TOKENS)
    rollout = decode.generate(
      spec, student, asked, sampling, eos_ids=(3,), per_question=PER_QUESTION, seed=5, valid_vocab=VALID
    )
    scores = quick_jit(functools.partial(scoring.score_teacher, spec))(base, (told,), rollout)
    state = states.create(adapters, ADAM, FROZEN)
    step = steps.make_distill_step(
      spec, ObjectiveConfig(chunk_tokens=16), FROZEN, ADAM, valid_vocab=VALID, adapters=LORA
    )
    arguments = state, asked, rollout, scores, None, base
    state, report = step.lower(*arguments).compile(QUICK)(*arguments)

  assert bool(report.stepped) and int(report.tokens) == int(np.sum(rollout.length)) > QUESTIONS * PER_QUESTION
  assert float(report.loss) > 1e-4, 'two views of a random model differ'
  assert float(report.sums['logp_gap']) / int(report.tokens) < 1e-5, 'the sampler and the scorer agree'
  for name in ('query', 'key', 'value', 'out'):
    assert_moved(before[1]['layers']['attention'][name], state.params['layers']['attention'][name])
  for name in ('gate', 'up', 'down'):
    assert_moved(before[1]['layers']['mlp'][name], state.params['layers']['mlp'][name])
  jax.tree.map(np.testing.assert_array_equal, before[0], base)


def assert_moved(old, new):
  for name in ('a', 'b'):
    assert np.abs(np.asarray(new[name]) - old[name]).max() > 1e-3, 'Adam moves every weight by its rate'
