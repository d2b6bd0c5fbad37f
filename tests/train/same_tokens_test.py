"""What was sampled is what is scored: the same prompt ids and completion ids in every program.

Two mistakes of the reference code stay out: a student prompt that lost its control tokens between
sampler and scorer, and completion ids that were found by decoding and encoding again.
"""

import jax
import numpy as np
import pytest

from experiments import common, recipes
from opsd_jax import jsonlines
from opsd_jax.experiment import build
from opsd_jax.train import cold_start, distill, sources
from tests.experiments import real_text


@pytest.fixture(scope='module')
def setup(tmp_path_factory):
  settings = real_text.settings(tmp_path_factory.mktemp('text'))
  several = ('rollout.per_question=2', 'mesh.data=1', 'mesh.fsdp=1', 'mesh.tensor=-1', 'loop.updates=1')
  packed = ('loop.packing=packed', 'loop.micro_tokens=1100')
  return build(common.with_settings(recipes.load('gsm8k_tiny'), [*settings, *several, *packed]))


@pytest.fixture(scope='module')
def seen(setup, tmp_path_factory):
  """What the sampler, the teacher's scorer and the update were given during one update."""
  calls = {}

  def record(name, *arrays):
    calls[name] = [np.asarray(a) for a in arrays]

  def sample(spec, params, prompts, *rest, **more):
    sampled = plain_sample(spec, params, prompts, *rest, **more)
    record('sampler', prompts.ids, prompts.length, sampled.rollout.ids, sampled.rollout.length)
    return sampled

  def score_teacher(spec, params, views, rollout, plan):
    jax.debug.callback(
      lambda *a: record('teacher', *a), views[0].ids, views[0].length, rollout.ids, rollout.length
    )
    return plain_score(spec, params, views, rollout, plan)

  def make_distill_step(*args, **more):
    compiled = plain_step(*args, **more)

    def step(state, prompts, rollout, scores, *frozen):
      record('student', prompts.ids, prompts.length, rollout.ids, rollout.length)
      return compiled(state, prompts, rollout, scores, *frozen)

    return step

  with pytest.MonkeyPatch.context() as patch:
    plain_sample, plain_score = sources.decode.sample, distill.scoring.score_teacher
    plain_step = distill.step.make_distill_step
    patch.setattr(sources.decode, 'sample', sample)
    patch.setattr(distill.scoring, 'score_teacher', score_teacher)
    patch.setattr(distill.step, 'make_distill_step', make_distill_step)
    folder = tmp_path_factory.mktemp('run')
    with jax.set_mesh(setup.mesh):
      distill.run(setup, str(folder), cold_start.initial_params(setup))
      jax.effects_barrier()
  return calls | {'metrics': jsonlines.read(folder / 'metrics.jsonl')[-1]}


def test_the_run_says_what_was_needed_of_what_was_computed(seen):
  metrics = seen['metrics']
  for phase in ('rollout', 'student', 'teacher'):
    assert 0.1 < metrics[f'utilisation/{phase}'] < 1
  assert metrics['total/positions_student'] > metrics['total/scored_student'] == seen['sampler'][3].sum()


def test_the_sampler_and_the_scorer_read_the_same_prompt(seen):
  for sampled, scored in zip(seen['sampler'][:2], seen['student'][:2], strict=True):
    np.testing.assert_array_equal(sampled, scored)


def test_the_prompt_keeps_its_control_tokens(seen, setup):
  start, end = (setup.tokenizer.encode_template(t)[0] for t in ('<|im_start|>', '<|im_end|>'))
  for ids, length in (seen['student'][:2], seen['teacher'][:2]):
    for row, n in zip(ids, length, strict=True):
      assert row[0] == start and list(row[:n]).count(start) == 2 and list(row[:n]).count(end) == 1


def test_the_completion_ids_are_the_same_under_both_views(seen):
  for name in ('student', 'teacher'):
    ids, length = seen[name][2:]
    np.testing.assert_array_equal(length, seen['sampler'][3])
    for row, sampled, n in zip(ids, seen['sampler'][2], length, strict=True):
      np.testing.assert_array_equal(row[:n], sampled[:n])


def test_encoding_the_decoded_completions_again_would_change_them(seen, setup):
  """Else the test above could not tell ids that were kept from ids that were found again."""
  ids, length = seen['sampler'][2:]
  again = [
    setup.tokenizer.encode(setup.tokenizer.decode(row[:n].tolist()))
    for row, n in zip(ids, length, strict=True)
  ]
  assert any(a != row[:n].tolist() for a, row, n in zip(again, ids, length, strict=True))
