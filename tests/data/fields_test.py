"""Rows as people have them become problems, or a message that names the field."""

import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.data import fields
from opsd_jax.data.config import FieldsConfig
from opsd_jax.records import Problem


def read(row, config=FieldsConfig(), number=3):
  return fields.reader(config, 'train', 'ours', lambda i: f'ours.jsonl, line {i + 1}')(number, row)


def refused(row, config=FieldsConfig()):
  with pytest.raises(ConfigError) as caught:
    read(row, config)
  assert str(caught.value).startswith('ours.jsonl, line 4')
  return str(caught.value)


def test_the_default_fields():
  row = {'problem': '1 + 1?', 'solution': 'It is 2.', 'answer': ' 2\n', 'other': 0}
  assert read(row) == Problem('train/3', '1 + 1?', 'It is 2.', '2', 'ours', {})


def test_the_answer_after_the_last_marker():
  row = {'question': 'q', 'answer': 'Write #### 1\nthen\n#### 1,234\n'}
  found = read(row, FieldsConfig.named('gsm8k'))
  assert (found.problem, found.solution, found.answer) == ('q', 'Write #### 1\nthen', '1234')


@pytest.mark.parametrize(
  ('answer', 'expected'),
  [
    ('1,080', '1080'),
    ('$1,450,000.50', '$1450000.50'),
    ('3, 4', '3, 4'),
    ('3,4', '3,4'),
    ('1,0800', '1,0800'),
    ('a, b', 'a, b'),
  ],
)
def test_thousands_after_a_marker(answer, expected):
  marked = {'question': 'q', 'answer': f's\n#### {answer}'}
  assert read(marked, FieldsConfig.named('gsm8k')).answer == expected
  plain = {'problem': 'q', 'solution': 's', 'answer': answer}
  assert read(plain).answer == answer, 'a field of its own stays as it is'


@pytest.mark.parametrize('answer', ['no marker', 'nothing after it ####', '#### \n'])
def test_a_marker_without_an_answer(answer):
  message = refused({'question': 'q', 'answer': answer}, FieldsConfig.named('gsm8k'))
  assert "'answer' has no answer after '####'" in message and 'answer_marker' in message


def test_nested_fields_of_verl():
  row = {
    'prompt': [{'content': 'the question', 'role': 'user'}],
    'reward_model': {'ground_truth': '70', 'style': 'rule'},
    'extra_info': {'index': 'a/5', 'split': 'test'},
  }
  config = FieldsConfig(
    'prompt.0.content', None, 'reward_model.ground_truth', 'extra_info.index', meta=('extra_info.split',)
  )
  assert read(row, config) == Problem('a/5', 'the question', '', '70', 'ours', {'split': 'test'})


def test_a_name_with_dots_of_its_own():
  assert read({'problem': 'q', 'solution': 's', 'a.b': '1'}, FieldsConfig(answer='a.b')).answer == '1'


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (27.0, '27'),
    (0.1, '0.1'),
    (-3, '-3'),
    (10**20, '100000000000000000000'),
    ('027', '027'),
    (True, 'true'),
    (b'caf\xc3\xa9', 'café'),
    (np.int64(5), '5'),
    (np.float32(0.5), '0.5'),
    (1e22, '10000000000000000000000'),
  ],
)
def test_values_become_texts(value, expected):
  assert read({'problem': 'q', 'solution': '', 'answer': value}).answer == expected


@pytest.mark.parametrize(
  ('row', 'words'),
  [
    ({'Problem': 'q', 'solution': 's', 'answer': 1}, ["no field 'problem'", "Did you mean 'Problem'"]),
    ({'problem': 'q', 'solution': 's'}, ["no field 'answer'", 'data.fields.answer', 'Valid names']),
    ({'problem': 'q', 'solution': None, 'answer': '1'}, ["'solution'", 'is null']),
    ({'problem': ' \n', 'solution': 's', 'answer': '1'}, ["'problem'", 'is blank']),
    ({'problem': 'q', 'solution': 's', 'answer': ''}, ["'answer'", 'is blank']),
    ({'problem': 'q', 'solution': 's', 'answer': ['1', '2']}, ['a list of 2', 'answer.0']),
    ({'problem': 'q', 'solution': 's', 'answer': {'value': 1}}, ['a group of fields', 'answer.value']),
    ({'problem': 'q', 'solution': 's', 'answer': float('nan')}, ["'answer'", 'not a finite number']),
    ({'problem': 'q', 'solution': b'\xff', 'answer': 1}, ["'solution'", 'utf-8']),
  ],
)
def test_rows_that_are_no_problem(row, words):
  message = refused(row)
  assert all(word in message for word in words), message


@pytest.mark.parametrize('prompt', [[], 'text', {'0': {}}, [{'role': 'user'}], None])
def test_a_nested_field_that_is_not_there(prompt):
  row = {'prompt': prompt, 'reward_model': {'ground_truth': 1}}
  assert "no field 'prompt.0.content'" in refused(row, FieldsConfig.named('verl'))


@pytest.mark.parametrize('name', ['problem', 'solution', 'answer', 'id', 'hint'])
def test_half_a_character(name):
  row = {'problem': 'q', 'solution': 's', 'answer': '1', 'id': 'a', 'hint': 'h'} | {name: 'x\ud800'}
  message = refused(row, FieldsConfig(id='id', meta=('hint',)))
  assert f'the field {name!r}' in message and 'holds half a character' in message
  assert message.encode()


def test_names_of_a_row_without_end():
  row = {}
  row['a'] = row
  assert max(name.count('.') for name in fields.names(row)) == 15
  assert list(fields.names({'\ud800': 1})) == ['\\ud800']


def test_names_reach_into_a_row():
  row = {'a': 1, 'b': {'c': [{'d': 2}, {'e': 3}]}, 'f': [], 'g': ['x']}
  assert list(fields.names(row)) == ['a', 'b', 'b.c', 'b.c.0', 'b.c.0.d', 'f', 'g', 'g.0']
