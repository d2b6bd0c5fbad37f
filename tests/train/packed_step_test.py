"""However sequences are laid out and split, an update is the same.

Compared with the update that reads prompts once a question, pads completions and projects all of their
positions, which `sharded_step_test` holds against float64 and central differences. Other layouts add the
same float32 numbers in another order: `SAME` is that test's, and a token that is lost, read twice or
weighed by its own micro-batch is off by a hundredth at least.
"""

import functools

import numpy as np
import pytest

from opsd_jax.distill import packing, scoring
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.models import model
from opsd_jax.models.lora import LoraConfig
from opsd_jax.train import step as steps
from opsd_jax.train.state import TrainState
from tests.distill.packing_test import WINDOWED
from tests.models.lora_test import added, make_adapters
from tests.models.oracle import continuation_rows, float64
from tests.models.transformer_test import QUICK, make_params, quick_jit, relative_gap
from tests.train.sharded_step_test import (
  LENGTHS,
  OPTIMIZER,
  SAME,
  VALID,
  WIDTH,
  assert_same_update,
  check_layout,
  log_softmax,
  make_batch,
  on_one,
  reordered,
  update,
)

slow = pytest.mark.slow
FEW = make_batch()[2].replace(
  length=np.minimum(LENGTHS, 2)
)  # so few that a part of the head's work is spared


@pytest.mark.parametrize(
  ('where', 'settings'),
  [
    ('one', dict(packing='packed', micro_tokens=40)),
    pytest.param('one', dict(packing='packed'), marks=slow),
    pytest.param('one', dict(packing='rows', micro_tokens=60), marks=slow),
    pytest.param('cube', dict(packing='packed'), marks=slow),
    pytest.param('cube', dict(packing='packed', micro_tokens=60), marks=slow),
  ],
)
def test_an_update_does_not_depend_on_the_layout(where, settings):
  actual = update(where, **settings)
  assert_same_update(actual, on_one())
  gap = np.abs(np.asarray(actual.report.token_loss) - np.asarray(on_one().report.token_loss))
  assert gap.max() < SAME
  check_layout(actual, where)


@pytest.mark.parametrize(
  ('where', 'settings'),
  [('one', dict(packing='rows')), pytest.param('cube', dict(packing='rows', micro_tokens=60), marks=slow)],
)
def test_real_tokens_alone_at_the_head_make_the_same_update(where, settings):
  prompts, seen, _ = make_batch()
  plan = packing.plan(prompts, [seen], FEW)
  assert plan.student.at is not None and plan.origin.size <= FEW.ids.size / 2
  actual, expected = update(where, batch=(prompts, seen, FEW), **settings), few_whole()
  np.testing.assert_allclose(actual.report.loss, expected.report.loss, rtol=SAME)
  np.testing.assert_allclose(actual.report.token_loss, expected.report.token_loss, atol=SAME)
  assert relative_gap(actual.gradient, expected.gradient) < SAME
  check_layout(actual, where)


@functools.cache
def few_whole():
  prompts, seen, _ = make_batch()
  return update('one', batch=(prompts, seen, FEW))


@slow
def test_the_order_of_questions_does_not_matter_to_packed_rows():
  order = [3, 0, 7, 1, 6, 2, 5, 4]
  moved = update('one', batch=reordered(make_batch(), order), packing='packed', micro_tokens=40)
  assert_same_update(moved, on_one())


# Windows, soft-caps and adapters.


LORA = LoraConfig(rank=2, alpha=3.0)
HEADLESS = TeacherConfig('live')


@functools.cache
def windowed(packed):
  """An update of the adapters; the teacher is the base without them."""
  prompts, seen, rollout = make_batch()
  base, trained = make_params(WINDOWED), make_adapters(LORA, WINDOWED)
  plan = packing.plan(prompts, [seen], rollout, packing='packed') if packed else None
  scores = quick_jit(functools.partial(scoring.score_teacher, WINDOWED))(base, (seen,), rollout, plan)
  step = steps.make_distill_step(
    WINDOWED,
    ObjectiveConfig(chunk_tokens=32, implementation='chunked'),
    HEADLESS,
    OPTIMIZER,
    valid_vocab=VALID,
    adapters=LORA,
  )
  state = TrainState(trained, OPTIMIZER.init(trained), None)
  arguments = state, prompts, rollout, scores, None, base, plan
  return step.lower(*arguments).compile(QUICK)(*arguments)


@pytest.mark.slow
def test_windows_soft_caps_and_adapters_are_right_in_packed_rows():
  (state, report), (expected, whole) = windowed(True), windowed(False)
  np.testing.assert_allclose(report.loss, whole.loss, rtol=SAME)
  assert relative_gap(state.optimizer[0].trace, expected.optimizer[0].trace) < SAME
  prompts, seen, rollout = make_batch()
  base = make_params(WINDOWED)
  student = log_probs(added(base, make_adapters(LORA, WINDOWED), LORA.alpha / LORA.rank), prompts, rollout)
  teacher = log_probs(base, seen, rollout)
  kl = (np.exp(teacher) * (teacher - student)).sum(-1)
  kl = np.where(np.arange(WIDTH)[None] < LENGTHS[:, None], kl, 0)
  np.testing.assert_allclose(report.token_loss, kl, atol=SAME)


def log_probs(params, prompts, rollout):
  hidden = continuation_rows(WINDOWED, params, prompts.ids, prompts.length, rollout.ids)
  return log_softmax(hidden @ float64(model.head(WINDOWED, params))[:VALID].T)
