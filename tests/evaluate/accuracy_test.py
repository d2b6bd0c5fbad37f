"""Accuracy of a tree: verdicts stand at their own problem in any batch; greedy repeats itself."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.data.chains import make_problem
from opsd_jax.distill import views
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.evaluate import accuracy
from opsd_jax.evaluate import config as settings
from opsd_jax.evaluate.config import EvaluateConfig
from opsd_jax.evaluate.statistics import mean_accuracy, pass_at_k
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Rollout
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer

SPEC = ModelSpec(vocab_size=20, num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8)
TOKENIZER = make_tokenizer(TokenizerConfig())
VIEW = ViewsConfig(student_tokens=8, teacher_tokens=12)
PROBLEMS = [make_problem(text) for text in ('3+*', '1-', '4**-', '0+', '9*+')]
SAMPLING = SamplingConfig(max_tokens=5)


@functools.cache
def mesh():
  return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@functools.cache
def params():
  return model.init_params(SPEC, jax.random.key(3), mesh())


def exam():
  return accuracy.Exam(SPEC, mesh(), VIEW, TOKENIZER)


def answer(batch, samples=2, role='student', sampling=SAMPLING, seed=1, weights=None):
  return accuracy.answer_problems(
    exam(),
    params() if weights is None else weights,
    PROBLEMS,
    role,
    sampling,
    samples=samples,
    batch=batch,
    seed=seed,
  )


def assert_same(one, other):
  for field in dataclasses.fields(accuracy.Verdicts):
    np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


# --- A sampler whose rows are known: problem x, sample i is right where (x + i) % 3 == 0.


def known_completion(problem, sample):
  place = [views.stable_id(p) for p in PROBLEMS].index(problem)
  if (place + sample) % 3 == 0:
    return f'={PROBLEMS[place].answer}'
  return '=:' if (place + sample) % 3 == 1 else '1' * (place + 1)


def known_generate(spec, params, prompts, sampling, *, eos_ids, per_question, **_):
  """Completions of `known_completion` with an EOS, but for those without an answer."""
  rows = [(int(p), i) for p in np.asarray(prompts.problem_id) for i in range(per_question)]
  texts = [TOKENIZER.encode(known_completion(*row)) for row in rows]
  stopped = [TOKENIZER.encode('=')[0] == text[0] for text in texts]
  texts = [text + [eos_ids[0]] * ended for text, ended in zip(texts, stopped)]
  ids = np.zeros((len(texts), sampling.max_tokens), np.int32)
  for row, text in enumerate(texts):
    ids[row, : len(text)] = text
  zeros = np.zeros(ids.shape, np.float32)
  return Rollout(
    ids=ids,
    length=np.array([len(t) for t in texts]),
    stopped=np.array(stopped),
    raw_logp=zeros,
    behaviour_logp=zeros,
    policy_version=np.zeros(len(zeros), np.int32),
    rollout_index=np.array([i for _, i in rows]),
  )


@pytest.mark.parametrize('batch', [1, 2, 3, 4, 5, 7, 13])
def test_every_verdict_stands_at_its_own_problem(monkeypatch, batch):
  monkeypatch.setattr(accuracy.decoding, 'generate', known_generate)
  found = answer(batch, samples=4, weights={})
  place, sample = np.arange(5)[:, None], np.arange(4)[None, :]
  kind = (place + sample) % 3
  np.testing.assert_array_equal(found.correct, kind == 0)
  np.testing.assert_array_equal(found.answered, kind < 2)
  np.testing.assert_array_equal(found.stopped, kind < 2)
  np.testing.assert_array_equal(found.length, np.where(kind < 2, 3, place + 1))
  assert found.prompt_length.tolist() == [5, 4, 6, 4, 5]


def test_measure_averages_the_verdicts(monkeypatch):
  monkeypatch.setattr(accuracy.decoding, 'generate', known_generate)
  config = EvaluateConfig(samples=6, sampling=SAMPLING, batch=3)
  found, (sampled, greedy) = accuracy.measure(exam(), {}, PROBLEMS, 'student', config)
  assert sampled.correct.shape == (5, 6) and greedy.correct.shape == (5, 1)
  assert found.sampled == mean_accuracy(sampled.correct)
  assert found.sampled.value == pytest.approx(1 / 3) and found.greedy.value == pytest.approx(2 / 5)
  assert found.pass_at == {k: pass_at_k(sampled.correct, k) for k in (1, 2, 4, 6)}
  assert found.answered == found.stopped == pytest.approx(2 / 3)
  assert found.mean_length == pytest.approx((3 + 3 + np.mean([1, 2, 3, 4, 5])) / 3)


# --- The real sampler, with random weights.


def test_the_batch_size_changes_nothing_and_shapes_are_per_problem():
  whole, parts = answer(batch=5), answer(batch=2)
  assert_same(whole, parts)
  for field in ('correct', 'answered', 'stopped', 'length'):
    assert getattr(whole, field).shape == (5, 2)
  assert whole.prompt_length.shape == (5,)
  assert len(np.unique(whole.length)) > 1  # The rows differ, so that a mix-up would be seen.


def test_seeds_draw_different_samples():
  one, other = answer(batch=5), answer(batch=5, seed=2)
  assert (one.length != other.length).any() or (one.stopped != other.stopped).any()


def test_greedy_does_not_depend_on_the_seed():
  greedy = dataclasses.replace(SAMPLING, temperature=0.0)
  assert_same(answer(5, samples=1, sampling=greedy, seed=1), answer(5, samples=1, sampling=greedy, seed=2))


def test_the_teachers_role_reads_the_teachers_prompt(monkeypatch):
  monkeypatch.setattr(accuracy.decoding, 'generate', known_generate)
  lengths = answer(5, role='teacher', weights={}).prompt_length
  assert lengths.tolist() == [8, 6, 10, 6, 8]  # <bos>, problem, |, one digit a step, :


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'samples': 0}, 'evaluate.samples is 0'),
    ({'batch': -1}, 'evaluate.batch is -1'),
    ({'validation_samples': 0}, 'evaluate.validation_samples is 0'),
    ({'sampling': SamplingConfig(top_p=0.0)}, 'evaluate.sampling.top_p is 0'),
    ({'sampling': SamplingConfig(top_k=21)}, 'evaluate.sampling.top_k is 21'),
  ],
)
def test_settings_that_measure_nothing(changes, message):
  with pytest.raises(ConfigError, match=message):
    settings.validate(EvaluateConfig(**changes), 20)


def test_accuracy_by_level():
  correct = np.array([[1, 0], [1, 1], [0, 0], [1, 1], [1, 1]], bool)
  assert accuracy.by_level(['10', '9', '10', '9', None], correct) == {'9': 1.0, '10': 0.25}
