"""A run whose samples are weighed and filtered: what is trained on, said and paid for."""

import dataclasses

import jax
import pytest

from experiments import common, recipes
from opsd_jax import jsonlines
from opsd_jax.evaluate import accuracy
from opsd_jax.experiment import build
from opsd_jax.models.flops import forward_flops
from opsd_jax.records import Graded, Verdict
from opsd_jax.train import cold_start, distill
from tests.experiments import tiny
from tests.models.transformer_test import one_device

VERDICTS = (Verdict.CORRECT, Verdict.WRONG, Verdict.UNFORMATTED, Verdict.CORRECT)


def run(folder, monkeypatch, *changes):
  """One update of the shrunk quickstart; its metrics, and the rollouts as they were drawn."""
  once = ('loop.updates=1', 'loop.evaluate_every=0', 'loop.show_every=0', 'cold_start.updates=0')
  experiment = common.with_settings(recipes.load('quickstart'), [*tiny.ALONE, *once, *changes])
  setup = dataclasses.replace(build(experiment), mesh=one_device())
  drawn, plain = [], distill.roll_out

  def roll_out(*arguments):
    drawn.append(plain(*arguments))
    return drawn[-1]

  monkeypatch.setattr(distill, 'roll_out', roll_out)
  monkeypatch.setattr(distill, 'grade', lambda *_: Graded(VERDICTS))
  with jax.set_mesh(setup.mesh):
    distill.run(setup, str(folder), cold_start.initial_params(setup))
  return setup, jsonlines.read(folder / 'metrics.jsonl')[-1], drawn[0].rollout


@pytest.mark.slow
def test_what_is_left_out_is_neither_scored_nor_paid_for(tmp_path, monkeypatch):
  changes = ('weigh.kind=renio', 'weigh.source=pass', 'weigh.keep=incorrect', 'weigh.threshold=-5')
  changes += ('loop.packing=packed',)
  setup, metrics, rollout = run(tmp_path, monkeypatch, *changes)
  trained = int(rollout.length[1] + rollout.length[2])
  assert metrics['kept'] == 0.5 and metrics['accuracy'] == 0.5
  assert metrics['length_mean'] == rollout.length.mean()  # of all that were drawn
  assert metrics['total/sampled'] == rollout.length.sum() > trained
  for phase in ('student', 'teacher', 'weigh'):
    assert metrics[f'total/scored_{phase}'] == trained
  assert metrics['tokens'] == trained
  # A forward pass of the student, and the teacher's LM head again.
  spec, asked = setup.spec, metrics['total/prompt_weigh']
  assert asked == metrics['total/prompt_student']
  head = 2 * spec.vocab_size * spec.embed_dim * trained
  assert metrics['total/needed_weigh'] > head + forward_flops(spec, [0], [1], with_head=False) * trained
  parts = [metrics[f'total/needed_{phase}'] for phase in ('rollout', 'student', 'teacher', 'weigh')]
  assert metrics['total/flops'] == sum(parts)
  assert 0 < metrics['utilisation/weigh'] <= 1
  assert metrics['weight_mean'] == pytest.approx(1) and metrics['weight_min'] <= 1 <= metrics['weight_max']
  assert 0.9 < metrics['weight_selected'] <= 1 and metrics['weight_correctness'] == 0
  assert metrics['loss'] > 0 and metrics['update_norm'] > 0


@pytest.mark.slow
def test_what_is_left_out_was_still_a_sibling(tmp_path, monkeypatch):
  """Wrong rows alone are trained on, under what the right ones wrote."""
  shown, plain = [], distill.sources.views.row_batch

  def row_batch(config, problems, tokenizer, texts, correct):
    shown.extend(texts)
    return plain(config, problems, tokenizer, texts, correct)

  monkeypatch.setattr(distill.sources.views, 'row_batch', row_batch)
  siblings = ('views.teacher={problem}|{sibling}:', 'views.teacher_tokens=64')
  pairs = ('rollout.questions=2', 'rollout.per_question=2', 'weigh.keep=incorrect')
  setup, metrics, rollout = run(tmp_path, monkeypatch, *siblings, *pairs)
  assert len(shown) == 4 and shown == accuracy.decode_rollout(rollout, setup.tokenizer)
  assert all(shown[row] for row in (0, 3))
  assert metrics['total/scored_teacher'] == rollout.length[1] + rollout.length[2]


@pytest.mark.slow
def test_nothing_to_train_on_is_an_update_without_a_gradient(tmp_path, monkeypatch):
  monkeypatch.setattr(distill.weighing, 'kept', lambda config, graded: graded.correct & ~graded.correct)
  _, metrics, rollout = run(
    tmp_path, monkeypatch, 'weigh.kind=renio', 'weigh.keep=correct', 'loop.packing=packed'
  )
  assert metrics['kept'] == metrics['loss'] == metrics['grad_norm'] == metrics['total/scored_student'] == 0
  assert metrics['total/sampled'] == rollout.length.sum() and metrics['total/skipped_updates'] == 0
