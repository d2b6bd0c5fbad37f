"""Handmade rows in the shapes of well-known data sets; the question alone becomes the problem."""

import dataclasses

import pytest

from opsd_jax.config import ConfigError
from opsd_jax.data import fields
from opsd_jax.data.schemas import FieldsConfig

BEFORE = (
  'Solve the following math problem step by step. The last line of your response should be of the form '
  'Answer: $Answer (without quotes) where $Answer is the answer to the problem.'
)
AFTER = 'Remember to put your answer on its own line after "Answer:".'
BOXED = 'Please reason step by step, and put your final answer within \\boxed{{}}.'


def read(row, config):
  config = FieldsConfig.named(config) if isinstance(config, str) else config
  return fields.reader(config, 'train', 'ours', lambda i: f'line {i}')(0, row)


def refused(row, config):
  with pytest.raises(ConfigError) as caught:
    read(row, config)
  return str(caught.value)


def verl(content, answer='34'):
  return {
    'data_source': 'math_dapo',
    'prompt': [{'content': content, 'role': 'user'}],
    'reward_model': {'ground_truth': answer, 'style': 'rule'},
    'extra_info': {'index': 'a-b', 'question': 'the bare question'},
  }


def texts(problem):
  return problem.problem, problem.solution, problem.answer


@pytest.mark.parametrize('space', ['\n\n', ' ', '', '\r\n \n'])
def test_dapo_without_its_instruction(space):
  found = read(verl(f'{BEFORE}{space}What is $1+1$?\nSay it.{space}{AFTER}'), 'dapo')
  assert texts(found) == ('What is $1+1$?\nSay it.', '', '34')


def test_dapo_in_its_other_form():
  assert texts(read(verl(f'What is $1+1$? {BOXED}'), 'dapo_boxed')) == ('What is $1+1$?', '', '34')
  single = dataclasses.replace(FieldsConfig.named('verl'), suffix=BOXED.replace('{{}}', '{}'))
  assert read(verl('Say $x$. ' + BOXED.replace('{{}}', '{}')), single).problem == 'Say $x$.'


@pytest.mark.parametrize(
  ('content', 'name', 'words'),
  [
    ('What is $1+1$?', 'dapo', ['line 0', 'does not begin with data.fields.prefix', "'What is $1+1$?'"]),
    (f'{BEFORE}\n\nWhat?', 'dapo', ['does not end with data.fields.suffix', 'schema of this file']),
    ('What? ' + BOXED.replace('{{}}', '{}'), 'dapo_boxed', ['does not end with data.fields.suffix']),
    (f'{BEFORE}\n\n{AFTER}', 'dapo', ['nothing but the instruction', 'prompt.0.content']),
    (BEFORE.lower() + AFTER, 'dapo', ['does not begin with']),
  ],
)
def test_a_row_without_the_instruction(content, name, words):
  message = refused(verl(content), name)
  assert all(word in message for word in words), message


def test_the_instruction_itself_may_stand_in_the_question():
  inner = f'Is "{AFTER}" clear?'
  assert read(verl(f'{BEFORE}\n\n{inner}\n\n{AFTER}'), 'dapo').problem == inner


def test_a_question_without_instruction_keeps_its_spaces():
  assert read(verl(' What? \n'), 'verl').problem == ' What? \n'


def test_a_long_question_is_cut_in_a_message():
  message = refused(verl('x' * 5000), 'dapo')
  assert len(message) < 800 and 'x' * 100 + ' ... ' + 'x' * 100 in message


ROWS = {
  'deepmath': (
    {
      'question': 'q',
      'final_answer': '\\frac{1}{2}',
      'difficulty': 5.5,
      'topic': 'Mathematics -> Algebra',
      'r1_solution_1': 'first',
      'r1_solution_2': 'second',
      'r1_solution_3': 'third',
    },
    ('q', 'first', '\\frac{1}{2}'),
  ),
  'deepmath_verl': (verl('the bare question, wrapped', 'Yes'), ('the bare question', '', 'Yes')),
  'roll': (
    {'prompt': 'q', 'ground_truth': '7', 'difficulty': '5', 'tag': 'deepmath', 'messages': '[]'},
    ('q', '', '7'),
  ),
  'openthoughts': (
    {'problem': 'q', 'solution': 's', 'Answer': 12, 'COT_Reason': 'thought'},
    ('q', 's', '12'),
  ),
  'openthoughts_114k': (
    {
      'problem': 'q',
      'deepseek_reasoning': 'long',
      'deepseek_solution': 'other \\boxed{9}',
      'ground_truth_solution': 'So \\boxed{2}, no: \\boxed{\\frac{1}{3}}.',
      'domain': 'math',
      'source': 'olympiads',
      'test_cases': None,
      'starter_code': None,
    },
    ('q', 'So \\boxed{2}, no: \\boxed{\\frac{1}{3}}.', '\\frac{1}{3}'),
  ),
}


@pytest.mark.parametrize('name', sorted(ROWS))
def test_schemas(name):
  row, expected = ROWS[name]
  found = read(row, name)
  assert texts(found) == expected and (found.id, found.source) == ('train/0', 'ours')
  columns = FieldsConfig.named(name).columns()
  assert texts(read({k: v for k, v in row.items() if k in columns}, name)) == expected


def test_openthoughts_keeps_the_thoughts_for_views():
  assert read(ROWS['openthoughts'][0], 'openthoughts').meta == {'COT_Reason': 'thought'}


@pytest.mark.parametrize(
  ('solution', 'answer'),
  [
    ('\\boxed{5}', '5'),
    ('\\boxed {5}', '5'),
    ('\\boxed{\\{1, 2\\}} is it', '\\{1, 2\\}'),
    ('\\boxed{ a{b{c}}d } and {more}', 'a{b{c}}d'),
  ],
)
def test_the_answer_in_a_box(solution, answer):
  row = {'problem': 'q', 'ground_truth_solution': solution}
  assert texts(read(row, 'openthoughts_114k')) == ('q', solution, answer)


@pytest.mark.parametrize(
  'solution', ['no box', '\\boxed{', '\\boxed{}', '\\boxed{ }', '\\boxed 5', '\\boxed{a{b}']
)
def test_a_box_without_an_answer(solution):
  message = refused({'problem': 'q', 'ground_truth_solution': solution}, 'openthoughts_114k')
  assert 'line 0' in message and 'answer_marker' in message
