"""Chat templates: what they are given, what they may do, and the conversations they write."""

import pytest

from opsd_jax.config import ConfigError
from opsd_jax.text import chat as lib
from opsd_jax.text.chat import ChatTemplate, Message

ASK = [Message('user', 'Q')]
TURNS = [Message('system', 'S'), Message('user', 'Q'), Message('assistant', 'A'), Message('user', 'R')]


def template(source, **variables):
  return ChatTemplate(source, 'a.jinja', variables)


def render(source, messages=ASK, thinking=None, **variables):
  return lib.render(template(source, **variables), messages, thinking)


@pytest.mark.parametrize(
  ('source', 'expected'),
  [
    ('{{ messages[0].role }}:{{ messages[0]["content"] }}', 'user:Q'),
    ('{{ add_generation_prompt }} {{ tools is none }} {{ documents is none }}', 'True True True'),
    ('{{ bos_token }}{{ eos_token }}', '<s>'),
    ('{% if true %}\n  a\n  {% endif %}\nb', '  a\nb'),
    ('{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}', '01'),
    ('{{ {"é": "<&>"} | tojson }}', '{"é": "<&>"}'),
    ('{{ [1] | tojson(indent=1) }}', '[\n 1\n]'),
    ('{{ strftime_now("%%Y") }}', '%Y'),
    ('{% generation %}{{ messages[0].content }}{% endgeneration %}!', 'Q!'),
    ('{% set ns = namespace(n=0) %}{% generation %}{% set ns.n = 7 %}{% endgeneration %}{{ ns.n }}', '7'),
  ],
)
def test_what_a_template_is_given(source, expected):
  assert render(source, bos_token='<s>') == expected


def test_thinking_is_left_to_the_template_unless_asked_for():
  source = '{{ enable_thinking is defined }} {{ enable_thinking }}'
  shown = [render(source, thinking=thinking) for thinking in (None, True, False)]
  assert shown == ['False ', 'True True', 'True False']


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('{{ raise_exception("No system role!") }}', r'a.jinja fails.*\(user\).*No system role!.*chat_template'),
    ('{{ messages[7].role }}', 'a.jinja fails .*UndefinedError'),
    ('{{ messages[0].content + 1 }}', 'a.jinja fails .*TypeError'),
    ('{{ messages.__class__.__base__ }}', "a.jinja does what .* may not do.*'__class__'.*chat_template"),
    ('{% set x = messages.append(1) %}', 'a.jinja does what .* may not do.*append'),
    ('{{ raise_exception.__globals__.os }}', "may not do.*'__globals__'"),
    ('\n{% if %}', 'a.jinja cannot be parsed, line 2: .*chat_template'),
    ('{% generation %}', 'a.jinja cannot be parsed, line 1: .*endgeneration'),
  ],
)
def test_templates_that_cannot_work(source, message):
  with pytest.raises(ConfigError, match=message):
    render(source)


QWEN = '<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n'
QWEN_TURNS = (
  '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n'
  '<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n'
)
NO_THOUGHT = '<think>\n\n</think>\n\n'
GEMMA = '<B><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n'
GEMMA_TURNS = (
  '<B><start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n'
  '<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n'
)
# The question alone; the same with thinking off; and a conversation, None where the template refuses it.
GOLDEN = {
  'qwen3': (QWEN, QWEN + NO_THOUGHT, QWEN_TURNS),
  'qwen3_training': (QWEN, QWEN + NO_THOUGHT, QWEN_TURNS.replace('\nA', f'\n{NO_THOUGHT}A')),
  'qwen3_nonthinking': (QWEN + NO_THOUGHT, QWEN + NO_THOUGHT, QWEN_TURNS + NO_THOUGHT),
  'qwen3_instruct_2507': (QWEN, QWEN, QWEN_TURNS),
  'qwen2_5': (
    *[
      '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n'
      + QWEN
    ]
    * 2,
    QWEN_TURNS,
  ),
  'gemma': (GEMMA, GEMMA, None),
  'gemma3': (GEMMA, GEMMA, GEMMA_TURNS),
  'gemma3_training': (GEMMA, GEMMA, GEMMA_TURNS),
  'llama3': (
    *[
      '<B><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>'
      '<|start_header_id|>assistant<|end_header_id|>\n\n'
    ]
    * 2,
    '<B><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>'
    '<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>'
    '<|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n',
  ),
  'deepseekv3': (
    *['<B><｜User｜>Q<｜Assistant｜><think>\n'] * 2,
    '<B>S<｜User｜>Q<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>R<｜Assistant｜><think>\n',
  ),
}


@pytest.mark.data
@pytest.mark.parametrize('name', GOLDEN)
def test_templates_of_models(data_root, name):
  source = (data_root / 'tokenizers' / 'chat_templates_trl' / f'{name}.jinja').read_text(encoding='utf-8')
  asked, without, turns = GOLDEN[name]
  made = template(source, bos_token='<B>')
  assert lib.render(made, ASK) == lib.render(made, ASK, True) == asked
  assert lib.render(made, ASK, False) == without
  if turns is None:
    with pytest.raises(ConfigError, match='system, user, assistant, user.*System role not supported'):
      lib.render(made, TURNS)
  else:
    assert lib.render(made, TURNS) == turns


@pytest.mark.data
def test_every_template_here_is_tested(data_root):
  folder = data_root / 'tokenizers' / 'chat_templates_trl'
  assert {path.stem for path in folder.iterdir()} <= set(GOLDEN)
