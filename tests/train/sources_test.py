"""Whose completions an update learns from: the coin, the data's solutions, the teacher's rollouts."""

import dataclasses
import types

import numpy as np
import pytest

from opsd_jax.data.chains import make_problem
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Graded, Prompts, Rollout, Sampled, Verdict
from opsd_jax.rollout.config import RolloutConfig, SamplingConfig
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer
from opsd_jax.train import ledger, sources
from opsd_jax.train.config import SourceConfig
from opsd_jax.train.rejection import RejectConfig

TOKENIZER = make_tokenizer(TokenizerConfig())
PROBLEMS = [make_problem('3+*-'), make_problem('5--')]
TOKENS = 24


def setup(source, per_question=2):
  """As much of a workbench as a source reads."""
  rollout = RolloutConfig(per_question=per_question, sampling=SamplingConfig(max_tokens=TOKENS))
  return types.SimpleNamespace(source=source, rollout=rollout, tokenizer=TOKENIZER)


# The coin.


def test_the_coin_is_a_function_of_seed_and_update():
  config = SourceConfig('solutions', student_share=0.5)
  tosses = {seed: [sources.takes_own(config, seed, n) for n in range(64)] for seed in (0, 1)}
  again = [sources.takes_own(config, 0, n) for n in reversed(range(64))]
  assert tosses[0] == again[::-1]
  assert tosses[0] != tosses[1]
  assert len(set(tosses[0])) == 2


@pytest.mark.parametrize('share', [0.0, 0.25, 0.75])
def test_the_share_of_the_students_updates(share):
  config = SourceConfig('teacher', student_share=share)
  found = np.mean([sources.takes_own(config, 3, n) for n in range(2000)])
  assert abs(found - share) <= 4.5 * np.sqrt(share * (1 - share) / 2000)


def test_a_larger_share_adds_updates_and_takes_none_away():
  few, many = (SourceConfig('teacher', student_share=share) for share in (0.3, 0.6))
  pairs = [(sources.takes_own(few, 0, n), sources.takes_own(many, 0, n)) for n in range(200)]
  assert (True, False) not in pairs and (False, True) in pairs


def test_the_student_alone():
  assert all(sources.takes_own(SourceConfig(), 0, n) for n in range(50))


# Solutions.


def test_solutions_are_completions_token_by_token():
  drawn = sources.of_data(setup(SourceConfig('solutions')), PROBLEMS)
  assert drawn.spent == ledger.Ledger(given=int(drawn.rollout.length.sum()))
  rollout = drawn.rollout
  for row, problem in enumerate(PROBLEMS):
    wanted = [*TOKENIZER.encode(problem.solution), TOKENIZER.eos_ids[0]]
    assert rollout.ids[row, : rollout.length[row]].tolist() == wanted
  assert rollout.ids.shape == (2, TOKENS) and rollout.stopped.all() and not drawn.own
  assert drawn.spent.sampled == drawn.spent.flops == 0
  assert rollout.policy_version.tolist() == [-1, -1]


def test_another_text_may_be_the_solution():
  drawn = sources.of_data(setup(SourceConfig('solutions', completion='{reference}={answer}')), PROBLEMS)
  texts = [TOKENIZER.decode(row[:n].tolist()) for row, n in zip(drawn.rollout.ids, drawn.rollout.length)]
  assert texts == ['487=7', '43=3']


def test_solutions_that_cannot_be_completions():
  config = SourceConfig('solutions')
  assert sources.misfit(config, PROBLEMS[0], TOKENIZER, 15) is None  # 14 characters and an EOS
  assert 'rollout.sampling.max_tokens (14)' in sources.misfit(config, PROBLEMS[0], TOKENIZER, 14)
  empty = dataclasses.replace(PROBLEMS[0], solution=' ')
  assert 'source.completion is empty' in sources.misfit(config, empty, TOKENIZER, 15)


# The teacher's rollouts.

SEEN = Prompts(np.ones((2, 3), np.int32), np.int32([3, 2]), np.arange(2, dtype=np.uint32))
SPEC = ModelSpec()


@pytest.fixture
def draws(monkeypatch):
  """Stands in for the sampler: the ids of attempt a are all 10 + a; notes the budgets that it was given."""
  budgets = []

  def sample(setup, spec, params, prompts, number, *, attempt=0, max_tokens=None):
    budgets.append(None if max_tokens is None else max_tokens.tolist())
    length = np.full(4, 5, np.int32) if max_tokens is None else np.minimum(max_tokens, 5).astype(np.int32)
    floats = np.zeros((4, TOKENS), np.float32)
    ids = np.full((4, TOKENS), 10 + attempt, np.int32)
    index, version = np.int32([0, 1, 0, 1]), np.full(4, number, np.int32)
    rollout = Rollout(ids, length, length > 0, floats, floats, index, version)
    return Sampled(rollout, 6, np.int32(length.sum()))

  monkeypatch.setattr(sources, 'sample', sample)
  return budgets


