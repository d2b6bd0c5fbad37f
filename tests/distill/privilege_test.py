"""What a teacher sees beyond the question: parts of the solution, siblings, feedback, its own analysis."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.data.chains import make_problem
from opsd_jax.distill import privilege, views
from opsd_jax.distill.config import ViewsConfig, validate_views
from opsd_jax.records import Rollout
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer

TOKENIZER = make_tokenizer(TokenizerConfig())
PROBLEM, OTHER = make_problem('3+*-'), make_problem('5--')  # solution of the first: 3+4,4*8,8-7,=7


def teacher(config, problem=PROBLEM, row=None):
  return views.teacher_prompts(config, problem, TOKENIZER, row)[0]


@pytest.mark.parametrize(
  ('share', 'shown'), [(0.0, ''), (0.1, '3+'), (0.5, '3+4,4*8'), (1.0, '3+4,4*8,8-7,=7')]
)
def test_the_beginning_of_the_solution(share, shown):
  config = ViewsConfig(teacher='{problem}|{solution_start}:', solution_fraction=share)
  assert teacher(config) == f'3+*-|{shown}:'


def test_the_answer_alone_and_nothing_at_all():
  assert teacher(ViewsConfig(teacher='{problem}={answer}:')) == '3+*-=7:'
  config = ViewsConfig(student='{problem}:', teacher='{problem}:')
  assert teacher(config) == views.student_prompt(config, PROBLEM, TOKENIZER)


@pytest.mark.parametrize(
  ('template', 'used'),
  [('{problem}:', set()), ('{sibling}{attempt}', {'sibling', 'attempt'}), ('{{feedback}}', set())],
)
def test_which_texts_of_rows_a_template_shows(template, used):
  assert privilege.used(template) == used


def test_feedback_is_on_the_rows_own_answer():
  config = ViewsConfig(teacher='{problem}|{attempt}{feedback}:', feedback_right='+', feedback_wrong='-')
  rows = privilege.of_rows(config, ['=7', '=8'], [True, False])
  assert [teacher(config, row=row) for row in rows] == ['3+*-|=7+:', '3+*-|=8-:']


def test_siblings_go_round():
  config = ViewsConfig(teacher='{problem}|{sibling}:')
  rows = privilege.of_rows(config, ['a', 'b', 'c'], [True, False, True])
  assert [row['sibling'] for row in rows] == ['c', 'c', 'a']
  assert privilege.of_rows(config, ['a', 'b'], [True, False])[0] is None, 'none is its own sibling'


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_a_sibling_is_right_and_another_row(correct):
  config = ViewsConfig(teacher='{sibling}')
  rows = privilege.of_rows(config, [str(i) for i in range(len(correct))], correct)
  for row, texts in enumerate(rows):
    others = {i for i, right in enumerate(correct) if right and i != row}
    assert (texts is None) == (not others)
    assert texts is None or int(texts['sibling']) in others


def test_prompts_of_rows():
  config = ViewsConfig(teacher='{problem}|{sibling}:', teacher_tokens=10)
  completions, correct = ['=7', '=1', '=3', '=2'], [True, False, False, False]
  prompts, kept = views.row_batch(config, [PROBLEM, OTHER], TOKENIZER, completions, correct)
  assert kept.tolist() == [False, True, False, False]
  texts = [TOKENIZER.decode(row[:n].tolist()) for row, n in zip(prompts.ids, prompts.length)]
  assert texts == ['3+*-|:', '3+*-|=7:', '5--|:', '5--|:']
  assert prompts.problem_id.tolist() == [views.stable_id(p) for p in (PROBLEM, PROBLEM, OTHER, OTHER)]


def test_a_row_whose_prompt_is_too_long_has_no_view():
  config = ViewsConfig(teacher='{problem}|{sibling}:', teacher_tokens=8)
  _, kept = views.row_batch(config, [OTHER], TOKENIZER, ['=3', '=33'], [True, True])
  assert kept.tolist() == [False, True]  # BOS and 8 or 7 characters


# The teacher's own analysis.

ANALYSIS = ViewsConfig(
  analysis='{problem}|{reference}:', analysis_tokens=4, teacher='|{problem}:', teacher_tokens=22
)


def test_what_the_teacher_wrote_stands_between_what_it_was_asked_and_what_follows():
  asked = views.analysis_batch(ANALYSIS, [PROBLEM, OTHER], TOKENIZER)
  ids = np.int32([[9, 8, TOKENIZER.eos_ids[0], 0], [7, 7, 7, 7]])
  floats, zeros = np.zeros((2, 4), np.float32), np.zeros(2, np.int32)
  written = Rollout(ids, np.int32([3, 4]), np.array([True, False]), floats, floats, zeros, zeros)
  prompts = views.with_analysis(ANALYSIS, [PROBLEM, OTHER], TOKENIZER, asked, written)
  for row, (problem, drawn) in enumerate(((PROBLEM, [9, 8]), (OTHER, [7, 7, 7, 7]))):
    before = TOKENIZER.encode(f'{problem.problem}|{problem.meta["reference"]}:')
    wanted = [*TOKENIZER.bos_ids, *before, *drawn, *TOKENIZER.encode(f'|{problem.problem}:')]
    assert prompts.ids[row, : prompts.length[row]].tolist() == wanted


def test_room_is_left_for_the_analysis():
  # BOS, 9 characters, 4 of the analysis, 6 characters.
  assert views.misfit(dataclasses.replace(ANALYSIS, teacher_tokens=20), PROBLEM, TOKENIZER) is None
  short = views.misfit(dataclasses.replace(ANALYSIS, teacher_tokens=19), PROBLEM, TOKENIZER)
  wanted = "its teacher's prompt, with views.analysis_tokens (4) between, is longer than views.teacher_tokens"
  assert short == f'{wanted} (19)'


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'solution_fraction': 1.5}, 'views.solution_fraction is 1.5; a share lies in 0..1'),
    ({'analysis': '{problem}'}, 'needs a template and a budget of tokens'),
    ({'analysis_tokens': 5}, 'needs a template and a budget of tokens'),
    ({'analysis_tokens': -5}, 'views.analysis_tokens is -5'),
  ],
)
def test_settings_that_cannot_work(changes, words):
  with pytest.raises(ConfigError, match=words):
    validate_views(ViewsConfig(**changes))
