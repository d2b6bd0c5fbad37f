"""What student and teacher see: templates, their errors, and the ids they become."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import recipes
from opsd_jax.config import ConfigError
from opsd_jax.data.chains import ChainsConfig, draw_problems, make_problem
from opsd_jax.distill import views
from opsd_jax.distill.config import ViewsConfig, validate_views
from opsd_jax.records import Problem
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer

TOKENIZER = make_tokenizer(TokenizerConfig())
PROBLEM = Problem(
  id='a/1',
  problem='two {things}',
  solution='s{0}',
  answer='7',
  source='test',
  meta={'reference': '4 {}', 'hint': '{{h}}', '0': 'first'},
)
QUICKSTART = recipes.load('quickstart')


@pytest.mark.parametrize(
  ('template', 'text'),
  [
    ('{problem}:', 'two {things}:'),
    ('{answer}/{solution}/{reference}', '7/s{0}/4 {}'),
    ('{problem}{problem} {hint}', 'two {things}two {things} {{h}}'),
    ('no field', 'no field'),
    ('', ''),
    ('{{problem}} {answer}', '{problem} 7'),
    ('{0}, {answer}{{}}', 'first, 7{}'),
  ],
)
def test_templates_are_filled_and_braces_in_texts_are_data(template, text):
  assert views.fill(template, PROBLEM, 'views.student') == text


@settings(max_examples=40)
@given(st.text('{}a:!0', max_size=12))
def test_any_text_of_a_problem_comes_through_unchanged(text):
  problem = dataclasses.replace(PROBLEM, problem=text, meta={'reference': text})
  assert views.fill('<{problem}|{reference}>', problem, 'views.teacher') == f'<{text}|{text}>'


@pytest.mark.parametrize(
  ('template', 'words'),
  [
    ('{problm}', ["views.teacher is '{problm}'", "problem 'a/1'", "'problm'", "mean 'problem'"]),
    ('{refrence}', ["mean 'reference'"]),
    ('{xyz}', ['Valid names: 0, answer, hint, problem, reference, solution']),
    ('{}', ["no text ''"]),
    ('{1}', ["no text '1'"]),
    ('{problem.id}', ["mean 'problem'"]),
  ],
)
def test_an_unknown_field_names_the_nearest(template, words):
  with pytest.raises(ConfigError) as caught:
    views.fill(template, PROBLEM, 'views.teacher')
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
  'template', ['{problem', 'problem}', '{', '}', '{problem!x}', '{problem:d}', '{problem:{nope}}']
)
def test_a_malformed_template_names_its_setting(template):
  with pytest.raises(ConfigError, match='views.student is'):
    views.fill(template, PROBLEM, 'views.student')


def test_stable_id_never_changes():
  # CRC-32 of the id's bytes: a change would change every sampled token.
  assert views.stable_id(make_problem('3+*-')) == 2983454022
  # The standard's own check value.
  assert views.stable_id(dataclasses.replace(PROBLEM, id='123456789')) == 0xCBF43926


def test_prompts_are_right_padded_and_begin_with_bos():
  problems = [make_problem('3+'), make_problem('4-')]
  texts, setting = ['3+:', '4'], 'views.student_tokens'
  prompts = views.tokenize_prompts(ViewsConfig(), texts, problems, TOKENIZER, 6, setting)
  assert prompts.ids.tolist() == [[1, 6, 13, 19, 0, 0], [1, 7, 0, 0, 0, 0]]
  assert prompts.length.tolist() == [4, 2]
  assert prompts.problem_id.tolist() == [views.stable_id(p) for p in problems]
  assert [x.dtype for x in (prompts.ids, prompts.length, prompts.problem_id)] == [
    np.int32,
    np.int32,
    np.uint32,
  ]


def test_a_prompt_that_just_fits_and_one_that_does_not():
  problem = make_problem('3+*-')
  config = ViewsConfig('{problem}:', '{problem}:', student_tokens=6, teacher_tokens=5)
  assert views.student_batch(config, [problem], TOKENIZER).length.tolist() == [6]
  with pytest.raises(ConfigError) as caught:
    views.teacher_batch(config, [problem], TOKENIZER)
  assert all(
    word in str(caught.value)
    for word in ("'chain/3+*-'", '6 tokens', 'views.teacher_tokens is 5', 'raise it')
  )


def test_a_prompt_outside_of_the_alphabet_is_refused():
  with pytest.raises(ConfigError, match='tokenizer.alphabet'):
    views.student_batch(ViewsConfig(student='Solve {problem}'), [make_problem('3+')], TOKENIZER)


def student(problem):
  return views.prompt(QUICKSTART.views, problem, 'student', TOKENIZER)


def teacher(problem):
  return views.prompt(QUICKSTART.views, problem, 'teacher', TOKENIZER)


def problems_of_quickstart(count=64):
  return draw_problems(ChainsConfig(train=count, validation=1, test=1))[:count]


def test_the_student_of_the_quickstart_sees_no_privilege():
  for problem in problems_of_quickstart():
    prompt = student(problem)
    assert problem.solution not in prompt and problem.meta['reference'] not in prompt
    assert prompt == f'{problem.problem}:'


def test_the_students_prompt_is_a_function_of_the_question_alone():
  for problem in problems_of_quickstart(8):
    other = dataclasses.replace(problem, solution='?', answer='?', meta={'reference': '?'})
    assert student(other) == student(problem)
    assert teacher(other) != teacher(problem)


def test_the_teachers_ids_hold_the_students_question_and_the_reference():
  config, problems = QUICKSTART.views, problems_of_quickstart(16)
  asked = views.student_batch(config, problems, TOKENIZER)
  (told,) = views.teacher_batch(config, problems, TOKENIZER)
  assert asked.ids.shape == (16, config.student_tokens)
  assert told.ids.shape == (16, config.teacher_tokens)
  assert (asked.problem_id == told.problem_id).all()
  for row, problem in enumerate(problems):
    mine, theirs = (p.ids[row, : p.length[row]].tolist() for p in (asked, told))
    assert mine == [1, *TOKENIZER.encode(f'{problem.problem}:')]
    assert theirs == mine[:-1] + TOKENIZER.encode(f'|{problem.meta["reference"]}:')


def test_a_teacher_without_privilege_has_the_students_ids():
  config = ViewsConfig(teacher='{problem}:', student_tokens=12, teacher_tokens=12)
  problems = problems_of_quickstart(4)
  asked = views.student_batch(config, problems, TOKENIZER)
  (told,) = views.teacher_batch(config, problems, TOKENIZER)
  np.testing.assert_array_equal(asked.ids, told.ids)


def test_the_prompt_of_a_role():
  problem = make_problem('3+*-')
  assert student(problem) == '3+*-:'
  assert teacher(problem) == '3+*-|487:'


@pytest.mark.parametrize('field', ['student_tokens', 'teacher_tokens'])
def test_widths_that_hold_no_prompt(field):
  with pytest.raises(ConfigError, match=f'views.{field} is 0; it must be positive'):
    validate_views(ViewsConfig(**{field: 0}))
