"""The published protocols: their numbers, and what a model is asked under them."""

import dataclasses

import pytest

from opsd_jax.config import ConfigError
from opsd_jax.distill import views
from opsd_jax.evaluate import catalogue, protocols
from opsd_jax.records import Problem
from opsd_jax.rollout.config import validate_sampling
from opsd_jax.text.chat import Message

# samples, temperature, top_p, tokens, thinking, seed
NUMBERS = {
  'opsd': (12, 1.0, 0.95, 38912, True, 0),
  'rethinking_opd': (16, 0.7, 0.95, 31744, False, 0),
  'effopd': (32, 1.0, 1.0, 16384, False, 42),
  'renio': (12, 1.0, 0.95, 38912, True, 0),
}


@pytest.mark.parametrize('name', NUMBERS)
def test_numbers(name):
  p = protocols.find(name)
  s = p.sampling
  assert (p.samples, s.temperature, s.top_p, s.max_tokens, p.thinking, p.seed) == NUMBERS[name]
  assert (s.top_k, s.min_p, p.name) == (None, 0.0, name)
  assert p.rules in ('opsd', 'strict') and p.max_prompt_tokens > 0
  validate_sampling('sampling', s, 151_669)


def test_all_are_tested():
  assert list(NUMBERS) == list(protocols.PROTOCOLS)


def test_opsd_fits_the_length_of_its_model():
  assert protocols.OPSD.max_prompt_tokens + protocols.OPSD.sampling.max_tokens == 40_960


@pytest.mark.parametrize('name', NUMBERS)
def test_their_benchmarks_are_known_by_these_names(name):
  found = [catalogue.find(benchmark) for benchmark in protocols.find(name).benchmarks]
  assert [benchmark.name for benchmark in found] == list(protocols.find(name).benchmarks)
  assert all(benchmark.kind in protocols.find(name).prompts for benchmark in found)


def test_programs_are_asked_by_renio_alone():
  kinds = {n: {catalogue.find(b).kind for b in p.benchmarks} for n, p in protocols.PROTOCOLS.items()}
  assert {name for name, some in kinds.items() if 'programs' in some} == {'renio'}


@dataclasses.dataclass(frozen=True)
class Shouting:
  """A tokenizer whose template shows what it is given."""

  def protect(self, text):
    return f'<{text}>'

  def chat(self, messages: list[Message], *, thinking=None):
    return '/'.join(f'{m.role}: {m.content}' for m in messages) + f' [{thinking}]'


PROBLEM = Problem('a/1', r'What is {x} in \{1\}?', '', '', 'a')


def test_what_is_asked():
  text = views.student_prompt(protocols.OPSD.views('maths'), PROBLEM, Shouting())
  assert text == (
    'user: <What is {x} in \\{1\\}?>\n\n'
    'Please reason step by step, and put your final answer within \\boxed{}. [True]'
  )
  text = views.student_prompt(protocols.EFFOPD.views('choice', 'Be brief.'), PROBLEM, Shouting())
  assert text.startswith('system: Be brief./user: <What') and text.endswith(' [False]')
  assert 'the letter' in text and text.count('\\boxed{}') == 1
  text = views.student_prompt(protocols.RENIO.views('programs'), PROBLEM, Shouting())
  assert '```python' in text and 'boxed' not in text


def test_an_unknown_one():
  with pytest.raises(ConfigError, match="--protocol=opd is unknown. Did you mean 'opsd'"):
    protocols.find('opd')
