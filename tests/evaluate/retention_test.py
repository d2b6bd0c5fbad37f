"""Problems of other tasks: asked in full, graded by their own rules, and named in the metrics."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.distill import views
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.evaluate import accuracy, retention
from opsd_jax.evaluate import config as settings
from opsd_jax.evaluate.config import EvaluateConfig, RetentionConfig
from opsd_jax.grade.config import GradeConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Rollout
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer
from tests.experiments import real_text

TOKENIZER = make_tokenizer(TokenizerConfig())
VIEW = ViewsConfig(student_tokens=4, teacher_tokens=12)
SPEC = ModelSpec(vocab_size=20, num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8)


@pytest.fixture
def file(tmp_path):
  rows = [{'id': f'n{i}', 'problem': '1+' * (i + 1), 'answer': str(i)} for i in range(5)]
  path = tmp_path / 'sums.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def evaluation(file, **more):
  return EvaluateConfig(
    sampling=SamplingConfig(max_tokens=4), batch=2, retention=RetentionConfig((f'sums={file}',), **more)
  )


def opened(file, **more):
  return retention.open_sets(evaluation(file, **more), VIEW, GradeConfig(), TOKENIZER)


def generate(spec, params, prompts, sampling, *, eos_ids, per_question, **_):
  """Completion i of a problem with p tokens says `=<its number>` where i is 0, and nothing else elsewhere."""
  texts = []
  for length in np.asarray(prompts.length):
    number = (int(length) - len(TOKENIZER.bos_ids) - 1) // 2 - 1
    texts += [[*TOKENIZER.encode(f'={number}' if i == 0 else '+'), eos_ids[0]] for i in range(per_question)]
  ids = np.zeros((len(texts), sampling.max_tokens), np.int32)
  for row, text in enumerate(texts):
    ids[row, : len(text)] = text
  zeros, lengths = np.zeros(ids.shape, np.float32), np.array([len(t) for t in texts])
  return Rollout(ids, lengths, np.ones(len(texts), bool), zeros, zeros, *np.zeros((2, len(texts)), int))


def test_every_prompt_gets_the_width_that_the_longest_takes(file):
  (one,) = opened(file)
  batch = views.student_batch(one.views, one.problems, TOKENIZER)
  assert one.name == 'sums' and len(one.problems) == 5
  longest = len(TOKENIZER.bos_ids) + len('1+' * 5 + ':')
  assert batch.ids.shape[1] == batch.length.max() == longest > VIEW.student_tokens


def test_at_most_so_many_problems_are_tracked(file):
  (one,) = opened(file, problems=3)
  assert [p.answer for p in one.problems] == ['0', '1', '2']
  (whole,) = opened(file, problems=None)
  assert len(whole.problems) == 5 and whole.digest == one.digest


def test_accuracy_and_pass_at_k_are_those_of_the_completions(file, monkeypatch):
  monkeypatch.setattr(accuracy.decoding, 'generate', generate)
  exam = accuracy.Exam(SPEC, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), VIEW, TOKENIZER)
  config = evaluation(file, samples=4)
  found, asked = retention.track(exam, {}, opened(file, samples=4), config)
  assert found['sums']['accuracy'] == 0.25 and found['sums']['pass_at_4'] == 1.0
  assert found['sums']['problems'] == 5 and asked[0].correct.shape == (5, 4)
  assert retention.metrics(found) == {'retention/sums/accuracy': 0.25, 'retention/sums/pass_at_4': 1.0}


def test_a_benchmark_of_which_a_part_is_tracked_is_checked_as_a_whole(file):
  (part,), (whole,) = opened(file, problems=2), opened(file, problems=None)
  benchmarks = {'amc': whole.problems[:1], 'sums': whole.problems[1:]}
  found = retention.with_benchmarks(benchmarks, [part])
  assert {name: [p.id for p in some] for name, some in found.items()} == {
    'amc': ['sums/0'],
    'sums': [f'sums/{i}' for i in (1, 2, 3, 4, 0)],
  }
  assert retention.with_benchmarks({}, [part]) == {'sums': part.problems}


@pytest.mark.data
def test_programs_are_asked_for_and_judged_by_their_tests(data_root):
  tokenizer = make_tokenizer(TokenizerConfig(path=str(data_root / 'tokenizers' / 'qwen3_built')))
  config = EvaluateConfig(retention=RetentionConfig(('humaneval', 'mbpp'), str(data_root), problems=2))
  for one in retention.open_sets(config, VIEW, GradeConfig(), tokenizer):
    batch = views.student_batch(one.views, one.problems, tokenizer)
    asked = tokenizer.decode(batch.ids[0, : batch.length[0]].tolist())
    assert one.problems[0].problem in asked and '```python' in asked
    solved = [f'Like this:\n```python\n{problem.solution}\n```' for problem in one.problems]
    graded = one.mark([*one.problems] * 2, [*solved, 'I cannot.', '```python\n1 / 0\n```'])
    assert graded.verdicts == ('correct', 'correct', 'unformatted', 'wrong'), one.name
    assert one.mark([], []).verdicts == ()  # of several processes, one may have no rows


def test_nothing_is_tracked_where_nothing_is_named():
  assert retention.open_sets(EvaluateConfig(), VIEW, GradeConfig(), TOKENIZER) == ()
  assert retention.track(None, {}, (), EvaluateConfig()) == ({}, [])


@pytest.mark.parametrize(
  ('change', 'complaint'),
  [
    ({'problems': 0}, 'evaluate.retention.problems is 0'),
    ({'samples': 0}, 'evaluate.retention.samples is 0'),
    ({'benchmarks': ('a=1', 'a=2')}, 'names one twice'),
  ],
)
def test_settings_that_track_nothing_are_refused(change, complaint):
  with pytest.raises(ConfigError, match=complaint):
    settings.validate(EvaluateConfig(retention=RetentionConfig(**change)), 20)


def test_a_name_without_a_place_is_refused():
  config = dataclasses.replace(EvaluateConfig(), retention=RetentionConfig(('gsm8k',)))
  with pytest.raises(ConfigError, match='evaluate.retention.path is none'):
    retention.open_sets(config, VIEW, GradeConfig(), TOKENIZER)


def test_an_unknown_name_is_refused(tmp_path):
  config = dataclasses.replace(EvaluateConfig(), retention=RetentionConfig(('gsm9k',), str(tmp_path)))
  with pytest.raises(ConfigError, match='gsm8k'):
    retention.open_sets(config, VIEW, GradeConfig(), TOKENIZER)


def test_mathematics_in_a_run_about_programs_has_its_own_words_and_rules(file, tmp_path):
  real_text.write_tokenizer(tmp_path)
  tokenizer = make_tokenizer(TokenizerConfig(path=str(tmp_path)))
  wide = dataclasses.replace(VIEW, student='Code: {problem}')
  (one,) = retention.open_sets(evaluation(file), wide, GradeConfig(rules='programs'), tokenizer)
  assert one.views.student == retention.protocols.PROMPTS['maths']
  verdicts = one.mark(one.problems[:2], [r'\boxed{0}', '```python\nprint(1)\n```'])
  assert verdicts.correct.tolist() == [True, False]