def judge_by(right):
  """A grader that calls row b right once its ids are those of attempt `right[b]`."""

  def judge(rollout):
    hits = rollout.ids[:, 0] == 10 + np.array(right)
    return Graded(tuple(Verdict.CORRECT if hit else Verdict.WRONG for hit in hits))

  return judge


def test_rejected_rollouts_are_drawn_again_and_then_left_out(draws):
  config = SourceConfig('teacher', keep='correct', attempts=3)
  drawn = sources.of_teacher(setup(config), SPEC, None, SEEN, 7, judge_by([0, 2, 1, 9]))
  assert draws == [None, [0, TOKENS, TOKENS, TOKENS], [0, TOKENS, 0, TOKENS]]
  assert drawn.rollout.ids[:3, 0].tolist() == [10, 12, 11]
  assert drawn.rollout.length.tolist() == [5, 5, 5, 0]
  assert drawn.rollout.policy_version.tolist() == [-1] * 4 and drawn.rollout.ids.dtype == np.int32
  assert drawn.spent.sampled == 5 * (4 + 3 + 2), 'what was rejected is paid for'
  assert not drawn.own and drawn.rejected == {'wrong': 3 + 2 + 1}


def test_attempts_end_when_all_are_right(draws):
  config = SourceConfig('teacher', keep='correct', attempts=9)
  drawn = sources.of_teacher(setup(config), SPEC, None, SEEN, 0, judge_by([0, 1, 0, 1]))
  assert len(draws) == 2 and drawn.rollout.length.tolist() == [5] * 4


def test_all_rollouts_may_be_kept(draws):
  drawn = sources.of_teacher(setup(SourceConfig('teacher')), SPEC, None, SEEN, 0, judge_by([9] * 4))
  assert draws == [None] and drawn.rollout.length.tolist() == [5] * 4
  assert drawn.rejected == {}


def not_asked(rollout):
  raise AssertionError('only source.keep=correct asks for verdicts')


def test_rollouts_are_rejected_for_their_text_and_drawn_again(draws, monkeypatch):
  """Row b of attempt a is the text there; a sampler that comes to an end where there is a full stop."""
  texts = [['ab', 'x1.', 'y2.', '11111.'], ['-', 'no.', '-', '11112.'], ['-', 'x3.', '-', '3333333.']]
  plain = sources.sample

  def sample(*args, attempt=0, **more):
    drawn = plain(*args, attempt=attempt, **more)
    ids = np.array(drawn.rollout.ids)
    ids[:, 0] = 100 + 4 * attempt + np.arange(4)
    stopped = np.array([text.endswith('.') for text in texts[attempt]])
    return drawn._replace(rollout=drawn.rollout.replace(ids=ids, stopped=stopped))

  def decode_rollout(rollout, tokenizer):
    return [texts[place // 4][place % 4] for place in rollout.ids[:, 0] - 100]

  monkeypatch.setattr(sources, 'sample', sample)
  monkeypatch.setattr(sources, 'decode_rollout', decode_rollout)
  rules = RejectConfig(truncated=True, lacking='.', window_times=4, window_chars=1, window_stride=1)
  config = SourceConfig('teacher', attempts=3, reject=rules)
  drawn = sources.of_teacher(setup(config), SPEC, None, SEEN, 7, not_asked)
  assert drawn.rejected == {'truncated': 1 + 1 + 1, 'lacking': 0, 'windows': 1 + 1 + 1}
  assert draws == [None, [TOKENS, 0, 0, TOKENS], [TOKENS, 0, 0, TOKENS]]
  assert drawn.rollout.length.tolist() == [0, 5, 5, 0] and drawn.spent.sampled == 5 * (4 + 2 + 2)
  assert drawn.rollout.ids[1:3, 0].tolist() == [101, 102], 'what was kept is not drawn again'

  draws.clear()
  config = SourceConfig('teacher', keep='correct', attempts=2, reject=rules)
  right = Graded((Verdict.CORRECT, Verdict.CORRECT, Verdict.WRONG, Verdict.WRONG))
  drawn = sources.of_teacher(setup(config), SPEC, None, SEEN, 7, lambda rollout: right)
  # Row 2 is wrong, and then does not end.
  assert drawn.rejected == {'truncated': 1 + 2, 'lacking': 0, 'windows': 1 + 1, 'wrong': 1}
  assert drawn.rollout.length.tolist() == [0, 5, 0, 0], 'both rules at once'
